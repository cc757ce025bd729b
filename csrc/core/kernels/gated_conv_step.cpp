// Streaming kernel of the gated block: one frame, lanes are channels, only active rows are visited.
#include "core/kernels/gated_conv.h"
#include "core/kernels/gates.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

constexpr int kDots = 4;  // rows that share the loads of their common vector

template <class T, class Storage>
class Step {
 public:
  Step(const GatedConv& call, const History& history, void* y, Arena arena)
      : call_(call), history_(history), y_(static_cast<Storage*>(y)) {
    x_ = arena.take<T>(whole_vectors<T>(call.channels) * kLanes<T>);
    u_ = arena.take<T>(call.hidden);
    z_ = arena.take<T>(whole_vectors<T>(call.hidden) * kLanes<T>);
    y_sums_ = arena.take<T>(call.out_channels);
    rows_ = arena.take<int32_t>(call.hidden);
    out_rows_ = arena.take<int32_t>(call.out_channels);
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  void run(int64_t item) {
    const ItemGate<T, Storage> hidden_gate(call_.hidden_gate, item);
    const ItemGate<T, Storage> out_gate(call_.out_gate, item);
    const Storage* x = static_cast<const Storage*>(call_.x) + item * call_.x_batch_stride;
    __builtin_memset(x_, 0, whole_vectors<T>(call_.channels) * kVectorBytes);
    __builtin_memset(z_, 0, whole_vectors<T>(call_.hidden) * kVectorBytes);
    for (int64_t c = 0; c < call_.channels; ++c) x_[c] = widen(x[c * call_.x_channel_stride]);

    const int64_t rows = list_open(hidden_gate, call_.hidden, rows_);
    expand(hidden_gate, rows);
    depthwise(hidden_gate, item, rows);
    remember(item, rows);

    Storage* y = y_ + item * call_.out_channels;
    const int64_t out_rows = rows == 0 ? 0 : list_open(out_gate, call_.out_channels, out_rows_);
    project(rows, out_rows);
    int64_t next = 0;
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      T value = call_.residual ? x_[row] : T(0);
      if (next < out_rows && out_rows_[next] == row) {
        T branch = y_sums_[row];
        if (call_.b_out != nullptr) branch += widen(static_cast<const Storage*>(call_.b_out)[row]);
        value += branch * out_gate.value_at(row, 0);
        ++next;
      }
      narrow(value, y + row);
    }
  }

 private:
  static int64_t list_open(const ItemGate<T, Storage>& gate, int64_t channels, int32_t* list) {
    int64_t found = 0;
    for (int64_t channel = 0; channel < channels; ++channel) {
      list[found] = static_cast<int32_t>(channel);
      found += gate.is_open_at(channel, 0);
    }
    return found;
  }

  static void narrow(T value, Storage* target) { store_first(target, broadcast(value), 1); }

  static T activate(T value, const void* slope) {
    if (slope == nullptr) return value < T(0) ? T(0) : value;
    return value < T(0) ? value * widen(*static_cast<const Storage*>(slope)) : value;
  }

  static T bias(const void* biases, int64_t channel) {
    return biases == nullptr ? T(0) : widen(static_cast<const Storage*>(biases)[channel]);
  }

  // Dot products of kDots contiguous rows of weights with a vector that is padded with zeros.
  static void dots(const Storage* const* w, const T* vector, int64_t length, T* results) {
    Vec<T> sums[kDots] = {};
    int64_t i = 0;
    for (; i + kLanes<T> <= length; i += kLanes<T>) {
      const Vec<T> v = load(vector + i);
      for (int r = 0; r < kDots; ++r) sums[r] = load(w[r] + i) * v + sums[r];
    }
    if (i < length) {
      const Vec<T> v = load(vector + i);
      for (int r = 0; r < kDots; ++r) sums[r] = load_first(w[r] + i, length - i) * v + sums[r];
    }
    for (int r = 0; r < kDots; ++r) results[r] = sum_of_lanes<T>(sums[r]);
  }

  // results[list[i]] or results[i]: row list[i] of weights times the vector.
  template <bool kScatter>
  static void listed_dots(const Storage* weights, int64_t stride, const int32_t* list, int64_t rows, const T* vector,
                          int64_t length, T* results) {
    for (int64_t i = 0; i < rows; i += kDots) {
      const Storage* w[kDots];
      T sums[kDots];
      for (int r = 0; r < kDots; ++r) w[r] = weights + list[i + r < rows ? i + r : i] * stride;
      dots(w, vector, length, sums);
      for (int r = 0; r < kDots && i + r < rows; ++r) results[kScatter ? list[i + r] : i + r] = sums[r];
    }
  }

  // u of the open rows, in the order of the list.
  void expand(const ItemGate<T, Storage>& gate, int64_t rows) {
    if (call_.w_in == nullptr) {
      for (int64_t i = 0; i < rows; ++i) u_[i] = x_[rows_[i]] * gate.value_at(rows_[i], 0);
      return;
    }
    listed_dots<false>(static_cast<const Storage*>(call_.w_in), call_.w_in_row_stride, rows_, rows, x_, call_.channels,
                       u_);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t channel = rows_[i];
      u_[i] = activate(u_[i] + bias(call_.b_in, channel), call_.slope_in) * gate.value_at(channel, 0);
    }
  }

  const Storage* past(int64_t item, int64_t channel) const {
    return static_cast<const Storage*>(history_.before) + item * history_.before_strides[0] +
           channel * history_.before_strides[1];
  }

  void depthwise(const ItemGate<T, Storage>& gate, int64_t item, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t channel = rows_[i];
      const Storage* w = static_cast<const Storage*>(call_.w_dw) + channel * call_.taps;
      const Storage* u = past(item, channel);
      T sum = 0;
      for (int64_t tap = 0; tap + 1 < call_.taps; ++tap) {
        sum += widen(w[tap]) * widen(u[tap * call_.dilation * history_.before_strides[2]]);
      }
      sum += widen(w[call_.taps - 1]) * u_[i] + bias(call_.b_dw, channel);
      z_[i] = activate(sum, call_.slope_dw) * gate.value_at(channel, 0);
    }
  }

  // Shifts the history by one frame; closed rows append a zero.
  void remember(int64_t item, int64_t rows) {
    const int64_t reach = call_.reach();
    if (reach == 0) return;
    int64_t next = 0;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      const Storage* before = past(item, channel);
      Storage* after = static_cast<Storage*>(history_.after) + item * history_.after_strides[0] +
                       channel * history_.after_strides[1];
      for (int64_t t = 0; t + 1 < reach; ++t) {
        after[t * history_.after_strides[2]] = before[(t + 1) * history_.before_strides[2]];
      }
      const bool open = next < rows && rows_[next] == channel;
      narrow(open ? u_[next] : T(0), after + (reach - 1) * history_.after_strides[2]);
      next += open;
    }
  }

  // y_sums_ of the open output rows: W_out z over the open hidden rows.
  void project(int64_t rows, int64_t out_rows) {
    const Storage* w = static_cast<const Storage*>(call_.w_out);
    if (rows == call_.hidden && call_.w_out_column_stride == 1) {
      listed_dots<true>(w, call_.w_out_row_stride, out_rows_, out_rows, z_, call_.hidden, y_sums_);
    } else if (out_rows == call_.out_channels && call_.w_out_row_stride == 1) {
      for (int64_t row = 0; row < out_rows; ++row) y_sums_[row] = 0;
      for (int64_t i = 0; i < rows; ++i) axpy(z_[i], w + rows_[i] * call_.w_out_column_stride, out_rows, y_sums_);
    } else {
      for (int64_t i = 0; i < out_rows; ++i) {
        const Storage* row = w + out_rows_[i] * call_.w_out_row_stride;
        T sum = 0;
        for (int64_t k = 0; k < rows; ++k) sum += widen(row[rows_[k] * call_.w_out_column_stride]) * z_[k];
        y_sums_[out_rows_[i]] = sum;
      }
    }
  }

  static void axpy(T factor, const Storage* column, int64_t length, T* sums) {
    const Vec<T> f = broadcast(factor);
    int64_t i = 0;
    for (; i + kLanes<T> <= length; i += kLanes<T>) store(sums + i, load(column + i) * f + load(sums + i));
    for (; i < length; ++i) sums[i] += widen(column[i]) * factor;
  }

  const GatedConv& call_;
  const History& history_;
  Storage* y_;
  T* x_;
  T* u_;       // of the open rows
  T* z_;       // of the open rows
  T* y_sums_;  // of all output rows
  int32_t* rows_;
  int32_t* out_rows_;
  int64_t bytes_;
};

int64_t scratch_bytes(const GatedConv& call) {
  return with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    return Step<typename ComputeOf<Storage>::type, Storage>(call, History(), nullptr, Arena{nullptr}).bytes();
  });
}

void items(const GatedConv& call, const History& history, void* y, int64_t begin, int64_t end, void* scratch) {
  with_storage(call.dtype, [&](auto storage) {
    using Storage = decltype(storage);
    Step<typename ComputeOf<Storage>::type, Storage> step(call, history, y, Arena{static_cast<char*>(scratch)});
    for (int64_t item = begin; item < end; ++item) step.run(item);
  });
}

}  // namespace

const GatedConvStepKernels gated_conv_step_kernels = {scratch_bytes, items};

}  // namespace dyncp::DYNCP_ISA
