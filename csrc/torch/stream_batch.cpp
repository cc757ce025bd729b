#include "torch/stream_batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "torch/in_parallel.h"

namespace dyncp::binding {

namespace {

// Throws unless the streams exist and none comes twice.
void check_distinct(const int64_t* only, int64_t count, int64_t streams) {
  std::vector<bool> seen(streams, false);
  for (int64_t i = 0; i < count; ++i) {
    if (only[i] < 0 || only[i] >= streams || seen[only[i]]) {
      throw std::invalid_argument("only must name different streams from 0 to " + std::to_string(streams - 1) +
                                  " (got " + std::to_string(only[i]) + " at place " + std::to_string(i) + ")");
    }
    seen[only[i]] = true;
  }
}

}  // namespace

StreamBatch::StreamBatch(const PackedHeader& model, void* state, Shape state_shape, double shift, const int64_t* only,
                         int64_t count)
    : model_(model),
      states_(static_cast<char*>(state)),
      has_streams_(state_shape.dims == 2),
      streams_(has_streams_ ? state_shape[0] : 1),
      only_(only),
      shift_(static_cast<float>(shift)) {
  if (state_shape.dims != 1 && state_shape.dims != 2) {
    throw std::invalid_argument("state must have shape (bytes) or (streams, bytes)");
  }
  if (count != kAll) {
    if (!has_streams_) throw std::invalid_argument("only needs a state of shape (streams, bytes)");
    check_distinct(only, count, streams_);
    streams_ = count;
  }
  const int64_t bytes = state_shape[state_shape.dims - 1];
  for (int64_t i = 0; i < streams_; ++i) {
    check_state(model, states_ + (only == nullptr ? i : only[i]) * bytes, bytes);
  }
}

int64_t StreamBatch::frames_of(Shape features) const {
  const int64_t own = features.dims - has_streams_;
  if ((own != 1 && own != 2) || features[features.dims - 1] != model_.geometry.bins) return -1;
  if (has_streams_ && features[0] != streams_) return -1;
  return own == 1 ? 1 : features[features.dims - 2];
}

int64_t StreamBatch::hops_of(Shape samples) const {
  const int64_t hop = model_.geometry.hop;
  if (samples.dims - has_streams_ != 1 || samples[samples.dims - 1] % hop != 0) return -1;
  if (has_streams_ && samples[0] != streams_) return -1;
  return samples[samples.dims - 1] / hop;
}

Stream StreamBatch::get(const void* source, int64_t index) {
  const auto& batch = *static_cast<const StreamBatch*>(source);
  return {batch.state(index), batch.shift_};
}

char* StreamBatch::state(int64_t index) const {
  return states_ + (only_ == nullptr ? index : only_[index]) * model_.state_bytes;
}

void StreamBatch::reset() const {
  for (int64_t i = 0; i < streams_; ++i) reset_state(model_, state(i));
}

void StreamBatch::run(Steps steps, int64_t length, const float* values, int64_t frames, float* results,
                      uint8_t* gates) const {
  const int64_t gates_of_frame = int64_t{model_.geometry.blocks} * model_.gates;
  const auto part = [&](int64_t begin, int64_t end) {
    const int64_t frame = begin * frames;
    steps(model_, {begin, end - begin, this, get}, values + frame * length, frames, results + frame * length,
          gates == nullptr ? nullptr : gates + frame * gates_of_frame);
  };
  // Fewer would not share what they read.
  const int64_t grain = std::max<int64_t>(1, kTileFrames / std::max<int64_t>(1, frames));
  if (streams_ <= grain) return part(0, streams_);
  in_parallel(streams_, grain, part);
}

void StreamBatch::step(const float* features, int64_t frames, float* masks, uint8_t* gates) const {
  run(step_frames, model_.geometry.bins, features, frames, masks, gates);
}

void StreamBatch::enhance(const float* samples, int64_t hops, float* enhanced, uint8_t* gates) const {
  // Throws here rather than in one of the threads.
  if (!model_.has_transform) return enhance_hops(model_, {}, samples, hops, enhanced, gates);
  run(enhance_hops, model_.geometry.hop, samples, hops, enhanced, gates);
}

}  // namespace dyncp::binding
