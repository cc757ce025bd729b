#include "core/stream_engine.h"

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/stream_kernels.h"

namespace dyncp {
namespace {

constexpr char kMagic[8] = {'D', 'Y', 'N', 'C', 'P', 'S', '0', '1'};

void fail(const std::string& text) { throw std::invalid_argument(text); }

// Whether other work has probably used the caches since this thread's last call, as between the frames of a stream that
// come from a microphone.
bool caches_are_cold() {
  constexpr std::chrono::milliseconds kPause(1);
  thread_local std::chrono::steady_clock::time_point last;
  const auto now = std::chrono::steady_clock::now();
  const bool are_cold = now - last > kPause;
  last = now;
  return are_cold;
}

// Calls use(index of the first one, frames, how many, whether caches are cold) for all frames of all streams, stream
// after stream, in chunks that go through the network together; use() fills in features and masks.
template <class Use>
void for_chunks(const PackedHeader& model, const Streams& streams, int64_t frames, uint8_t* gates, Use use) {
  const int64_t gates_of_frame = int64_t{model.geometry.blocks} * model.gates;
  StreamFrame chunk[kTileFrames];
  // Only gated frames read what the processor does not fetch by itself.
  bool are_cold = model.geometry.gate_kind != GateKind::none && caches_are_cold();
  int64_t index = 0;
  int count = 0;
  for (int64_t i = 0; i < streams.count; ++i) {
    const Stream stream = streams.get(streams.source, streams.first + i);
    for (int64_t t = 0; t < frames; ++t, ++index) {
      chunk[count++] = {stream.state, nullptr, nullptr, gates == nullptr ? nullptr : gates + index * gates_of_frame,
                        stream.shift};
      if (count == kTileFrames) {
        use(index + 1 - count, chunk, count, are_cold);
        are_cold = false;
        count = 0;
      }
    }
  }
  if (count > 0) use(index - count, chunk, count, are_cold);
}

}  // namespace

void initialise_state(const PackedHeader& model, Crossover crossover, void* state) {
  auto* header = static_cast<StateHeader*>(state);
  header->crossover = crossover;
  reset_state(model, state);
}

void reset_state(const PackedHeader& model, void* state) {
  auto* header = static_cast<StateHeader*>(state);
  const Crossover crossover = header->crossover;
  std::memset(state, 0, model.state_bytes);
  std::memcpy(header->magic, kMagic, sizeof(kMagic));
  header->model_checksum = model.checksum;
  header->bytes = model.state_bytes;
  header->crossover = crossover;
}

void check_state(const PackedHeader& model, const void* state, int64_t bytes) {
  const auto* header = static_cast<const StateHeader*>(state);
  if (reinterpret_cast<uintptr_t>(state) % kLine != 0) fail("state must be 64-byte aligned (a slice or a view is not)");
  if (bytes < static_cast<int64_t>(sizeof(StateHeader)) || std::memcmp(header->magic, kMagic, sizeof(kMagic)) != 0 ||
      header->bytes != bytes) {
    fail("state must be a stream's state, whole (got " + std::to_string(bytes) + " other bytes)");
  }
  if (header->model_checksum != model.checksum) fail("state must belong to this packed model (got another model's)");
}

void read_gates(const PackedHeader& model, const void* state, uint8_t* gates) {
  for (int n = 0; n < model.geometry.blocks; ++n) {
    const PackedBlock& block = packed_blocks(model)[n];
    unpack_gates(model, block, at<uint16_t>(state, block.bits), gates + int64_t{n} * model.gates);
  }
}

void step_frames(const PackedHeader& model, const Streams& streams, const float* features, int64_t frames, float* masks,
                 uint8_t* gates) {
  const StreamKernels& kernels = active_stream_kernels();
  const Geometry& g = model.geometry;
  for_chunks(model, streams, frames, gates, [&](int64_t first, StreamFrame* chunk, int count, bool are_cold) {
    for (int i = 0; i < count; ++i) {
      chunk[i].features = features + (first + i) * g.bins;
      chunk[i].mask = masks + (first + i) * g.bins;
    }
    kernels.step(model, chunk, count, are_cold);
  });
}

void enhance_hops(const PackedHeader& model, const Streams& streams, const float* samples, int64_t hops,
                  float* enhanced, uint8_t* gates) {
  const StreamKernels& kernels = active_stream_kernels();
  const Geometry& g = model.geometry;
  if (!model.has_transform) {
    fail("n_fft must be a power of two of at least 8 for samples (got " + std::to_string(g.n_fft) + ")");
  }
  for_chunks(model, streams, hops, gates, [&](int64_t first, StreamFrame* chunk, int count, bool are_cold) {
    int places[kTileFrames];  // of frames among those of their stream
    for (int i = 0; i < count; ++i) {
      void* state = chunk[i].state;
      places[i] = i > 0 && chunk[i - 1].state == state ? places[i - 1] + 1 : 0;
      kernels.analyse(model, state, places[i], samples + (first + i) * g.hop);
      chunk[i].features = at<float>(state, model.features) + int64_t{places[i]} * model.bins_padded;
      chunk[i].mask = at<float>(state, model.mask) + int64_t{places[i]} * model.bins_padded;
    }
    kernels.step(model, chunk, count, are_cold);
    for (int i = 0; i < count; ++i) {
      kernels.synthesise(model, chunk[i].state, places[i], enhanced + (first + i) * g.hop);
    }
  });
}

}  // namespace dyncp
