// Bins and words of 8 samples at a time; the adds to memory are scalar, one a sample.
#include <immintrin.h>

#include "cpu/binning_words.h"

namespace vlcal {
namespace {

inline __m256i outside(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value), one = _mm256_set1_epi32(0x3f800000);
  return _mm256_xor_si256(_mm256_cmpeq_epi32(_mm256_min_epu32(bits, one), bits), _mm256_set1_epi32(-1));
}

template <bool kNarrow>
inline __m256i bins_of(__m256 value, __m256 bins, const float* next, __m256 next_low, __m256 next_high) {
  const __m256 place = _mm256_sub_ps(_mm256_mul_ps(value, bins), _mm256_set1_ps(static_cast<float>(kLow)));
  const __m256i guess = _mm256_cvttps_epi32(place);
  const __m256 above =
      kNarrow ? _mm256_blendv_ps(_mm256_permutevar8x32_ps(next_low, guess), _mm256_permutevar8x32_ps(next_high, guess),
                                 _mm256_castsi256_ps(_mm256_slli_epi32(guess, 28)))  // 8..15: bit 3 as the sign
              : _mm256_i32gather_ps(next, _mm256_and_si256(guess, _mm256_set1_epi32(kWideBins - 1)), 4);
  return _mm256_sub_epi32(guess, _mm256_castps_si256(_mm256_cmp_ps(value, above, _CMP_GE_OQ)));
}

template <bool kNarrow>
int64_t add_words(const float* confidence, const uint8_t* correct, int64_t n, Grid<float> grid, uint64_t* words) {
  alignas(32) uint64_t word[kStage];
  alignas(32) uint32_t bin[kStage];
  const __m256 bins = _mm256_set1_ps(grid.bins);
  const __m256 next_low = _mm256_loadu_ps(grid.next), next_high = _mm256_loadu_ps(grid.next + 8);
  const __m256 unit = _mm256_set1_ps(1073741824.0f);
  int64_t i = 0;
  for (; i + kStage <= n; i += kStage) {
    __m256i bad = _mm256_setzero_si256();
    for (int j = 0; j < kStage; j += 8) {
      const __m256 value = _mm256_loadu_ps(confidence + i + j);
      bad = _mm256_or_si256(bad, outside(value));
      const __m256i bin_of = bins_of<kNarrow>(value, bins, grid.next, next_low, next_high);
      _mm256_store_si256(reinterpret_cast<__m256i*>(bin + j), bin_of);
      const __m256i units = _mm256_cvtps_epi32(_mm256_mul_ps(value, unit));
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(correct + i + j));
      const __m256i right = _mm256_cvtepu8_epi32(_mm_min_epu8(bytes, _mm_set1_epi8(1)));
      const __m256i high =
          _mm256_or_si256(_mm256_slli_epi32(right, kCorrectBit - 32), _mm256_set1_epi32(1 << (kCountBit - 32)));
      // samples 0 1 4 5, then 2 3 6 7
      _mm256_store_si256(reinterpret_cast<__m256i*>(word + j), _mm256_unpacklo_epi32(units, high));
      _mm256_store_si256(reinterpret_cast<__m256i*>(word + j + 4), _mm256_unpackhi_epi32(units, high));
    }
    if (!_mm256_testz_si256(bad, bad)) return i;
    for (int j = 0; j < kStage; j += 4) {
      const uint64_t* pair = word + (j & ~7) + (j & 7) / 2;
      uint64_t* table = words + (j & 4) * kWideBins;
      table[bin[j]] += pair[0];
      table[kWideBins + bin[j + 1]] += pair[1];
      table[2 * kWideBins + bin[j + 2]] += pair[4];
      table[3 * kWideBins + bin[j + 3]] += pair[5];
    }
  }
  return i;
}

}  // namespace

int64_t add_words_avx2(const float* confidence, const uint8_t* correct, int64_t n, Grid<float> grid, uint64_t* words) {
  return grid.bins <= 16 ? add_words<true>(confidence, correct, n, grid, words)
                         : add_words<false>(confidence, correct, n, grid, words);
}

}  // namespace vlcal
