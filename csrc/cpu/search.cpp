// Exact top-k: a certified screen (screen.h) in low precision, survivors re-ranked by their exact costs.
//
// Queries go in blocks that stay in the cache, keys in panels of 32. Every query keeps the candidates whose certified
// upper bound reaches its threshold, and the threshold is what at least k candidates are certain to reach. A block that
// keeps too many candidates starts again with the next, finer screen; after the last one all costs are evaluated.
#include "cpu/search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/screen.h"
#include "cpu/search_scan.h"
#include "cpu/search_exact.h"

namespace vlcal {
namespace {

using Found = std::pair<double, int64_t>;  // cost, index: smaller is nearer, ties by index

constexpr int64_t kRun = 8;  // keys
constexpr int64_t kKeysPerTask = 1 << 14;
constexpr int64_t kKeysPerSlice = 1 << 13;
constexpr int64_t kRowPanels = 16;            // of a block: 224 rows of int8 stay in a core's cache
constexpr int64_t kRoughKeys = 128;           // in one go, for which they stay in the cache,
constexpr int64_t kRoughQueries = 32;         // and so many queries
constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr int64_t kFinished = 16;         // queries of one last task
constexpr int64_t kFetched = 8;           // keys fetched ahead of their exact costs
constexpr int64_t kFewQueries = 16;           // below, evaluating all costs is cheaper than packing the keys
constexpr float kNone = std::numeric_limits<float>::lowest();

std::vector<double> padded(const double* row, int64_t dim) {
  std::vector<double> out((dim + kLanes - 1) / kLanes * kLanes, 0.0);
  std::copy(row, row + dim, out.begin());
  return out;
}

// a heap of the k nearest so far, the farthest on top
void offer(std::vector<Found>& heap, size_t k, Found candidate) {
  if (heap.size() < k) {
    heap.push_back(candidate);
    std::push_heap(heap.begin(), heap.end());
  } else if (candidate < heap.front()) {
    std::pop_heap(heap.begin(), heap.end());
    heap.back() = candidate;
    std::push_heap(heap.begin(), heap.end());
  }
}

// A walk through all keys in steps of about 0.618 of them: any order the caller gave them is spread evenly. A few
// neighbors stay together, because memory is read by pages.
std::vector<int32_t> spread(int64_t rows) {
  const int64_t runs = (rows + kRun - 1) / kRun;
  int64_t step = std::max<int64_t>(1, static_cast<int64_t>(0.6180339887 * static_cast<double>(runs)));
  while (std::gcd(step, runs) != 1) ++step;
  std::vector<int32_t> order;
  order.reserve(rows);
  for (int64_t i = 0, run = 0; i < runs; ++i, run = (run + step) % runs) {
    for (int64_t key = run * kRun; key < std::min(rows, (run + 1) * kRun); ++key) order.push_back(static_cast<int32_t>(key));
  }
  return order;
}

// What is known about one query.
struct Query {
  std::vector<double> exact;  // padded for the exact costs
  double norm2 = 0;           // |y|^2, or q.c for dots
  double size2 = 0;           // scale of the float64 rounding of a score
  int64_t self = -1;          // the key that does not count

  Shortlist shortlist;
  std::vector<Found> best;  // of the exact costs so far, a heap
};

}  // namespace

template <class Real>
struct SearchIndex<Real>::Packed {
  const Real* keys;
  int64_t rows, dim;
  Metric metric;
  Isa have;
  std::unique_ptr<Basis> basis;

  struct Rung {
    Format format;
    bool basis;
  };
  std::vector<Rung> ladder;

  // made on first use
  std::mutex mutex;
  std::vector<std::unique_ptr<Screen>> screens;
  std::unique_ptr<FineKeys> fine;
  Frame frame;
  std::vector<int32_t> order;
  std::atomic<bool> ready{false};

  const Screen& screen(size_t rung, int threads) {
    std::lock_guard<std::mutex> lock(mutex);
    if (order.empty()) {
      order = spread(rows);
      frame = frame_of(keys, rows, dim, metric, have);
    }
    if (!screens[rung]) {
      const bool based = ladder[rung].basis;
      if (based) fine = std::make_unique<FineKeys>(have, frame, keys, rows, order, threads);
      screens[rung] = std::make_unique<Screen>(ladder[rung].format, have, frame, based ? basis.get() : nullptr, keys,
                                               rows, order, threads);
      ready = true;
    }
    return *screens[rung];
  }
};

namespace {

// One search: the queries of all tasks, and how a block of them is answered.
template <class Real>
class Search {
 public:
  using Packed = typename SearchIndex<Real>::Packed;

  Search(Packed& keys, const double* queries, int64_t n, int k, bool exclude_self, int threads)
      : keys_(keys),
        queries_(queries),
        n_(n),
        k_(k),
        exclude_self_(exclude_self),
        threads_(threads),
        cost_of_(keys.metric == Metric::kDistance ? exact_costs<Real>().squared_distance
                                                  : exact_costs<Real>().negated_dot),
        rough_of_(rough_cost()) {}

  void run(double* cost, int64_t* index) {
    const bool few = !keys_.ready && n_ < kFewQueries;
    const bool small = keys_.rows < 8 * k_ + 64 || n_ * keys_.rows < 1 << 14;
    screened_ = !few && !small && keys_.rows <= std::numeric_limits<int32_t>::max() && keys_.dim <= 32768 &&
                          keys_.screen(0, threads_).usable();
    if (screened_) {
      const int tile = keys_.screen(0, threads_).kernel().rows;
      if (exclude_self_) invert_order();
      const int64_t panels = (n_ + tile - 1) / tile;
      const int64_t blocks = ((panels + kRowPanels - 1) / kRowPanels + threads_ - 1) / threads_ * threads_;
      const bool sliced = threads_ > 1 && keys_.rows >= 2 * kKeysPerSlice && panels <= kRowPanels * 2 * threads_;
      // blocks as large as the cache allows and slices of the keys, or as many blocks for every thread
      const int64_t each = sliced ? std::min(panels, kRowPanels) : (panels + blocks - 1) / blocks;
      split(each * tile, sliced ? keys_.rows / kKeysPerSlice : 1, cost, index);
    } else {
      const int64_t each = std::clamp<int64_t>(n_ / threads_, 1, kRoughQueries);
      split(each, (keys_.rows + kKeysPerTask - 1) / kKeysPerTask, cost, index);
    }
  }

 private:
  // Blocks of `each` queries times slices of the keys, as few of these as keep all threads busy.
  void split(int64_t each, int64_t most_slices, double* cost, int64_t* index) {
    const int64_t blocks = (n_ + each - 1) / each;
    const int64_t wanted = (2 * threads_ + blocks - 1) / blocks;
    const int64_t slices = threads_ == 1 ? 1 : std::clamp<int64_t>(wanted, 1, most_slices);
    std::vector<std::vector<Query>> waiting(slices > 1 ? blocks * slices : 0);
    reached_ = std::vector<std::atomic<float>>(slices > 1 ? n_ : 0);
    for (auto& reached : reached_) reached.store(kNone, std::memory_order_relaxed);
    parallel_for(blocks * slices, threads_, [&](int64_t task, int) {
      const int64_t first = task / slices * each;
      std::vector<Query> block(std::min(each, n_ - first));
      answer(block, first, task % slices, slices);
      if (slices > 1) {
        waiting[task] = std::move(block);
      } else {
        finish(block.data(), static_cast<int64_t>(block.size()), first, cost, index);
      }
    });
    if (slices == 1) return;
    parallel_for((n_ + kFinished - 1) / kFinished, threads_, [&](int64_t task, int) {
      std::vector<Query> block;
      const int64_t first = task * kFinished;
      for (int64_t q = first; q < std::min(n_, first + kFinished); ++q) {
        block.push_back(std::move(waiting[q / each * slices][q % each]));
        for (int64_t slice = 1; slice < slices; ++slice) merge(block.back(), waiting[q / each * slices + slice][q % each]);
      }
      finish(block.data(), static_cast<int64_t>(block.size()), first, cost, index);
    });
  }

  // Fills the candidates of a block of queries among one slice of the keys.
  void answer(std::vector<Query>& block, int64_t first, int64_t slice, int64_t slices) {
    for (size_t i = 0; i < block.size(); ++i) {
      block[i].exact = padded(queries_ + (first + i) * keys_.dim, keys_.dim);
      if (exclude_self_) block[i].self = first + i;
    }
    if (screened_ && screen(block, first, slice, slices)) return;
    const int64_t panels = (keys_.rows + kPanel - 1) / kPanel;
    const int64_t begin = panels * slice / slices * kPanel;
    const int64_t end = std::min(keys_.rows, panels * (slice + 1) / slices * kPanel);
    if (!screened_ && roughly(block, begin, end)) return;
    for (Query& query : block) {
      for (int64_t slot = begin; slot < end; ++slot) evaluate(query, screened_ ? keys_.order[slot] : slot);
    }
  }

  // Distances in float first, and exact costs of the keys they do not exclude; false if float cannot hold the queries.
  bool roughly(std::vector<Query>& block, int64_t begin, int64_t end) {
    if constexpr (std::is_same_v<Real, float>) {
      if (keys_.metric != Metric::kDistance || keys_.rows < 4 * k_) return false;
      std::vector<float> y(block.size() * keys_.dim);
      for (size_t q = 0; q < block.size(); ++q) {
        const double* exact = block[q].exact.data();
        float* row = y.data() + q * keys_.dim;
        std::copy(exact, exact + keys_.dim, row);
        if (!std::equal(row, row + keys_.dim, exact)) return false;
      }
      std::vector<float> rough(kRoughKeys), ordered;
      for (int64_t first = begin; first < end; first += kRoughKeys) {
        const int64_t n = std::min(kRoughKeys, end - first);
        for (size_t q = 0; q < block.size(); ++q) {
          for (int64_t i = 0; i < n; ++i) {
            rough[i] = rough_of_(y.data() + q * keys_.dim, keys_.keys + (first + i) * keys_.dim, keys_.dim);
          }
          take(block[q], rough, ordered, first, n);
        }
      }
      return true;
    }
    return false;
  }

  // Exact costs of those of n keys whose rough ones may be among the k smallest.
  void take(Query& query, const std::vector<float>& rough, std::vector<float>& ordered, int64_t first, int64_t n) {
    const double loose = 1 + 3 * rough_error(keys_.dim);
    const bool full = query.best.size() == static_cast<size_t>(k_);
    double reach = full ? query.best.front().first : kInfinite;
    if (!full && k_ < n) {
      ordered.assign(rough.begin(), rough.begin() + n);
      // one more than k: the query itself may be among them
      std::nth_element(ordered.begin(), ordered.begin() + k_, ordered.end());
      reach = ordered[k_] * loose;
    }
    for (int64_t i = 0; i < n; ++i) {
      if (rough[i] > reach * loose + kRoughest) continue;
      evaluate(query, first + i);
      if (query.best.size() == static_cast<size_t>(k_)) reach = std::min(reach, query.best.front().first);
    }
  }

  // Down the ladder until a screen holds; false if none does.
  bool screen(std::vector<Query>& block, int64_t first, int64_t slice, int64_t slices) {
    std::vector<float> x;
    std::vector<double> norms;
    if (!place(block, x, norms)) return false;
    std::vector<FineKeys::Row> fine;
    std::vector<int64_t> excluded(block.size(), -1);
    for (size_t i = 0; i < block.size(); ++i) {
      if (keys_.fine) fine.push_back(keys_.fine->pack(x.data() + i * keys_.dim, norms[i]));
      if (exclude_self_) excluded[i] = slots_[block[i].self];
    }
    for (size_t rung = rung_; rung < keys_.ladder.size(); ++rung) {
      const Screen& screen = keys_.screen(rung, threads_);
      if (!screen.usable()) return false;
      std::vector<Shortlist> lists(block.size());
      Scan scan(screen, screen.has_basis() ? keys_.fine.get() : nullptr, keys_.rows, k_, [&](int64_t row) {
        Query& query = block[row];
        for (const Contender& one : lists[row].list) evaluate(query, keys_.order[one.slot]);
        lists[row].list.clear();
        if (query.best.size() == static_cast<size_t>(k_)) {
          lists[row].threshold = std::max(lists[row].threshold, reached_by(query, query.best.front().first));
        }
      });
      const int64_t panels = screen.panels();
      const ScanQueries queries{static_cast<int64_t>(block.size()), x.data(), norms.data(), fine.data(),
                                excluded.data(), reached_.empty() ? nullptr : reached_.data() + first};
      if (scan.run(queries, panels * slice / slices, panels * (slice + 1) / slices, lists.data())) {
        for (size_t i = 0; i < block.size(); ++i) block[i].shortlist = std::move(lists[i]);
        return true;
      }
      for (Query& query : block) query.best.clear();
      size_t before = rung;
      rung_.compare_exchange_strong(before, rung + 1);
    }
    return false;
  }

  // y of every query; false if one is too long for floats.
  bool place(std::vector<Query>& block, std::vector<float>& x, std::vector<double>& norms) {
    const Frame& frame = keys_.frame;
    const double center = norm_of(frame.center.data(), keys_.dim);
    x.resize(block.size() * keys_.dim);
    norms.resize(block.size());
    for (size_t i = 0; i < block.size(); ++i) {
      Query& query = block[i];
      norms[i] = frame.place(query.exact.data(), x.data() + i * keys_.dim);
      if (!(norms[i] <= kLongest)) return false;
      if (keys_.metric == Metric::kDistance) {
        query.norm2 = sum_over(keys_.dim, [q = query.exact.data(), c = frame.center.data(), s = frame.scale](int64_t j) {
          const double y = (q[j] - c[j]) * s;
          return y * y;
        });
      } else {
        query.norm2 = sum_over(keys_.dim, [q = query.exact.data(), c = frame.center.data()](int64_t j) { return q[j] * c[j]; });
        const double reach = keys_.screen(0, threads_).longest() / frame.scale;
        query.size2 = norm_of(query.exact.data(), keys_.dim) * (2 * center + reach) * frame.scale * frame.scale;
      }
    }
    return true;
  }

  static double norm_of(const double* row, int64_t dim) {
    return std::sqrt(sum_over(dim, [row](int64_t j) { return row[j] * row[j]; }));
  }

  // A score that every key at most as far as `cost` reaches, float64 roundings included.
  float reached_by(const Query& query, double cost) const {
    const double square = keys_.frame.scale * keys_.frame.scale;
    const double score = keys_.metric == Metric::kDistance
                             ? 0.5 * (query.norm2 - square * cost) - 1e-11 * (query.norm2 + square * cost)
                             : -square * (cost + query.norm2) - 1e-11 * query.size2;
    const float near = static_cast<float>(score);
    return near > score ? std::nextafter(near, kNone) : near;
  }

  void invert_order() {
    slots_.resize(keys_.rows);
    for (int64_t slot = 0; slot < keys_.rows; ++slot) slots_[keys_.order[slot]] = slot;
  }

  void evaluate(Query& query, int64_t key) {
    if (key == query.self) return;
    offer(query.best, k_, {cost_of_(query.exact.data(), keys_.keys + key * keys_.dim, keys_.dim), key});
  }

  // The best k exact costs so far raise the threshold.
  void raise(Query& query) {
    if (query.best.size() < static_cast<size_t>(k_)) return;
    float& threshold = query.shortlist.threshold;
    threshold = std::max(threshold, reached_by(query, query.best.front().first));
  }

  // The k nearest of n queries; the keys of the next one are fetched while one is settled.
  void finish(Query* queries, int64_t n, int64_t first, double* cost, int64_t* index) {
    if (n > 0) choose(queries[0]);
    for (int64_t i = 0; i < n; ++i) {
      if (i + 1 < n) choose(queries[i + 1]);
      settle(queries[i]);
      std::sort(queries[i].best.begin(), queries[i].best.end());
      for (int j = 0; j < k_; ++j) {
        cost[(first + i) * k_ + j] = queries[i].best[j].first;
        index[(first + i) * k_ + j] = queries[i].best[j].second;
      }
      queries[i] = Query();
    }
  }

  // The k most promising first.
  void choose(Query& query) {
    query.shortlist.prune();
    auto& list = query.shortlist.list;
    const int64_t sure = std::min<int64_t>(k_, list.size());
    if (sure == 0) return;
    std::nth_element(list.begin(), list.begin() + (sure - 1), list.end(), promising);
    for (int64_t i = 0; i < std::min(sure, kFetched); ++i) fetch(list[i]);
  }

  // Exact costs in order of promise until no upper bound reaches the k-th best.
  void settle(Query& query) {
    auto& list = query.shortlist.list;
    const int64_t sure = std::min<int64_t>(k_, list.size());
    for (int64_t i = 0; i < sure; ++i) {
      if (i + kFetched < sure) fetch(list[i + kFetched]);
      evaluate(query, keys_.order[list[i].slot]);
    }
    raise(query);
    list.erase(list.begin(), list.begin() + sure);
    query.shortlist.prune();
    std::sort(list.begin(), list.end(), promising);
    for (int64_t i = 0; i < std::min<int64_t>(list.size(), kFetched); ++i) fetch(list[i]);
    for (int64_t i = 0; i < static_cast<int64_t>(list.size()); ++i) {
      if (!(list[i].upper >= query.shortlist.threshold)) break;
      if (i + kFetched < static_cast<int64_t>(list.size())) fetch(list[i + kFetched]);
      evaluate(query, keys_.order[list[i].slot]);
      raise(query);
    }
  }

  static bool promising(const Contender& a, const Contender& b) { return a.upper > b.upper; }

  void fetch(const Contender& one) const {
    const char* row = reinterpret_cast<const char*>(keys_.keys + keys_.order[one.slot] * keys_.dim);
    const int64_t bytes = keys_.dim * static_cast<int64_t>(sizeof(Real));
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
  }

  void merge(Query& query, const Query& other) {
    const auto& list = other.shortlist.list;
    query.shortlist.list.insert(query.shortlist.list.end(), list.begin(), list.end());
    query.shortlist.threshold = std::max(query.shortlist.threshold, other.shortlist.threshold);
    for (const Found& found : other.best) offer(query.best, k_, found);
    raise(query);
  }

  Packed& keys_;
  const double* queries_;
  int64_t n_;
  int k_;
  bool exclude_self_;
  int threads_;
  ExactCost<Real> cost_of_;
  RoughCost rough_of_;
  std::vector<int64_t> slots_;
  std::vector<std::atomic<float>> reached_;  // by each query, where several tasks share it
  bool screened_ = false;
  std::atomic<size_t> rung_{0};  // where the next block begins
};

}  // namespace

template <class Real>
SearchIndex<Real>::SearchIndex(const Real* keys, int64_t rows, int64_t dim, Metric metric, const float* directions,
                               int64_t count)
    : packed_(std::make_unique<Packed>()) {
  Packed& packed = *packed_;
  packed.keys = keys;
  packed.rows = rows;
  packed.dim = dim;
  packed.metric = metric;
  packed.have = isa();
  std::vector<Format> formats;
  for (Format format : {Format::kInt8, Format::kBfloat, Format::kFloat}) {
    if (tile_kernel(format, packed.have)) formats.push_back(format);
  }
  if (count > 0) {
    packed.basis = std::make_unique<Basis>(directions, count, dim, packed.have);
    packed.ladder.push_back({formats.front(), true});
  }
  for (Format format : formats) packed.ladder.push_back({format, false});
  packed.screens.resize(packed.ladder.size());
}

template <class Real>
SearchIndex<Real>::~SearchIndex() = default;

template <class Real>
void SearchIndex<Real>::pack(int threads) const {
  packed_->screen(0, threads);
}

template <class Real>
int64_t SearchIndex<Real>::bytes() const {
  std::lock_guard<std::mutex> lock(packed_->mutex);
  int64_t sum = static_cast<int64_t>(packed_->order.size() * sizeof(int32_t)) + (packed_->fine ? packed_->fine->bytes() : 0);
  for (const auto& screen : packed_->screens) sum += screen ? screen->bytes() : 0;
  return sum;
}

template <class Real>
void SearchIndex<Real>::search(const double* queries, int64_t n, int k, bool exclude_self, double* cost,
                               int64_t* index, int threads) const {
  if (n > 0) Search<Real>(*packed_, queries, n, k, exclude_self, std::max(threads, 1)).run(cost, index);
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
