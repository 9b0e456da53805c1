// A sample as one 64-bit word, and the wide kernels that add words to bins.
#pragma once
#include <cstdint>

namespace vlcal {

// count << 52 | correct << 40 | units of 2^-30: a word holds the sum of 1023 samples
constexpr int kCountBit = 52;
constexpr int kCorrectBit = 40;
constexpr int64_t kWordSamples = 1023;

// private copies of the table, so that samples of one bin do not wait for each other's store
constexpr int kCopies = 8;
constexpr int64_t kStage = 512;                                       // samples a wide kernel takes at a time
constexpr int64_t kBlock = kWordSamples * kCopies / kStage * kStage;  // 7680 samples: 960 in a copy
constexpr int kWideBins = 32;                                         // bins the wide kernels can hold

// Bins whose number a multiplication guesses right or one too low, for every value: bin = guess + (value >= next[guess])
template <class Real>
struct Grid {
  Real bins;         // as a factor
  const Real* next;  // the threshold above each bin, +inf above the last; wide kernels read kWideBins of them
};

// keeps the guess from being too high: far above the rounding of a product, far below a bin
constexpr double kLow = 1.0 / 1024;

// A confidence in units of 2^-30, half to even, as the conversion instructions do.
inline int64_t units_of(double confidence) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double shifted = confidence * 1073741824.0 + kMagic;
  int64_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4338000000000000;
}

inline uint64_t word_of(double confidence, bool correct) {
  return (uint64_t{1} << kCountBit) + (static_cast<uint64_t>(correct) << kCorrectBit) +
         static_cast<uint64_t>(units_of(confidence));
}

// Add samples to words[kCopies][kWideBins], kStage at a time, until one is outside 0..1 (or is -0); how many were added.
int64_t add_words_avx2(const float* confidence, const uint8_t* correct, int64_t n, Grid<float> grid, uint64_t* words);
int64_t add_words_avx512(const float* confidence, const uint8_t* correct, int64_t n, Grid<float> grid, uint64_t* words);

}  // namespace vlcal
