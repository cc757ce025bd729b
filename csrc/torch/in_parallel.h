// Work on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace dyncp::binding {

// body(begin, end) for parts of 0 to count, of `grain` or more.  What a part throws is thrown here, after the others:
// torch would only say that the call failed.
template <class Body>
void in_parallel(int64_t count, int64_t grain, const Body& body) {
  std::exception_ptr first;
  std::mutex guard;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

}  // namespace dyncp::binding
