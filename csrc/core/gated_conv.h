// The gated depthwise-separable block, without torch: one description of a call, and the functions that run it.
//
//   u = m_h * act(W_in x + b_in),  z = m_h * act(DW(u) + b_dw),  y = m_o * (W_out z + b_out) [+ x]
//
// Frames in which no hidden channel is open skip the whole branch.  Values are selected by the gates, never multiplied
// by zero, and weights of channels that are pruned throughout are not read.
#pragma once

#include <cstdint>

namespace dyncp {

enum class DType { float32, float64, float16, bfloat16 };

// Runs body(context, begin, end) over a partition of [0, count) into ranges of at least grain, perhaps in parallel.
using ParallelBody = void (*)(void* context, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t count, int64_t grain, ParallelBody body, void* context);

// A thread is worth waking for about this many multiply-adds.
constexpr int64_t kThreadWork = 1 << 20;

// How a tile of frames computes channels that are open at some of them: automatic takes what costs less.
enum class Strategy {
  automatic,
  tile,   // all frames of the tile in shared products
  frames  // each open frame alone
};

enum class GateForm {
  bools,  // bytes of 0 or 1
  bits,   // bits of 64-bit words, see GateWords
  values  // of the dtype of the call: the value multiplies and 0 prunes
};

// All strides count elements.
struct Gate {
  const void* data = nullptr;  // null: every channel is open
  GateForm form = GateForm::bools;
  int64_t batch_stride = 0;
  int64_t channel_stride = 0;
  int64_t frame_stride = 0;  // 1, or 0 for a gate that is constant over time; for bits, from one word to the next
};

// Decisions as bits, (batch, words of a row, channels) of them: word t / 64 holds frame t as bit t % 64, and zeros
// behind the last frame.  A decision that is constant over time is one bit.
struct GateWords {
  static constexpr int64_t kFrames = 64;
  int64_t channels = 0;
  int64_t frames = 0;
  int64_t of_row() const { return (frames + kFrames - 1) / kFrames; }
  int64_t of_item() const { return of_row() * channels; }
  // A gate of the channels from `first` on.
  Gate gate(const uint64_t* words, int64_t first) const {
    return {words + first, GateForm::bits, of_item(), 1, frames == 1 ? 0 : channels};
  }
};

// Activations between the layers of a network may be stored in tiles of frames, [tile][channel][frame of the tile], so
// that what a tile reads lies in one piece: then a tile stride is given, from the first frame of one tile to that of
// the next, and the last tile has room behind the last frame, which may be written.  Without a tile stride the frames
// of a row are contiguous.  Only causal blocks read tiles.
struct GatedConv {
  DType dtype = DType::float32;
  int64_t batch = 0;
  int64_t channels = 0;
  int64_t hidden = 0;
  int64_t out_channels = 0;
  int64_t frames = 0;
  int64_t taps = 0;
  int64_t dilation = 1;
  bool causal = true;
  bool residual = true;
  Strategy strategy = Strategy::automatic;

  const void* x = nullptr;  // (batch, channels, frames), frames contiguous
  int64_t x_batch_stride = 0;
  int64_t x_channel_stride = 0;
  int64_t x_tile_stride = 0;
  int64_t y_batch_stride = 0;    // of the output of gated_conv; 0: all channels
  int64_t y_channel_stride = 0;  // 0: frames
  int64_t y_tile_stride = 0;
  Gate hidden_gate;
  Gate out_gate;

  const void* w_in = nullptr;  // (hidden, channels), columns contiguous; null: u = m_h * x
  int64_t w_in_row_stride = 0;
  const void* w_dw = nullptr;   // (hidden, taps), contiguous
  const void* w_out = nullptr;  // (out_channels, hidden)
  int64_t w_out_row_stride = 0;
  int64_t w_out_column_stride = 0;
  const void* b_in = nullptr;  // biases may be null
  const void* b_dw = nullptr;
  const void* b_out = nullptr;
  const void* slope_in = nullptr;  // null: ReLU
  const void* slope_dw = nullptr;

  int64_t reach() const { return (taps - 1) * dilation; }
  int64_t left() const { return causal ? reach() : reach() / 2; }
  int64_t right() const { return reach() - left(); }
};

// Where the step keeps the past of u: (batch, hidden, reach), oldest frame first.
struct History {
  const void* before = nullptr;
  void* after = nullptr;  // may be the same memory
  int64_t before_strides[3] = {0, 0, 0};
  int64_t after_strides[3] = {0, 0, 0};
};

// The strategy of the calls of this process, for tests and measurements: automatic, tile or frames.
// Throws std::runtime_error for another name.
void set_offline_strategy(const char* name);

// y: (batch, out_channels, frames), contiguous unless the call gives strides.  It may be x itself, where it lies in the
// same way; only items run in parallel then.  The result does not depend on how parallel_for partitions the work.
void gated_conv(const GatedConv& call, void* y, ParallelFor parallel_for);

// One frame: x is (batch, channels), gates have no frames; y: (batch, out_channels), contiguous.
void gated_conv_step(const GatedConv& call, const History& history, void* y, ParallelFor parallel_for);

// Where the gradients go: contiguous, in the dtype of the call; null where one is not wanted.
struct GatedConvGradients {
  void* x = nullptr;
  void* hidden_gate = nullptr;  // (batch, hidden, hidden_gate_frames)
  void* out_gate = nullptr;     // (batch, out_channels, out_gate_frames)
  void* w_in = nullptr;
  void* b_in = nullptr;
  void* w_dw = nullptr;
  void* b_dw = nullptr;
  void* w_out = nullptr;
  void* b_out = nullptr;
  void* slope_in = nullptr;
  void* slope_dw = nullptr;
  int64_t hidden_gate_frames = 1;  // 1, or frames
  int64_t out_gate_frames = 1;
};

// grad: gradient of y, contiguous.  Weights of pruned channels get zeros and are not read, unless the gradient of a
// floating gate is wanted: it needs the values that the gate closed.  Sums have a fixed order.
void gated_conv_backward(const GatedConv& call, const void* grad, const GatedConvGradients& gradients,
                         ParallelFor parallel_for);

}  // namespace dyncp
