// Statistics over bins of equal count, exact without sorting large inputs.
#pragma once
#include <cstdint>

namespace vlcal {

// Ranks are those of the ascending confidences, equal ones in the order of their rows. A run of equal confidences with
// ranks r..s-1 goes to bin floor(n_bins (r + s) / (2 n)) if `together`, else each of its samples alone (s = r + 1).
// table: as in bin_statistics. n < 2^32. Returns the first row that is NaN or outside 0..1, or -1.
int64_t equal_mass_statistics(const float* confidence, const uint8_t* correct, int64_t n, int n_bins, bool together,
                              int64_t* table, int threads);

}  // namespace vlcal
