// Exact nearest neighbors: the K smallest float64 costs (search_exact.h) of every query, ties by the lowest index.
#pragma once
#include <cstdint>
#include <memory>

namespace vlcal {

enum class Metric { kDistance, kDot };

// Keys prepared for many searches. The keys stay the caller's and must outlive the index unchanged.
template <class Real>
class SearchIndex {
 public:
  // directions: [count][dim] nearly orthonormal rows that hold most of the keys' variance, or count = 0; a hint that
  // decides the speed alone.
  SearchIndex(const Real* keys, int64_t rows, int64_t dim, Metric metric, const float* directions, int64_t count);
  ~SearchIndex();

  // Packs the keys now; otherwise the first search that pays for it does.
  void pack(int threads) const;

  // queries: [n, dim]. cost, index: [n, k], nearest first. exclude_self: row i never finds key i.
  void search(const double* queries, int64_t n, int k, bool exclude_self, double* cost, int64_t* index,
              int threads) const;

  // What packing took so far, beside the keys.
  int64_t bytes() const;

  struct Packed;

 private:
  std::unique_ptr<Packed> packed_;
};

// out[i] = keys row i . query, in float64.
template <class Real>
void dots(const double* query, const Real* keys, int64_t rows, int64_t dim, double* out, int threads);

}  // namespace vlcal
