// Frames or hops as plain functions, which csrc/python/frame_call.cpp calls with the memory of tensors.
//
// `packed` and `state` are a model and a stream's state of an engine; `shape` is that of `values` and of the output.
// All return 1, or 0 when nothing was done: then the op of stream_ops.cpp says what is wrong.
#include <algorithm>
#include <cstring>
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
    return body(model);
  } catch (const std::exception&) {
    return 0;
  }
}

bool are_finite(const float* values, int64_t count) {
  constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    most = std::max(most, bits & kMagnitude);
  }
  return most < kInfinity;
}

}  // namespace

extern "C" DYNCP_API int dyncp_call_step(const void* packed, void* state, const float* values, const int64_t* shape,
                                         int32_t dims, double shift, float* mask) {
  return done(packed, state, [&](const dyncp::PackedHeader& model) {
    if ((dims != 1 && dims != 2) || shape[dims - 1] != model.geometry.bins) return 0;
    const int64_t frames = dims == 1 ? 1 : shape[0];
    dyncp::step_frames(model, state, values, frames, static_cast<float>(shift), mask, nullptr);
    return 1;
  });
}

extern "C" DYNCP_API int dyncp_call_enhance(const void* packed, void* state, const float* values, const int64_t* shape,
                                            int32_t dims, double shift, float* enhanced) {
  return done(packed, state, [&](const dyncp::PackedHeader& model) {
    if (dims != 1 || shape[0] % model.geometry.hop != 0) return 0;
    const int64_t hops = shape[0] / model.geometry.hop;
    dyncp::enhance_hops(model, state, values, hops, static_cast<float>(shift), enhanced, nullptr);
    return 1;
  });
}

// The same for samples from outside: (count) or (1, count) finite ones.
extern "C" DYNCP_API int dyncp_call_enhance_finite(const void* packed, void* state, const float* values,
                                                   const int64_t* shape, int32_t dims, double shift, float* enhanced) {
  if (dims != 1 && (dims != 2 || shape[0] != 1)) return 0;
  if (!are_finite(values, shape[dims - 1])) return 0;
  return dyncp_call_enhance(packed, state, values, shape + dims - 1, 1, shift, enhanced);
}
