// One frame or one hop as plain functions, for dyncp_kernels/engine.py: the way through torch's dispatcher would take a
// gated network a tenth of its time.
//
// `packed` and `state` belong together, and the arrays have the sizes of the model; the caller has checked that.  All
// return 1, or 0 when nothing was done: then the op of stream_ops.cpp says what is wrong.
#include <exception>

#include "core/dyncp.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"

namespace {

template <class Body>
int done(const void* packed, const void* state, const Body& body) {
  try {
    const auto& model = *static_cast<const dyncp::PackedHeader*>(packed);
    dyncp::check_state(model, state, model.state_bytes);
    body(model);
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

}  // namespace

extern "C" DYNCP_API int dyncp_call_step(const void* packed, void* state, const float* features, double shift,
                                         float* mask) {
  return done(packed, state, [&](const dyncp::PackedHeader& model) {
    dyncp::step_frames(model, state, features, 1, static_cast<float>(shift), mask, nullptr);
  });
}

extern "C" DYNCP_API int dyncp_call_enhance(const void* packed, void* state, const float* samples, double shift,
                                            float* enhanced) {
  return done(packed, state, [&](const dyncp::PackedHeader& model) {
    dyncp::enhance_hops(model, state, samples, 1, static_cast<float>(shift), enhanced, nullptr);
  });
}
