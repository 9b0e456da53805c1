// The sums of a few queries, compiled for AVX2.
#include "cpu/density_sums.h"

namespace vlcal {

void gaussian_sums_avx2(const GaussianSums& in, double* sums) { gaussian_sums_of(in, sums); }

}  // namespace vlcal
