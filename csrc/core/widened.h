// Float copies of small 16-bit arrays.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/gated_conv.h"
#include "core/kernels/gated_conv.h"

namespace dyncp {

// Gives arrays back as they are, or widened to float where the dtype has 16 bits; owns the copies.
class Widened {
 public:
  explicit Widened(DType dtype) : dtype_(dtype) {}

  // rows x columns, columns contiguous; row_stride is set to that of the result.
  const void* matrix(const void* source, int64_t rows, int64_t columns, int64_t& row_stride) {
    if (source == nullptr || (dtype_ != DType::float16 && dtype_ != DType::bfloat16)) return source;
    const GatedConvKernels& kernels = DYNCP_KERNELS(GatedConvKernels, gated_conv_kernels);
    copies_.emplace_back(new float[rows * columns + 1]);
    float* target = copies_.back().get();
    for (int64_t row = 0; row < rows; ++row) {
      const char* from = static_cast<const char*>(source) + 2 * row * row_stride;
      kernels.widen(dtype_, from, 1, target + row * columns, 1, columns);
    }
    row_stride = columns;
    return target;
  }

  const void* list(const void* source, int64_t count) {
    int64_t stride = count;
    return matrix(source, 1, count, stride);
  }

 private:
  DType dtype_;
  std::vector<std::unique_ptr<float[]>> copies_;
};

}  // namespace dyncp
