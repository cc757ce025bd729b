#include "core/channel_gate.h"

#include <algorithm>

#include "core/kernels/channel_gate.h"
#include "core/scratch.h"
#include "core/widened.h"

namespace dyncp {

void channel_gate(const ChannelGate& call, uint8_t* open, ParallelFor parallel_for) {
  if (call.batch == 0 || call.gates == 0 || call.gate_frames() == 0) return;
  Widened widened(call.dtype);
  ChannelGate wide = call;
  int64_t stride = call.channels;
  wide.w_reduce = widened.matrix(call.w_reduce, call.width, call.channels, stride);
  stride = call.width;
  wide.w_expand = widened.matrix(call.w_expand, call.gates, call.width, stride);
  wide.b_reduce = widened.list(call.b_reduce, call.width);
  wide.b_expand = widened.list(call.b_expand, call.gates);

  const ChannelGateKernels& kernels = DYNCP_KERNELS(ChannelGateKernels, channel_gate_kernels);
  const Scratch workspace(kernels.workspace_bytes(wide));
  struct Context {
    const ChannelGateKernels& kernels;
    const ChannelGate& call;
    void* workspace;
    uint8_t* open;
  } context = {kernels, wide, workspace.data(), open};
  const auto phase = [&](int64_t units, int64_t work_of_unit, auto body) {
    if (units > 0)
      parallel_for(units, std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, work_of_unit)), body, &context);
  };
  const auto tiles_of = [&](int64_t frames) { return call.batch * ((frames + kernels.tile - 1) / kernels.tile); };

  phase(tiles_of(call.frames), kernels.tile * call.width * call.channels,
        [](void* pointer, int64_t begin, int64_t end) {
          const Context& c = *static_cast<Context*>(pointer);
          const Scratch scratch(c.kernels.scratch_bytes(c.call));
          c.kernels.reduce(c.call, c.workspace, begin, end, scratch.data());
        });
  phase(call.batch * call.width, 4 * call.frames, [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    const Scratch scratch(c.kernels.scratch_bytes(c.call));
    c.kernels.pool(c.call, c.workspace, begin, end, scratch.data());
  });
  phase(tiles_of(call.gate_frames()), kernels.tile * call.width * call.gates,
        [](void* pointer, int64_t begin, int64_t end) {
          const Context& c = *static_cast<Context*>(pointer);
          const Scratch scratch(c.kernels.scratch_bytes(c.call));
          c.kernels.decide(c.call, c.workspace, c.open, begin, end, scratch.data());
        });
}

}  // namespace dyncp
