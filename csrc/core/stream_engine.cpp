#include "core/stream_engine.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/stream_kernels.h"

namespace dyncp {
namespace {

constexpr char kMagic[8] = {'D', 'Y', 'N', 'C', 'P', 'S', '0', '1'};

void fail(const std::string& text) { throw std::invalid_argument(text); }

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

void step_frames(const PackedHeader& model, void* state, const float* features, int64_t frames, float shift,
                 float* masks, uint8_t* gates) {
  const StreamKernels& kernels = active_stream_kernels();
  const Geometry& g = model.geometry;
  for (int64_t t = 0; t < frames; t += kTileFrames) {
    const int count = static_cast<int>(std::min<int64_t>(kTileFrames, frames - t));
    kernels.step(model, state, features + t * g.bins, count, g.bins, shift, masks + t * g.bins,
                 gates == nullptr ? nullptr : gates + t * g.blocks * model.gates);
  }
}

void enhance_hops(const PackedHeader& model, void* state, const float* samples, int64_t hops, float shift,
                  float* enhanced, uint8_t* gates) {
  const StreamKernels& kernels = active_stream_kernels();
  const Geometry& g = model.geometry;
  if (!model.has_transform) {
    fail("n_fft must be a power of two of at least 8 for samples (got " + std::to_string(g.n_fft) + ")");
  }
  const float* features = at<float>(state, model.features);
  float* masks = at<float>(state, model.mask);
  for (int64_t t = 0; t < hops; t += kTileFrames) {
    const int count = static_cast<int>(std::min<int64_t>(kTileFrames, hops - t));
    for (int i = 0; i < count; ++i) kernels.analyse(model, state, i, samples + (t + i) * g.hop);
    kernels.step(model, state, features, count, model.bins_padded, shift, masks,
                 gates == nullptr ? nullptr : gates + t * g.blocks * model.gates);
    for (int i = 0; i < count; ++i) kernels.synthesise(model, state, i, enhanced + (t + i) * g.hop);
  }
}

}  // namespace dyncp
