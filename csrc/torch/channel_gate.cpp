// CPU binding of the gate network (dyncp_kernels/ops/channel_gate.py has the same checks for fake tensors).
#include "core/channel_gate.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>

#include "torch/block_call.h"
#include "torch/check_text.h"

namespace dyncp::binding {
namespace {

constexpr std::pair<const char*, Pooling> kPoolings[] = {{"average", Pooling::average},
                                                         {"exponential", Pooling::exponential},
                                                         {"window", Pooling::window},
                                                         {"centred", Pooling::centred},
                                                         {"global", Pooling::global}};

Pooling pooling_named(const Check& check, const std::string& name) {
  for (const auto& [known, pooling] : kPoolings) {
    if (name == known) return pooling;
  }
  check(false, DYNCP_TEXT("pooling must be one of average, exponential, window, centred, global", name));
  return Pooling::global;
}

Tensor channel_gate(const Tensor& x, const Tensor& w_reduce, const std::optional<Tensor>& b_reduce,
                    const Tensor& w_expand, const std::optional<Tensor>& b_expand, const std::string& pooling,
                    int64_t window, double shift) {
  const std::string op = "channel_gate";
  const Check check{op};
  check_kernel_dtype(check, x);
  check_like(check, "w_reduce", w_reduce, x);
  if (b_reduce) check_like(check, "b_reduce", *b_reduce, x);
  check_like(check, "w_expand", w_expand, x);
  if (b_expand) check_like(check, "b_expand", *b_expand, x);
  check(x.dim() == 3, DYNCP_TEXT("x must have shape (batch, channels, frames)", shape_of(x)));
  const int64_t channels = x.size(1);
  check(w_reduce.dim() == 2 && w_reduce.size(1) == channels,
        DYNCP_TEXT("w_reduce must have shape (width, " + std::to_string(channels) + ")", shape_of(w_reduce)));
  const int64_t width = w_reduce.size(0);
  check(w_expand.dim() == 2 && w_expand.size(1) == width,
        DYNCP_TEXT("w_expand must have shape (gates, " + std::to_string(width) + ")", shape_of(w_expand)));
  const int64_t gates = w_expand.size(0);
  check(!b_reduce || has_sizes(*b_reduce, {width}),
        DYNCP_TEXT("b_reduce must have shape " + list_of({width}), shape_of(*b_reduce)));
  check(!b_expand || has_sizes(*b_expand, {gates}),
        DYNCP_TEXT("b_expand must have shape " + list_of({gates}), shape_of(*b_expand)));
  check(window >= 1, DYNCP_TEXT("window must be at least 1 frame", std::to_string(window)));

  ChannelGate call;
  call.pooling = pooling_named(check, pooling);
  call.dtype = dtype_of(x);
  call.batch = x.size(0);
  call.channels = channels;
  call.width = width;
  call.gates = gates;
  call.frames = x.size(2);
  call.window = window;
  call.shift = shift;
  const Tensor rows = call.frames > 1 && x.stride(2) != 1 ? torch::stable::contiguous(x) : x;
  call.x = rows.const_data_ptr();
  call.x_batch_stride = rows.stride(0);
  call.x_channel_stride = rows.stride(1);
  const Tensor reduce = torch::stable::contiguous(w_reduce);
  const Tensor expand = torch::stable::contiguous(w_expand);
  call.w_reduce = reduce.const_data_ptr();
  call.w_expand = expand.const_data_ptr();
  const Tensor reduce_bias = b_reduce ? torch::stable::contiguous(*b_reduce) : w_reduce;
  const Tensor expand_bias = b_expand ? torch::stable::contiguous(*b_expand) : w_expand;
  call.b_reduce = b_reduce ? reduce_bias.const_data_ptr() : nullptr;
  call.b_expand = b_expand ? expand_bias.const_data_ptr() : nullptr;
  const Tensor open = torch::stable::new_empty(x, {call.batch, call.gates, call.gate_frames()}, ScalarType::Bool);
  dyncp::channel_gate(call, static_cast<uint8_t*>(open.mutable_data_ptr()), torch_parallel_for);
  return open;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dyncp, CPU, library) { library.impl("channel_gate", TORCH_BOX(&channel_gate)); }

}  // namespace dyncp::binding
