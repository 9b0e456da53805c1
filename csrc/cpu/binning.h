// One-pass bin statistics in integers: the same bits for any order, split and number of threads.
#pragma once
#include <cstdint>

namespace vlcal {

// thresholds: n_bins - 1 ascending values; a confidence falls into the bin numbered by how many of them it reaches.
// table: [3][n_bins] counts, correct ones, and sums of confidence in units of 2^-30 (round half to even); overwritten.
// Returns the first row whose confidence is NaN or outside 0..1, or -1.
template <class Real>
int64_t bin_statistics(const Real* confidence, const uint8_t* correct, int64_t n, const Real* thresholds, int n_bins,
                       int64_t* table, int threads);

}  // namespace vlcal
