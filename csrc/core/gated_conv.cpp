#include "core/gated_conv.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/kernels/gated_conv.h"
#include "core/scratch.h"

namespace dyncp {
namespace {

int64_t work_of_frame(const GatedConv& call) {
  const int64_t expand = call.w_in == nullptr ? 0 : call.channels;
  return std::max<int64_t>(1, call.hidden * (expand + call.taps + call.out_channels));
}

// Float copies of the 16-bit weights of open channels, so that no tile converts them again.
class WidenedWeights {
 public:
  WidenedWeights(const GatedConv& call, const GatedConvKernels& kernels, const Gate& hidden_gate, const Gate& out_gate)
      : call_(call), kernels_(kernels), wide_(call) {
    std::vector<int32_t> rows(call.hidden);
    rows.resize(kernels.open_channels(call, hidden_gate, call.hidden, rows.data()));
    std::vector<int32_t> out_rows(call.out_channels);
    out_rows.resize(kernels.open_channels(call, out_gate, call.out_channels, out_rows.data()));

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

std::atomic<Strategy> strategy{Strategy::automatic};

bool is_16_bit(const GatedConv& call) { return call.dtype == DType::float16 || call.dtype == DType::bfloat16; }

void run_tiles(const GatedConvKernels& kernels, GatedConv call, void* y, ParallelFor parallel_for) {
  call.strategy = strategy.load(std::memory_order_relaxed);
  struct Context {
    const GatedConvKernels& kernels;
    const GatedConv& call;
    void* y;
    int64_t unit;  // tiles that are not parted
  };
  const int64_t tiles = (call.frames + kernels.tile - 1) / kernels.tile;
  // A range of tiles first looks back at the x before it.
  Context context = {kernels, call, y, y == call.x ? tiles : 1};
  const auto body = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    const Scratch scratch(c.kernels.scratch_bytes(c.call));
    c.kernels.tiles(c.call, c.y, begin * c.unit, end * c.unit, scratch.data());
  };
  const int64_t grain = kThreadWork / (work_of_frame(call) * std::min(call.frames, kernels.tile)) / context.unit;
  parallel_for(call.batch * tiles / context.unit, std::max<int64_t>(1, grain), body, &context);
}

void run_backward(const GatedConv& call, const void* grad, const GatedConvGradients& gradients,
                  ParallelFor parallel_for) {
  struct Context {
    const GatedConvBackwardKernels& kernels;
    const GatedConv& call;
    const void* grad;
    const GatedConvGradients& gradients;
    void* workspace;
    int phase;
  };
  const GatedConvBackwardKernels& kernels = DYNCP_KERNELS(GatedConvBackwardKernels, gated_conv_backward_kernels);
  const Scratch workspace(kernels.workspace_bytes(call, gradients));
  const auto body = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    const Scratch scratch(c.kernels.scratch_bytes(c.call));
    c.kernels.run(c.call, c.grad, c.gradients, c.workspace, c.phase, begin, end, scratch.data());
  };
  const int64_t work = work_of_frame(call) * call.batch * call.frames;
  for (int phase = 0; phase < kernels.phases; ++phase) {
    Context context = {kernels, call, grad, gradients, workspace.data(), phase};
    const int64_t units = kernels.units(call, gradients, phase);
    if (units == 0) continue;
    parallel_for(units, std::max<int64_t>(1, kThreadWork * units / std::max<int64_t>(1, work)), body, &context);
  }
}

// A 16-bit call in float: widened inputs, and float gradients that are rounded at the end.
class WidenedBackward {
 public:
  WidenedBackward(const GatedConv& call, const void* grad, const GatedConvGradients& gradients)
      : kernels_(DYNCP_KERNELS(GatedConvKernels, gated_conv_kernels)),
        call_(call),
        weights_(call, kernels_, gradients.hidden_gate != nullptr ? Gate() : call.hidden_gate,
                 gradients.out_gate != nullptr ? Gate() : call.out_gate),
        wide_(weights_.call()),
        gradients_(gradients) {
    wide_.dtype = DType::float32;
    wide_.x = widen(call.x, call.batch, call.channels, call.frames, call.x_batch_stride, call.x_channel_stride, 1);
    wide_.x_batch_stride = call.channels * call.frames;
    wide_.x_channel_stride = call.frames;
    wide_.hidden_gate = widen(call.hidden_gate, call.hidden);
    wide_.out_gate = widen(call.out_gate, call.out_channels);
    const int64_t outputs = call.out_channels * call.frames;
    grad_ = widen(grad, call.batch, call.out_channels, call.frames, outputs, call.frames, 1);
    want(&GatedConvGradients::x, call.batch * call.channels * call.frames);
    want(&GatedConvGradients::hidden_gate, call.batch * call.hidden * gradients.hidden_gate_frames);
    want(&GatedConvGradients::out_gate, call.batch * call.out_channels * gradients.out_gate_frames);
    want(&GatedConvGradients::w_in, call.hidden * call.channels);
    want(&GatedConvGradients::b_in, call.hidden);
    want(&GatedConvGradients::w_dw, call.hidden * call.taps);
    want(&GatedConvGradients::b_dw, call.hidden);
    want(&GatedConvGradients::w_out, call.out_channels * call.hidden);
    want(&GatedConvGradients::b_out, call.out_channels);
    want(&GatedConvGradients::slope_in, 1);
    want(&GatedConvGradients::slope_dw, 1);
  }

  void run(ParallelFor parallel_for) const {
    run_backward(wide_, grad_, gradients_, parallel_for);
    const GatedConvBackwardKernels& kernels = DYNCP_KERNELS(GatedConvBackwardKernels, gated_conv_backward_kernels);
    for (const Result& r : results_) kernels.narrow(call_.dtype, r.wide, r.target, r.count);
  }

 private:
  struct Result {
    const float* wide;
    void* target;
    int64_t count;
  };

  float* allocate(int64_t count) {
    memory_.emplace_back(new float[std::max<int64_t>(1, count)]);
    return memory_.back().get();
  }

  float* widen(const void* source, int64_t batch, int64_t rows, int64_t frames, int64_t batch_stride,
               int64_t row_stride, int64_t frame_stride) {
    float* target = allocate(batch * rows * frames);
    for (int64_t item = 0; item < batch; ++item) {
      for (int64_t row = 0; row < rows; ++row) {
        const char* from = static_cast<const char*>(source) + 2 * (item * batch_stride + row * row_stride);
        kernels_.widen(call_.dtype, from, frame_stride, target + (item * rows + row) * frames, 1, frames);
      }
    }
    return target;
  }

  Gate widen(const Gate& gate, int64_t rows) {
    if (gate.data == nullptr || gate.form != GateForm::values) return gate;
    Gate wide = gate;
    const int64_t frames = gate.frame_stride == 0 ? 1 : call_.frames;
    wide.data = widen(gate.data, call_.batch, rows, frames, gate.batch_stride, gate.channel_stride, 1);
    wide.batch_stride = rows * frames;
    wide.channel_stride = frames;
    return wide;
  }

  void want(void* GatedConvGradients::* field, int64_t count) {
    void* target = gradients_.*field;
    if (target == nullptr) return;
    float* wide = allocate(count);
    results_.push_back({wide, target, count});
    gradients_.*field = wide;
  }

  const GatedConvKernels& kernels_;
  const GatedConv& call_;
  const WidenedWeights weights_;
  GatedConv wide_;
  GatedConvGradients gradients_;
  const float* grad_;
  std::vector<Result> results_;
  std::vector<std::unique_ptr<float[]>> memory_;
};

}  // namespace

void gated_conv_backward(const GatedConv& call, const void* grad, const GatedConvGradients& gradients,
                         ParallelFor parallel_for) {
  if (is_16_bit(call)) {
    WidenedBackward(call, grad, gradients).run(parallel_for);
  } else {
    run_backward(call, grad, gradients, parallel_for);
  }
}

void set_offline_strategy(const char* name) {
  const std::pair<const char*, Strategy> known[] = {
      {"automatic", Strategy::automatic}, {"tile", Strategy::tile}, {"frames", Strategy::frames}};
  for (const auto& [text, value] : known) {
    if (std::string(name) == text) return strategy.store(value, std::memory_order_relaxed);
  }
  throw std::runtime_error("set_offline_strategy: name must be automatic, tile or frames (got " + std::string(name) +
                           ")");
}

void gated_conv(const GatedConv& call, void* y, ParallelFor parallel_for) {
  if (call.batch == 0 || call.frames == 0 || call.out_channels == 0) return;
  const GatedConvKernels& kernels = DYNCP_KERNELS(GatedConvKernels, gated_conv_kernels);
  if (is_16_bit(call)) {
    const WidenedWeights widened(call, kernels, call.hidden_gate, call.out_gate);
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
