// Products of tiles in shared memory, spread over a block of 8 warps in 4 rows and 2 columns.
//
// The left tile is [rows][depth], the right tile [columns][depth]: both keep the depth contiguous, so that a fragment
// is read in whole words.  Rows are padded to 4 words more than a multiple of 8, which puts the 8 rows x 4 words of a
// fragment into 32 different banks.  Lane l of a warp has g = l / 4 and t = l % 4; an accumulator holds
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of 16 rows x 8 columns, the layout of the matrix units.
#pragma once

#include "cuda/device.h"

namespace dyncp::cuda {

constexpr int kThreads = 256;
constexpr int kWarpRows = 4;
constexpr int kWarpColumns = 2;
constexpr int kColumns = 64;                               // of a right tile: frames
constexpr int kColumnTiles = kColumns / kWarpColumns / 8;  // of one warp

struct Lane {
  int warp_row;
  int warp_column;
  int g;
  int t;

  __device__ Lane() {
    const int warp = threadIdx.x / 32;
    warp_row = warp / kWarpColumns;
    warp_column = warp % kWarpColumns;
    g = threadIdx.x % 32 / 4;
    t = threadIdx.x % 4;
  }
};

// Each kind of product has: Item, the type in shared memory; kStep, the depth of one step; step(), which adds one step
// of a 16 x 8 tile, the pointers at row 0 and column 0 of the tile and at the step's first item; kIsLong, whether a
// step is so many instructions that several at once would only need more registers.

// float32 on the ordinary units.  Rows begin at multiples of 16 bytes and are read four items at a time.
struct ExactProduct {
  using Item = float;
  static constexpr int kStep = 8;
  static constexpr int kPad = 4;
  static constexpr bool kIsLong = true;
  struct Left {
    const float* rows[2];
  };
  __device__ static Left left(const float* tile, int stride, const Lane& lane) {
    return {{tile + lane.g * stride, tile + (lane.g + 8) * stride}};
  }
  __device__ static void step(float (&d)[4], const Left& a, const float* tile, int stride, const Lane& lane) {
    const float* b0 = tile + 2 * lane.t * stride;
    const float* b1 = b0 + stride;
    DYNCP_UNROLL
    for (int k = 0; k < kStep; k += 4) {
      const float4 above = four(a.rows[0] + k);
      const float4 below = four(a.rows[1] + k);
      const float4 left = four(b0 + k);
      const float4 right = four(b1 + k);
      add(d[0], above, left);
      add(d[1], above, right);
      add(d[2], below, left);
      add(d[3], below, right);
    }
  }
  __device__ static float4 four(const float* items) { return *reinterpret_cast<const float4*>(items); }
  __device__ static void add(float& sum, const float4& a, const float4& b) {
    sum += a.x * b.x;
    sum += a.y * b.y;
    sum += a.z * b.z;
    sum += a.w * b.w;
  }
};

struct Tf32Product {
  using Item = float;
  static constexpr int kStep = 8;
  static constexpr int kPad = 4;
  static constexpr bool kIsLong = false;
  struct Left {
    uint32_t words[4];
  };
  __device__ static Left left(const float* tile, int stride, const Lane& lane) {
    const float* row = tile + lane.g * stride + lane.t;
    const float* below = row + 8 * stride;
    return {{round_tf32(row[0]), round_tf32(below[0]), round_tf32(row[4]), round_tf32(below[4])}};
  }
  __device__ static void step(float (&d)[4], const Left& a, const float* tile, int stride, const Lane& lane) {
    const float* column = tile + lane.g * stride + lane.t;
    const uint32_t b[2] = {round_tf32(column[0]), round_tf32(column[4])};
    multiply_tf32(d, a.words, b);
  }
};

template <class T>
struct ShortProduct {
  using Item = T;
  static constexpr int kStep = 16;
  static constexpr int kPad = 8;
  static constexpr bool kIsLong = false;
  struct Left {
    uint32_t words[4];
  };
  // Two neighbouring items; strides and offsets are even, so the pair is one aligned word.
  __device__ static uint32_t pair(const T* items) { return *reinterpret_cast<const uint32_t*>(items); }
  __device__ static Left left(const T* tile, int stride, const Lane& lane) {
    const T* row = tile + lane.g * stride + 2 * lane.t;
    const T* below = row + 8 * stride;
    return {{pair(row), pair(below), pair(row + 8), pair(below + 8)}};
  }
  __device__ static void step(float (&d)[4], const Left& a, const T* tile, int stride, const Lane& lane) {
    const T* column = tile + lane.g * stride + 2 * lane.t;
    const uint32_t b[2] = {pair(column), pair(column + 8)};
    multiply(d, a.words, b);
  }
  __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
};

template <>
__device__ inline void ShortProduct<BFloat16>::multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_bfloat16(d, a, b);
}

template <>
__device__ inline void ShortProduct<Half>::multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_float16(d, a, b);
}

// One step of the depth, from item k on.
template <class Product, int kRowTiles>
__device__ void multiply_step(float (&total)[kRowTiles][kColumnTiles][4], const typename Product::Item* left,
                              int left_stride, const typename Product::Item* right, int right_stride, int k,
                              const Lane& lane) {
  DYNCP_UNROLL
  for (int i = 0; i < kRowTiles; ++i) {
    const typename Product::Left a = Product::left(left + i * 16 * left_stride + k, left_stride, lane);
    DYNCP_UNROLL
    for (int j = 0; j < kColumnTiles; ++j)
      Product::step(total[i][j], a, right + j * 8 * right_stride + k, right_stride, lane);
  }
}

// total += left (64 * kRowTiles x depth) right^T (64 x depth); depth is a multiple of kStep.
template <class Product, int kRowTiles>
__device__ void multiply_tiles(float (&total)[kRowTiles][kColumnTiles][4], const typename Product::Item* left,
                               int left_stride, const typename Product::Item* right, int right_stride, int depth,
                               const Lane& lane) {
  left += lane.warp_row * kRowTiles * 16 * left_stride;
  right += lane.warp_column * kColumnTiles * 8 * right_stride;
  if constexpr (Product::kIsLong) {
    DYNCP_NO_UNROLL
    for (int k = 0; k < depth; k += Product::kStep)
      multiply_step<Product, kRowTiles>(total, left, left_stride, right, right_stride, k, lane);
  } else {
    for (int k = 0; k < depth; k += Product::kStep)
      multiply_step<Product, kRowTiles>(total, left, left_stride, right, right_stride, k, lane);
  }
}

}  // namespace dyncp::cuda
