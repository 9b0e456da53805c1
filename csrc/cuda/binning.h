// Bin statistics on a GPU, queued on a stream; no CUDA header, so that the bindings need none. All pointers are of the
// device; confidence and correct may have any alignment.
#pragma once
#include <cstdint>

#include "cuda/device.h"

namespace vlcal::cuda {

constexpr int kMostBins = 48;  // of two blocks whose words fit into the shared memory of a multiprocessor

// Adds to table [3][n_bins] as vlcal::bin_statistics would write, and to *bad the rows that are NaN or outside 0..1,
// which are in no bin. n_bins <= kMostBins; thresholds: n_bins - 1 ascending values.
void bin_statistics(const float* confidence, const uint8_t* correct, int64_t n, const float* thresholds, int n_bins,
                    int64_t* table, int32_t* bad, const Launch& launch);

// Adds to sums [2][cells] the pairs count | correct << 32 and the units of every cell (the 16 leading bits of a
// confidence), and to *bad the bad rows. n < 2^31.
void cell_sums(const float* confidence, const uint8_t* correct, int64_t n, int64_t* sums, int32_t* bad,
               const Launch& launch);

// Adds to sums [slots][2^16] the pairs of every value in the cells whose slot is 1 or more.
void value_sums(const float* confidence, const uint8_t* correct, int64_t n, const int32_t* slot, int64_t* sums,
                const Launch& launch);

}  // namespace vlcal::cuda
