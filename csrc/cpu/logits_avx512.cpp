// The leaf kernels with 16 lanes a register: 14 x 2 accumulators.
// gcc 12 warns inside its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/logits_kernels.h"

namespace {

#include "cpu/logits_leaf.h"

struct Wide {
  using Reg = __m512;
  static constexpr int kWidth = 16;
  static inline Reg load(const float* at) { return _mm512_loadu_ps(at); }
  static inline void store(float* at, Reg a) { _mm512_storeu_ps(at, a); }
  static inline Reg set(float a) { return _mm512_set1_ps(a); }
  static inline Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static inline Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static inline Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static inline Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static inline Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static inline Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static inline Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static inline Reg round(Reg a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static inline Reg exp2_scale(Reg p, Reg n) { return _mm512_scalef_ps(p, n); }
  static inline void transpose(Reg (&m)[16]) {
    Reg pairs[16], fours[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    }
    // fours[4 q + j]: in each quarter of the register, column j (mod 4) of rows 4 q .. 4 q + 3
#pragma GCC unroll 4
    for (int q = 0; q < 16; q += 4) {
      const __m512d a = _mm512_castps_pd(pairs[q]), b = _mm512_castps_pd(pairs[q + 2]);
      const __m512d c = _mm512_castps_pd(pairs[q + 1]), d = _mm512_castps_pd(pairs[q + 3]);
      fours[q] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      fours[q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      fours[q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
      fours[q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Reg low = _mm512_shuffle_f32x4(fours[j], fours[j + 4], 0x88);
      const Reg low_odd = _mm512_shuffle_f32x4(fours[j], fours[j + 4], 0xdd);
      const Reg high = _mm512_shuffle_f32x4(fours[j + 8], fours[j + 12], 0x88);
      const Reg high_odd = _mm512_shuffle_f32x4(fours[j + 8], fours[j + 12], 0xdd);
      m[j] = _mm512_shuffle_f32x4(low, high, 0x88);
      m[j + 8] = _mm512_shuffle_f32x4(low, high, 0xdd);
      m[j + 4] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
      m[j + 12] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
  }
  static inline unsigned reached(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
};

}  // namespace

namespace vlcal {
const LogitsKernels logits_avx512 = Leaf<Wide, 14, 2>::kernels();
}  // namespace vlcal
