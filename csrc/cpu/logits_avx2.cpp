// The leaf kernels with 8 lanes a register: 6 x 2 accumulators.
#include <immintrin.h>

#include "cpu/logits_kernels.h"

namespace {

#include "cpu/logits_leaf.h"

struct Half {
  using Reg = __m256;
  static constexpr int kWidth = 8;
  static inline Reg load(const float* at) { return _mm256_loadu_ps(at); }
  static inline void store(float* at, Reg a) { _mm256_storeu_ps(at, a); }
  static inline Reg set(float a) { return _mm256_set1_ps(a); }
  static inline Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static inline Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static inline Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static inline Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static inline Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static inline Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static inline Reg abs(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static inline Reg round(Reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // n >= -126, so the exponent field stays above zero
  static inline Reg exp2_scale(Reg p, Reg n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
  }
  static inline void transpose(Reg (&m)[8]) {
    Reg pairs[8], fours[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
    // fours[4 q + j]: in each half of the register, column j (mod 4) of rows 4 q .. 4 q + 3
#pragma GCC unroll 2
    for (int q = 0; q < 8; q += 4) {
      fours[q] = _mm256_shuffle_ps(pairs[q], pairs[q + 2], 0x44);
      fours[q + 1] = _mm256_shuffle_ps(pairs[q], pairs[q + 2], 0xee);
      fours[q + 2] = _mm256_shuffle_ps(pairs[q + 1], pairs[q + 3], 0x44);
      fours[q + 3] = _mm256_shuffle_ps(pairs[q + 1], pairs[q + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      m[j] = _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x20);
      m[j + 4] = _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x31);
    }
  }
  static inline unsigned reached(Reg a, Reg b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
};

}  // namespace

namespace vlcal {
const LogitsKernels logits_avx2 = Leaf<Half, 6, 2>::kernels();
}  // namespace vlcal
