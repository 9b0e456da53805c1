// Uninitialized memory that starts on a cache line.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vlcal {

// Asks for large pages where that saves thousands of page faults; the system may say no.
inline void prefer_large_pages(void* memory, uint64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  if (bytes < (uint64_t{4} << 20)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(memory) + bytes - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

struct FreeAligned {
  template <class T>
  void operator()(T* memory) const {
    ::operator delete[](memory, std::align_val_t{64});
  }
};
template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;
using AlignedFloats = Aligned<float>;

template <class T>
Aligned<T> aligned(int64_t count) {
  Aligned<T> memory(new (std::align_val_t{64}) T[count > 0 ? count : 1]);
  prefer_large_pages(memory.get(), static_cast<uint64_t>(count) * sizeof(T));
  return memory;
}

inline AlignedFloats aligned_floats(int64_t count) { return aligned<float>(count); }

}  // namespace vlcal
