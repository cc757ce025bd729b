// Runs CUDA kernels on the processor, for tests without a GPU: csrc/cuda/device.h includes it when nvcc is absent.
//
// Each thread of a block is a fiber.  Barriers, votes, shuffles and matrix products wait until all threads concerned
// have arrived and then give every lane what the PTX manual says it gets.  Shared memory starts as NaN.  Fibers run in
// the order of their index, or in the opposite order when DYNCP_EMULATOR_REVERSE=1: a result that depends on the order
// shows a missing barrier.  The device has DYNCP_EMULATOR_PROCESSORS processors and DYNCP_EMULATOR_SHARED bytes of
// shared memory for a block; DYNCP_EMULATOR_TRACE=1 prints the blocks and the shared memory of each launch.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define DYNCP_SHARED(name) unsigned char* name = ::emulator::shared_memory()
#define DYNCP_UNROLL
#define DYNCP_NO_UNROLL

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// As on the device, a vector has to begin at a multiple of its size.
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

namespace emulator {

constexpr int kMostThreads = 1024;
constexpr size_t kStack = 256 * 1024;

struct Barrier {
  int members = 0;
  int arrived = 0;
  int generation = 0;
};

// What the lanes of a warp show each other.
struct Exchange {
  uint32_t values[32];
  uint32_t left[32][4];
  uint32_t right[32][2];
};

struct Block {
  dim3 thread, block, size;
  std::vector<unsigned char> shared;
  Barrier all;
  Barrier warps[kMostThreads / 32];
  Exchange exchanges[kMostThreads / 32];
  int votes_or[2] = {0, 0};
  ucontext_t scheduler;
  std::vector<ucontext_t> fibers;
  std::vector<char> finished;
  int current = 0;
  const std::function<void()>* body = nullptr;
};

inline Block& block() {
  static Block state;
  return state;
}

inline unsigned char* shared_memory() { return block().shared.data(); }

inline void yield() {
  Block& b = block();
  swapcontext(&b.fibers[b.current], &b.scheduler);
}

inline void wait(Barrier& barrier) {
  const int generation = barrier.generation;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline int lane() { return block().current % 32; }
inline Exchange& exchange() { return block().exchanges[block().current / 32]; }
inline void wait_warp() { wait(block().warps[block().current / 32]); }

inline void enter() {
  Block& b = block();
  (*b.body)();
  b.finished[b.current] = 1;
  --b.all.members;
  --b.warps[b.current / 32].members;
  swapcontext(&b.fibers[b.current], &b.scheduler);
}

inline void run(dim3 grid, int threads, int shared, const std::function<void()>& body) {
  Block& b = block();
  const char* order = std::getenv("DYNCP_EMULATOR_REVERSE");
  const bool reverse = order != nullptr && order[0] == '1';
  static std::vector<unsigned char> stacks(kStack * 256);
  if (threads > 256 || threads % 32 != 0) std::abort();
  b.size = dim3(threads);
  b.body = &body;
  b.fibers.resize(threads);
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      b.block = dim3(x, y);
      b.shared.assign(shared, 0xff);
      b.finished.assign(threads, 0);
      b.all = Barrier{threads, 0, 0};
      for (int warp = 0; warp < threads / 32; ++warp) b.warps[warp] = Barrier{32, 0, 0};
      for (int i = 0; i < threads; ++i) {
        getcontext(&b.fibers[i]);
        b.fibers[i].uc_stack.ss_sp = stacks.data() + i * kStack;
        b.fibers[i].uc_stack.ss_size = kStack;
        b.fibers[i].uc_link = nullptr;
        makecontext(&b.fibers[i], enter, 0);
      }
      for (bool alive = true; alive;) {
        alive = false;
        for (int i = 0; i < threads; ++i) {
          const int index = reverse ? threads - 1 - i : i;
          if (b.finished[index]) continue;
          alive = true;
          b.current = index;
          b.thread = dim3(index, 0, 0);
          swapcontext(&b.scheduler, &b.fibers[index]);
        }
      }
    }
}

}  // namespace emulator

#define threadIdx (::emulator::block().thread)
#define blockIdx (::emulator::block().block)
#define blockDim (::emulator::block().size)

inline void __syncthreads() { emulator::wait(emulator::block().all); }
inline void __syncwarp() { emulator::wait_warp(); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }

inline int __syncthreads_or(int predicate) {
  emulator::Block& b = emulator::block();
  if (predicate) b.votes_or[0] = 1;
  __syncthreads();
  const int result = b.votes_or[0];
  __syncthreads();
  b.votes_or[0] = 0;
  __syncthreads();
  return result;
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  emulator::exchange().values[emulator::lane()] = predicate;
  emulator::wait_warp();
  unsigned vote = 0;
  for (int i = 0; i < 32; ++i) vote |= emulator::exchange().values[i] << i;
  emulator::wait_warp();
  return vote;
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  std::memcpy(&emulator::exchange().values[emulator::lane()], &value, 4);
  emulator::wait_warp();
  float other;
  std::memcpy(&other, &emulator::exchange().values[emulator::lane() ^ mask], 4);
  emulator::wait_warp();
  return other;
}

namespace dyncp::cuda {

using std::memcpy;

inline DeviceLimits device_limits() {
  const auto setting = [](const char* name, int otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoi(value);
  };
  return {setting("DYNCP_EMULATOR_PROCESSORS", 4), setting("DYNCP_EMULATOR_SHARED", 227 * 1024)};
}

template <class Kernel, class... Arguments>
const char* launch(Kernel kernel, dim3 grid, int threads, int shared, void*, const Arguments&... arguments) {
  if (shared > device_limits().shared) return kTooLarge;
  const char* trace = std::getenv("DYNCP_EMULATOR_TRACE");
  if (trace != nullptr && trace[0] == '1') std::fprintf(stderr, "launch %u %d\n", grid.x * grid.y, shared);
  emulator::run(grid, threads, shared, [&] { kernel(arguments...); });
  return nullptr;
}

inline float float_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  double value = exponent == 0 ? mantissa * 0x1p-24 : (1024 + mantissa) * 0x1p-25 * double(1u << exponent);
  if (exponent == 31) value = mantissa ? __builtin_nan("") : __builtin_inf();
  return static_cast<float>(bits >> 15 ? -value : value);
}

// Round to nearest even; subnormal numbers included.
inline uint16_t half_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;
  float magnitude;
  memcpy(&magnitude, &bits, 4);
  if (bits < 0x38800000) return sign | static_cast<uint16_t>(__builtin_lrint(magnitude * 0x1p24));
  return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

// Nearest, ties away from zero.
inline uint32_t round_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (bits + 0x1000) & 0xffffe000;
}

namespace host {

inline float tf32(uint32_t word, int) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}

inline float bfloat16(uint32_t word, int half) {
  word = half ? word & 0xffff0000 : word << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}

inline float float16(uint32_t word, int half) { return float_of_half(half ? word >> 16 : word & 0xffff); }

// mma.m16n8k(4 * per_word * 2): the fragments of the PTX manual, items_per_word 1 (tf32) or 2.
template <class Read>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int items_per_word, Read read) {
  emulator::Exchange& e = emulator::exchange();
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i) e.left[lane][i] = a[i];
  for (int i = 0; i < 2; ++i) e.right[lane][i] = b[i];
  emulator::wait_warp();
  const int g = lane / 4;
  const int t = lane % 4;
  const int depth = 8 * items_per_word;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    float sum = 0.0f;
    for (int k = 0; k < depth; ++k) {
      // Item k lies in word k / (depth / 2) of the lane whose t is k % (depth / 2) / items_per_word.
      const int upper = k / (depth / 2);
      const int owner = k % (depth / 2) / items_per_word;
      const int half = k % items_per_word;
      const float left = read(e.left[g * 4 + owner][2 * upper + i / 2], half);
      const float right = read(e.right[column * 4 + owner][upper], half);
      sum += left * right;
    }
    d[i] += sum;
  }
  emulator::wait_warp();
}

}  // namespace host

inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::multiply(d, a, b, 1, host::tf32);
}
inline void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::multiply(d, a, b, 2, host::bfloat16);
}
inline void multiply_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  host::multiply(d, a, b, 2, host::float16);
}

}  // namespace dyncp::cuda
