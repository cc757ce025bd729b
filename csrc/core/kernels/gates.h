// Reading gates: which channels are open over a range of frames, and applying a gate to a row of a tile.
#pragma once

#include "core/gated_conv.h"
#include "core/kernels/product.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

DYNCP_INLINE bool is_open(uint8_t g) { return g != 0; }
DYNCP_INLINE bool is_open(float g) { return g != 0; }
DYNCP_INLINE bool is_open(double g) { return g != 0; }
DYNCP_INLINE bool is_open(Half g) { return (g.bits & 0x7fff) != 0; }
DYNCP_INLINE bool is_open(BFloat16 g) { return (g.bits & 0x7fff) != 0; }

enum class Openness { none, some, all };

// Bools are bytes of 0 or 1, so eight frames are looked at together.
DYNCP_INLINE Openness openness(const uint8_t* gate, int64_t count) {
  constexpr uint64_t kOnes = 0x0101010101010101u;
  uint64_t any = 0;
  uint64_t all = kOnes;
  int64_t t = 0;
  for (; t + 8 <= count; t += 8) {
    uint64_t eight;
    __builtin_memcpy(&eight, gate + t, 8);
    any |= eight;
    all &= eight;
  }
  for (; t < count; ++t) {
    any |= gate[t];
    if (gate[t] == 0) all = 0;
  }
  return any == 0 ? Openness::none : all == kOnes ? Openness::all : Openness::some;
}

template <class Storage>
DYNCP_INLINE Openness openness(const Storage* gate, int64_t count) {
  int any = 0;
  int all = 1;
  for (int64_t t = 0; t < count; ++t) {
    const int open = is_open(gate[t]);
    any |= open;
    all &= open;
  }
  return any == 0 ? Openness::none : all != 0 ? Openness::all : Openness::some;
}

// A gate of one batch item.  Storage is the dtype of the call.
template <class T, class Storage>
struct ItemGate {
  const uint8_t* bools = nullptr;
  const Storage* values = nullptr;
  int64_t channel_stride = 0;
  int64_t frame_stride = 0;

  ItemGate(const Gate& gate, int64_t item) : channel_stride(gate.channel_stride), frame_stride(gate.frame_stride) {
    if (gate.data == nullptr) return;
    if (gate.is_bool) {
      bools = static_cast<const uint8_t*>(gate.data) + item * gate.batch_stride;
    } else {
      values = static_cast<const Storage*>(gate.data) + item * gate.batch_stride;
    }
  }

  bool exists() const { return bools != nullptr || values != nullptr; }
  bool is_constant() const { return frame_stride == 0; }

  Openness over(int64_t channel, int64_t begin, int64_t end) const {
    if (!exists()) return Openness::all;
    const int64_t at = channel * channel_stride + begin * frame_stride;
    const int64_t count = is_constant() ? 1 : end - begin;
    return bools != nullptr ? openness(bools + at, count) : openness(values + at, count);
  }

  bool is_open_at(int64_t channel, int64_t frame) const {
    if (!exists()) return true;
    const int64_t at = channel * channel_stride + frame * frame_stride;
    return bools != nullptr ? is_open(bools[at]) : is_open(values[at]);
  }

  // Marks the frames at which the channel is open.
  void mark_open(int64_t channel, int64_t frame, int64_t count, uint8_t* marks) const {
    const int64_t at = channel * channel_stride + frame * frame_stride;
    if (bools != nullptr) {
      for (int64_t t = 0; t < count; ++t) marks[t] |= bools[at + t * frame_stride];
    } else {
      for (int64_t t = 0; t < count; ++t) marks[t] |= is_open(values[at + t * frame_stride]);
    }
  }

  T value_at(int64_t channel, int64_t frame) const {
    if (!exists()) return T(1);
    const int64_t at = channel * channel_stride + frame * frame_stride;
    return bools != nullptr ? (is_open(bools[at]) ? T(1) : T(0)) : widen(values[at]);
  }

  // Gates `count` frames of a row, starting at `frame`; the row has room for whole vectors.  `open` is what over() said
  // about a range that includes these frames.
  DYNCP_INLINE void apply(int64_t channel, int64_t frame, int64_t count, Openness open, T* row) const {
    constexpr int lanes = kLanes<T>;
    if (bools != nullptr) {
      if (open == Openness::all) return;
      const uint8_t* gate = bools + channel * channel_stride + frame * frame_stride;
      if (is_constant()) {
        if (!is_open(*gate)) __builtin_memset(row, 0, count * sizeof(T));
        return;
      }
      uint8_t padded[kTile] = {};
      const bool whole = count % lanes == 0;
      if (!whole) __builtin_memcpy(padded, gate, count);
      const uint8_t* source = whole ? gate : padded;
      for (int64_t t = 0; t < count; t += lanes) {
        store(row + t, select(load_mask<T>(source + t), load(row + t), zero<T>()));
      }
    } else if (values != nullptr) {
      for (int64_t t = 0; t < count; t += lanes) {
        const int64_t at = channel * channel_stride + (frame + t) * frame_stride;
        const Vec<T> m = is_constant()        ? broadcast<T>(widen(values[at]))
                         : t + lanes <= count ? load(values + at)
                                              : load_first(values + at, count - t);
        store(row + t, select(m != zero<T>(), load(row + t) * m, zero<T>()));
      }
    }
  }
};

}  // namespace dyncp::DYNCP_ISA
