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
  const void* b_in = nullptr;   // biases may be null
  const void* w_dw = nullptr;   // (hidden, taps), contiguous
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

// Both return null, or why the launch failed.  stream is a cudaStream_t.
const char* launch_gated_conv(const BlockCall& call, void* stream);
const char* launch_gated_conv_step(const BlockCall& call, const History& history, void* stream);

}  // namespace dyncp::cuda
