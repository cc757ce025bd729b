// Storage and compute types of a call, and scratch memory.
#pragma once

#include "core/gated_conv.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

constexpr int64_t kScratchAlignment = 64;

// Hands out aligned pieces of a scratch block; with a null base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class Element>
  Element* take(int64_t count) {
    Element* piece = reinterpret_cast<Element*>(base + used);
    used +=
        (count * static_cast<int64_t>(sizeof(Element)) + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    return piece;
  }
};

// How many vectors hold this many values.
template <class T>
DYNCP_INLINE int whole_vectors(int64_t count) {
  return static_cast<int>((count + kLanes<T> - 1) / kLanes<T>);
}

// 16-bit storage is computed in float.
template <class Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

// Calls run with a value of the storage type of dtype.
template <class Run>
auto with_storage(DType dtype, Run run) {
  switch (dtype) {
    case DType::float64:
      return run(double());
    case DType::float16:
      return run(Half());
    case DType::bfloat16:
      return run(BFloat16());
    default:
      return run(float());
  }
}

}  // namespace dyncp::DYNCP_ISA
