// The micro-kernel for any CPU, four lanes of plain C++ that compilers turn into their smallest vectors; and the choice.
#include "cpu/gemm_tile.h"

#include <cstring>

namespace {

#include "cpu/gemm_tile_leaf.h"

struct Four {
  typedef float Real __attribute__((vector_size(16)));
  typedef int32_t Bits __attribute__((vector_size(16)));
  using Sum = Real;
  using Word = Real;
  static constexpr int kWidth = 4;
  static inline Sum start(const int32_t*) { return Sum{}; }
  static inline Real load(const float* at) {
    Real a;
    std::memcpy(&a, at, sizeof a);
    return a;
  }
  static inline Word word(const uint32_t* at) {
    Word a;
    std::memcpy(&a, at, sizeof a);
    return a;
  }
  static inline Word broadcast(uint32_t bits) {
    float a;
    std::memcpy(&a, &bits, sizeof a);
    return Word{a, a, a, a};
  }
  static inline Sum step(Sum sum, Word row, Word key) { return sum + row * key; }
  static inline Real value(Sum sum, Real scale, float row_scale, Real bias) { return sum * scale * row_scale + bias; }
  static inline uint32_t reached(Real a, float threshold) {
    const Bits bits = a >= threshold;
    return (bits[0] & 1) | (bits[1] & 2) | (bits[2] & 4) | (bits[3] & 8);
  }
  static inline void store(float* at, Real a) { std::memcpy(at, &a, sizeof a); }
};

int32_t dot_int8_portable(const uint8_t* a, const int8_t* b, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
  return sum;
}

}  // namespace

namespace vlcal {

const TileKernel tile_float_portable = {Format::kFloat, 4, Tile<Four, 4, 2>::run};

const TileKernel* tile_kernel(Format format, const Isa& isa) {
#if defined(__x86_64__)
  if (format == Format::kInt8) return isa.vnni ? &tile_int8_vnni : nullptr;
  if (format == Format::kBfloat) return isa.bf16 ? &tile_bfloat_avx512 : nullptr;
  if (isa.avx512) return &tile_float_avx512;
  if (isa.avx2) return &tile_float_avx2;
#endif
  return format == Format::kFloat ? &tile_float_portable : nullptr;
}

DotInt8 dot_int8(const Isa& isa) {
#if defined(__x86_64__)
  if (isa.vnni) return dot_int8_vnni;
  if (isa.avx2) return dot_int8_avx2;
#endif
  return dot_int8_portable;
}

}  // namespace vlcal
