// Kernel density in two dimensions: every query against every point, no matrix of pairs.
#pragma once
#include <cstdint>

namespace vlcal {

// density[i] = sum over points j of K((q_i0 - p_j0) / h_0) K((q_i1 - p_j1) / h_1) / (m h_0 h_1), K the standard normal
// density. Queries [n, 2], points [m, 2], m >= 1, finite; bandwidth h [2] positive. A density is the same bits whatever
// the number of threads and the other queries.
void kernel_density(const float* queries, int64_t n, const float* points, int64_t m, const double* bandwidth,
                    float* density, int threads);

}  // namespace vlcal
