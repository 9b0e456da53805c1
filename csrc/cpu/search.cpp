#include "cpu/search.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/search_exact.h"

namespace vlcal {
namespace {

using Found = std::pair<double, int64_t>;  // cost, index: smaller is nearer, ties by index

constexpr int64_t kKeysPerTask = 1 << 14;

std::vector<double> padded(const double* row, int64_t dim) {
  std::vector<double> out((dim + kLanes - 1) / kLanes * kLanes, 0.0);
  std::copy(row, row + dim, out.begin());
  return out;
}

// a heap of the k nearest so far, the farthest on top
void offer(std::vector<Found>& heap, int k, Found candidate) {
  if (static_cast<int>(heap.size()) < k) {
    heap.push_back(candidate);
    std::push_heap(heap.begin(), heap.end());
  } else if (candidate < heap.front()) {
    std::pop_heap(heap.begin(), heap.end());
    heap.back() = candidate;
    std::push_heap(heap.begin(), heap.end());
  }
}

}  // namespace

template <class Real>
SearchIndex<Real>::SearchIndex(const Real* keys, int64_t rows, int64_t dim, Metric metric, int)
    : keys_(keys), rows_(rows), dim_(dim), metric_(metric) {}

template <class Real>
void SearchIndex<Real>::search(const double* queries, int64_t n, int k, bool exclude_self, double* cost, int64_t* index,
                               int threads) const {
  const auto exact = exact_costs<Real>();
  const auto cost_of = metric_ == Metric::kDistance ? exact.squared_distance : exact.negated_dot;
  const int64_t slices = (rows_ + kKeysPerTask - 1) / kKeysPerTask;
  std::vector<std::vector<Found>> found(n * slices);
  parallel_for(n * slices, threads, [&](int64_t task, int) {
    const int64_t q = task / slices, start = task % slices * kKeysPerTask;
    const auto query = padded(queries + q * dim_, dim_);
    for (int64_t row = start; row < std::min(rows_, start + kKeysPerTask); ++row) {
      if (exclude_self && row == q) continue;
      offer(found[task], k, {cost_of(query.data(), keys_ + row * dim_, dim_), row});
    }
  });
  parallel_for(n, threads, [&](int64_t q, int) {
    std::vector<Found> all;
    for (int64_t slice = 0; slice < slices; ++slice) {
      const auto& part = found[q * slices + slice];
      all.insert(all.end(), part.begin(), part.end());
    }
    std::partial_sort(all.begin(), all.begin() + k, all.end());
    for (int i = 0; i < k; ++i) {
      cost[q * k + i] = all[i].first;
      index[q * k + i] = all[i].second;
    }
  });
}

template <class Real>
void dots(const double* query, const Real* keys, int64_t rows, int64_t dim, double* out, int threads) {
  const auto negated_dot = exact_costs<Real>().negated_dot;
  const auto padded_query = padded(query, dim);
  parallel_for((rows + kKeysPerTask - 1) / kKeysPerTask, threads, [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * kKeysPerTask);
    for (int64_t row = task * kKeysPerTask; row < end; ++row) {
      out[row] = -negated_dot(padded_query.data(), keys + row * dim, dim);
    }
  });
}

template class SearchIndex<float>;
template class SearchIndex<double>;
template void dots<float>(const double*, const float*, int64_t, int64_t, double*, int);
template void dots<double>(const double*, const double*, int64_t, int64_t, double*, int);

}  // namespace vlcal
