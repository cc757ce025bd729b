// From torch tensors to the core's description of a call, and torch's thread pool for the core.
#pragma once

#include <vector>

#include "core/gated_conv.h"
#include "torch/checks.h"

namespace dyncp::binding {

DType dtype_of(const Tensor& tensor);

// Holds what GatedConv points to: the tensors themselves, or contiguous copies where the core needs them.
class BlockCall {
 public:
  explicit BlockCall(const BlockArguments& arguments);
  const GatedConv& call() const { return call_; }

 private:
  const void* contiguous(const std::optional<Tensor>& tensor);
  Gate gate(const std::optional<Tensor>& tensor, bool has_frames);

  GatedConv call_;
  std::vector<Tensor> copies_;
};

void torch_parallel_for(int64_t count, int64_t grain, ParallelBody body, void* context);

}  // namespace dyncp::binding
