#include "core/gated_conv.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "core/kernels/gated_conv.h"
#include "core/scratch.h"

namespace dyncp {
namespace {

// A thread is worth waking for about this many multiply-adds.
constexpr int64_t kThreadWork = 1 << 20;

int64_t work_of_frame(const GatedConv& call) {
  const int64_t expand = call.w_in == nullptr ? 0 : call.channels;
  return std::max<int64_t>(1, call.hidden * (expand + call.taps + call.out_channels));
}

// Float copies of the 16-bit weights of open channels, so that no tile converts them again.
class WidenedWeights {
 public:
  WidenedWeights(const GatedConv& call, const GatedConvKernels& kernels) : call_(call), kernels_(kernels), wide_(call) {
    std::vector<int32_t> rows(call.hidden);
    rows.resize(kernels.open_channels(call, call.hidden_gate, call.hidden, rows.data()));
    std::vector<int32_t> out_rows(call.out_channels);
    out_rows.resize(kernels.open_channels(call, call.out_gate, call.out_channels, out_rows.data()));

    if (call.w_in != nullptr) {
      float* w_in = allocate(call.hidden * call.channels);
      for (int32_t row : rows)
        widen(call.w_in, row * call.w_in_row_stride, 1, w_in + row * call.channels, call.channels);
      wide_.w_in = w_in;
      wide_.w_in_row_stride = call.channels;
    }
    float* w_dw = allocate(call.hidden * call.taps);
    for (int32_t row : rows) widen(call.w_dw, row * call.taps, 1, w_dw + row * call.taps, call.taps);
    wide_.w_dw = w_dw;

    float* w_out = allocate(call.out_channels * call.hidden);
    for (int32_t row : out_rows) {
      float* target = w_out + row * call.hidden;
      const int64_t source = row * call.w_out_row_stride;
      if (static_cast<int64_t>(rows.size()) == call.hidden) {
        widen(call.w_out, source, call.w_out_column_stride, target, call.hidden);
      } else {
        for (int32_t k : rows) widen(call.w_out, source + k * call.w_out_column_stride, 1, target + k, 1);
      }
    }
    wide_.w_out = w_out;
    wide_.w_out_row_stride = call.hidden;
    wide_.w_out_column_stride = 1;

    wide_.b_in = listed(call.b_in, rows, call.hidden);
    wide_.b_dw = listed(call.b_dw, rows, call.hidden);
    wide_.b_out = listed(call.b_out, out_rows, call.out_channels);
    const std::vector<int32_t> only = {0};
    wide_.slope_in = listed(call.slope_in, only, 1);
    wide_.slope_dw = listed(call.slope_dw, only, 1);
  }

  const GatedConv& call() const { return wide_; }

 private:
  float* allocate(int64_t count) {
    memory_.emplace_back(new float[std::max<int64_t>(1, count)]);
    return memory_.back().get();
  }

  void widen(const void* source, int64_t at, int64_t stride, float* target, int64_t count) const {
    const char* from = static_cast<const char*>(source) + at * 2;
    kernels_.widen(call_.dtype, from, stride, target, 1, count);
  }

  const float* listed(const void* source, const std::vector<int32_t>& list, int64_t count) {
    if (source == nullptr) return nullptr;
    float* target = allocate(count);
    for (int32_t i : list) widen(source, i, 1, target + i, 1);
    return target;
  }

  const GatedConv& call_;
  const GatedConvKernels& kernels_;
  GatedConv wide_;
  std::vector<std::unique_ptr<float[]>> memory_;
};

void run_tiles(const GatedConvKernels& kernels, const GatedConv& call, void* y, ParallelFor parallel_for) {
  struct Context {
    const GatedConvKernels& kernels;
    const GatedConv& call;
    void* y;
  } context = {kernels, call, y};
  const auto body = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    const Scratch scratch(c.kernels.scratch_bytes(c.call));
    c.kernels.tiles(c.call, c.y, begin, end, scratch.data());
  };
  const int64_t tiles = (call.frames + kernels.tile - 1) / kernels.tile;
  const int64_t grain = kThreadWork / (work_of_frame(call) * std::min(call.frames, kernels.tile));
  parallel_for(call.batch * tiles, std::max<int64_t>(1, grain), body, &context);
}

}  // namespace

void gated_conv(const GatedConv& call, void* y, ParallelFor parallel_for) {
  if (call.batch == 0 || call.frames == 0 || call.out_channels == 0) return;
  const GatedConvKernels& kernels = DYNCP_KERNELS(GatedConvKernels, gated_conv_kernels);
  if (call.dtype == DType::float16 || call.dtype == DType::bfloat16) {
    const WidenedWeights widened(call, kernels);
    run_tiles(kernels, widened.call(), y, parallel_for);
  } else {
    run_tiles(kernels, call, y, parallel_for);
  }
}

void gated_conv_step(const GatedConv& call, const History& history, void* y, ParallelFor parallel_for) {
  if (call.batch == 0) return;
  struct Context {
    const GatedConvStepKernels& kernels;
    const GatedConv& call;
    const History& history;
    void* y;
  } context = {DYNCP_KERNELS(GatedConvStepKernels, gated_conv_step_kernels), call, history, y};
  const auto body = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    const Scratch scratch(c.kernels.scratch_bytes(c.call));
    c.kernels.items(c.call, c.history, c.y, begin, end, scratch.data());
  };
  parallel_for(call.batch, std::max<int64_t>(1, kThreadWork / work_of_frame(call)), body, &context);
}

}  // namespace dyncp
