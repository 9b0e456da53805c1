// Exact nearest neighbours: the K smallest float64 costs (search_exact.h) of every query, ties by the lowest index.
#pragma once
#include <cstdint>

namespace vlcal {

enum class Metric { kDistance, kDot };

// Keys prepared for many searches. The keys stay the caller's and must outlive the index unchanged.
template <class Real>
class SearchIndex {
 public:
  SearchIndex(const Real* keys, int64_t rows, int64_t dim, Metric metric, int threads);

  // queries: [n, dim]. cost, index: [n, k], nearest first. exclude_self: row i never finds key i.
  void search(const double* queries, int64_t n, int k, bool exclude_self, double* cost, int64_t* index, int threads) const;

 private:
  const Real* keys_;
  int64_t rows_, dim_;
  Metric metric_;
};

// out[i] = keys row i . query, in float64.
template <class Real>
void dots(const double* query, const Real* keys, int64_t rows, int64_t dim, double* out, int threads);

}  // namespace vlcal
