// The micro-kernel for pairs of bfloat16: 14 x 2 accumulators.
// gcc 12 warns inside its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/gemm_tile.h"

namespace {

#include "cpu/gemm_tile_512.h"

struct WideBfloat : Wide {
  using Sum = __m512;
  using Word = __m512i;
  static inline Sum start(const int32_t*) { return _mm512_setzero_ps(); }
  static inline Word word(const uint32_t* at) { return _mm512_loadu_si512(at); }
  static inline Word broadcast(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  static inline Sum step(Sum sum, Word row, Word key) {
    // gcc 12 spills the accumulators when this is the intrinsic
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(row), "v"(key));
    return sum;
  }
  static inline Real value(Sum sum, Real scale, float row_scale, Real bias) {
    return scaled(sum, scale, row_scale, bias);
  }
};

}  // namespace

namespace vlcal {
const TileKernel tile_bfloat_avx512 = {Format::kBfloat, 14, Tile<WideBfloat, 14, 2>::run};
}  // namespace vlcal
