// One call of the block on a GPU, as kernels take it: pointers, sizes and strides (in elements).
#pragma once

#include <cstdint>

namespace dyncp::cuda {

enum class Storage { float32, float16, bfloat16 };

struct Gate {
  const void* data = nullptr;  // null: every channel is open
  bool is_bool = true;         // otherwise of the storage type; the value multiplies and 0 prunes
  int64_t batch_stride = 0;
  int64_t channel_stride = 0;
  int64_t frame_stride = 0;  // 0 for a gate that is constant over time
};

struct BlockCall {
  Storage storage = Storage::float32;
  bool allow_tf32 = false;  // float32 products on the matrix units, 11 bits of mantissa
  int64_t batch = 0;
  int64_t frames = 0;
  int channels = 0;
  int hidden = 0;
  int out_channels = 0;
  int taps = 0;
  int dilation = 1;
  int left = 0;   // padding before the first frame
  int reach = 0;  // (taps - 1) * dilation
  bool residual = true;

  const void* x = nullptr;  // (batch, channels, frames)
  int64_t x_batch_stride = 0;
  int64_t x_channel_stride = 0;
  int64_t x_frame_stride = 0;
  Gate hidden_gate;
  Gate out_gate;

  const void* w_in = nullptr;  // (hidden, channels); null: u = m_h * x
  int64_t w_in_row_stride = 0;
  int64_t w_in_column_stride = 0;
  const void* b_in = nullptr;  // biases may be null
  const void* w_dw = nullptr;  // (hidden, taps), contiguous
  const void* b_dw = nullptr;
  const void* w_out = nullptr;  // (out_channels, hidden)
  int64_t w_out_row_stride = 0;
  int64_t w_out_column_stride = 0;
  const void* b_out = nullptr;
  const void* slope_in = nullptr;  // null: ReLU
  const void* slope_dw = nullptr;

  void* y = nullptr;  // (batch, out_channels, frames), contiguous
};

// Past of u for the step: (batch, hidden, reach), oldest frame first; after may be the memory of before.
struct History {
  const void* before = nullptr;
  void* after = nullptr;
  int64_t before_strides[3] = {0, 0, 0};
  int64_t after_strides[3] = {0, 0, 0};
};

// What the kernels that keep the hidden activations in memory share.  All are float32 (batch, hidden, frames) unless
// another shape is given; a row that is closed throughout a tile of 64 frames is neither written nor read there.
struct Activations {
  bool skips = true;           // false: closed channels are computed too, for the gradient of the hidden gate
  float* a = nullptr;          // W_in x + b_in; null without an expansion, where x takes its place
  float* z = nullptr;          // the second activation
  const void* grad = nullptr;  // gradient of y, in the storage type
  int64_t grad_batch_stride = 0;
  int64_t grad_channel_stride = 0;
  int64_t grad_frame_stride = 0;
  float* grad_c = nullptr;     // gradient of the second activation's input
  float* grad_a = nullptr;     // gradient of the first activation's input
  float* grad_gate = nullptr;  // gradient of the hidden gate, or null
  float* rows = nullptr;  // (taps + 3, batch * tiles, hidden): of w_dw, b_dw, slope_dw, slope_in over a tile; zeros
};

// A product over all frames of the batch: (parts, rows, columns) and the sum of its left factor, (parts, rows).
struct WeightGradient {
  bool of_w_in = true;  // otherwise of w_out
  float* product = nullptr;
  float* row_sum = nullptr;  // or null
  int parts = 1;
};

inline int64_t tiles_of(const BlockCall& call) { return (call.frames + 63) / 64; }

// All return null, or why the launch failed.  stream is a cudaStream_t.
const char* launch_gated_conv(const BlockCall& call, void* stream);

// Whether the smallest tile of that kernel fits into the shared memory of the device.
bool fits_one_kernel(const BlockCall& call);

// The same where the taps reach too far for one tile or it does not fit, and the parts of the gradient.
const char* launch_expand(const BlockCall& call, const Activations& act, void* stream);
const char* launch_depthwise(const BlockCall& call, const Activations& act, void* stream);
const char* launch_project(const BlockCall& call, const Activations& act, void* stream);
const char* launch_out_gate_gradient(const BlockCall& call, const Activations& act, float* result, void* stream);
const char* launch_hidden_gradient(const BlockCall& call, const Activations& act, void* stream);
const char* launch_expansion_gradient(const BlockCall& call, const Activations& act, void* stream);
const char* launch_input_gradient(const BlockCall& call, const Activations& act, void* result, void* stream);
const char* launch_weight_gradient(const BlockCall& call, const Activations& act, const WeightGradient& weights,
                                   void* stream);

// result[offset + i * step] = sum over j of values[i * inner_stride + j * outer_stride], added up in one fixed order
// and written in the storage type.
const char* launch_sum(Storage storage, const float* values, int64_t count, int64_t inner_stride, int64_t terms,
                       int64_t outer_stride, void* result, int64_t offset, int64_t step, void* stream);
const char* launch_gated_conv_step(const BlockCall& call, const History& history, void* stream);

}  // namespace dyncp::cuda
