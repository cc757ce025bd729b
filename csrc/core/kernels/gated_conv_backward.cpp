// Backward of the gated block.  The forward's intermediates are recomputed; everything is summed in a fixed order, so
// gradients do not depend on the number of threads.
#include "core/kernels/gated_conv.h"
#include "core/kernels/gates.h"
#include "core/kernels/product.h"
#include "core/kernels/storage.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {
namespace {

// Weight gradients are dot products over time, in blocks of rows and columns that fit the registers.
constexpr int kDotRows = 4;
constexpr int kDotColumns = kVectorRegisters == 32 ? 4 : 2;

enum Phase {
  kLists,           // per item: open channels and frames
  kExpand,          // per tile: W_in x, gated gradient of the branch
  kHiddenRows,      // per item and hidden channel: u, depthwise convolution, z
  kProject,         // per tile: gradient of z, and of the output gate
  kHiddenGrads,     // per item and hidden channel: back through both activations and the depthwise convolution
  kInput,           // per tile: gradient of x
  kExpandWeights,   // per block of hidden channels: gradient of W_in
  kProjectWeights,  // per block of output channels: gradient of W_out and its bias
  kOutGate,         // per item: gradient of an output gate that is constant over time
  kSums,            // once: gradients that are summed over the batch
  kPhases
};

template <class T>
class Backward {
 public:
  Backward(const GatedConv& call, const void* grad, const GatedConvGradients& gradients, Arena workspace, Arena scratch)
      : call_(call), grad_(static_cast<const T*>(grad)), gradients_(gradients) {
    const int64_t rows = call.batch * call.hidden;
    width_ = (call.frames + kTile - 1) / kTile * kTile;
    u_width_ = width_ + (call.reach() + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    partials_ = call.taps + 4;
    x_ = workspace.take<T>(gradients.w_in == nullptr ? 0 : call.batch * call.channels * width_);
    a_ = workspace.take<T>(rows * width_);
    u_ = workspace.take<T>(rows * u_width_);
    p_ = workspace.take<T>(rows * width_);
    z_ = workspace.take<T>(rows * width_);
    back_ = workspace.take<T>(rows * width_);
    branch_grad_ = workspace.take<T>(call.batch * call.out_channels * width_);
    gate_products_ = workspace.take<T>(gradients.out_gate == nullptr ? 0 : call.batch * call.out_channels * width_);
    sums_of_row_ = workspace.take<T>(rows * partials_);
    computed_ = workspace.take<int32_t>(rows);
    computed_count_ = workspace.take<int64_t>(call.batch);
    open_ = workspace.take<uint8_t>(rows);
    out_open_ = workspace.take<uint8_t>(call.batch * call.out_channels);
    branch_ = workspace.take<uint8_t>(call.batch * width_);
    workspace_bytes_ = workspace.used;

    const int64_t widest = widest_product();
    tile_ = scratch.take<T>(widest * kTile);
    sums_ = scratch.take<T>(kBlockRows * kTile);
    list_ = scratch.take<int32_t>(widest);
    columns_ = scratch.take<int64_t>(widest);
    padded_ = scratch.take<T>(width_ + 2 * call.reach() + kTile);
    gate_grad_ = scratch.take<T>(width_);
    scratch_bytes_ = scratch.used;
  }

  int64_t workspace_bytes() const { return workspace_bytes_; }
  int64_t scratch_bytes() const { return scratch_bytes_; }

  int64_t units(int phase) const {
    const int64_t tiles = call_.batch * (width_ / kTile);
    switch (phase) {
      case kLists:
        return call_.batch;
      case kExpand:
      case kProject:
        return tiles;
      case kHiddenRows:
      case kHiddenGrads:
        return call_.batch * call_.hidden;
      case kInput:
        return gradients_.x == nullptr ? 0 : tiles;
      case kExpandWeights:
        return gradients_.w_in == nullptr ? 0 : (call_.hidden + kDotRows - 1) / kDotRows;
      case kProjectWeights:
        return gradients_.w_out == nullptr && gradients_.b_out == nullptr
                   ? 0
                   : (call_.out_channels + kDotRows - 1) / kDotRows;
      case kOutGate:
        return gradients_.out_gate == nullptr ? 0 : call_.batch;
      default:
        return 1;
    }
  }

  void run(int phase, int64_t unit) {
    const int64_t tiles = width_ / kTile;
    switch (phase) {
      case kLists:
        return list_item(unit);
      case kExpand:
        return expand_tile(unit / tiles, unit % tiles * kTile);
      case kHiddenRows:
        return hidden_row(unit / call_.hidden, unit % call_.hidden);
      case kProject:
        return project_tile(unit / tiles, unit % tiles * kTile);
      case kHiddenGrads:
        return hidden_row_gradients(unit / call_.hidden, unit % call_.hidden);
      case kInput:
        return input_tile(unit / tiles, unit % tiles * kTile);
      case kExpandWeights:
        return expand_weights(unit * kDotRows);
      case kProjectWeights:
        return project_weights(unit * kDotRows);
      case kOutGate:
        return out_gate_item(unit);
      default:
        return sum_over_batch();
    }
  }

 private:
  using Gated = ItemGate<T, T>;

  int64_t widest_product() const {
    int64_t widest = call_.hidden > call_.channels ? call_.hidden : call_.channels;
    return widest > call_.out_channels ? widest : call_.out_channels;
  }

  const T* weights(const void* p) const { return static_cast<const T*>(p); }
  T* result(void* p) const { return static_cast<T*>(p); }
  const T* x_row(int64_t item, int64_t channel) const {
    return weights(call_.x) + item * call_.x_batch_stride + channel * call_.x_channel_stride;
  }
  const T* grad_row(int64_t item, int64_t row) const {
    return grad_ + (item * call_.out_channels + row) * call_.frames;
  }
  int64_t index(int64_t item, int64_t channel) const { return item * call_.hidden + channel; }
  T* branch_row(int64_t item, int64_t row) const { return branch_grad_ + (item * call_.out_channels + row) * width_; }
  int64_t frames_of_tile(int64_t begin) const { return call_.frames - begin < kTile ? call_.frames - begin : kTile; }
  const int32_t* computed(int64_t item) const { return computed_ + item * call_.hidden; }

  void list_item(int64_t item) {
    const Gated gate(call_.hidden_gate, item);
    const Gated out(call_.out_gate, item);
    uint8_t* branch = branch_ + item * width_;
    __builtin_memset(branch, 0, width_);
    int64_t count = 0;
    bool every_frame = false;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      const Openness open = gate.over(channel, 0, call_.frames);
      open_[index(item, channel)] = open != Openness::none;
      // The gradient of a gate needs the values of closed channels too.
      if (open == Openness::none && gradients_.hidden_gate == nullptr) continue;
      computed_[item * call_.hidden + count++] = static_cast<int32_t>(channel);
      every_frame = every_frame || open == Openness::all;
      if (open == Openness::some) gate.mark_open(channel, 0, call_.frames, branch);
    }
    if (every_frame) __builtin_memset(branch, 1, call_.frames);
    computed_count_[item] = count;
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      out_open_[item * call_.out_channels + row] = out.over(row, 0, call_.frames) != Openness::none;
    }
  }

  void copy_frames(const T* source, int64_t frames, T* target) const {
    __builtin_memcpy(target, source, frames * sizeof(T));
    __builtin_memset(target + frames, 0, (kTile - frames) * sizeof(T));
  }

  void expand_tile(int64_t item, int64_t begin) {
    const int64_t frames = frames_of_tile(begin);
    const int64_t count = computed_count_[item];
    if (call_.w_in == nullptr) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t channel = computed(item)[i];
        copy_frames(x_row(item, channel) + begin, frames, a_ + index(item, channel) * width_ + begin);
      }
    } else {
      for (int64_t c = 0; c < call_.channels; ++c) {
        copy_frames(x_row(item, c) + begin, frames, tile_ + c * kTile);
        if (gradients_.w_in != nullptr) {
          __builtin_memcpy(x_ + (item * call_.channels + c) * width_ + begin, tile_ + c * kTile, kTile * sizeof(T));
        }
      }
      const RowBlocks blocks(count);
      for (int64_t block = 0; block < blocks.blocks; ++block) {
        const T* w[kBlockRows];
        const int32_t* rows = computed(item) + blocks.begin(block);
        for (int r = 0; r < blocks.size(block); ++r) w[r] = weights(call_.w_in) + rows[r] * call_.w_in_row_stride;
        product_block<T>(blocks.size(block), w, nullptr, call_.channels, tile_, whole_vectors<T>(kTile),
                         StoreSums<T>{sums_, kTile});
        for (int r = 0; r < blocks.size(block); ++r) {
          const T bias = call_.b_in == nullptr ? T(0) : weights(call_.b_in)[rows[r]];
          T* a = a_ + index(item, rows[r]) * width_ + begin;
          for (int t = 0; t < kTile; ++t) a[t] = sums_[r * kTile + t] + bias;
        }
      }
    }

    const Gated out(call_.out_gate, item);
    const uint8_t* branch = branch_ + item * width_ + begin;
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      T* target = branch_row(item, row) + begin;
      if (out_open_[item * call_.out_channels + row] == 0) {
        __builtin_memset(target, 0, kTile * sizeof(T));
        continue;
      }
      copy_frames(grad_row(item, row) + begin, frames, target);
      out.apply(row, begin, frames, Openness::some, target);
      for (int t = 0; t < kTile; ++t) target[t] = branch[t] != 0 ? target[t] : T(0);
    }
  }

  static T slope_of(const void* slope) { return slope == nullptr ? T(0) : *static_cast<const T*>(slope); }

  // act(values) of one tile; a closed slope is ReLU.
  static void activate(const T* values, const void* slope, T* target) {
    if (slope == nullptr) {
      for (int t = 0; t < kTile; t += kLanes<T>) store(target + t, relu<T>(load(values + t)));
    } else {
      const T s = slope_of(slope);
      for (int t = 0; t < kTile; t += kLanes<T>) store(target + t, prelu<T>(load(values + t), s));
    }
  }

  void hidden_row(int64_t item, int64_t channel) {
    const int64_t at = index(item, channel);
    T* z = z_ + at * width_;
    const bool open = open_[at] != 0;
    if (!open && gradients_.hidden_gate == nullptr) {
      __builtin_memset(z, 0, width_ * sizeof(T));
      return;
    }
    const Gated gate(call_.hidden_gate, item);
    T* u = u_ + at * u_width_;
    T* p = p_ + at * width_;
    const T* a = a_ + at * width_;
    __builtin_memset(u, 0, u_width_ * sizeof(T));
    T row[kTile];
    for (int64_t begin = 0; begin < call_.frames; begin += kTile) {
      const int64_t frames = frames_of_tile(begin);
      if (call_.w_in == nullptr) {
        __builtin_memcpy(row, a + begin, sizeof(row));
      } else {
        activate(a + begin, call_.slope_in, row);
      }
      gate.apply(channel, begin, frames, Openness::some, row);
      __builtin_memcpy(u + call_.left() + begin, row, frames * sizeof(T));
    }
    const T* w = weights(call_.w_dw) + channel * call_.taps;
    const T bias = call_.b_dw == nullptr ? T(0) : weights(call_.b_dw)[channel];
    for (int64_t begin = 0; begin < width_; begin += kLanes<T>) {
      Vec<T> sum = zero<T>();
      for (int64_t tap = 0; tap < call_.taps; ++tap) {
        sum = broadcast(w[tap]) * load(u + begin + tap * call_.dilation) + sum;
      }
      store(p + begin, sum + broadcast(bias));
    }
    for (int64_t begin = 0; begin < call_.frames; begin += kTile) {
      const int64_t frames = frames_of_tile(begin);
      activate(p + begin, call_.slope_dw, row);
      gate.apply(channel, begin, frames, Openness::some, row);
      copy_frames(row, frames, z + begin);
    }
  }

  // Sums that are not finite, over the rows that are open at their frame: see the forward kernel.
  template <class IsOpen>
  void repair(const T* w, int64_t depth, int64_t frames, T* sums, IsOpen is_open_at) const {
    Vec<T> check = zero<T>();
    for (int t = 0; t < kTile; t += kLanes<T>) check = load(sums + t) * T(0) + check;
    if (sum_of_lanes<T>(check) == T(0)) return;
    for (int64_t t = 0; t < frames; ++t) {
      if (sums[t] - sums[t] == T(0)) continue;
      T sum = 0;
      for (int64_t k = 0; k < depth; ++k) {
        if (is_open_at(list_[k], t)) sum = w[columns_[k]] * tile_[k * kTile + t] + sum;
      }
      sums[t] = sum;
    }
  }

  void project_tile(int64_t item, int64_t begin) {
    const int64_t frames = frames_of_tile(begin);
    const Gated gate(call_.hidden_gate, item);
    const Gated out(call_.out_gate, item);
    if (gradients_.out_gate != nullptr) out_gate_products(item, begin, frames, gate);

    int64_t depth = 0;
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      if (out_open_[item * call_.out_channels + row] == 0) continue;
      __builtin_memcpy(tile_ + depth * kTile, branch_row(item, row) + begin, kTile * sizeof(T));
      list_[depth] = static_cast<int32_t>(row);
      columns_[depth++] = row * call_.w_out_row_stride;
    }
    const RowBlocks blocks(computed_count_[item]);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const T* w[kBlockRows];
      const int32_t* rows = computed(item) + blocks.begin(block);
      for (int r = 0; r < blocks.size(block); ++r) w[r] = weights(call_.w_out) + rows[r] * call_.w_out_column_stride;
      product_block<T>(blocks.size(block), w, columns_, depth, tile_, whole_vectors<T>(kTile),
                       StoreSums<T>{sums_, kTile});
      for (int r = 0; r < blocks.size(block); ++r) {
        T* sums = sums_ + r * kTile;
        repair(w[r], depth, frames, sums, [&](int64_t row, int64_t t) { return out.is_open_at(row, begin + t); });
        copy_frames(sums, frames, back_ + index(item, rows[r]) * width_ + begin);
      }
    }
  }

  // grad * (W_out z + b_out), the gradient of the output gate per frame.
  void out_gate_products(int64_t item, int64_t begin, int64_t frames, const Gated& gate) {
    int64_t depth = 0;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      if (open_[index(item, channel)] == 0) continue;
      __builtin_memcpy(tile_ + depth * kTile, z_ + index(item, channel) * width_ + begin, kTile * sizeof(T));
      list_[depth] = static_cast<int32_t>(channel);
      columns_[depth++] = channel * call_.w_out_column_stride;
    }
    const uint8_t* branch = branch_ + item * width_ + begin;
    const RowBlocks blocks(call_.out_channels);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const T* w[kBlockRows];
      const int64_t first = blocks.begin(block);
      for (int r = 0; r < blocks.size(block); ++r) w[r] = weights(call_.w_out) + (first + r) * call_.w_out_row_stride;
      product_block<T>(blocks.size(block), w, columns_, depth, tile_, whole_vectors<T>(kTile),
                       StoreSums<T>{sums_, kTile});
      for (int r = 0; r < blocks.size(block); ++r) {
        T* sums = sums_ + r * kTile;
        repair(w[r], depth, frames, sums, [&](int64_t row, int64_t t) { return gate.is_open_at(row, begin + t); });
        const T bias = call_.b_out == nullptr ? T(0) : weights(call_.b_out)[first + r];
        const T* grad = grad_row(item, first + r) + begin;
        T* target = gate_products_ + (item * call_.out_channels + first + r) * width_ + begin;
        for (int64_t t = 0; t < frames; ++t) target[t] = branch[t] != 0 ? grad[t] * (sums[t] + bias) : T(0);
      }
    }
  }

  // Multiplies a gradient by act' of `values` over one tile, and adds to slope_grad what it says about the slope.  A
  // gradient of zero stays zero whatever the value is: closed channels may hold NaN.
  static void differentiate(const T* values, const void* slope, T* gradient, T* slope_grad) {
    const Vec<T> s = broadcast(slope_of(slope));
    Vec<T> total = zero<T>();
    for (int t = 0; t < kTile; t += kLanes<T>) {
      const Vec<T> v = load(values + t);
      const Vec<T> g = load(gradient + t);
      const Mask<T> bent = ~(v > zero<T>()) & (g != zero<T>());
      total += select(bent, g * v, zero<T>());
      store(gradient + t, select(bent, g * s, g));
    }
    *slope_grad += sum_of_lanes<T>(total);
  }

  void hidden_row_gradients(int64_t item, int64_t channel) {
    const int64_t at = index(item, channel);
    const bool wants_gate = gradients_.hidden_gate != nullptr;
    T* partial = sums_of_row_ + at * partials_;
    T* back = back_ + at * width_;
    __builtin_memset(partial, 0, partials_ * sizeof(T));
    if (open_[at] == 0 && !wants_gate) {
      __builtin_memset(back, 0, width_ * sizeof(T));
      return;
    }
    T* b_in_grad = partial + call_.taps;
    T* b_dw_grad = partial + call_.taps + 1;
    T* slope_in_grad = partial + call_.taps + 2;
    T* slope_dw_grad = partial + call_.taps + 3;
    const Gated gate(call_.hidden_gate, item);
    const T* a = a_ + at * width_;
    const T* u = u_ + at * u_width_;
    const T* p = p_ + at * width_;
    const int64_t frames = call_.frames;
    const int64_t right = call_.right();

    // Back through the second activation; padded_ holds the result with zeros on both sides.
    T* dz = padded_ + right;
    __builtin_memset(padded_, 0, (width_ + 2 * call_.reach() + kTile) * sizeof(T));
    T row[kTile];
    for (int64_t begin = 0; begin < frames; begin += kTile) {
      const int64_t count = frames_of_tile(begin);
      if (wants_gate) {
        activate(p + begin, call_.slope_dw, row);
        for (int64_t t = 0; t < count; ++t) gate_grad_[begin + t] = back[begin + t] * row[t];
      }
      copy_frames(back + begin, count, row);
      gate.apply(channel, begin, count, Openness::some, row);
      differentiate(p + begin, call_.slope_dw, row, slope_dw_grad);
      __builtin_memcpy(dz + begin, row, count * sizeof(T));
    }
    const T* w = weights(call_.w_dw) + channel * call_.taps;
    *b_dw_grad = sum(dz, frames);
    for (int64_t tap = 0; tap < call_.taps; ++tap) partial[tap] = dot(dz, u + tap * call_.dilation, frames);

    // Back through the depthwise convolution: frame t of u met tap k at frame t + left - k * dilation.
    for (int64_t begin = 0; begin < width_; begin += kLanes<T>) {
      Vec<T> total = zero<T>();
      for (int64_t tap = 0; tap < call_.taps; ++tap) {
        total = broadcast(w[tap]) * load(padded_ + begin + call_.reach() - tap * call_.dilation) + total;
      }
      store(back + begin, total);
    }
    for (int64_t begin = 0; begin < frames; begin += kTile) {
      const int64_t count = frames_of_tile(begin);
      if (wants_gate) {
        if (call_.w_in == nullptr) {
          __builtin_memcpy(row, a + begin, sizeof(row));
        } else {
          activate(a + begin, call_.slope_in, row);
        }
        for (int64_t t = 0; t < count; ++t) gate_grad_[begin + t] += back[begin + t] * row[t];
      }
      __builtin_memset(back + begin + count, 0, (kTile - count) * sizeof(T));
      gate.apply(channel, begin, count, Openness::some, back + begin);
      if (call_.w_in != nullptr) differentiate(a + begin, call_.slope_in, back + begin, slope_in_grad);
    }
    *b_in_grad = sum(back, frames);

    if (wants_gate) {
      if (gradients_.hidden_gate_frames == 1) {
        result(gradients_.hidden_gate)[at] = sum(gate_grad_, frames);
      } else {
        __builtin_memcpy(result(gradients_.hidden_gate) + at * frames, gate_grad_, frames * sizeof(T));
      }
    }
  }

  static T sum(const T* values, int64_t count) {
    Vec<T> total = zero<T>();
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) total += load(values + i);
    if (i < count) total += load_first(values + i, count - i);
    return sum_of_lanes<T>(total);
  }

  static T dot(const T* left, const T* right, int64_t count) {
    Vec<T> total = zero<T>();
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) total = load(left + i) * load(right + i) + total;
    if (i < count) total = load_first(left + i, count - i) * load_first(right + i, count - i) + total;
    return sum_of_lanes<T>(total);
  }

  void input_tile(int64_t item, int64_t begin) {
    const int64_t frames = frames_of_tile(begin);
    T* target = result(gradients_.x) + item * call_.channels * call_.frames + begin;
    if (call_.w_in == nullptr) {
      for (int64_t channel = 0; channel < call_.channels; ++channel) {
        write_input(item, channel, begin, frames, back_ + index(item, channel) * width_ + begin,
                    target + channel * call_.frames);
      }
      return;
    }
    const Gated gate(call_.hidden_gate, item);
    int64_t depth = 0;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      if (open_[index(item, channel)] == 0) continue;
      __builtin_memcpy(tile_ + depth * kTile, back_ + index(item, channel) * width_ + begin, kTile * sizeof(T));
      list_[depth] = static_cast<int32_t>(channel);
      columns_[depth++] = channel * call_.w_in_row_stride;
    }
    const RowBlocks blocks(call_.channels);
    for (int64_t block = 0; block < blocks.blocks; ++block) {
      const T* w[kBlockRows];
      const int64_t first = blocks.begin(block);
      for (int r = 0; r < blocks.size(block); ++r) w[r] = weights(call_.w_in) + first + r;
      product_block<T>(blocks.size(block), w, columns_, depth, tile_, whole_vectors<T>(kTile),
                       StoreSums<T>{sums_, kTile});
      for (int r = 0; r < blocks.size(block); ++r) {
        T* sums = sums_ + r * kTile;
        repair(w[r], depth, frames, sums, [&](int64_t row, int64_t t) { return gate.is_open_at(row, begin + t); });
        write_input(item, first + r, begin, frames, sums, target + (first + r) * call_.frames);
      }
    }
  }

  void write_input(int64_t item, int64_t channel, int64_t begin, int64_t frames, const T* branch, T* target) const {
    if (call_.residual) {
      const T* grad = grad_row(item, channel) + begin;
      for (int64_t t = 0; t < frames; ++t) target[t] = grad[t] + branch[t];
    } else {
      for (int64_t t = 0; t < frames; ++t) target[t] = branch[t];
    }
  }

  // Adds to sums[i][j] the products of left[i] and right[j]; rows are padded with zeros to whole tiles.
  DYNCP_INLINE static void add_dots(const T* const* left, const T* const* right, int64_t width,
                                    Vec<T> (&sums)[kDotRows][kDotColumns]) {
    for (int64_t t = 0; t < width; t += kLanes<T>) {
      Vec<T> r[kDotColumns];
      for (int j = 0; j < kDotColumns; ++j) r[j] = load(right[j] + t);
      for (int i = 0; i < kDotRows; ++i) {
        const Vec<T> l = load(left[i] + t);
        for (int j = 0; j < kDotColumns; ++j) sums[i][j] = l * r[j] + sums[i][j];
      }
    }
  }

  // A block of rows of a weight gradient: sum over items and frames of left rows times right rows.  A block takes its
  // last row or column again where there are too few.
  template <class Left, class Right, class Skip>
  void weight_rows(int64_t first, int64_t rows, int64_t columns, Left left_row, Right right_row, Skip skip, T* target) {
    const auto clamp = [](int64_t i, int64_t end) { return i < end ? i : end - 1; };
    for (int64_t column = 0; column < columns; column += kDotColumns) {
      Vec<T> sums[kDotRows][kDotColumns] = {};
      for (int64_t item = 0; item < call_.batch; ++item) {
        if (skip(item)) continue;
        const T* left[kDotRows];
        const T* right[kDotColumns];
        for (int i = 0; i < kDotRows; ++i) left[i] = left_row(item, clamp(first + i, rows));
        for (int j = 0; j < kDotColumns; ++j) right[j] = right_row(item, clamp(column + j, columns));
        add_dots(left, right, width_, sums);
      }
      for (int i = 0; i < kDotRows && first + i < rows; ++i) {
        for (int j = 0; j < kDotColumns && column + j < columns; ++j) {
          target[(first + i) * columns + column + j] = sum_of_lanes<T>(sums[i][j]);
        }
      }
    }
  }

  void expand_weights(int64_t first) {
    const auto skip = [&](int64_t item) {
      for (int i = 0; i < kDotRows && first + i < call_.hidden; ++i) {
        if (open_[index(item, first + i)] != 0) return false;
      }
      return true;
    };
    weight_rows(
        first, call_.hidden, call_.channels,
        [&](int64_t item, int64_t channel) { return back_ + index(item, channel) * width_; },
        [&](int64_t item, int64_t channel) { return x_ + (item * call_.channels + channel) * width_; }, skip,
        result(gradients_.w_in));
  }

  void project_weights(int64_t first) {
    const auto skip = [&](int64_t item) {
      for (int i = 0; i < kDotRows && first + i < call_.out_channels; ++i) {
        if (out_open_[item * call_.out_channels + first + i] != 0) return false;
      }
      return true;
    };
    if (gradients_.w_out != nullptr) {
      weight_rows(
          first, call_.out_channels, call_.hidden, [&](int64_t item, int64_t row) { return branch_row(item, row); },
          [&](int64_t item, int64_t channel) { return z_ + index(item, channel) * width_; }, skip,
          result(gradients_.w_out));
    }
    if (gradients_.b_out != nullptr) {
      for (int64_t row = first; row < first + kDotRows && row < call_.out_channels; ++row) {
        T total = 0;
        for (int64_t item = 0; item < call_.batch; ++item) total += sum(branch_row(item, row), call_.frames);
        result(gradients_.b_out)[row] = total;
      }
    }
  }

  void out_gate_item(int64_t item) {
    for (int64_t row = 0; row < call_.out_channels; ++row) {
      const int64_t at = item * call_.out_channels + row;
      const T* products = gate_products_ + at * width_;
      if (gradients_.out_gate_frames == 1) {
        result(gradients_.out_gate)[at] = sum(products, call_.frames);
      } else {
        __builtin_memcpy(result(gradients_.out_gate) + at * call_.frames, products, call_.frames * sizeof(T));
      }
    }
  }

  void sum_over_batch() {
    T slope_in = 0;
    T slope_dw = 0;
    for (int64_t channel = 0; channel < call_.hidden; ++channel) {
      for (int64_t i = 0; i < partials_; ++i) {
        T total = 0;
        for (int64_t item = 0; item < call_.batch; ++item) total += sums_of_row_[index(item, channel) * partials_ + i];
        if (i < call_.taps) {
          if (gradients_.w_dw != nullptr) result(gradients_.w_dw)[channel * call_.taps + i] = total;
        } else if (i == call_.taps) {
          if (gradients_.b_in != nullptr) result(gradients_.b_in)[channel] = total;
        } else if (i == call_.taps + 1) {
          if (gradients_.b_dw != nullptr) result(gradients_.b_dw)[channel] = total;
        } else if (i == call_.taps + 2) {
          slope_in += total;
        } else {
          slope_dw += total;
        }
      }
    }
    if (gradients_.slope_in != nullptr) *result(gradients_.slope_in) = slope_in;
    if (gradients_.slope_dw != nullptr) *result(gradients_.slope_dw) = slope_dw;
  }

  const GatedConv& call_;
  const T* grad_;
  const GatedConvGradients& gradients_;
  int64_t width_;     // of a row of frames, whole tiles
  int64_t u_width_;   // of a row of u, with its padding
  int64_t partials_;  // per item and hidden channel: taps, b_in, b_dw, slope_in, slope_dw

  // Workspace, filled by the phases; rows are (item, channel).
  T* x_;  // x, padded
  T* a_;  // W_in x + b_in, or x
  T* u_;  // padded
  T* p_;  // DW(u) + b_dw
  T* z_;
  T* back_;            // gradient of z, then of a
  T* branch_grad_;     // gradient of W_out z + b_out
  T* gate_products_;   // gradient of the output gate per frame
  T* sums_of_row_;     // [partials_]
  int32_t* computed_;  // per item: hidden channels whose rows are computed
  int64_t* computed_count_;
  uint8_t* open_;  // hidden channels that are open at some frame
  uint8_t* out_open_;
  uint8_t* branch_;  // frames at which some hidden channel is open
  int64_t workspace_bytes_;

  // Scratch of one thread.
  T* tile_;
  T* sums_;
  int32_t* list_;     // channels of the rows of tile_
  int64_t* columns_;  // and where their weights are
  T* padded_;
  T* gate_grad_;
  int64_t scratch_bytes_;
};

template <class Run>
auto with_compute(DType dtype, Run run) {
  return dtype == DType::float64 ? run(double()) : run(float());
}

int64_t units(const GatedConv& call, const GatedConvGradients& gradients, int phase) {
  return with_compute(call.dtype, [&](auto compute) {
    return Backward<decltype(compute)>(call, nullptr, gradients, Arena{nullptr}, Arena{nullptr}).units(phase);
  });
}

int64_t workspace_bytes(const GatedConv& call, const GatedConvGradients& gradients) {
  return with_compute(call.dtype, [&](auto compute) {
    return Backward<decltype(compute)>(call, nullptr, gradients, Arena{nullptr}, Arena{nullptr}).workspace_bytes();
  });
}

int64_t scratch_bytes(const GatedConv& call) {
  return with_compute(call.dtype, [&](auto compute) {
    const GatedConvGradients none;
    return Backward<decltype(compute)>(call, nullptr, none, Arena{nullptr}, Arena{nullptr}).scratch_bytes();
  });
}

void run(const GatedConv& call, const void* grad, const GatedConvGradients& gradients, void* workspace, int phase,
         int64_t begin, int64_t end, void* scratch) {
  with_compute(call.dtype, [&](auto compute) {
    Backward<decltype(compute)> backward(call, grad, gradients, Arena{static_cast<char*>(workspace)},
                                         Arena{static_cast<char*>(scratch)});
    for (int64_t unit = begin; unit < end; ++unit) backward.run(phase, unit);
  });
}

void narrow_values(DType dtype, const float* source, void* target, int64_t count) {
  with_storage(dtype, [&](auto storage) {
    using Storage = decltype(storage);
    if constexpr (sizeof(Storage) == 2) {
      Storage* to = static_cast<Storage*>(target);
      int64_t i = 0;
      for (; i + kLanes<float> <= count; i += kLanes<float>) store(to + i, load(source + i));
      if (i < count) store_first(to + i, load_first(source + i, count - i), count - i);
    }
  });
}

}  // namespace

const GatedConvBackwardKernels gated_conv_backward_kernels = {kPhases,       units, workspace_bytes,
                                                              scratch_bytes, run,   narrow_values};

}  // namespace dyncp::DYNCP_ISA
