#include "core/dyncp.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/aligned_memory.h"
#include "core/isa.h"
#include "core/model_file.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"

namespace {

// A fixed buffer, so that reporting a lack of memory needs none.
thread_local char last_error[512] = "";

dyncp_status report(dyncp_status status, const char* text) {
  std::strncpy(last_error, text, sizeof(last_error) - 1);
  last_error[sizeof(last_error) - 1] = '\0';
  return status;
}

// Runs `body` and turns what it throws into a status; `invalid` stands for std::invalid_argument.
template <class Body>
dyncp_status guarded(dyncp_status invalid, const Body& body) noexcept {
  try {
    body();
    return DYNCP_OK;
  } catch (const std::invalid_argument& error) {
    return report(invalid, error.what());
  } catch (const std::bad_alloc&) {
    return report(DYNCP_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return report(DYNCP_INTERNAL_ERROR, error.what());
  } catch (...) {
    return report(DYNCP_INTERNAL_ERROR, "unknown error");
  }
}

}  // namespace

struct dyncp_model {
  std::shared_ptr<void> packed;
  std::vector<dyncp::CalibrationPoint> calibration;
  const dyncp::PackedHeader& header() const { return *static_cast<const dyncp::PackedHeader*>(packed.get()); }
};

struct dyncp_stream {
  dyncp_model model;  // keeps the packed weights alive
  dyncp::Memory state;
  std::vector<uint8_t> gates;
  float shift = 0.0f;
  bool is_in_call = false;
};

namespace {

// The shift for a share of kept channels: linear between the points, and that of the nearest one outside.
float shift_for_budget(const std::vector<dyncp::CalibrationPoint>& points, double share) {
  const auto above =
      std::find_if(points.begin(), points.end(), [&](const auto& point) { return point.share >= share; });
  if (above == points.begin()) return static_cast<float>(points.front().shift);
  if (above == points.end()) return static_cast<float>(points.back().shift);
  const auto below = above - 1;
  const double slope = (above->shift - below->shift) / (above->share - below->share);
  return static_cast<float>(slope * (share - below->share) + below->shift);
}

// Whether these are different streams of one model.
bool fit_together(dyncp_stream* const* streams, int64_t count) {
  int64_t seen = 0;
  for (; seen < count; ++seen) {
    dyncp_stream* stream = streams[seen];
    if (stream == nullptr || stream->is_in_call || stream->model.packed != streams[0]->model.packed) break;
    stream->is_in_call = true;
  }
  for (int64_t i = 0; i < seen; ++i) streams[i]->is_in_call = false;
  return seen == count;
}

dyncp_status push(dyncp::Steps steps, const char* name, dyncp_stream* const* streams, int64_t count,
                  const float* values, int64_t frames, float* results) {
  return guarded(DYNCP_INVALID_ARGUMENT, [&] {
    const auto check = [&](bool holds, const char* text) {
      if (!holds) throw std::invalid_argument(std::string(name) + ": " + text);
    };
    check(streams != nullptr && values != nullptr && results != nullptr, "pointers must not be null");
    check(count >= 0 && frames >= 0, "numbers must not be negative");
    check(fit_together(streams, count), "streams must be different ones of one model, none of them null");
    if (count == 0) return;
    const auto get = [](const void* source, int64_t i) {
      const dyncp_stream* stream = static_cast<dyncp_stream* const*>(source)[i];
      return dyncp::Stream{stream->state.get(), stream->shift};
    };
    steps(streams[0]->model.header(), {0, count, streams, get}, values, frames, results, nullptr);
  });
}

}  // namespace

const char* dyncp_last_error(void) { return last_error; }

const char* dyncp_active_instruction_set(void) {
  try {
    return dyncp::isa_name(dyncp::active_isa());
  } catch (const std::exception& error) {
    report(DYNCP_INVALID_ARGUMENT, error.what());
    return "none";
  }
}

dyncp_status dyncp_model_parse(const void* bytes, int64_t count, const char* precision, dyncp_model** model) {
  if (bytes == nullptr || precision == nullptr || model == nullptr || count < 0) {
    return report(DYNCP_INVALID_ARGUMENT, "dyncp_model_parse: pointers must not be null nor count negative");
  }
  *model = nullptr;
  dyncp::Precision kind{};
  const dyncp_status named = guarded(DYNCP_INVALID_ARGUMENT, [&] { kind = dyncp::precision_named(precision); });
  if (named != DYNCP_OK) return named;
  return guarded(DYNCP_INVALID_MODEL, [&] {
    const dyncp::FoldedFile file = dyncp::parse_folded_file(static_cast<const uint8_t*>(bytes), count);
    auto made = std::make_unique<dyncp_model>();
    made->packed = dyncp::allocate(dyncp::packed_bytes(file.view, kind));
    dyncp::pack_model(file.view, kind, made->packed.get());
    made->calibration = file.calibration;
    *model = made.release();
  });
}

dyncp_status dyncp_model_load(const char* path, const char* precision, dyncp_model** model) {
  if (path == nullptr || precision == nullptr || model == nullptr) {
    return report(DYNCP_INVALID_ARGUMENT, "dyncp_model_load: pointers must not be null");
  }
  *model = nullptr;
  std::vector<uint8_t> bytes;
  try {
    bytes = dyncp::read_file(path);
  } catch (const std::bad_alloc&) {
    return report(DYNCP_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return report(DYNCP_IO_ERROR, error.what());
  }
  static const uint8_t nothing = 0;
  return dyncp_model_parse(bytes.empty() ? &nothing : bytes.data(), static_cast<int64_t>(bytes.size()), precision,
                           model);
}

dyncp_info dyncp_model_info(const dyncp_model* model) {
  dyncp_info info{};
  if (model == nullptr) return info;
  const dyncp::Geometry& g = model->header().geometry;
  info.bins = g.bins;
  info.channels = g.channels;
  info.hidden = g.hidden;
  info.blocks = g.blocks;
  info.hidden_gates = g.gates_hidden ? g.hidden : 0;
  info.out_gates = g.gates_out ? g.channels : 0;
  info.n_fft = g.n_fft;
  info.hop = g.hop;
  info.sample_rate = g.sample_rate;
  info.latency = g.n_fft - g.hop;
  return info;
}

void dyncp_model_free(dyncp_model* model) { delete model; }

dyncp_status dyncp_stream_create(const dyncp_model* model, dyncp_stream** stream) {
  if (model == nullptr || stream == nullptr) {
    return report(DYNCP_INVALID_ARGUMENT, "dyncp_stream_create: pointers must not be null");
  }
  *stream = nullptr;
  return guarded(DYNCP_INVALID_ARGUMENT, [&] {
    const dyncp::PackedHeader& header = model->header();
    auto made = std::make_unique<dyncp_stream>();
    made->model = *model;
    made->state = dyncp::allocate(header.state_bytes);
    made->gates.resize(static_cast<size_t>(header.geometry.blocks) * header.gates);
    dyncp::initialise_state(header, dyncp::calibrated_crossover(header), made->state.get());
    *stream = made.release();
  });
}

void dyncp_stream_free(dyncp_stream* stream) { delete stream; }

dyncp_status dyncp_stream_reset(dyncp_stream* stream) {
  if (stream == nullptr) return report(DYNCP_INVALID_ARGUMENT, "dyncp_stream_reset: stream must not be null");
  dyncp::reset_state(stream->model.header(), stream->state.get());
  return DYNCP_OK;
}

dyncp_status dyncp_stream_set_shift(dyncp_stream* stream, float shift) {
  if (stream == nullptr || shift != shift) {
    return report(DYNCP_INVALID_ARGUMENT, "dyncp_stream_set_shift: stream must not be null nor shift NaN");
  }
  stream->shift = shift;
  return DYNCP_OK;
}

dyncp_status dyncp_stream_set_budget(dyncp_stream* stream, float share) {
  if (stream == nullptr || !(share >= 0.0f && share <= 1.0f)) {
    return report(DYNCP_INVALID_ARGUMENT, "dyncp_stream_set_budget: stream must not be null, and share from 0 to 1");
  }
  if (stream->model.calibration.empty()) {
    return report(DYNCP_INVALID_ARGUMENT, "dyncp_stream_set_budget: the model must have gates and a calibration");
  }
  stream->shift = shift_for_budget(stream->model.calibration, share);
  return DYNCP_OK;
}

dyncp_status dyncp_stream_push_frame(dyncp_stream* stream, const float* features, float* mask) {
  return push(dyncp::step_frames, "dyncp_stream_push_frame", &stream, 1, features, 1, mask);
}

dyncp_status dyncp_stream_push_frames(dyncp_stream* stream, const float* features, int64_t frames, float* masks) {
  return push(dyncp::step_frames, "dyncp_stream_push_frames", &stream, 1, features, frames, masks);
}

dyncp_status dyncp_streams_push_frames(dyncp_stream* const* streams, int64_t count, const float* features,
                                       int64_t frames, float* masks) {
  return push(dyncp::step_frames, "dyncp_streams_push_frames", streams, count, features, frames, masks);
}

dyncp_status dyncp_stream_push_hop(dyncp_stream* stream, const float* samples, float* enhanced) {
  return push(dyncp::enhance_hops, "dyncp_stream_push_hop", &stream, 1, samples, 1, enhanced);
}

dyncp_status dyncp_stream_push_hops(dyncp_stream* stream, const float* samples, int64_t hops, float* enhanced) {
  return push(dyncp::enhance_hops, "dyncp_stream_push_hops", &stream, 1, samples, hops, enhanced);
}

dyncp_status dyncp_streams_push_hops(dyncp_stream* const* streams, int64_t count, const float* samples, int64_t hops,
                                     float* enhanced) {
  return push(dyncp::enhance_hops, "dyncp_streams_push_hops", streams, count, samples, hops, enhanced);
}

dyncp_status dyncp_stream_gates(const dyncp_stream* stream, int32_t block, uint8_t* hidden, uint8_t* out) {
  if (stream == nullptr) return report(DYNCP_INVALID_ARGUMENT, "dyncp_stream_gates: stream must not be null");
  const dyncp::PackedHeader& header = stream->model.header();
  const dyncp::Geometry& g = header.geometry;
  if (block < 0 || block >= g.blocks) {
    return report(DYNCP_INVALID_ARGUMENT, "dyncp_stream_gates: block must be one of the model's blocks");
  }
  return guarded(DYNCP_INVALID_ARGUMENT, [&] {
    const int outputs = g.channels * g.gates_out, hiddens = g.hidden * g.gates_hidden;
    auto& gates = const_cast<dyncp_stream*>(stream)->gates;
    dyncp::read_gates(header, stream->state.get(), gates.data());
    const uint8_t* first = gates.data() + int64_t{block} * header.gates;
    if (out != nullptr) std::memcpy(out, first, outputs);
    if (hidden != nullptr) std::memcpy(hidden, first + outputs, hiddens);
  });
}
