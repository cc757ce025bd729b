// What the argument checks of all ops share: a check that throws, and names for what came.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dyncp::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "another dtype";
  }
}

inline std::string list_of(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + "]";
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

inline std::string shape_of(const Tensor& tensor) { return "shape " + list_of(sizes_of(tensor)); }

inline bool has_sizes(const Tensor& tensor, const std::vector<int64_t>& sizes) { return sizes_of(tensor) == sizes; }

// Builds no text unless the condition is false: these checks run on every call.
struct Check {
  const std::string& op;
  template <class Text>
  void operator()(bool condition, Text text) const {
    if (condition) return;
    const std::pair<std::string, std::string> parts = text();
    throw std::runtime_error(op + ": " + parts.first + " (got " + parts.second + ")");
  }
};

#define DYNCP_TEXT(must, got) [&]() { return std::pair<std::string, std::string>(must, got); }

inline void check_kernel_dtype(const Check& check, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
            dtype == ScalarType::BFloat16,
        DYNCP_TEXT("x must be float32, float64, float16 or bfloat16", name_of(dtype)));
}

// A tensor beside x: on the CPU and of its dtype.
inline void check_like(const Check& check, const char* name, const Tensor& tensor, const Tensor& x) {
  check(tensor.is_cpu(), DYNCP_TEXT(std::string(name) + " must be on the device of x, cpu", "another device"));
  check(tensor.scalar_type() == x.scalar_type(),
        DYNCP_TEXT(std::string(name) + " must have the dtype of x, " + name_of(x.scalar_type()),
                   name_of(tensor.scalar_type())));
}

}  // namespace dyncp::binding
