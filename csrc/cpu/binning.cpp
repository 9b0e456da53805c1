#include "cpu/binning.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/parallel.h"

namespace vlcal {
namespace {

constexpr int64_t kChunk = 1 << 16;
constexpr double kUnits = 1073741824.0;  // 2^30

// a uniform grid makes the first guess right or one off; the walk makes it right for any thresholds
template <class Real>
int bin_of(Real confidence, const Real* thresholds, int n_bins) {
  int bin = std::min(static_cast<int>(confidence * static_cast<Real>(n_bins)), n_bins - 1);
  while (bin < n_bins - 1 && confidence >= thresholds[bin]) ++bin;
  while (bin > 0 && confidence < thresholds[bin - 1]) --bin;
  return bin;
}

}  // namespace

template <class Real>
int64_t bin_statistics(const Real* confidence, const uint8_t* correct, int64_t n, const Real* thresholds, int n_bins,
                       int64_t* table, int threads) {
  const int64_t size = 3 * static_cast<int64_t>(n_bins);
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, chunks)));
  std::vector<int64_t> tables(size * workers, 0);
  std::vector<int64_t> bad(workers, n);
  parallel_for(chunks, workers, [&](int64_t chunk, int worker) {
    int64_t* mine = tables.data() + size * worker;
    const int64_t end = std::min(n, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) {
      const Real c = confidence[i];
      if (!(c >= 0 && c <= 1)) {
        bad[worker] = std::min(bad[worker], i);
        continue;
      }
      const int bin = bin_of(c, thresholds, n_bins);
      mine[bin] += 1;
      mine[n_bins + bin] += correct[i] != 0;
      mine[2 * n_bins + bin] += std::llrint(static_cast<double>(c) * kUnits);
    }
  });
  std::fill(table, table + size, 0);
  for (int64_t i = 0; i < size * workers; ++i) table[i % size] += tables[i];
  const int64_t first = *std::min_element(bad.begin(), bad.end());
  return first < n ? first : -1;
}

template int64_t bin_statistics<float>(const float*, const uint8_t*, int64_t, const float*, int, int64_t*, int);
template int64_t bin_statistics<double>(const double*, const uint8_t*, int64_t, const double*, int, int64_t*, int);

}  // namespace vlcal
