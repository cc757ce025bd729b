#include "core/stream_engine.h"

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
  const Geometry& g = model.geometry;
  const int outputs = g.channels * g.gates_out;
  for (int n = 0; n < g.blocks; ++n) {
    const uint16_t* bits = at<uint16_t>(state, packed_blocks(model)[n].bits);
    for (int i = 0; i < model.gates; ++i) {
      const int place = i < outputs ? i : model.channels_padded * g.gates_out + i - outputs;
      *gates++ = (bits[place / kPad] >> (place % kPad)) & 1;
    }
  }
}

void step_frames(const PackedHeader& model, void* state, const float* features, int64_t frames, float shift,
                 float* masks, uint8_t* gates) {
  const StreamKernels& kernels = DYNCP_KERNELS(StreamKernels, stream_kernels);
  const Geometry& g = model.geometry;
  for (int64_t t = 0; t < frames; ++t) {
    kernels.step(model, state, features + t * g.bins, shift, masks + t * g.bins);
    if (gates != nullptr) read_gates(model, state, gates + t * g.blocks * model.gates);
  }
}

void enhance_hops(const PackedHeader& model, void* state, const float* samples, int64_t hops, float shift,
                  float* enhanced, uint8_t* gates) {
  const StreamKernels& kernels = DYNCP_KERNELS(StreamKernels, stream_kernels);
  const Geometry& g = model.geometry;
  if (!model.has_transform) {
    fail("n_fft must be a power of two of at least 8 for samples (got " + std::to_string(g.n_fft) + ")");
  }
  float* features = at<float>(state, model.features);
  float* mask = at<float>(state, model.mask);
  for (int64_t t = 0; t < hops; ++t) {
    kernels.analyse(model, state, samples + t * g.hop);
    kernels.step(model, state, features, shift, mask);
    kernels.synthesise(model, state, mask, enhanced + t * g.hop);
    if (gates != nullptr) read_gates(model, state, gates + t * g.blocks * model.gates);
  }
}

}  // namespace dyncp
