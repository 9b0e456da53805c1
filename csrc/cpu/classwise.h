// Bin statistics of every class at once, in one read of the probabilities.
#pragma once
#include <cstdint>

namespace vlcal {

// probs: [n][classes]; a probability of class c is correct in row i if labels[i] is c.
// thresholds as in bin_statistics. table: [3][classes][n_bins], overwritten.
// Returns the first flat index whose probability is NaN or outside 0..1, or -1.
int64_t classwise_statistics(const float* probs, const int64_t* labels, int64_t n, int64_t classes,
                             const float* thresholds, int n_bins, int64_t* table, int threads);

}  // namespace vlcal
