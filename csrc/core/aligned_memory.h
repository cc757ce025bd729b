// Memory for packed weights and states of streams.
#pragma once

#include <cstdint>
#include <memory>

namespace dyncp {

struct Freeing {
  void operator()(void* memory) const;
};
using Memory = std::unique_ptr<void, Freeing>;

// At least `bytes`, aligned to kLine of stream_layout.h.  Much memory lies on huge pages, where the system has them: a
// stream that comes back to its weights after other work would else wait for a page table entry every few rows.  Throws
// std::bad_alloc.
Memory allocate(int64_t bytes);

}  // namespace dyncp
