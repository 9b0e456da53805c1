// Uninitialized memory that starts on a cache line.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace vlcal {

struct FreeAligned {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using AlignedFloats = std::unique_ptr<float[], FreeAligned>;

inline AlignedFloats aligned_floats(int64_t count) {
  return AlignedFloats(new (std::align_val_t{64}) float[count > 0 ? count : 1]);
}

}  // namespace vlcal
