// Most probabilities of a softmax fall into the first bin: those are added as vectors, the others one by one.
#include <immintrin.h>

#include "cpu/classwise_words.h"

namespace vlcal {

int64_t add_row_avx512(const float* probs, int64_t classes, Grid<float> grid, uint64_t* words) {
  const __m512 first = _mm512_set1_ps(grid.next[0]), unit = _mm512_set1_ps(1073741824.0f);
  const __m512i one = _mm512_set1_epi64(int64_t{1} << kCountBit);
  int64_t c = 0;
  for (; c + 16 <= classes; c += 16) {
    const __m512 p = _mm512_loadu_ps(probs + c);
    if (_mm512_cmpgt_epu32_mask(_mm512_castps_si512(p), _mm512_set1_epi32(0x3f800000))) return c;
    const __m512i units = _mm512_cvtps_epi32(_mm512_mul_ps(p, unit));
    const __m512i low = _mm512_add_epi64(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(units)), one);
    const __m512i high = _mm512_add_epi64(_mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(units, 1)), one);
    unsigned other = _mm512_cmp_ps_mask(p, first, _CMP_GE_OQ);
    const __mmask8 in_low = static_cast<__mmask8>(~other), in_high = static_cast<__mmask8>(~(other >> 8));
    __m512i* to = reinterpret_cast<__m512i*>(words + c);
    const __m512i before_low = _mm512_loadu_si512(to), before_high = _mm512_loadu_si512(to + 1);
    _mm512_storeu_si512(to, _mm512_mask_add_epi64(before_low, in_low, before_low, low));
    _mm512_storeu_si512(to + 1, _mm512_mask_add_epi64(before_high, in_high, before_high, high));
    for (; other; other &= other - 1) {
      const int64_t at = c + __builtin_ctz(other);
      const float value = probs[at];
      const int guess = static_cast<int>(value * grid.bins - static_cast<float>(kLow));
      words[(guess + (value >= grid.next[guess])) * classes + at] += word_of(static_cast<double>(value), false);
    }
  }
  return c;
}

}  // namespace vlcal
