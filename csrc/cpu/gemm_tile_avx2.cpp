// The micro-kernel with 8 lanes a register: 6 x 2 accumulators, two tiles a panel.
#include <immintrin.h>

#include "cpu/gemm_tile.h"

namespace {

#include "cpu/gemm_tile_leaf.h"

struct Half {
  using Real = __m256;
  using Sum = __m256;
  using Word = __m256;
  static constexpr int kWidth = 8;
  static inline Sum start(const int32_t*) { return _mm256_setzero_ps(); }
  static inline Real load(const float* at) { return _mm256_loadu_ps(at); }
  static inline Word word(const uint32_t* at) { return _mm256_loadu_ps(reinterpret_cast<const float*>(at)); }
  static inline Word broadcast(uint32_t bits) { return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(bits))); }
  static inline Sum step(Sum sum, Word row, Word key) { return _mm256_fmadd_ps(row, key, sum); }
  static inline Real value(Sum sum, Real scale, float row_scale, Real bias) {
    return _mm256_fmadd_ps(_mm256_mul_ps(sum, scale), _mm256_set1_ps(row_scale), bias);
  }
  static inline uint32_t reached(Real a, float threshold) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_set1_ps(threshold), _CMP_GE_OQ));
  }
  static inline void store(float* at, Real a) { _mm256_storeu_ps(at, a); }
};

inline __m256i products(__m128i a, __m128i b) {
  return _mm256_madd_epi16(_mm256_cvtepu8_epi16(a), _mm256_cvtepi8_epi16(b));
}

inline __m128i load16(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

}  // namespace

namespace vlcal {

const TileKernel tile_float_avx2 = {Format::kFloat, 6, Tile<Half, 6, 2>::run};

int32_t dot_int8_avx2(const uint8_t* a, const int8_t* b, int64_t n) {
  __m256i even = _mm256_setzero_si256(), odd = even;
  for (int64_t i = 0; i < n; i += 32) {
    even = _mm256_add_epi32(even, products(load16(a + i), load16(b + i)));
    odd = _mm256_add_epi32(odd, products(load16(a + i + 16), load16(b + i + 16)));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(even, odd));
  int32_t sum = 0;
  for (int lane : lanes) sum += lane;
  return sum;
}

}  // namespace vlcal
