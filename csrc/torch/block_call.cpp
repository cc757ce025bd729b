#include "torch/block_call.h"

#include <torch/csrc/stable/ops.h>

#include "torch/in_parallel.h"

namespace dyncp::binding {
using torch::headeronly::ScalarType;

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      return DType::float32;
  }
}

BlockCall::BlockCall(const BlockArguments& a) {
  const bool has_frames = a.history == nullptr;
  call_.dtype = dtype_of(a.x);
  call_.batch = a.x.size(0);
  call_.channels = a.x.size(1);
  call_.hidden = a.w_dw.size(0);
  call_.out_channels = a.w_out.size(0);
  call_.frames = has_frames ? a.x.size(2) : 1;
  call_.taps = a.w_dw.size(1);
  call_.dilation = a.dilation;
  call_.causal = a.causal;
  call_.residual = a.residual;

  Tensor x = a.x;
  if (has_frames && call_.frames > 1 && x.stride(2) != 1) x = torch::stable::contiguous(x);
  copies_.push_back(x);
  call_.x = x.const_data_ptr();
  call_.x_batch_stride = x.stride(0);
  call_.x_channel_stride = x.stride(1);
  call_.hidden_gate = gate(a.hidden_gate, has_frames);
  call_.out_gate = gate(a.out_gate, has_frames);

  if (a.w_in) {
    Tensor w_in = *a.w_in;
    if (call_.channels > 1 && w_in.stride(1) != 1) w_in = torch::stable::contiguous(w_in);
    copies_.push_back(w_in);
    // A null pointer would say that there is none; of a matrix without columns nothing is read.
    alignas(8) static const char nothing[8] = {};
    call_.w_in = w_in.numel() == 0 ? nothing : w_in.const_data_ptr();
    call_.w_in_row_stride = w_in.stride(0);
  }
  call_.w_dw = contiguous(a.w_dw);
  call_.w_out = a.w_out.const_data_ptr();
  call_.w_out_row_stride = a.w_out.stride(0);
  call_.w_out_column_stride = a.w_out.stride(1);
  call_.b_in = contiguous(a.b_in);
  call_.b_dw = contiguous(a.b_dw);
  call_.b_out = contiguous(a.b_out);
  call_.slope_in = contiguous(a.slope_in);
  call_.slope_dw = contiguous(a.slope_dw);
}

const void* BlockCall::contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor) return nullptr;
  copies_.push_back(tensor->is_contiguous() ? *tensor : torch::stable::contiguous(*tensor));
  return copies_.back().const_data_ptr();
}

Gate BlockCall::gate(const std::optional<Tensor>& tensor, bool has_frames) {
  Gate gate;
  if (!tensor) return gate;
  Tensor source = *tensor;
  const bool varies = has_frames && source.size(2) > 1 && source.stride(2) != 0;
  if (varies && source.stride(2) != 1) source = torch::stable::contiguous(source);
  copies_.push_back(source);
  gate.data = source.const_data_ptr();
  gate.form = source.scalar_type() == ScalarType::Bool ? GateForm::bools : GateForm::values;
  gate.batch_stride = source.stride(0);
  gate.channel_stride = source.stride(1);
  gate.frame_stride = varies ? 1 : 0;
  return gate;
}

void torch_parallel_for(int64_t count, int64_t grain, ParallelBody body, void* context) {
  in_parallel(count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace dyncp::binding
