// The micro-kernel for four int8 a word: 14 x 2 accumulators; rows unsigned, keys signed.
// gcc 12 warns inside its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/gemm_tile.h"

namespace {

#include "cpu/gemm_tile_512.h"

struct WideInt8 : Wide {
  using Sum = __m512i;
  using Word = __m512i;
  static inline Sum start(const int32_t* at) { return _mm512_loadu_si512(at); }
  static inline Word word(const uint32_t* at) { return _mm512_loadu_si512(at); }
  static inline Word broadcast(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  static inline Sum step(Sum sum, Word row, Word key) {
    // gcc 12 spills the accumulators when this is the intrinsic
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(key));
    return sum;
  }
  static inline Real value(Sum sum, Real scale, float row_scale, Real bias) {
    return scaled(_mm512_cvtepi32_ps(sum), scale, row_scale, bias);
  }
};

}  // namespace

namespace vlcal {

const TileKernel tile_int8_vnni = {Format::kInt8, 14, Tile<WideInt8, 14, 2>::run};

int32_t dot_int8_vnni(const uint8_t* a, const int8_t* b, int64_t n) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 64) {
    sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i));
  }
  return _mm512_reduce_add_epi32(sum);
}

}  // namespace vlcal
