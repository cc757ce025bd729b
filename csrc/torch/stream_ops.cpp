// The streaming engine as ops.  Its objects are tensors of bytes: `packed`, a packed model that is only read, and
// `state`, the memory of a stream (bytes) or of S streams in step (S, bytes), which every step changes; then all that
// goes in and comes out has S in front, or as many as `only` names of them.  dyncp_kernels/engine.py is their Python
// face.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <locale>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/aligned_memory.h"
#include "core/isa.h"
#include "core/model_file.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"
#include "torch/check_text.h"
#include "torch/stream_batch.h"

namespace dyncp::binding {
namespace {

// Errors of the core become errors of the op, with its name in front.
template <class Body>
decltype(auto) run(const std::string& op, const Body& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    throw std::runtime_error(op + ": " + error.what());
  }
}

Shape shape_view(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.data(), static_cast<int64_t>(sizes.size())};
}

bool are_bytes(const Tensor& tensor) {
  return tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == ScalarType::Byte;
}

void check_flat_bytes(const Check& check, const char* name, const Tensor& tensor) {
  check(are_bytes(tensor) && tensor.dim() == 1,
        DYNCP_TEXT(std::string(name) + " must be a contiguous 1-D uint8 tensor on the CPU", shape_of(tensor)));
}

// Checks every byte of the header: for ops that are not called per frame.
const PackedHeader& whole_model(const Check& check, const Tensor& packed) {
  check_flat_bytes(check, "packed", packed);
  return run(check.op, [&]() -> const PackedHeader& { return checked_model(packed.const_data_ptr(), packed.numel()); });
}

// A state carries the checksum of its model, which was checked when the state was made.
StreamBatch batch_of(const Check& check, const Tensor& packed, const Tensor& state, double shift,
                     const std::optional<Tensor>& only = std::nullopt) {
  check_flat_bytes(check, "packed", packed);
  check(are_bytes(state), DYNCP_TEXT("state must be a contiguous uint8 tensor on the CPU", shape_of(state)));
  const auto& model = *static_cast<const PackedHeader*>(packed.const_data_ptr());
  check(packed.numel() >= static_cast<int64_t>(sizeof(PackedHeader)) && model.bytes == packed.numel(),
        DYNCP_TEXT("packed must come from stream_pack", std::to_string(packed.numel()) + " other bytes"));
  if (only.has_value()) {
    check(only->is_cpu() && only->is_contiguous() && only->dim() == 1 && only->scalar_type() == ScalarType::Long,
          DYNCP_TEXT("only must be a contiguous 1-D int64 tensor on the CPU", shape_of(*only)));
  }
  return run(check.op, [&] {
    return StreamBatch(model, state.mutable_data_ptr(), shape_view(state), shift,
                       only ? static_cast<const int64_t*>(only->const_data_ptr()) : nullptr,
                       only ? only->numel() : StreamBatch::kAll);
  });
}

const float* floats_of(const Check& check, const char* name, const Tensor& tensor) {
  check(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous(),
        DYNCP_TEXT(std::string(name) + " must be a contiguous float32 tensor on the CPU",
                   name_of(tensor.scalar_type()) + " of " + shape_of(tensor) +
                       (tensor.is_contiguous() ? "" : ", not contiguous")));
  return static_cast<const float*>(tensor.const_data_ptr());
}

// Where results go: `name` must be shaped as the tensor `like`.
float* results_of(const Check& check, const char* name, const Tensor& tensor, const char* like, const Tensor& values) {
  const Shape shape = shape_view(tensor), wanted = shape_view(values);
  check(std::equal(shape.sizes, shape.sizes + shape.dims, wanted.sizes, wanted.sizes + wanted.dims),
        DYNCP_TEXT(std::string(name) + " must have the shape of " + like + ", " + list_of(sizes_of(values)),
                   shape_of(tensor)));
  return const_cast<float*>(floats_of(check, name, tensor));
}

// How shapes in messages start where there are streams.
std::string streams_text(const StreamBatch& batch) {
  return batch.has_streams() ? std::to_string(batch.streams()) + ", " : "";
}

int64_t frames_of(const Check& check, const StreamBatch& batch, const Tensor& features) {
  const int64_t frames = batch.frames_of(shape_view(features));
  const auto text = [&] {
    const std::string streams = streams_text(batch), bins = std::to_string(batch.model().geometry.bins);
    return "features must have shape (" + streams + "frames, " + bins + ") or (" + streams + bins + ")";
  };
  check(frames >= 0, DYNCP_TEXT(text(), shape_of(features)));
  return frames;
}

int64_t hops_of(const Check& check, const StreamBatch& batch, const Tensor& samples) {
  const int64_t hops = batch.hops_of(shape_view(samples));
  check(hops >= 0, DYNCP_TEXT("samples must have shape (" + streams_text(batch) + "a multiple of " +
                                  std::to_string(batch.model().geometry.hop) + ")",
                              shape_of(samples)));
  return hops;
}

uint8_t* gates_of(const Check& check, const StreamBatch& batch, int64_t frames, const std::optional<Tensor>& gates) {
  if (!gates.has_value()) return nullptr;
  std::vector<int64_t> wanted = {frames, batch.model().geometry.blocks, batch.model().gates};
  if (batch.has_streams()) wanted.insert(wanted.begin(), batch.streams());
  check(gates->is_cpu() && gates->scalar_type() == ScalarType::Bool && gates->is_contiguous() &&
            has_sizes(*gates, wanted),
        DYNCP_TEXT("gates must be a contiguous bool tensor of shape " + list_of(wanted) + " on the CPU",
                   shape_of(*gates)));
  return static_cast<uint8_t*>(gates->mutable_data_ptr());
}

void free_memory(void* memory) { Freeing()(memory); }

Tensor stream_pack(Tensor folded, std::string precision) {
  const std::string op = "stream_pack";
  check_flat_bytes({op}, "folded", folded);
  return run(op, [&] {
    const Precision kind = precision_named(precision);
    const FoldedFile file = parse_folded_file(static_cast<const uint8_t*>(folded.const_data_ptr()), folded.numel());
    const int64_t bytes = packed_bytes(file.view, kind);
    Memory memory = allocate(bytes);
    pack_model(file.view, kind, memory.get());
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    return torch::stable::from_blob(memory.release(), {bytes}, {1}, cpu, ScalarType::Byte, free_memory);
  });
}

Tensor stream_state(Tensor packed, double hidden_crossover, double out_crossover, std::optional<int64_t> streams) {
  const std::string op = "stream_state";
  const Check check{op};
  const PackedHeader& model = whole_model(check, packed);
  check(streams.value_or(1) >= 1, DYNCP_TEXT("streams must be at least 1", std::to_string(*streams)));
  return run(op, [&] {
    Crossover crossover{static_cast<float>(hidden_crossover), static_cast<float>(out_crossover)};
    if (!(crossover.hidden >= 0) || !(crossover.out >= 0)) {
      const Crossover measured = calibrated_crossover(model);
      if (!(crossover.hidden >= 0)) crossover.hidden = measured.hidden;
      if (!(crossover.out >= 0)) crossover.out = measured.out;
    }
    // No share is above 1, and infinity is no JSON.
    crossover = {std::min(crossover.hidden, 2.0f), std::min(crossover.out, 2.0f)};
    Tensor state = streams ? torch::stable::empty({*streams, model.state_bytes}, ScalarType::Byte)
                           : torch::stable::empty({model.state_bytes}, ScalarType::Byte);
    for (int64_t i = 0; i < streams.value_or(1); ++i) {
      initialise_state(model, crossover, static_cast<char*>(state.mutable_data_ptr()) + i * model.state_bytes);
    }
    return state;
  });
}

void stream_reset_(Tensor packed, Tensor state, std::optional<Tensor> only) {
  const std::string op = "stream_reset_";
  batch_of({op}, packed, state, 0, only).reset();
}

void stream_step_out(Tensor packed, Tensor state, Tensor features, double shift, Tensor mask,
                     std::optional<Tensor> gates, std::optional<Tensor> only) {
  const std::string op = "stream_step_out";
  const Check check{op};
  const StreamBatch batch = batch_of(check, packed, state, shift, only);
  const int64_t frames = frames_of(check, batch, features);
  float* to = results_of(check, "mask", mask, "features", features);
  batch.step(floats_of(check, "features", features), frames, to, gates_of(check, batch, frames, gates));
}

Tensor stream_step(Tensor packed, Tensor state, Tensor features, double shift, std::optional<Tensor> only) {
  const std::string op = "stream_step";
  const Check check{op};
  const StreamBatch batch = batch_of(check, packed, state, shift, only);
  const int64_t frames = frames_of(check, batch, features);
  const float* from = floats_of(check, "features", features);
  Tensor mask = torch::stable::empty(features.sizes(), ScalarType::Float);
  batch.step(from, frames, static_cast<float*>(mask.mutable_data_ptr()), nullptr);
  return mask;
}

void stream_enhance_out(Tensor packed, Tensor state, Tensor samples, double shift, Tensor enhanced,
                        std::optional<Tensor> gates, std::optional<Tensor> only) {
  const std::string op = "stream_enhance_out";
  const Check check{op};
  const StreamBatch batch = batch_of(check, packed, state, shift, only);
  const int64_t hops = hops_of(check, batch, samples);
  float* to = results_of(check, "enhanced", enhanced, "samples", samples);
  const float* from = floats_of(check, "samples", samples);
  uint8_t* bits = gates_of(check, batch, hops, gates);
  run(op, [&] { batch.enhance(from, hops, to, bits); });
}

Tensor stream_enhance(Tensor packed, Tensor state, Tensor samples, double shift, std::optional<Tensor> only) {
  const std::string op = "stream_enhance";
  const Check check{op};
  const StreamBatch batch = batch_of(check, packed, state, shift, only);
  const int64_t hops = hops_of(check, batch, samples);
  const float* from = floats_of(check, "samples", samples);
  Tensor enhanced = torch::stable::empty(samples.sizes(), ScalarType::Float);
  run(op, [&] { batch.enhance(from, hops, static_cast<float*>(enhanced.mutable_data_ptr()), nullptr); });
  return enhanced;
}

std::string stream_info(Tensor packed, Tensor state) {
  const std::string op = "stream_info";
  const Check check{op};
  const StreamBatch batch = batch_of(check, packed, state, 0);
  check(batch.streams() >= 1, DYNCP_TEXT("state must be of at least one stream", shape_of(state)));
  const PackedHeader& model = batch.model();
  const auto& header = *static_cast<const StateHeader*>(state.const_data_ptr());
  return run(op, [&] {
    std::ostringstream json;
    json.imbue(std::locale::classic());
    json << "{\"instruction_set\": \"" << isa_name(active_isa()) << "\", \"precision\": \""
         << precision_name(model.precision) << "\", \"model_bytes\": " << model.bytes
         << ", \"state_bytes\": " << model.state_bytes << ", \"streams\": " << batch.streams()
         << ", \"frames\": " << header.frames << ", \"hidden_crossover\": " << header.crossover.hidden
         << ", \"out_crossover\": " << header.crossover.out << "}";
    return json.str();
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dyncp, library) {
  library.def("stream_pack(Tensor folded, str precision) -> Tensor");
  library.def(
      "stream_state(Tensor packed, float hidden_crossover=-1.0, float out_crossover=-1.0, int? streams=None) -> "
      "Tensor");
  library.def("stream_reset_(Tensor packed, Tensor(a!) state, Tensor? only=None) -> ()");
  library.def(
      "stream_step(Tensor packed, Tensor(a!) state, Tensor features, float shift=0.0, Tensor? only=None) -> Tensor");
  library.def(
      "stream_step_out(Tensor packed, Tensor(a!) state, Tensor features, float shift, Tensor(b!) mask, "
      "Tensor(c!)? gates=None, Tensor? only=None) -> ()");
  library.def(
      "stream_enhance(Tensor packed, Tensor(a!) state, Tensor samples, float shift=0.0, Tensor? only=None) -> Tensor");
  library.def(
      "stream_enhance_out(Tensor packed, Tensor(a!) state, Tensor samples, float shift, Tensor(b!) enhanced, "
      "Tensor(c!)? gates=None, Tensor? only=None) -> ()");
  library.def("stream_info(Tensor packed, Tensor state) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dyncp, CPU, library) {
  library.impl("stream_pack", TORCH_BOX(&stream_pack));
  library.impl("stream_state", TORCH_BOX(&stream_state));
  library.impl("stream_reset_", TORCH_BOX(&stream_reset_));
  library.impl("stream_step", TORCH_BOX(&stream_step));
  library.impl("stream_step_out", TORCH_BOX(&stream_step_out));
  library.impl("stream_enhance", TORCH_BOX(&stream_enhance));
  library.impl("stream_enhance_out", TORCH_BOX(&stream_enhance_out));
  library.impl("stream_info", TORCH_BOX(&stream_info));
}

}  // namespace dyncp::binding
