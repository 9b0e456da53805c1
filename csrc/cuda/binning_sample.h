// The arithmetic of one sample, the same on the device and on the host, where a test compares it with the CPU kernels.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/binning_words.h"

#ifdef __CUDACC__
#define VLCAL_BOTH __host__ __device__ __forceinline__
#else
#define VLCAL_BOTH inline
#endif

namespace vlcal::cuda {

VLCAL_BOTH bool is_confidence(float value) { return value >= 0.0f && value <= 1.0f; }  // false for NaN

// In units of 2^-30, half to even.
VLCAL_BOTH uint32_t units_of_float(float confidence) {
  const float scaled = confidence * 1073741824.0f;
#ifdef __CUDA_ARCH__
  return __float2uint_rn(scaled);
#else
  // from 2^23 on a float is an integer
  return static_cast<uint32_t>(scaled < 8388608.0f ? (scaled + 8388608.0f) - 8388608.0f : scaled);
#endif
}

// count << 52 | correct << 40 | units: a word holds the sum of kWordSamples samples.
VLCAL_BOTH uint64_t word_of_sample(float confidence, bool correct) {
  return (uint64_t{1} << kCountBit) + (static_cast<uint64_t>(correct) << kCorrectBit) + units_of_float(confidence);
}

// The bin of a confidence, or one too low, if `guess_serves` for all bins.
VLCAL_BOTH int guess_of(float confidence, int n_bins) {
  return static_cast<int>(confidence * static_cast<float>(n_bins) - static_cast<float>(kLow));
}

// Whether guesses are right or one too low for the values of `bin` - 1 and `bin`, which `next`[bin - 1] parts. A guess
// is monotone, so the smallest and the largest value of every bin speak for all.
VLCAL_BOTH bool guess_serves(const float* next, int bin, int n_bins) {
  const float lowest = next[bin - 1];
  if (!(lowest > 0.0f && lowest <= 1.0f)) return false;
  const float below = nextafterf(lowest, 0.0f);
  return guess_of(lowest, n_bins) >= bin - 1 && guess_of(below, n_bins) <= bin - 1;
}

// How many of the n_bins - 1 ascending values of `next` the confidence reaches; next[n_bins - 1] is +inf.
VLCAL_BOTH int bin_of(float confidence, const float* next, int n_bins, bool guesses) {
  if (guesses) {
    const int low = guess_of(confidence, n_bins);
    return low + (confidence >= next[low]);
  }
  int low = 0, high = n_bins - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (confidence >= next[middle]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Bits of a confidence, which are in its order; -0 is 0.
VLCAL_BOTH uint32_t bits_of_sample(float confidence) {
  if (!(confidence > 0.0f)) return 0;
#ifdef __CUDA_ARCH__
  return __float_as_uint(confidence);
#else
  uint32_t bits;
  std::memcpy(&bits, &confidence, sizeof bits);
  return bits;
#endif
}

// Cells are the 16 leading bits. From kFirstExact (2^-7) on a confidence is a whole number of units, so that those of a
// cell follow from its count and the sum of the other 16 bits.
constexpr int kCells = (0x3f800000 >> 16) + 1;
constexpr int kFirstExact = 0x3c000000 >> 16;
constexpr int kExactCells = kCells - kFirstExact;

VLCAL_BOTH int64_t units_of_cell(int cell, int64_t count, int64_t low_sum) {
  const int64_t leading = static_cast<int64_t>(0x80 | (cell & 0x7f)) << 16;
  return (count * leading + low_sum) << ((cell >> 7) - 120);
}

}  // namespace vlcal::cuda
