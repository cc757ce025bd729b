// Square matrices of lanes: as many vectors as a vector has lanes, transposed or summed along their lanes.
#pragma once

#include <utility>

#include "core/kernels/product.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

template <class T>
using LaneIndices = std::make_integer_sequence<int, kLanes<T>>;

template <class T, int kStep, int... kLane>
DYNCP_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, kLane...>) {
  constexpr int lanes = kLanes<T>;
  const Vec<T> low = __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? lanes + kLane - kStep : kLane)...);
  const Vec<T> high = __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? lanes + kLane : kLane + kStep)...);
  a = low;
  b = high;
}

// v[i][j] becomes v[j][i].
template <class T, int kStep = kLanes<T> / 2>
DYNCP_INLINE void transpose_lanes(Vec<T>* v) {
  if constexpr (kStep > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & kStep) == 0) exchange<T, kStep>(v[i], v[i + kStep], LaneIndices<T>());
    }
    transpose_lanes<T, kStep / 2>(v);
  }
}

template <class T, int kStep, int... kLane>
DYNCP_INLINE Vec<T> add_pairs(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int lanes = kLanes<T>;
  const Vec<T> near = __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? lanes + kLane : kLane)...);
  const Vec<T> far =
      __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? lanes + (kLane ^ kStep) : (kLane ^ kStep))...);
  return near + far;
}

// Lane i of the result is the sum of the lanes of v[i]; v is used up.
template <class T, int kStep = kLanes<T> / 2>
DYNCP_INLINE Vec<T> sums_of_lanes(Vec<T>* v) {
  if constexpr (kStep == 0) {
    return v[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kStep; ++i) v[i] = add_pairs<T, kStep>(v[i], v[i + kStep], LaneIndices<T>());
    return sums_of_lanes<T, kStep / 2>(v);
  }
}

// from[rows][columns], from_stride apart, to to[columns][rows], to_stride apart.  Columns are whole vectors; rows that
// are missing to a whole vector become zeros.
template <class T>
DYNCP_INLINE void transpose_tile(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                                 int64_t to_stride) {
  constexpr int lanes = kLanes<T>;
  for (int64_t row = 0; row < rows; row += lanes) {
    for (int64_t column = 0; column < columns; column += lanes) {
      Vec<T> v[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) v[i] = row + i < rows ? load(from + (row + i) * from_stride + column) : zero<T>();
      transpose_lanes<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store(to + (column + i) * to_stride + row, v[i]);
    }
  }
}

}  // namespace dyncp::DYNCP_ISA
