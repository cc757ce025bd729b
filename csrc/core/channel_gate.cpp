#include "core/channel_gate.h"

#include <algorithm>
#include <cstring>

#include "core/kernels/channel_gate.h"
#include "core/scratch.h"
#include "core/widened.h"

namespace dyncp {
namespace {

// Eight bits to eight bytes of 0 or 1.
uint64_t bytes_of_bits(uint64_t bits) {
  const uint64_t one_of_each = (bits & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
  return (one_of_each + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

void unpack(const ChannelGate& call, const uint64_t* words, uint8_t* open) {
  const GateWords layout = call.words();
  for (int64_t item = 0; item < call.batch; ++item) {
    for (int64_t gate = 0; gate < call.gates; ++gate) {
      const uint64_t* word = words + item * layout.of_item() + gate;
      for (int64_t t = 0; t < layout.frames; t += 8) {
        const uint64_t bytes = bytes_of_bits(word[t / GateWords::kFrames * call.gates] >> t % GateWords::kFrames);
        std::memcpy(open + t, &bytes, std::min<int64_t>(8, layout.frames - t));
      }
      open += layout.frames;
    }
  }
}

}  // namespace

void channel_gate(const ChannelGate& call, uint8_t* open, ParallelFor parallel_for) {
  const Scratch words(call.batch * call.words().of_item() * static_cast<int64_t>(sizeof(uint64_t)));
  channel_gate(call, static_cast<uint64_t*>(words.data()), parallel_for);
  unpack(call, static_cast<const uint64_t*>(words.data()), open);
}

void channel_gate(const ChannelGate& call, uint64_t* open, ParallelFor parallel_for) {
  if (call.batch == 0 || call.gates == 0 || call.gate_frames() == 0) return;
  Widened widened(call.dtype);
  ChannelGate wide = call;
  // A longer window has all frames, too.
  const bool counts_frames = call.pooling == Pooling::window || call.pooling == Pooling::centred;
  if (counts_frames) wide.window = std::min(call.window, 2 * call.frames + 1);
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
    uint64_t* open;
  } context = {kernels, wide, workspace.data(), open};
  const auto phase = [&](int64_t units, int64_t work_of_unit, auto body) {
    if (units > 0)
      parallel_for(units, std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, work_of_unit)), body, &context);
  };

  phase(call.batch * ((call.frames + kernels.tile - 1) / kernels.tile), kernels.tile * call.width * call.channels,
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
  phase(call.batch * call.words().of_row(), GateWords::kFrames * call.width * call.gates,
        [](void* pointer, int64_t begin, int64_t end) {
          const Context& c = *static_cast<Context*>(pointer);
          const Scratch scratch(c.kernels.scratch_bytes(c.call));
          c.kernels.decide(c.call, c.workspace, c.open, begin, end, scratch.data());
        });
}

}  // namespace dyncp
