// What kernels use of the device beyond C++: launches, shared memory, votes, matrix units, 16-bit numbers.
//
// Without nvcc the same kernels compile against cuda_on_host.h, which the tests supply: it runs the threads of a block
// on the processor and gives votes and matrix products their documented meaning lane by lane.
#pragma once

#include <cstdint>
#include <vector>

namespace dyncp::cuda {

// What the choice of a kernel depends on.
struct DeviceLimits {
  int processors = 1;
  int shared = 48 * 1024;  // bytes of shared memory that a block can ask for
};

// Why a launch that asks for more fails.
constexpr const char* kTooLarge = "tiles larger than the shared memory of this GPU";

}  // namespace dyncp::cuda

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define DYNCP_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define DYNCP_UNROLL _Pragma("unroll")
#define DYNCP_NO_UNROLL _Pragma("unroll 1")

namespace dyncp::cuda {

// Of the current device; all devices are asked once.
inline DeviceLimits device_limits() {
  static const std::vector<DeviceLimits> devices = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    std::vector<DeviceLimits> found(count);
    for (int i = 0; i < count; ++i) {
      cudaDeviceGetAttribute(&found[i].processors, cudaDevAttrMultiProcessorCount, i);
      cudaDeviceGetAttribute(&found[i].shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, i);
    }
    return found;
  }();
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= static_cast<int>(devices.size())) return {};
  return devices[device];
}

// Returns null, or why the launch failed.  Blocks above 48 KB of shared memory have to be asked for.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, void* stream,
                   const Arguments&... arguments) {
  if (shared > device_limits().shared) return kTooLarge;
  if (shared > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

__device__ inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void multiply_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// To the nearest number with 10 explicit bits of mantissa, as the matrix units want their float32 operands.
__device__ inline uint32_t round_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

__device__ inline float float_of_half(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ inline uint16_t half_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

}  // namespace dyncp::cuda
#else
#include "cuda_on_host.h"
#endif

namespace dyncp::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

__device__ inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(Half value) { return float_of_half(value.bits); }
__device__ inline float to_float(BFloat16 value) { return float_of_bits(static_cast<uint32_t>(value.bits) << 16); }

template <class T>
__device__ T from_float(float value);

template <>
__device__ inline float from_float<float>(float value) {
  return value;
}

template <>
__device__ inline Half from_float<Half>(float value) {
  return Half{half_of_float(value)};
}

template <>
__device__ inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return BFloat16{0x7fc0};
  return BFloat16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace dyncp::cuda
