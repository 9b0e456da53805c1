#include "cpu/finite.h"

#include <algorithm>
#include <atomic>

#include "cpu/parallel.h"

namespace vlcal {
namespace {

constexpr int64_t kChunk = 1 << 18;

// x - x is 0 for finite x and NaN for others, and NaN stays in a sum
template <class Real>
bool finite(const Real* values, int64_t n) {
  constexpr int kWays = 16;
  Real sums[kWays] = {};
  int64_t i = 0;
  for (; i + kWays <= n; i += kWays) {
    for (int j = 0; j < kWays; ++j) sums[j] += values[i + j] - values[i + j];
  }
  for (; i < n; ++i) sums[0] += values[i] - values[i];
  for (int j = 1; j < kWays; ++j) sums[0] += sums[j];
  return sums[0] == 0;
}

}  // namespace

template <class Real>
bool all_finite(const Real* values, int64_t n, int threads) {
  std::atomic<bool> good{true};
  parallel_for((n + kChunk - 1) / kChunk, threads, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunk;
    if (good && !finite(values + begin, std::min(kChunk, n - begin))) good = false;
  });
  return good;
}

template bool all_finite<float>(const float*, int64_t, int);
template bool all_finite<double>(const double*, int64_t, int);

}  // namespace vlcal
