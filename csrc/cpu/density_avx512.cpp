// The sums of 16 queries, one in each lane, with fused multiply-adds.
#include <immintrin.h>

#include "cpu/density_sums.h"

namespace vlcal {
namespace {

inline __m512 power_of(__m512 distance) {
  const __m512 n = _mm512_roundscale_ps(distance, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(n, distance);
  __m512 power = _mm512_set1_ps(kPower2[0]);
#pragma GCC unroll 6
  for (int i = 1; i < 7; ++i) power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(kPower2[i]));
  const __mmask16 near = _mm512_cmp_ps_mask(distance, _mm512_set1_ps(kFarthest), _CMP_LT_OQ);
  return _mm512_maskz_scalef_ps(near, power, _mm512_sub_ps(_mm512_setzero_ps(), n));
}

}  // namespace

void gaussian_sums_avx512(const GaussianSums& in, double* sums) {
  const __m512 x = _mm512_loadu_ps(in.x), y = _mm512_loadu_ps(in.y);
  const __m512 a = _mm512_set1_ps(in.a), b = _mm512_set1_ps(in.b);
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  for (int64_t begin = 0; begin < in.m; begin += kShortSum) {
    const int64_t end = begin + kShortSum < in.m ? begin + kShortSum : in.m;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = begin; j < end; ++j) {
      const __m512 dx = _mm512_mul_ps(_mm512_sub_ps(x, _mm512_set1_ps(in.points[2 * j])), a);
      const __m512 dy = _mm512_mul_ps(_mm512_sub_ps(y, _mm512_set1_ps(in.points[2 * j + 1])), b);
      sum = _mm512_add_ps(sum, power_of(_mm512_fmadd_ps(dx, dx, _mm512_mul_ps(dy, dy))));
    }
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(sum)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(sum, 1)));
  }
  _mm512_storeu_pd(sums, low);
  _mm512_storeu_pd(sums + 8, high);
}

}  // namespace vlcal
