// Bins and words of 16 samples at a time; the adds to memory are scalar, one a sample.
#include <immintrin.h>

#include "cpu/binning_words.h"

namespace vlcal {
namespace {

// bits of floats in 0..1, and no others, are at most those of 1 as unsigned integers
inline __mmask16 outside(__m512 value) {
  return _mm512_cmpgt_epu32_mask(_mm512_castps_si512(value), _mm512_set1_epi32(0x3f800000));
}

template <bool kNarrow>
inline __m512i bins_of(__m512 value, __m512 bins, __m512 next_low, __m512 next_high) {
  const __m512 place = _mm512_sub_ps(_mm512_mul_ps(value, bins), _mm512_set1_ps(static_cast<float>(kLow)));
  const __m512i guess = _mm512_cvttps_epi32(place);
  const __m512 next = kNarrow ? _mm512_permutexvar_ps(guess, next_low)
                              : _mm512_permutex2var_ps(next_low, guess, next_high);
  const __mmask16 reached = _mm512_cmp_ps_mask(value, next, _CMP_GE_OQ);
  return _mm512_mask_add_epi32(guess, reached, guess, _mm512_set1_epi32(1));
}

template <bool kNarrow>
int64_t add_words(const float* confidence, const uint8_t* correct, int64_t n, Grid<float> grid, uint64_t* words) {
  alignas(64) uint64_t word[kStage];
  alignas(64) uint32_t bin[kStage];
  const __m512 bins = _mm512_set1_ps(grid.bins);
  const __m512 next_low = _mm512_loadu_ps(grid.next), next_high = _mm512_loadu_ps(grid.next + 16);
  const __m512 unit = _mm512_set1_ps(1073741824.0f);
  int64_t i = 0;
  for (; i + kStage <= n; i += kStage) {
    __mmask16 bad = 0;
#pragma GCC unroll 4
    for (int j = 0; j < kStage; j += 16) {
      const __m512 value = _mm512_loadu_ps(confidence + i + j);
      bad |= outside(value);
      _mm512_store_si512(bin + j, bins_of<kNarrow>(value, bins, next_low, next_high));
      const __m512i units = _mm512_cvtps_epi32(_mm512_mul_ps(value, unit));
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(correct + i + j));
      const __m512i right = _mm512_cvtepu8_epi32(_mm_min_epu8(bytes, _mm_set1_epi8(1)));
      const __m512i high =
          _mm512_or_si512(_mm512_slli_epi32(right, kCorrectBit - 32), _mm512_set1_epi32(1 << (kCountBit - 32)));
      // samples 0 1 4 5 8 9 12 13, then 2 3 6 7 10 11 14 15
      _mm512_store_si512(word + j, _mm512_unpacklo_epi32(units, high));
      _mm512_store_si512(word + j + 8, _mm512_unpackhi_epi32(units, high));
    }
    if (bad) return i;
#pragma GCC unroll 8
    for (int j = 0; j < kStage; j += 4) {
      const uint64_t* pair = word + (j & ~15) + (j & 15) / 2;
      uint64_t* table = words + (j & 4) * kWideBins;
      table[bin[j]] += pair[0];
      table[kWideBins + bin[j + 1]] += pair[1];
      table[2 * kWideBins + bin[j + 2]] += pair[8];
      table[3 * kWideBins + bin[j + 3]] += pair[9];
    }
  }
  return i;
}

}  // namespace

int64_t add_words_avx512(const float* confidence, const uint8_t* correct, int64_t n, Grid<float> grid,
                         uint64_t* words) {
  return grid.bins <= 16 ? add_words<true>(confidence, correct, n, grid, words)
                         : add_words<false>(confidence, correct, n, grid, words);
}

}  // namespace vlcal
