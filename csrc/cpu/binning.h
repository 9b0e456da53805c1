// One-pass bin statistics in integers: the same bits for any order, split, number of threads and instruction set.
#pragma once
#include <cstdint>

namespace vlcal {

// thresholds: n_bins - 1 ascending values; a confidence falls into the bin numbered by how many of them it reaches.
// table: [3][n_bins] counts, correct ones, and sums of confidence in units of 2^-30 (round half to even); overwritten.
// Returns the first row whose confidence is NaN or outside 0..1, or -1.
template <class Real>
int64_t bin_statistics(const Real* confidence, const uint8_t* correct, int64_t n, const Real* thresholds, int n_bins,
                       int64_t* table, int threads);

// The same sums for given groups. Returns the first row whose group is not in 0..n_groups-1 or whose confidence is NaN
// or outside 0..1, or -1.
template <class Real>
int64_t group_statistics(const int64_t* group, const Real* confidence, const uint8_t* correct, int64_t n,
                         int64_t n_groups, int64_t* table, int threads);

}  // namespace vlcal
