// Aligned scratch memory of one call; not cleared.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace dyncp {

class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    constexpr int64_t kAlignment = 64;
    const int64_t rounded = (bytes + kAlignment) / kAlignment * kAlignment;
    memory_ = std::aligned_alloc(kAlignment, rounded);
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return memory_; }

 private:
  void* memory_;
};

}  // namespace dyncp
