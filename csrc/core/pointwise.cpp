#include "core/pointwise.h"

#include <algorithm>

#include "core/kernels/pointwise.h"
#include "core/scratch.h"
#include "core/widened.h"

namespace dyncp {

int64_t pointwise_tile() { return DYNCP_KERNELS(PointwiseKernels, pointwise_kernels).tile; }

void pointwise(const Pointwise& call, void* y, ParallelFor parallel_for) {
  if (call.batch == 0 || call.frames == 0 || call.out_channels == 0) return;
  Widened widened(call.dtype);
  Pointwise wide = call;
  wide.w = widened.matrix(call.w, call.out_channels, call.channels, wide.w_row_stride);
  wide.b = widened.list(call.b, call.out_channels);

  struct Context {
    const PointwiseKernels& kernels;
    const Pointwise& call;
    void* y;
  } context = {DYNCP_KERNELS(PointwiseKernels, pointwise_kernels), wide, y};
  const auto body = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    const Scratch scratch(c.kernels.scratch_bytes(c.call));
    c.kernels.tiles(c.call, c.y, begin, end, scratch.data());
  };
  const int64_t tile = context.kernels.tile;
  const int64_t tiles = (call.frames + tile - 1) / tile;
  const int64_t work = call.out_channels * std::max<int64_t>(1, call.channels) * std::min(call.frames, tile);
  parallel_for(call.batch * tiles, std::max<int64_t>(1, kThreadWork / work), body, &context);
}

}  // namespace dyncp
