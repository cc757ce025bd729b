#include "core/aligned_memory.h"

#include <cstdlib>
#include <new>

#include "core/stream_layout.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dyncp {

void Freeing::operator()(void* memory) const { std::free(memory); }

Memory allocate(int64_t bytes) {
  // Of the usual size; half of one is worth a whole one.
  constexpr int64_t kHugePage = 2 << 20;
  const int64_t alignment = bytes >= kHugePage / 2 ? kHugePage : int64_t{kLine};
  const auto whole = static_cast<size_t>((bytes + alignment - 1) / alignment * alignment);
  Memory memory(std::aligned_alloc(static_cast<size_t>(alignment), whole));
  if (!memory) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Only advice: without such pages all works as well.
  if (alignment == kHugePage) madvise(memory.get(), whole, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace dyncp
