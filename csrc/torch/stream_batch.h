// The stream, or the streams that go in step, of a call: from the state tensor that the ops of stream_ops.cpp and the
// functions of stream_calls.cpp are given.
#pragma once

#include <cstdint>

#include "core/stream_engine.h"

namespace dyncp::binding {

// A shape as it came.
struct Shape {
  const int64_t* sizes;
  int64_t dims;
  int64_t operator[](int64_t i) const { return sizes[i]; }
};

class StreamBatch {
 public:
  static constexpr int64_t kAll = -1;

  // `state_shape` is (bytes) for one stream and (streams, bytes) for several, of which the batch has all or, in this
  // order, the `count` different ones in `only`, which must outlive it.  Throws std::invalid_argument unless that is so
  // and these are states of the model.
  StreamBatch(const PackedHeader& model, void* state, Shape state_shape, double shift, const int64_t* only = nullptr,
              int64_t count = kAll);

  const PackedHeader& model() const { return model_; }
  // Whether shapes of what goes in and out start with the number of streams, even of one.
  bool has_streams() const { return has_streams_; }
  int64_t streams() const { return streams_; }

  // Frames of each stream in features ([streams,] [frames,] bins), or -1 where they have another shape.
  int64_t frames_of(Shape features) const;
  // Hops of each stream in samples ([streams,] hops * hop), or -1 likewise.
  int64_t hops_of(Shape samples) const;

  void reset() const;
  // As step_frames and enhance_hops; many streams are shared among torch's threads.
  void step(const float* features, int64_t frames, float* masks, uint8_t* gates) const;
  void enhance(const float* samples, int64_t hops, float* enhanced, uint8_t* gates) const;

 private:
  static Stream get(const void* source, int64_t index);
  char* state(int64_t index) const;
  // `length` is that of a frame of values and results.
  void run(Steps steps, int64_t length, const float* values, int64_t frames, float* results, uint8_t* gates) const;

  const PackedHeader& model_;
  char* states_;
  bool has_streams_;
  int64_t streams_;
  const int64_t* only_;  // null: all
  float shift_;
};

}  // namespace dyncp::binding
