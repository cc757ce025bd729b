// When a channel of a tile is worth computing for its open frames only.
//
// Costs are in multiply-adds of the dense product, measured (benchmarks/calibrate_offline.py) with the geometry of the
// paper on a Sapphire Rapids core, all sets on the same one.
#pragma once

#include "core/kernels/frame_products.h"
#include "core/simd.h"

namespace dyncp::DYNCP_ISA {

struct OfflineCost {
  double dot;         // a multiply-add of a dot product over channels
  double dot_row;     // a row of them
  double column;      // a multiply-add of a column that is added to the outputs of one frame
  double column_row;  // a column of them
  double transpose;   // a value of a tile that is transposed
};

#if defined(__AVX512F__)
constexpr OfflineCost kOfflineCost = {1.75, 1130, 1.65, 2000, 14};
#elif defined(__AVX2__) || defined(__aarch64__)  // measured with AVX2
constexpr OfflineCost kOfflineCost = {1.6, 800, 1.45, 500, 6};
#else
constexpr OfflineCost kOfflineCost = {1.05, 150, 1.0, 150, 3};
#endif

// A channel that is open at `frames` frames: dot products of `depth` terms, and a column of `outputs` values.
DYNCP_INLINE double cost_of_dots(int64_t depth, int64_t frames) {
  const int64_t groups = (frames + kFramesAtOnce - 1) / kFramesAtOnce;
  return kOfflineCost.dot_row + kOfflineCost.dot * static_cast<double>(depth * groups * kFramesAtOnce);
}
DYNCP_INLINE double cost_of_column(int64_t outputs, int64_t frames) {
  return kOfflineCost.column_row + kOfflineCost.column * static_cast<double>(outputs * frames);
}
DYNCP_INLINE double cost_of_transpose(int64_t channels, int64_t frames) {
  return kOfflineCost.transpose * static_cast<double>(channels * frames);
}

}  // namespace dyncp::DYNCP_ISA
