#include "cpu/density.h"

#include <algorithm>
#include <limits>

#include "cpu/density_sums.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace vlcal {
namespace {

constexpr double kTwoPi = 6.283185307179586;
constexpr double kRootHalfLog2E = 0.8493218002880191;  // exp(-u^2 / 2) = 2^-(this u)^2

void gaussian_sums_portable(const GaussianSums& in, double* sums) { gaussian_sums_of(in, sums); }

auto sums_kernel() {
#if defined(__x86_64__)
  if (isa().avx512) return gaussian_sums_avx512;
  if (isa().avx2) return gaussian_sums_avx2;
#endif
  return gaussian_sums_portable;
}

float factor_of(double bandwidth) {
  return static_cast<float>(std::min<double>(kRootHalfLog2E / bandwidth, std::numeric_limits<float>::max()));
}

}  // namespace

void kernel_density(const float* queries, int64_t n, const float* points, int64_t m, const double* bandwidth,
                    float* density, int threads) {
  const auto sums_of = sums_kernel();
  const float a = factor_of(bandwidth[0]), b = factor_of(bandwidth[1]);
  const double each = 1.0 / (static_cast<double>(m) * kTwoPi * bandwidth[0] * bandwidth[1]);
  parallel_for((n + kQueries - 1) / kQueries, threads, [&](int64_t group, int) {
    float x[kQueries] = {}, y[kQueries] = {};
    double sums[kQueries];
    const int64_t first = group * kQueries, count = std::min<int64_t>(kQueries, n - first);
    for (int64_t i = 0; i < count; ++i) {
      x[i] = queries[2 * (first + i)];
      y[i] = queries[2 * (first + i) + 1];
    }
    sums_of({x, y, points, m, a, b}, sums);
    for (int64_t i = 0; i < count; ++i) density[first + i] = static_cast<float>(sums[i] * each);
  });
}

}  // namespace vlcal
