// Packing of a folded network into the layout of stream_layout.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/stream_layout.h"

namespace dyncp {

// One block of the folded network, row-major float32.
struct FoldedBlockView {
  int dilation;
  const float *w_in, *b_in, *w_dw, *b_dw, *w_out, *b_out;  // (H, C) (H) (H, K) (H) (C, H) (C)
  const float *slope_in, *slope_dw;                        // one value each, or null for ReLU
  const float *gate_reduce, *gate_reduce_bias;             // (d, C) (d)
  const float *gate_expand, *gate_expand_bias;             // (G, d) (G); a constant gate has only the bias, its scores
};

struct FoldedView {
  Geometry geometry;
  const float *front_weight, *front_bias;  // (C, bins) (C)
  const float *back_weight, *back_bias;    // (bins, C) (bins)
  std::vector<FoldedBlockView> blocks;
};

Precision precision_named(const std::string& name);  // throws std::invalid_argument
const char* precision_name(Precision precision);

// Throws std::invalid_argument when a size is out of range.
void check_geometry(const Geometry& geometry);

// Bytes of the packed model.  `row_alignment` is the alignment of a gated channel's rows, a power of two of at least
// 64; more than that spreads the rows, for tests that take the pages of pruned channels away.
int64_t packed_bytes(const FoldedView& folded, Precision precision, int64_t row_alignment = kLine);

// Packs into `packed`, 64-byte aligned, of packed_bytes() bytes.
void pack_model(const FoldedView& folded, Precision precision, void* packed, int64_t row_alignment = kLine);

// The header, or std::invalid_argument when the buffer does not hold a packed model.
const PackedHeader& checked_model(const void* packed, int64_t bytes);

}  // namespace dyncp
