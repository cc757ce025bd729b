// The streaming engine: state of a stream, frames and hops through a packed model.
//
// A packed model is only read and may serve any number of streams and threads; a state belongs to one stream and may be
// used by one thread at a time.  Nothing is allocated after the state has been made.
#pragma once

#include <cstdint>

#include "core/stream_layout.h"

namespace dyncp {

// Writes a fresh state into `state`, 64-byte aligned, of model.state_bytes bytes.
void initialise_state(const PackedHeader& model, Crossover crossover, void* state);

// Back to the start of the stream; the crossover stays.
void reset_state(const PackedHeader& model, void* state);

// Throws std::invalid_argument unless the buffer is a state of this model.
void check_state(const PackedHeader& model, const void* state, int64_t bytes);

// A stream in a call.
struct Stream {
  void* state;
  float shift;  // added to its gate scores
};

// The streams of a call, all different: get(source, i) is number i, from `first` on.
struct Streams {
  int64_t first, count;
  const void* source;
  Stream (*get)(const void* source, int64_t index);
};

// For the length of a call.
inline Streams one_stream(const Stream& stream) {
  return {0, 1, &stream, [](const void* source, int64_t) { return *static_cast<const Stream*>(source); }};
}

// `frames` frames of features of every stream (streams, frames, bins) to masks of that shape.  `gates`, if given, gets
// (streams, frames, blocks, gates) bytes of 0 or 1, in a block the output gates first.  What a stream gets does not
// depend on the others.
void step_frames(const PackedHeader& model, const Streams& streams, const float* features, int64_t frames, float* masks,
                 uint8_t* gates);

// `hops` hops of samples of every stream (streams, hops * hop) to as many, delayed by n_fft - hop samples.  NaN and
// what is louder than kLoudestSample count as 0.  Throws std::invalid_argument when the model's n_fft has no transform
// here (it must be a power of two of at least 8).
void enhance_hops(const PackedHeader& model, const Streams& streams, const float* samples, int64_t hops,
                  float* enhanced, uint8_t* gates);

// One of these two.
using Steps = void (*)(const PackedHeader& model, const Streams& streams, const float* values, int64_t frames,
                       float* results, uint8_t* gates);

// The gates of the last frame, (blocks, gates) bytes.
void read_gates(const PackedHeader& model, const void* state, uint8_t* gates);

// The densities from which reading every row is faster, measured on this machine at the first call for a geometry,
// precision and instruction set, and kept for the process.  1 where the model has no such gates.
Crossover calibrated_crossover(const PackedHeader& model);

}  // namespace dyncp
