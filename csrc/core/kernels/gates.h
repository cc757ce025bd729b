// Reading gates: which channels are open over a range of frames, and applying a gate to a row of a tile.
#pragma once

#include <utility>

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

// Bit t says whether byte t of at most 64 bytes of 0 or 1 is set.
DYNCP_INLINE uint64_t bits_of_bytes(const uint8_t* bytes, int64_t count) {
#if defined(__AVX512F__)
  const __mmask64 wanted = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  const __m512i v = _mm512_maskz_loadu_epi8(wanted, bytes);
  return _mm512_test_epi8_mask(v, v);
#else
  uint64_t bits = 0;
  for (int64_t t = 0; t < count; t += 8) {
    uint64_t eight = 0;
    __builtin_memcpy(&eight, bytes + t, count - t < 8 ? count - t : 8);
    // The product gathers the lowest bit of every byte in the highest byte.
    bits |= (eight * 0x0102040810204080u >> 56) << t;
  }
  return bits;
#endif
}

// Whether lane i of the vector that starts at frame t is open.
template <class T, int... kLane>
DYNCP_INLINE Mask<T> mask_of_bits(uint64_t bits, int64_t t, std::integer_sequence<int, kLane...>) {
  using Integer = typename IntegerOf<T>::type;
  const Mask<T> lane_bits = {(Integer{1} << kLane)...};
  return ((static_cast<Integer>(bits >> t) - Mask<T>{}) & lane_bits) != 0;
}
template <class T>
DYNCP_INLINE Mask<T> mask_of_bits(uint64_t bits, int64_t t) {
  return mask_of_bits<T>(bits, t, std::make_integer_sequence<int, kLanes<T>>());
}

// The lanes of v whose frames, from frame t on, are open; zero in the others.
template <class T>
DYNCP_INLINE Vec<T> keep_open(uint64_t bits, int64_t t, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return bits_as<Vec<T>>(_mm512_maskz_mov_ps(static_cast<__mmask16>(bits >> t), bits_as<__m512>(v)));
  } else {
    return bits_as<Vec<T>>(_mm512_maskz_mov_pd(static_cast<__mmask8>(bits >> t), bits_as<__m512d>(v)));
  }
#else
  return select(mask_of_bits<T>(bits, t), v, zero<T>());
#endif
}

DYNCP_INLINE uint64_t lowest_bits(int64_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

// A gate of one batch item.  Storage is the dtype of the call.
template <class T, class Storage>
struct ItemGate {
  const uint8_t* bools = nullptr;
  const uint64_t* words = nullptr;
  const Storage* values = nullptr;
  int64_t channel_stride = 0;
  int64_t frame_stride = 0;

  ItemGate(const Gate& gate, int64_t item) : channel_stride(gate.channel_stride), frame_stride(gate.frame_stride) {
    if (gate.data == nullptr) return;
    switch (gate.form) {
      case GateForm::bools:
        bools = static_cast<const uint8_t*>(gate.data) + item * gate.batch_stride;
        break;
      case GateForm::bits:
        words = static_cast<const uint64_t*>(gate.data) + item * gate.batch_stride;
        break;
      case GateForm::values:
        values = static_cast<const Storage*>(gate.data) + item * gate.batch_stride;
        break;
    }
  }

  bool exists() const { return bools != nullptr || words != nullptr || values != nullptr; }
  bool is_constant() const { return frame_stride == 0; }

  Openness over(int64_t channel, int64_t begin, int64_t end) const {
    if (!exists()) return Openness::all;
    if (words != nullptr) return over_words(channel, begin, end);
    const int64_t at = channel * channel_stride + begin * frame_stride;
    const int64_t count = is_constant() ? 1 : end - begin;
    return bools != nullptr ? openness(bools + at, count) : openness(values + at, count);
  }

  Openness over_words(int64_t channel, int64_t begin, int64_t end) const {
    bool any = false, all = true;
    for (int64_t t = begin; t < end; t += GateWords::kFrames) {
      const int64_t last = t + GateWords::kFrames < end ? t + GateWords::kFrames : end;
      const uint64_t open = bits(channel, t, last);
      any |= open != 0;
      all &= open == lowest_bits(last - t);
    }
    return !any ? Openness::none : all ? Openness::all : Openness::some;
  }

  // Bit t says whether the channel is open at frame begin + t; at most 64 frames.
  uint64_t bits(int64_t channel, int64_t begin, int64_t end) const {
    if (end <= begin) return 0;
    const uint64_t all = lowest_bits(end - begin);
    if (!exists()) return all;
    if (words != nullptr) {
      const uint64_t* word = words + channel * channel_stride + begin / GateWords::kFrames * frame_stride;
      if (is_constant()) return *word != 0 ? all : 0;
      const int64_t skipped = begin % GateWords::kFrames;
      uint64_t open = *word >> skipped;
      if (skipped + (end - begin) > GateWords::kFrames) open |= word[frame_stride] << (GateWords::kFrames - skipped);
      return open & all;
    }
    const int64_t at = channel * channel_stride + begin * frame_stride;
    if (is_constant()) return (bools != nullptr ? is_open(bools[at]) : is_open(values[at])) ? all : 0;
    if (bools != nullptr) return bits_of_bytes(bools + at, end - begin);
    uint64_t open = 0;
    for (int64_t t = 0; t < end - begin; ++t) open |= static_cast<uint64_t>(is_open(values[at + t])) << t;
    return open;
  }

  // The same for `count` channels from `first` on, at most 64.  Bit i of the result says whether any bit of channel
  // first + i is set.
  uint64_t bits_of_channels(int64_t first, int64_t count, int64_t begin, int64_t end, uint64_t* bits_of) const {
    uint64_t set = 0;
    const int64_t skipped = begin % GateWords::kFrames, frames = end - begin;
    if (words == nullptr || is_constant() || channel_stride != 1 || frames <= 0) {
      for (int64_t i = 0; i < count; ++i) {
        bits_of[i] = bits(first + i, begin, end);
        set |= static_cast<uint64_t>(bits_of[i] != 0) << i;
      }
      return set;
    }
    const uint64_t* word = words + first + begin / GateWords::kFrames * frame_stride;
    // Where one word holds all frames, what comes from the next one is cut off.
    const bool needs_next = skipped + frames > GateWords::kFrames;
    const uint64_t* next = needs_next ? word + frame_stride : word;
    const uint64_t all = lowest_bits(frames), of_next = needs_next ? ~uint64_t{0} : 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t open = word[i] >> skipped | ((next[i] & of_next) << 1 << (GateWords::kFrames - 1 - skipped));
      bits_of[i] = open & all;
      set |= static_cast<uint64_t>((open & all) != 0) << i;
    }
    return set;
  }

  // Closes frames of a row whose open frames `open` tells as bits, and multiplies by a gate that has values.
  DYNCP_INLINE void apply_bits(int64_t channel, int64_t frame, int64_t count, uint64_t open, T* row) const {
    if (values != nullptr) return apply(channel, frame, count, Openness::some, row);
    if (open == lowest_bits(count)) return;
    for (int64_t t = 0; t < count; t += kLanes<T>) {
      store(row + t, keep_open<T>(open, t, load(row + t)));
    }
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
