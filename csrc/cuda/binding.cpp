// Binding of the CUDA kernels on the libtorch stable ABI: the ops of the namespace dyncp_cuda, which
// dyncp_kernels/ops/backends.py calls for CUDA tensors after its checks.
//
// With DYNCP_EMULATED the same binding takes CPU tensors, for kernels that run on the processor in tests.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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

// Taps that reach further do not fit into one tile of the fused kernel.
constexpr int kFusedReach = 48;

// Each block of 128 output channels computes the hidden channels anew: with more blocks, exact float32 products, which
// have no matrix unit, cost more than the activations' way through memory.
constexpr int kFusedExactChannels = 256;

bool is_fused(const BlockCall& p) {
  const bool is_exact = p.storage == Storage::float32 && !p.allow_tf32;
  return p.reach <= kFusedReach && (!is_exact || p.out_channels <= kFusedExactChannels) && fits_one_kernel(p);
}

// Frames that the taps may span, so that sums of a few such numbers are integers of 32 bits.
constexpr int64_t kMostReach = 1 << 30;

// Programs that a product over all frames is split into at most, the same on every GPU.
constexpr int64_t kWeightPrograms = 512;

void check_sizes(const char* op, const BlockCall& p) {
  const char* failure = nullptr;
  if (p.channels > 4096 || p.hidden > 8192 || p.out_channels > 4096)
    failure = "more than 4096 channels or 8192 hidden channels";
  // One block of threads for at least 16 frames and at least 64 channels.
  const int64_t blocks = (std::max({p.channels, p.hidden, p.out_channels}) + 63) / 64;
  if (p.batch * ((p.frames + 15) / 16) * blocks >= 0x7fffffff) failure = "more frames than one launch can take";
  check(failure, op);
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

Tensor hidden_activations(const Tensor& like, const BlockCall& p) {
  return torch::stable::new_empty(like, {p.batch, p.hidden, p.frames}, ScalarType::Float);
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
    if ((a.w_dw.size(1) - 1) * std::min(dilation, kMostReach + 1) > kMostReach)
      throw std::runtime_error("dyncp_cuda: (taps - 1) * dilation must be at most 2^30 (got " +
                               std::to_string(a.w_dw.size(1)) + " taps and dilation " + std::to_string(dilation) + ")");
    call.dilation = static_cast<int>(std::min(dilation, kMostReach));
    call.reach = (call.taps - 1) * call.dilation;
    call.left = causal ? call.reach : call.reach / 2;
    call.residual = residual;
    call.x = a.x.const_data_ptr();
    call.x_batch_stride = a.x.stride(0);
    call.x_channel_stride = a.x.stride(1);
    call.x_frame_stride = has_frames ? a.x.stride(2) : 0;
    call.hidden_gate = gate(a.hidden_gate);
    call.out_gate = gate(a.out_gate);
    call.w_dw = contiguous(a.w_dw);
    if (a.w_in) {
      // Null means no expansion; of one without input channels nothing is read.
      call.w_in = call.channels > 0 ? a.w_in->const_data_ptr() : call.w_dw;
      call.w_in_row_stride = a.w_in->stride(0);
      call.w_in_column_stride = a.w_in->stride(1);
    }
    call.b_in = contiguous(a.b_in);
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
  const BlockCall& block = call.call;
  call.call.y = y.mutable_data_ptr();
  if (y.numel() == 0) return y;
  check_sizes("gated_conv", block);
  if (is_fused(block)) {
    check(launch_gated_conv(block, device.stream), "gated_conv");
    return y;
  }
  Activations act;
  const Tensor a = w_in ? hidden_activations(x, block) : x;
  const Tensor z = hidden_activations(x, block);
  act.a = w_in ? floats(a) : nullptr;
  act.z = floats(z);
  if (w_in) check(launch_expand(block, act, device.stream), "gated_conv");
  check(launch_depthwise(block, act, device.stream), "gated_conv");
  check(launch_project(block, act, device.stream), "gated_conv");
  return y;
}

// Gradients in the order of the arguments; an empty tensor where none is wanted.
std::vector<Tensor> gradients(const Tensor& grad, const Arguments& arguments, int64_t dilation, bool causal,
                              bool residual, int64_t wanted, bool allow_tf32) {
  const char* op = "gated_conv_backward";
  const Tensor& x = arguments.x;
  const Device device(x);
  const Call call(arguments, dilation, causal, residual, allow_tf32);
  const BlockCall& p = call.call;
  check_sizes(op, p);
  const Maybe x_wanted = x;
  const Maybe w_dw_wanted = arguments.w_dw;
  const Maybe w_out_wanted = arguments.w_out;
  const Maybe* sources[] = {&x_wanted,        &arguments.hidden_gate, &arguments.out_gate, &arguments.w_in,
                            &arguments.b_in,  &w_dw_wanted,           &arguments.b_dw,     &w_out_wanted,
                            &arguments.b_out, &arguments.slope_in,    &arguments.slope_dw};
  std::vector<Tensor> results;
  bool wants[11];
  for (int i = 0; i < 11; ++i) {
    const Maybe& source = *sources[i];
    wants[i] = source && source->scalar_type() != ScalarType::Bool && (wanted >> i & 1) != 0;
    results.push_back(wants[i] ? torch::stable::new_zeros(x, source->sizes()) : torch::stable::new_empty(x, {0}));
  }
  if (p.batch * p.frames == 0 || p.out_channels == 0) return results;

  const int64_t programs = p.batch * tiles_of(p);
  const int64_t sums = programs * p.hidden;
  const Tensor a = p.w_in != nullptr ? hidden_activations(x, p) : x;
  const Tensor z = hidden_activations(x, p);
  const Tensor grad_c = hidden_activations(x, p);
  const Tensor grad_a = hidden_activations(x, p);
  const Tensor grad_gate = wants[1] ? hidden_activations(x, p) : x;
  const Tensor rows = torch::stable::new_zeros(x, {p.taps + 3, programs, p.hidden}, ScalarType::Float);
  Activations act;
  act.skips = !wants[1];
  act.a = p.w_in != nullptr ? floats(a) : nullptr;
  act.z = floats(z);
  act.grad = grad.const_data_ptr();
  act.grad_batch_stride = grad.stride(0);
  act.grad_channel_stride = grad.stride(1);
  act.grad_frame_stride = grad.stride(2);
  act.grad_c = floats(grad_c);
  act.grad_a = floats(grad_a);
  act.grad_gate = wants[1] ? floats(grad_gate) : nullptr;
  act.rows = floats(rows);

  // The sum of (count, terms) or (terms, count) float32 values into a result.
  const auto sum = [&](const float* values, int64_t count, int64_t inner, int64_t terms, int64_t outer, void* result) {
    check(launch_sum(p.storage, values, count, inner, terms, outer, result, 0, 1, device.stream), op);
  };
  const auto gate_gradient = [&](const Tensor& values, const Tensor& gate, int64_t channels, const Tensor& result) {
    const int64_t terms = gate.size(2) == 1 ? p.frames : 1;
    const int64_t count = p.batch * channels * p.frames / terms;
    sum(floats(values), count, terms, terms, 1, result.mutable_data_ptr());
  };
  if (p.w_in != nullptr) check(launch_expand(p, act, device.stream), op);
  check(launch_hidden_gradient(p, act, device.stream), op);
  check(launch_expansion_gradient(p, act, device.stream), op);
  if (wants[0] && p.channels > 0)
    check(launch_input_gradient(p, act, results[0].mutable_data_ptr(), device.stream), op);
  if (wants[1]) gate_gradient(grad_gate, *arguments.hidden_gate, p.hidden, results[1]);
  if (wants[2]) {
    const Tensor values = torch::stable::new_empty(x, {p.batch, p.out_channels, p.frames}, ScalarType::Float);
    check(launch_out_gate_gradient(p, act, floats(values), device.stream), op);
    gate_gradient(values, *arguments.out_gate, p.out_channels, results[2]);
  }
  const auto weight_gradient = [&](bool of_w_in, int weight, int bias) {
    if (!wants[weight] && !wants[bias]) return;
    const int64_t m = of_w_in ? p.hidden : p.out_channels;
    const int64_t n = of_w_in ? p.channels : p.hidden;
    const int64_t blocks = ((m + 63) / 64) * std::max<int64_t>(1, (n + 63) / 64);
    WeightGradient w;
    w.of_w_in = of_w_in;
    w.parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(programs, kWeightPrograms / blocks)));
    const Tensor product = torch::stable::new_empty(x, {w.parts, m, n}, ScalarType::Float);
    const Tensor row_sum = torch::stable::new_empty(x, {w.parts, m}, ScalarType::Float);
    w.product = floats(product);
    w.row_sum = floats(row_sum);
    check(launch_weight_gradient(p, act, w, device.stream), op);
    if (wants[weight]) sum(w.product, m * n, 1, w.parts, m * n, results[weight].mutable_data_ptr());
    if (wants[bias]) sum(w.row_sum, m, 1, w.parts, m, results[bias].mutable_data_ptr());
  };
  if (p.w_in != nullptr) weight_gradient(true, 3, 4);
  weight_gradient(false, 7, 8);

  // Sums over tiles, then, for the slopes, over channels.
  const float* tile_sums = act.rows;
  const Tensor by_channel = torch::stable::new_empty(x, {p.taps + 3, p.hidden}, ScalarType::Float);
  for (int64_t kind = 0; kind < p.taps + 3; ++kind)
    check(launch_sum(Storage::float32, tile_sums + kind * sums, p.hidden, 1, programs, p.hidden,
                     floats(by_channel) + kind * p.hidden, 0, 1, device.stream),
          op);
  const float* channel_sums = floats(by_channel);
  if (wants[5])
    for (int64_t tap = 0; tap < p.taps; ++tap)
      check(launch_sum(p.storage, channel_sums + tap * p.hidden, p.hidden, 1, 1, 0, results[5].mutable_data_ptr(), tap,
                       p.taps, device.stream),
            op);
  if (wants[6]) sum(channel_sums + p.taps * p.hidden, p.hidden, 1, 1, 0, results[6].mutable_data_ptr());
  if (wants[10]) sum(channel_sums + (p.taps + 1) * p.hidden, 1, 0, p.hidden, 1, results[10].mutable_data_ptr());
  if (wants[9]) sum(channel_sums + (p.taps + 2) * p.hidden, 1, 0, p.hidden, 1, results[9].mutable_data_ptr());
  return results;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients gated_conv_backward(const Tensor& grad, const Tensor& x, const Maybe& hidden_gate, const Maybe& out_gate,
                              const Maybe& w_in, const Maybe& b_in, const Tensor& w_dw, const Maybe& b_dw,
                              const Tensor& w_out, const Maybe& b_out, const Maybe& slope_in, const Maybe& slope_dw,
                              int64_t dilation, bool causal, bool residual, int64_t wanted, bool allow_tf32) {
  const std::vector<Tensor> r =
      gradients(grad, {x, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw}, dilation,
                causal, residual, wanted, allow_tf32);
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10]};
}

Tensor run_step(const char* op, const Arguments& arguments, const Tensor& before, const Tensor& after, int64_t dilation,
                bool residual) {
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
  const Tensor y =
      run_step("gated_conv_step", {x, hidden_gate, out_gate, w_in, b_in, w_dw, b_dw, w_out, b_out, slope_in, slope_dw},
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
  library.def("gated_conv_backward(Tensor grad, Tensor x, " DYNCP_WEIGHTS
              ", bool causal=True, bool residual=True, int wanted=2047, bool allow_tf32=False) -> (Tensor, Tensor, "
              "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("gated_conv_step(Tensor x, Tensor history, " DYNCP_WEIGHTS ", bool residual=True) -> (Tensor, Tensor)");
  library.def("gated_conv_step_(Tensor x, Tensor(a!) history, " DYNCP_WEIGHTS ", bool residual=True) -> Tensor");
}

#ifdef DYNCP_EMULATED
STABLE_TORCH_LIBRARY_IMPL(dyncp_cuda, CPU, library) {
#else
STABLE_TORCH_LIBRARY_IMPL(dyncp_cuda, CUDA, library) {
#endif
  library.impl("gated_conv", TORCH_BOX(&gated_conv));
  library.impl("gated_conv_backward", TORCH_BOX(&gated_conv_backward));
  library.impl("gated_conv_step", TORCH_BOX(&gated_conv_step));
  library.impl("gated_conv_step_", TORCH_BOX(&gated_conv_step_in_place));
}

}  // namespace dyncp::cuda
