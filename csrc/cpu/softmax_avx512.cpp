// The sums of one row of logits, 16 classes at a time with fused multiply-adds.
#include <immintrin.h>

#include "cpu/softmax_row.h"

namespace vlcal {
namespace {

inline __mmask16 up_to(int64_t left) {
  return left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1);
}

inline float largest_of(const float* row, int64_t classes) {
  const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
  __m512 high[4] = {nothing, nothing, nothing, nothing};
  int64_t c = 0;
  for (; c + 64 <= classes; c += 64) {
    for (int j = 0; j < 4; ++j) high[j] = _mm512_max_ps(high[j], _mm512_loadu_ps(row + c + 16 * j));
  }
  for (; c < classes; c += 16) high[0] = _mm512_max_ps(high[0], _mm512_mask_loadu_ps(nothing, up_to(classes - c), row + c));
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(high[0], high[1]), _mm512_max_ps(high[2], high[3])));
}

inline int64_t first_of_wide(const float* row, int64_t classes, float value) {
  const __m512 wanted = _mm512_set1_ps(value);
  for (int64_t c = 0; c < classes; c += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(up_to(classes - c), row + c);
    const __mmask16 found = _mm512_mask_cmp_ps_mask(up_to(classes - c), x, wanted, _CMP_EQ_OQ);
    if (found) return c + __builtin_ctz(found);
  }
  return 0;
}

struct Sums {
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps(), weighted = _mm512_setzero_ps();

  void add(__m512 logits, __m512 largest) {
    // the maximum gives its second operand where one is NaN
    const __m512 d = _mm512_max_ps(_mm512_set1_ps(kLowest), _mm512_sub_ps(logits, largest));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(d, _mm512_set1_ps(kLog2E)), _MM_FROUND_TO_NEAREST_INT);
    const __m512 f = _mm512_fmsub_ps(d, _mm512_set1_ps(kLog2E), n);
    __m512 power = _mm512_set1_ps(kExp2[0]);
#pragma GCC unroll 6
    for (int i = 1; i < 7; ++i) power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(kExp2[i]));
    const __m512 e = _mm512_scalef_ps(power, n);
    sum = _mm512_add_ps(sum, e);
    squares = _mm512_fmadd_ps(e, e, squares);
    weighted = _mm512_fmadd_ps(e, d, weighted);
  }
};

}  // namespace

void row_sums_avx512(const float* row, int64_t classes, RowSums* out) {
  const float largest = largest_of(row, classes);
  *out = {largest, first_of_wide(row, classes, largest), 0.0, 0.0, 0.0};
  const __m512 shift = _mm512_set1_ps(largest), nothing = _mm512_set1_ps(-__builtin_inff());
  for (int64_t begin = 0; begin < classes; begin += kRowBlock) {
    const int64_t end = begin + kRowBlock < classes ? begin + kRowBlock : classes;
    Sums even, odd;
    int64_t c = begin;
    for (; c + 32 <= end; c += 32) {
      even.add(_mm512_loadu_ps(row + c), shift);
      odd.add(_mm512_loadu_ps(row + c + 16), shift);
    }
    for (; c < end; c += 16) even.add(_mm512_mask_loadu_ps(nothing, up_to(end - c), row + c), shift);
    out->sum += _mm512_reduce_add_ps(_mm512_add_ps(even.sum, odd.sum));
    out->squares += _mm512_reduce_add_ps(_mm512_add_ps(even.squares, odd.squares));
    out->weighted += _mm512_reduce_add_ps(_mm512_add_ps(even.weighted, odd.weighted));
  }
}

}  // namespace vlcal
