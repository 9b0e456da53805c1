#include "cpu/softmax.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/softmax_row.h"

namespace vlcal {
namespace {

void row_sums_portable(const float* row, int64_t classes, RowSums* out) { row_sums_of(row, classes, out); }

auto row_kernel() {
#if defined(__x86_64__)
  if (isa().avx512) return row_sums_avx512;
  if (isa().avx2) return row_sums_avx2;
#endif
  return row_sums_portable;
}

}  // namespace

int64_t softmax_statistics(const float* logits, const int64_t* labels, int64_t n, int64_t classes, StoredSoftmax out,
                           int threads) {
  const auto row_sums = row_kernel();
  const int64_t rows = std::max<int64_t>(1, (1 << 18) / classes);
  std::vector<int64_t> bad(std::max(threads, 1), n);
  parallel_for((n + rows - 1) / rows, threads, [&](int64_t block, int worker) {
    for (int64_t i = block * rows; i < std::min(n, (block + 1) * rows); ++i) {
      RowSums row;
      row_sums(logits + i * classes, classes, &row);
      if (!std::isfinite(row.largest) || !std::isfinite(row.sum) || !std::isfinite(row.weighted)) {
        bad[worker] = std::min(bad[worker], i);
        continue;
      }
      const double log_sum = std::log(row.sum);
      out.predicted[i] = row.argmax;
      out.confidence[i] = static_cast<float>(1.0 / row.sum);
      out.entropy[i] = static_cast<float>(log_sum - row.weighted / row.sum);
      out.sum_squares[i] = static_cast<float>(row.squares / (row.sum * row.sum));
      if (labels) {
        const double label = logits[i * classes + labels[i]];
        out.log_likelihood[i] = static_cast<float>(label - row.largest - log_sum);
      }
    }
  });
  const int64_t first = *std::min_element(bad.begin(), bad.end());
  return first < n ? first : -1;
}

}  // namespace vlcal
