// Uninitialized memory that starts on a cache line, or on a large page where it is long enough to fill one.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vlcal {

constexpr uint64_t kLargePage = uint64_t{2} << 20;

// Asks for large pages, which save thousands of page faults; the system may say no. `memory` starts on a page.
inline void prefer_large_pages(void* memory, uint64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

struct FreeAligned {
  void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;
using AlignedFloats = Aligned<float>;

template <class T>
Aligned<T> aligned(int64_t count) {
  const uint64_t bytes = static_cast<uint64_t>(count > 0 ? count : 1) * sizeof(T);
  const bool large = bytes >= kLargePage / 2;
  const uint64_t alignment = large ? kLargePage : 64, size = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, size);
  if (!memory) throw std::bad_alloc();
  if (large) prefer_large_pages(memory, size);
  return Aligned<T>(static_cast<T*>(memory));
}

inline AlignedFloats aligned_floats(int64_t count) { return aligned<float>(count); }

}  // namespace vlcal
