// What a tile of the gated block does with single rows, in whatever way their products are computed.
#pragma once

#include "core/kernels/gates.h"
#include "core/kernels/pack.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/kernels/tile_rows.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

static_assert(kTile <= 64, "the frames of a tile are the bits of a word");

template <class T>
DYNCP_INLINE int64_t padded(int64_t count) {
  return whole_vectors<T>(count) * kLanes<T>;
}

// Kinds of rectifiers, by their slope for negative values.
enum class Slope {
  relu,
  at_most_one,  // and positive
  other
};

#if defined(__AVX2__)

// The open lanes of a vector.
#if defined(__AVX512F__)
using OpenLanes = __mmask16;
DYNCP_INLINE OpenLanes open_lanes(uint64_t open, int64_t t) { return static_cast<__mmask16>(open >> t); }
#else
using OpenLanes = Mask<float>;
DYNCP_INLINE OpenLanes open_lanes(uint64_t open, int64_t t) { return mask_of_bits<float>(open, t); }
#endif

// ReLU or PReLU of one kind at the open frames, zero at the others.  The second operand of a maximum is the result
// where one is NaN and where both are zero.
template <Slope kSlope>
DYNCP_INLINE Vec<float> rectified(Vec<float> v, Vec<float> slope, OpenLanes open) {
  const Vec<float> other = kSlope == Slope::relu ? zero<float>() : v * slope;
#if defined(__AVX512F__)
  return bits_as<Vec<float>>(_mm512_maskz_max_ps(open, bits_as<__m512>(other), bits_as<__m512>(v)));
#else
  const __m256 most = _mm256_max_ps(bits_as<__m256>(other), bits_as<__m256>(v));
  return bits_as<Vec<float>>(_mm256_and_ps(most, bits_as<__m256>(open)));
#endif
}

// Three taps over u and the vector before it, the first one `far` back and the second one `near`.
DYNCP_INLINE Vec<float> three_taps(const float* w, float bias, Vec<float> before, Vec<float> u, Words far, Words near) {
  return broadcast(w[0]) * delayed(before, u, far) +
         (broadcast(w[1]) * delayed(before, u, near) + (broadcast(w[2]) * u + broadcast(bias)));
}

#endif

template <class T, class Storage>
class BlockRows {
 protected:
  BlockRows(const GatedConv& call, void* y, Arena& arena)
      : call_(call), x_(input_rows<Storage>(call)), y_(output_rows<Storage>(call, y)) {
    past_ = padded<T>(call.reach());
    row_width_ = past_ + kTile;
    hidden_varies_ = call.hidden_gate.data != nullptr && call.hidden_gate.frame_stride != 0;
    out_varies_ = call.out_gate.data != nullptr && call.out_gate.frame_stride != 0;
#if defined(__AVX2__)
    convolves_in_registers_ = sizeof(T) == 4 && call.w_in != nullptr && call.taps == 3 && call.causal &&
                              past_ == kLanes<T> && call.hidden_gate.form != GateForm::values &&
                              slope_of(call.slope_in) == slope_of(call.slope_dw) &&
                              slope_of(call.slope_in) != Slope::other;
#endif
    history_ = arena.take<T>(call.hidden * past_);
    remembers_ = arena.take<uint8_t>(call.hidden);
  }

  // The frames of a tile, and the new frames of u that come with it: those run ahead of the tile by the look-ahead of a
  // centred convolution.
  struct Window {
    int64_t begin, end, fresh, fresh_end;
    int64_t frames() const { return end - begin; }
    int64_t fresh_frames() const { return fresh_end - fresh; }
  };

  Window window_at(int64_t begin) const {
    const auto inside = [&](int64_t t) { return t < 0 ? 0 : t < call_.frames ? t : call_.frames; };
    return {inside(begin), inside(begin + kTile), inside(begin + call_.right()), inside(begin + kTile + call_.right())};
  }

  const T* weights(const void* p) const { return static_cast<const T*>(p); }
  ItemGate<T, Storage> hidden_gate() const { return {call_.hidden_gate, item_}; }
  ItemGate<T, Storage> out_gate() const { return {call_.out_gate, item_}; }

  const Storage* x_at(int64_t channel, int64_t frame) const { return x_.at(item_, channel, frame); }
  Storage* y_at(int64_t row, int64_t frame) const { return y_.at(item_, row, frame); }

  // Goes through tiles [begin, end), numbered over (batch, time): calls start(first frame) for those without a
  // predecessor in this range, and then tile(index, first frame, frame behind the last) for each.
  template <class Start, class Tile>
  DYNCP_INLINE void for_each_tile(int64_t begin, int64_t end, Start start, Tile tile) {
    const int64_t tiles = (call_.frames + kTile - 1) / kTile;
    for (int64_t index = begin; index < end; ++index) {
      item_ = index / tiles;
      const int64_t first = index % tiles * kTile;
      if (index == begin || first == 0) start(first);
      tile(index, first, first + kTile < call_.frames ? first + kTile : call_.frames);
    }
  }

  // Calls fill(window, begin, count) for the tiles before frame `first`: they give u at frames [begin, begin + count)
  // of what the tile there remembers, [first - left, first + right).
  template <class Fill>
  DYNCP_INLINE void for_each_past_window(int64_t first, Fill fill) {
    const int64_t origin = first - call_.left();
    const int64_t back = (call_.reach() + kTile - 1) / kTile * kTile;
    for (int64_t before = first - back; before < first; before += kTile) {
      const Window window = window_at(before);
      const int64_t begin = window.fresh < origin ? origin : window.fresh;
      if (begin < window.fresh_end) fill(window, begin, window.fresh_end - begin);
    }
  }

  // u of one channel at the new frames, from the product or from x; zero behind.
  DYNCP_INLINE void finish_u(int64_t channel, uint64_t open, int64_t begin, int64_t frames, T* u) {
    const auto gate = hidden_gate();
    if (call_.w_in == nullptr) {
      const Storage* source = x_at(channel, begin);
      int64_t t = 0;
      for (; t + kLanes<T> <= frames; t += kLanes<T>) store(u + t, load(source + t));
      if (t < frames) store(u + t, load_first(source + t, frames - t));
    } else {
      activate(u, whole_vectors<T>(frames), call_.b_in, channel, call_.slope_in, open);
    }
    if (call_.w_in == nullptr || gate.values != nullptr) {
      gate.apply_bits(channel, begin, frames, open, u);
    }
    if (frames < kTile) __builtin_memset(u + frames, 0, (kTile - frames) * sizeof(T));
  }

  // act(row + bias) at the open frames, zero at the others.
  DYNCP_INLINE void activate(T* row, int vectors, const void* bias, int64_t channel, const void* slope, uint64_t open) {
    const Rectifier act(bias, channel, slope);
    for (int v = 0; v < vectors; ++v) {
      store(row + v * kLanes<T>, keep_open<T>(open, v * kLanes<T>, act(load(row + v * kLanes<T>))));
    }
  }

  // Adds the bias of a channel, then ReLU or PReLU.
  struct Rectifier {
    Rectifier(const void* biases, int64_t channel, const void* slopes)
        : bias(broadcast(biases == nullptr ? T(0) : static_cast<const T*>(biases)[channel])),
          has_slope(slopes != nullptr),
          slope(has_slope ? *static_cast<const T*>(slopes) : T(0)) {}
    DYNCP_INLINE Vec<T> operator()(Vec<T> sum) const {
      sum += bias;
      return has_slope ? prelu<T>(sum, slope) : relu<T>(sum);
    }
    Vec<T> bias;
    bool has_slope;
    T slope;
  };

  // z = act(DW(u) + b) at the open frames of one row, zero at the others; values of the gate are not multiplied yet.
  DYNCP_INLINE void depthwise(const T* u, int64_t channel, int vectors, uint64_t open, T* z) {
    const T* w = weights(call_.w_dw) + channel * call_.taps;
    const Rectifier act(call_.b_dw, channel, call_.slope_dw);
    const auto finish = [&](int v, Vec<T> sum) {
      store(z + v * kLanes<T>, keep_open<T>(open, v * kLanes<T>, act(sum)));
    };
    if (call_.taps == 3) {
      const Vec<T> w0 = broadcast(w[0]);
      const Vec<T> w1 = broadcast(w[1]);
      const Vec<T> w2 = broadcast(w[2]);
      for (int v = 0; v < vectors; ++v) {
        const T* at = u + v * kLanes<T>;
        finish(v, w2 * load(at + 2 * call_.dilation) + (w1 * load(at + call_.dilation) + (w0 * load(at) + zero<T>())));
      }
      return;
    }
    for (int v = 0; v < vectors; ++v) {
      Vec<T> sum = zero<T>();
      for (int64_t tap = 0; tap < call_.taps; ++tap) {
        sum = broadcast(w[tap]) * load(u + v * kLanes<T> + tap * call_.dilation) + sum;
      }
      finish(v, sum);
    }
  }

  // z of a channel that is open at `open`, from a row that holds the new frames of u; its past is put in front, and
  // remembered.
  DYNCP_INLINE void convolve(int64_t channel, uint64_t open, const Window& window, T* row, T* z) {
    T* past = history_ + channel * past_;
    const bool remembers = remembers_[channel] != 0;
    for (int64_t t = 0; t < past_; t += kLanes<T>) store(row + t, remembers ? load(past + t) : zero<T>());
    const int vectors = whole_vectors<T>(window.frames());
    if (open != 0) {
      const auto gate = hidden_gate();
      depthwise(row + past_ - call_.reach(), channel, vectors, open, z);
      if (gate.values != nullptr) gate.apply_bits(channel, window.begin, window.frames(), open, z);
    } else {
      __builtin_memset(z, 0, vectors * kLanes<T> * sizeof(T));
    }
    for (int64_t t = 0; t < past_; t += kLanes<T>) store(past + t, load(row + kTile + t));
    remembers_[channel] = 1;
  }

  static Slope slope_of(const void* slope) {
    if (slope == nullptr) return Slope::relu;
    const T value = *static_cast<const T*>(slope);
    return value > 0 && value <= 1 ? Slope::at_most_one : Slope::other;
  }

  // Where a range of tiles begins, nothing is remembered yet.
  void clear_history() {
    __builtin_memset(history_, 0, call_.hidden * past_ * sizeof(T));
    __builtin_memset(remembers_, 0, call_.hidden);
  }

  // Puts u of a channel at frames [begin, begin + count) into the history of the tile at frame `first`.
  DYNCP_INLINE void remember(int64_t channel, const T* u, int64_t begin, int64_t count, int64_t first) {
    const int64_t origin = first - call_.left();
    __builtin_memcpy(history_ + channel * past_ + past_ - call_.reach() + (begin - origin), u, count * sizeof(T));
    remembers_[channel] = 1;
  }

  // A channel that is closed during a tile: its new frames of u are zeros.
  void forget(int64_t channel) {
    if (remembers_[channel] == 0) return;
    T* past = history_ + channel * past_;
    const int64_t kept = past_ > kTile ? past_ - kTile : 0;
    if (kept > 0) __builtin_memmove(past, past + kTile, kept * sizeof(T));
    __builtin_memset(past + kept, 0, (past_ - kept) * sizeof(T));
    remembers_[channel] = kept > 0;
  }

  // y of a row whose branch is pruned throughout the tile.
  void skip(int64_t row, int64_t begin, int64_t frames) {
    Storage* y = y_at(row, begin);
    if (call_.residual) {
      const Storage* x = x_at(row, begin);
      if (x != y) __builtin_memcpy(y, x, frames * sizeof(Storage));
    } else {
      __builtin_memset(y, 0, frames * sizeof(Storage));
    }
  }

  // y = x + gate * (sums + more + bias) at the open frames, or without x; `more` may be null.
  DYNCP_INLINE void write(int64_t row, int64_t begin, int64_t frames, T* sums, const T* more, uint64_t open) {
    const auto gate = out_gate();
    const Vec<T> bias = broadcast(call_.b_out == nullptr ? T(0) : weights(call_.b_out)[row]);
    Storage* y = y_at(row, begin);
    const Storage* x = call_.residual ? x_at(row, begin) : nullptr;
    if (gate.values != nullptr) {
      for (int64_t t = 0; t < frames; t += kLanes<T>) {
        const Vec<T> sum = more == nullptr ? load(sums + t) : load(sums + t) + load(more + t);
        store(sums + t, sum + bias);
      }
      gate.apply(row, begin, frames, Openness::some, sums);
      write_open(y, x, frames, sums, nullptr, zero<T>(), open);
    } else {
      write_open(y, x, frames, sums, more, bias, open);
    }
  }

  DYNCP_INLINE void write_open(Storage* y, const Storage* x, int64_t frames, const T* sums, const T* more, Vec<T> bias,
                               uint64_t open) {
    const bool every_frame = open == lowest_bits(frames);
    const auto value = [&](int64_t t) {
      const Vec<T> sum = more == nullptr ? load(sums + t) : load(sums + t) + load(more + t);
      const Vec<T> v = sum + bias;
      return every_frame ? v : keep_open<T>(open, t, v);
    };
    int64_t t = 0;
    for (; t + kLanes<T> <= frames; t += kLanes<T>) store(y + t, x == nullptr ? value(t) : load(x + t) + value(t));
    if (t < frames) {
      const Vec<T> v = value(t);
      store_first(y + t, x == nullptr ? v : load_first(x + t, frames - t) + v, frames - t);
    }
  }

  const GatedConv& call_;
  const TileRows<const Storage> x_;
  const TileRows<Storage> y_;
  int64_t item_ = 0;
  bool hidden_varies_;  // in time
  bool out_varies_;
  int64_t past_;  // frames of history in front of a row of u: whole vectors, right-aligned
  int64_t row_width_;
  bool convolves_in_registers_ = false;
  T* history_;          // [hidden][past_]: u at the frames before the new ones
  uint8_t* remembers_;  // per hidden channel: whether history_ holds anything but zeros
};

}  // namespace dyncp::DYNCP_ISA
