// Binding of the CUDA kernels on the libtorch stable ABI: the ops of the namespace dyncp_cuda, which
// dyncp_kernels/ops/backends.py calls for CUDA tensors after its checks.
//
// With DYNCP_EMULATED the same binding takes CPU tensors, for kernels that run on the processor in tests.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/block_call.h"

#ifndef DYNCP_EMULATED
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif

namespace dyncp::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::float32;
    case ScalarType::Half:
      return Storage::float16;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    default:
      throw std::runtime_error("dyncp_cuda: x must be float32, float16 or bfloat16 (got another dtype)");
  }
}

#ifdef DYNCP_EMULATED
struct Device {
  explicit Device(const Tensor&) {}
  void* stream = nullptr;
};
#else
// Makes the device of a tensor current, and gives the stream that torch uses there.
struct Device {
  explicit Device(const Tensor& tensor) : guard(tensor.get_device_index()) {
    if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) != 0)
      throw std::runtime_error("dyncp_cuda: torch must give its current stream (got an error)");
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};
#endif

void check(const char* failure, const char* op) {
  if (failure != nullptr)
    throw std::runtime_error(std::string(op) + ": the CUDA kernel must be able to run (got: " + failure + ")");
}

struct Arguments {
  const Tensor& x;
  const Maybe& hidden_gate;
  const Maybe& out_gate;
  const Maybe& w_in;
  const Maybe& b_in;
  const Tensor& w_dw;
  const Maybe& b_dw;
  const Tensor& w_out;
  const Maybe& b_out;
  const Maybe& slope_in;
  const Maybe& slope_dw;
};

// The call, and contiguous copies that it points to.
class Call {
 public:
  Call(const Arguments& a, int64_t dilation, bool causal, bool residual, bool allow_tf32) {
    const bool has_frames = a.x.dim() == 3;
    call.storage = storage_of(a.x);
    call.allow_tf32 = allow_tf32;
    call.batch = a.x.size(0);
    call.frames = has_frames ? a.x.size(2) : 1;
    call.channels = static_cast<int>(a.x.size(1));
    call.hidden = static_cast<int>(a.w_dw.size(0));
    call.out_channels = static_cast<int>(a.w_out.size(0));
    call.taps = static_cast<int>(a.w_dw.size(1));
    call.dilation = static_cast<int>(dilation);
    call.reach = (call.taps - 1) * call.dilation;
    call.left = causal ? call.reach : call.reach / 2;
    call.residual = residual;
    call.x = a.x.const_data_ptr();
    call.x_batch_stride = a.x.stride(0);
    call.x_channel_stride = a.x.stride(1);
    call.x_frame_stride = has_frames ? a.x.stride(2) : 0;
    call.hidden_gate = gate(a.hidden_gate);
    call.out_gate = gate(a.out_gate);
    if (a.w_in) {
      call.w_in = a.w_in->const_data_ptr();
      call.w_in_row_stride = a.w_in->stride(0);
      call.w_in_column_stride = a.w_in->stride(1);
    }
    call.b_in = contiguous(a.b_in);
    call.w_dw = contiguous(a.w_dw);
    call.b_dw = contiguous(a.b_dw);
    call.w_out = a.w_out.const_data_ptr();
    call.w_out_row_stride = a.w_out.stride(0);
    call.w_out_column_stride = a.w_out.stride(1);
    call.b_out = contiguous(a.b_out);
    call.slope_in = contiguous(a.slope_in);
    call.slope_dw = contiguous(a.slope_dw);
  }

  BlockCall call;

 private:
  const void* contiguous(const Maybe& tensor) {
    if (!tensor) return nullptr;
    copies_.push_back(tensor->is_contiguous() ? *tensor : torch::stable::contiguous(*tensor));
    return copies_.back().const_data_ptr();
  }

  static Gate gate(const Maybe& tensor) {
    Gate gate;
    if (!tensor) return gate;
    gate.data = tensor->const_data_ptr();
    gate.is_bool = tensor->scalar_type() == ScalarType::Bool;
    gate.batch_stride = tensor->stride(0);
    gate.channel_stride = tensor->stride(1);
    gate.frame_stride = tensor->dim() == 3 && tensor->size(2) > 1 ? tensor->stride(2) : 0;
    return gate;
  }

  std::vector<Tensor> copies_;
};

Tensor gated_conv(const Tensor& x, const Maybe& hidden_gate, const Maybe& out_gate, const Maybe& w_in,
                  const Maybe& b_in, const Tensor& w_dw, const Maybe& b_dw, const Tensor& w_out, const Maybe& b_out,
                  const Maybe& slope_in, const Maybe& slope_dw, int64_t dilation, bool causal, bool residual,
                  bool allow_tf32) {
  const Device device(x);
  const Tensor y = torch::stable::new_empty(x, {x.size(0), w_out.size(0), x.size(2)});
  Call call({x, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw}, dilation, causal,
            residual, allow_tf32);
  call.call.y = y.mutable_data_ptr();
  if (y.numel() > 0) check(launch_gated_conv(call.call, device.stream), "gated_conv");
  return y;
}

Tensor run_step(const char* op, const Arguments& arguments, const Tensor& before, const Tensor& after,
                int64_t dilation, bool residual) {
  const Device device(arguments.x);
  const Tensor y = torch::stable::new_empty(arguments.x, {arguments.x.size(0), arguments.w_out.size(0)});
  Call call(arguments, dilation, true, residual, false);
  call.call.y = y.mutable_data_ptr();
  History history;
  history.before = before.const_data_ptr();
  history.after = after.mutable_data_ptr();
  for (int i = 0; i < 3; ++i) {
    history.before_strides[i] = before.stride(i);
    history.after_strides[i] = after.stride(i);
  }
  if (arguments.x.size(0) > 0) check(launch_gated_conv_step(call.call, history, device.stream), op);
  return y;
}

std::tuple<Tensor, Tensor> gated_conv_step(const Tensor& x, const Tensor& history, const Maybe& hidden_gate,
                                           const Maybe& out_gate, const Maybe& w_in, const Maybe& b_in,
                                           const Tensor& w_dw, const Maybe& b_dw, const Tensor& w_out,
                                           const Maybe& b_out, const Maybe& slope_in, const Maybe& slope_dw,
                                           int64_t dilation, bool residual) {
  const Tensor after = torch::stable::new_empty(history, history.sizes());
  const Tensor y = run_step("gated_conv_step",
                            {x, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw},
                            history, after, dilation, residual);
  return {y, after};
}

Tensor gated_conv_step_in_place(const Tensor& x, const Tensor& history, const Maybe& hidden_gate, const Maybe& out_gate,
                                const Maybe& w_in, const Maybe& b_in, const Tensor& w_dw, const Maybe& b_dw,
                                const Tensor& w_out, const Maybe& b_out, const Maybe& slope_in, const Maybe& slope_dw,
                                int64_t dilation, bool residual) {
  return run_step("gated_conv_step_",
                  {x, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw}, history,
                  history, dilation, residual);
}

}  // namespace

#define DYNCP_WEIGHTS                                                                                            \
  "Tensor? hidden_gate, Tensor? out_gate, Tensor? w_in, Tensor? b_in, Tensor w_dw, Tensor? b_dw, Tensor w_out, " \
  "Tensor? b_out, Tensor? slope_in=None, Tensor? slope_dw=None, *, int dilation=1"

STABLE_TORCH_LIBRARY(dyncp_cuda, library) {
  library.def("gated_conv(Tensor x, " DYNCP_WEIGHTS
              ", bool causal=True, bool residual=True, bool allow_tf32=False) -> Tensor");
  library.def("gated_conv_step(Tensor x, Tensor history, " DYNCP_WEIGHTS ", bool residual=True) -> (Tensor, Tensor)");
  library.def("gated_conv_step_(Tensor x, Tensor(a!) history, " DYNCP_WEIGHTS ", bool residual=True) -> Tensor");
}

#ifdef DYNCP_EMULATED
STABLE_TORCH_LIBRARY_IMPL(dyncp_cuda, CPU, library) {
#else
STABLE_TORCH_LIBRARY_IMPL(dyncp_cuda, CUDA, library) {
#endif
  library.impl("gated_conv", TORCH_BOX(&gated_conv));
  library.impl("gated_conv_step", TORCH_BOX(&gated_conv_step));
  library.impl("gated_conv_step_", TORCH_BOX(&gated_conv_step_in_place));
}

}  // namespace dyncp::cuda
