// The streaming engine as ops.  Its objects are flat tensors: `packed`, a packed model that is only read, and `state`,
// one stream's memory that every step changes.  dyncp_kernels/engine.py is their Python face.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/isa.h"
#include "core/model_file.h"
#include "core/stream_engine.h"
#include "core/stream_model.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws "<op>: <what must hold> (got <what came>)" from its parts.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// Errors of the core become errors of the op, with its name in front.
template <class Body>
decltype(auto) run(const char* op, const Body& body) {
  try {
    return body();
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string(op) + ": " + error.what());
  }
}

std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

void check_flat_bytes(const char* op, const char* name, const Tensor& tensor) {
  check(tensor.is_cpu() && tensor.dim() == 1 && tensor.is_contiguous() && tensor.scalar_type() == ScalarType::Byte, op,
        ": ", name, " must be a contiguous 1-D uint8 tensor on the CPU (got shape ", shape_of(tensor), ")");
}

// Checks every byte of the header: for ops that are not called per frame.
const dyncp::PackedHeader& whole_model(const char* op, const Tensor& packed) {
  check_flat_bytes(op, "packed", packed);
  return run(op, [&]() -> const dyncp::PackedHeader& {
    return dyncp::checked_model(packed.const_data_ptr(), packed.numel());
  });
}

struct Stream {
  const dyncp::PackedHeader& model;
  void* state;
};

// A state carries the checksum of its model, which was checked when the state was made.
Stream stream_of(const char* op, const Tensor& packed, const Tensor& state) {
  check_flat_bytes(op, "packed", packed);
  check_flat_bytes(op, "state", state);
  const auto& model = *static_cast<const dyncp::PackedHeader*>(packed.const_data_ptr());
  check(packed.numel() >= static_cast<int64_t>(sizeof(dyncp::PackedHeader)) && model.bytes == packed.numel(), op,
        ": packed must come from stream_pack (got ", packed.numel(), " other bytes)");
  void* memory = state.mutable_data_ptr();
  run(op, [&] { dyncp::check_state(model, memory, state.numel()); });
  return {model, memory};
}

const float* floats_of(const char* op, const char* name, const Tensor& tensor) {
  check(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous(), op, ": ", name,
        " must be a contiguous float32 tensor on the CPU (got shape ", shape_of(tensor), ")");
  return static_cast<const float*>(tensor.const_data_ptr());
}

int64_t frames_of(const char* op, const Stream& stream, const Tensor& features) {
  const int64_t bins = stream.model.geometry.bins, dims = features.dim();
  check((dims == 1 || dims == 2) && features.size(dims - 1) == bins, op, ": features must have shape (frames, ", bins,
        ") or (", bins, ") (got ", shape_of(features), ")");
  return dims == 1 ? 1 : features.size(0);
}

int64_t hops_of(const char* op, const Stream& stream, const Tensor& samples) {
  const int64_t hop = stream.model.geometry.hop;
  check(samples.dim() == 1 && samples.size(0) % hop == 0, op, ": samples must have shape (a multiple of ", hop,
        ") (got ", shape_of(samples), ")");
  return samples.size(0) / hop;
}

uint8_t* gates_of(const char* op, const Stream& stream, int64_t frames, const std::optional<Tensor>& gates) {
  if (!gates.has_value()) return nullptr;
  const int64_t blocks = stream.model.geometry.blocks, count = stream.model.gates;
  check(gates->is_cpu() && gates->scalar_type() == ScalarType::Bool && gates->is_contiguous() && gates->dim() == 3 &&
            gates->size(0) == frames && gates->size(1) == blocks && gates->size(2) == count,
        op, ": gates must be a contiguous bool tensor of shape [", frames, ", ", blocks, ", ", count,
        "] on the CPU (got shape ", shape_of(*gates), ")");
  return static_cast<uint8_t*>(gates->mutable_data_ptr());
}

Tensor empty_bytes(int64_t count) { return torch::stable::empty({count}, ScalarType::Byte); }

Tensor stream_pack(Tensor folded, std::string precision) {
  const char* op = "stream_pack";
  check_flat_bytes(op, "folded", folded);
  return run(op, [&] {
    const dyncp::Precision kind = dyncp::precision_named(precision);
    const dyncp::FoldedFile file =
        dyncp::parse_folded_file(static_cast<const uint8_t*>(folded.const_data_ptr()), folded.numel());
    Tensor packed = empty_bytes(dyncp::packed_bytes(file.view, kind));
    if (reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % dyncp::kLine != 0) {
      throw std::runtime_error("the CPU allocator must align tensors to 64 bytes");
    }
    dyncp::pack_model(file.view, kind, packed.mutable_data_ptr());
    return packed;
  });
}

Tensor stream_state(Tensor packed, double hidden_crossover, double out_crossover) {
  const char* op = "stream_state";
  const dyncp::PackedHeader& model = whole_model(op, packed);
  return run(op, [&] {
    dyncp::Crossover crossover{static_cast<float>(hidden_crossover), static_cast<float>(out_crossover)};
    if (!(crossover.hidden >= 0) || !(crossover.out >= 0)) {
      const dyncp::Crossover measured = dyncp::calibrated_crossover(model);
      if (!(crossover.hidden >= 0)) crossover.hidden = measured.hidden;
      if (!(crossover.out >= 0)) crossover.out = measured.out;
    }
    Tensor state = empty_bytes(model.state_bytes);
    dyncp::initialise_state(model, crossover, state.mutable_data_ptr());
    return state;
  });
}

void stream_reset_(Tensor packed, Tensor state) {
  const Stream stream = stream_of("stream_reset_", packed, state);
  dyncp::reset_state(stream.model, stream.state);
}

void stream_step_out(Tensor packed, Tensor state, Tensor features, double shift, Tensor mask,
                     std::optional<Tensor> gates) {
  const char* op = "stream_step_out";
  const Stream stream = stream_of(op, packed, state);
  const int64_t frames = frames_of(op, stream, features);
  check(mask.dim() == features.dim() && mask.numel() == features.numel() && mask.size(0) == features.size(0), op,
        ": mask must have the shape of features, ", shape_of(features), " (got ", shape_of(mask), ")");
  auto* to = const_cast<float*>(floats_of(op, "mask", mask));
  dyncp::step_frames(stream.model, stream.state, floats_of(op, "features", features), frames, static_cast<float>(shift),
                     to, gates_of(op, stream, frames, gates));
}

Tensor stream_step(Tensor packed, Tensor state, Tensor features, double shift) {
  const char* op = "stream_step";
  const Stream stream = stream_of(op, packed, state);
  const int64_t frames = frames_of(op, stream, features);
  const float* from = floats_of(op, "features", features);
  const int64_t bins = stream.model.geometry.bins;
  Tensor mask = features.dim() == 1 ? torch::stable::empty({bins}, ScalarType::Float)
                                    : torch::stable::empty({frames, bins}, ScalarType::Float);
  dyncp::step_frames(stream.model, stream.state, from, frames, static_cast<float>(shift),
                     static_cast<float*>(mask.mutable_data_ptr()), nullptr);
  return mask;
}

void stream_enhance_out(Tensor packed, Tensor state, Tensor samples, double shift, Tensor enhanced,
                        std::optional<Tensor> gates) {
  const char* op = "stream_enhance_out";
  const Stream stream = stream_of(op, packed, state);
  const int64_t hops = hops_of(op, stream, samples);
  check(enhanced.dim() == 1 && enhanced.size(0) == samples.size(0), op, ": enhanced must have the shape of samples, ",
        shape_of(samples), " (got ", shape_of(enhanced), ")");
  auto* to = const_cast<float*>(floats_of(op, "enhanced", enhanced));
  const float* from = floats_of(op, "samples", samples);
  uint8_t* bits = gates_of(op, stream, hops, gates);
  run(op, [&] { dyncp::enhance_hops(stream.model, stream.state, from, hops, static_cast<float>(shift), to, bits); });
}

Tensor stream_enhance(Tensor packed, Tensor state, Tensor samples, double shift) {
  const char* op = "stream_enhance";
  const Stream stream = stream_of(op, packed, state);
  const int64_t hops = hops_of(op, stream, samples);
  const float* from = floats_of(op, "samples", samples);
  Tensor enhanced = torch::stable::empty({samples.size(0)}, ScalarType::Float);
  run(op, [&] {
    dyncp::enhance_hops(stream.model, stream.state, from, hops, static_cast<float>(shift),
                        static_cast<float*>(enhanced.mutable_data_ptr()), nullptr);
  });
  return enhanced;
}

std::string stream_info(Tensor packed, Tensor state) {
  const Stream stream = stream_of("stream_info", packed, state);
  const dyncp::PackedHeader& model = stream.model;
  const auto& header = *static_cast<const dyncp::StateHeader*>(stream.state);
  return run("stream_info", [&] {
    return std::string("{\"instruction_set\": \"") + dyncp::isa_name(dyncp::active_isa()) + "\", \"precision\": \"" +
           dyncp::precision_name(model.precision) + "\", \"model_bytes\": " + std::to_string(model.bytes) +
           ", \"state_bytes\": " + std::to_string(model.state_bytes) +
           ", \"frames\": " + std::to_string(header.frames) +
           ", \"hidden_crossover\": " + std::to_string(header.crossover.hidden) +
           ", \"out_crossover\": " + std::to_string(header.crossover.out) + "}";
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dyncp, library) {
  library.def("stream_pack(Tensor folded, str precision) -> Tensor");
  library.def("stream_state(Tensor packed, float hidden_crossover=-1.0, float out_crossover=-1.0) -> Tensor");
  library.def("stream_reset_(Tensor packed, Tensor(a!) state) -> ()");
  library.def("stream_step(Tensor packed, Tensor(a!) state, Tensor features, float shift=0.0) -> Tensor");
  library.def(
      "stream_step_out(Tensor packed, Tensor(a!) state, Tensor features, float shift, Tensor(b!) mask, "
      "Tensor(c!)? gates=None) -> ()");
  library.def("stream_enhance(Tensor packed, Tensor(a!) state, Tensor samples, float shift=0.0) -> Tensor");
  library.def(
      "stream_enhance_out(Tensor packed, Tensor(a!) state, Tensor samples, float shift, Tensor(b!) enhanced, "
      "Tensor(c!)? gates=None) -> ()");
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
