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
#include <utility>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/screen.h"
#include "cpu/search_exact.h"

namespace vlcal {
namespace {

using Found = std::pair<double, int64_t>;  // cost, index: smaller is nearer, ties by index

constexpr int64_t kKeysPerTask = 1 << 14;
constexpr int64_t kRowPanels = 16;            // of a block: 224 rows of int8 stay in a core's cache
constexpr int64_t kOpeningBytes = 512 << 10;  // of keys scored before the first threshold
constexpr int64_t kFewQueries = 6;            // below, evaluating all costs is cheaper than packing the keys
constexpr float kNone = std::numeric_limits<float>::lowest();
constexpr float kAll = std::numeric_limits<float>::infinity();

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

// a walk through all keys in steps of about 0.618 of them: any order the caller gave them is spread evenly
std::vector<int32_t> spread(int64_t rows) {
  int64_t step = std::max<int64_t>(1, static_cast<int64_t>(0.6180339887 * static_cast<double>(rows)));
  while (std::gcd(step, rows) != 1) ++step;
  std::vector<int32_t> order(rows);
  for (int64_t slot = 0, key = 0; slot < rows; ++slot, key = (key + step) % rows) {
    order[slot] = static_cast<int32_t>(key);
  }
  return order;
}

struct Candidate {
  float lower, upper;
  int32_t slot;
};

// What is known about one query.
struct Query {
  std::vector<double> exact;  // padded for the exact costs
  double norm2 = 0;           // |y|^2, or q.c for dots
  double size2 = 0;           // scale of the float64 rounding of a score
  int64_t self = -1;          // the key that does not count
  FineKeys::Row fine;

  std::vector<Candidate> list;
  size_t refined = 0;  // so many of the list have their final bounds
  std::vector<Found> best;
  float threshold = kNone;
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
      frame = frame_of(keys, rows, dim, metric);
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
                                                  : exact_costs<Real>().negated_dot) {}

  void run(double* cost, int64_t* index) {
    const bool few = !keys_.ready && n_ < kFewQueries;
    const bool small = keys_.rows < 8 * k_ + 64 || n_ * keys_.rows < 1 << 14;
    screened_ = !few && !small && keys_.rows <= std::numeric_limits<int32_t>::max() && keys_.dim <= 32768 &&
                          keys_.screen(0, threads_).usable();
    if (screened_) {
      const int tile = keys_.screen(0, threads_).kernel().rows;
      if (exclude_self_) invert_order();
      const int64_t panels = (n_ + tile - 1) / tile;
      const int64_t each = std::clamp<int64_t>(panels / threads_, 1, kRowPanels);
      split(each * tile, panels < 2 * threads_ ? keys_.screen(0, threads_).panels() : 1, cost, index);
    } else {
      split(1, (keys_.rows + kKeysPerTask - 1) / kKeysPerTask, cost, index);
    }
  }

 private:
  // Blocks of `each` queries times slices of the keys, as few of these as keep all threads busy.
  void split(int64_t each, int64_t most_slices, double* cost, int64_t* index) {
    const int64_t blocks = (n_ + each - 1) / each;
    const int64_t wanted = blocks >= 2 * threads_ ? 1 : (2 * threads_ + blocks - 1) / blocks;
    const int64_t slices = threads_ == 1 ? 1 : std::clamp<int64_t>(wanted, 1, most_slices);
    std::vector<std::vector<Query>> waiting(slices > 1 ? blocks * slices : 0);
    parallel_for(blocks * slices, threads_, [&](int64_t task, int) {
      const int64_t first = task / slices * each;
      std::vector<Query> block(std::min(each, n_ - first));
      answer(block, first, task % slices, slices);
      if (slices > 1) {
        waiting[task] = std::move(block);
        return;
      }
      for (size_t i = 0; i < block.size(); ++i) finish(block[i], first + i, cost, index);
    });
    if (slices == 1) return;
    parallel_for(n_, threads_, [&](int64_t q, int) {
      Query& query = waiting[q / each * slices][q % each];
      for (int64_t slice = 1; slice < slices; ++slice) merge(query, waiting[q / each * slices + slice][q % each]);
      finish(query, q, cost, index);
    });
  }

  // Fills the candidates of a block of queries among one slice of the keys.
  void answer(std::vector<Query>& block, int64_t first, int64_t slice, int64_t slices) {
    for (size_t i = 0; i < block.size(); ++i) {
      block[i].exact = padded(queries_ + (first + i) * keys_.dim, keys_.dim);
      if (exclude_self_) block[i].self = first + i;
    }
    std::vector<float> x;
    std::vector<double> norms;
    const bool placed = screened_ && place(block, x, norms);
    for (size_t rung = rung_; placed && rung < keys_.ladder.size(); ++rung) {
      const Screen& screen = keys_.screen(rung, threads_);
      if (!screen.usable()) break;
      if (scan(block, screen, x, norms, screen.panels() * slice / slices, screen.panels() * (slice + 1) / slices)) return;
      for (Query& query : block) {
        query.list.clear();
        query.best.clear();
        query.refined = 0;
        query.threshold = kNone;
      }
      size_t before = rung;
      rung_.compare_exchange_strong(before, rung + 1);
    }
    const int64_t panels = (keys_.rows + kPanel - 1) / kPanel;
    const int64_t end = std::min(keys_.rows, panels * (slice + 1) / slices * kPanel);
    for (Query& query : block) {
      for (int64_t slot = panels * slice / slices * kPanel; slot < end; ++slot) {
        evaluate(query, screened_ ? keys_.order[slot] : slot);
      }
    }
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
        query.norm2 = query.size2 = 0;
        for (int64_t j = 0; j < keys_.dim; ++j) {
          const double y = (query.exact[j] - frame.center[j]) * frame.scale;
          query.norm2 += y * y;
        }
      } else {
        query.norm2 = query.size2 = 0;
        for (int64_t j = 0; j < keys_.dim; ++j) query.norm2 += query.exact[j] * frame.center[j];
        const double reach = keys_.screen(0, threads_).longest() / frame.scale;
        query.size2 = norm_of(query.exact.data(), keys_.dim) * (2 * center + reach) * frame.scale * frame.scale;
      }
      if (keys_.fine) query.fine = keys_.fine->pack(x.data() + i * keys_.dim, norms[i]);
    }
    return true;
  }

  static double norm_of(const double* row, int64_t dim) {
    double sum = 0;
    for (int64_t j = 0; j < dim; ++j) sum += row[j] * row[j];
    return std::sqrt(sum);
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
    if (query.best.size() == static_cast<size_t>(k_)) {
      query.threshold = std::max(query.threshold, reached_by(query, query.best.front().first));
    }
  }

  // Drops candidates that cannot be among the k nearest; what k of them are certain to reach raises the threshold.
  void refresh(Query& query, bool based) {
    auto& list = query.list;
    if (based) refine(query);
    if (list.size() >= static_cast<size_t>(k_)) {
      thread_local std::vector<float> lowers;
      lowers.clear();
      for (const Candidate& candidate : list) lowers.push_back(candidate.lower);
      std::nth_element(lowers.begin(), lowers.begin() + (k_ - 1), lowers.end(), std::greater<float>());
      query.threshold = std::max(query.threshold, lowers[k_ - 1]);
    }
    prune(query);
    query.refined = list.size();
    if (list.size() < 1024 + 8 * static_cast<size_t>(k_)) return;
    for (const Candidate& candidate : list) evaluate(query, keys_.order[candidate.slot]);
    list.clear();
    query.refined = 0;
    raise(query);
  }

  void refine(Query& query) {
    constexpr size_t kAhead = 8;
    auto& list = query.list;
    const size_t n = list.size();
    for (size_t i = query.refined; i < std::min(n, query.refined + kAhead); ++i) keys_.fine->prefetch(list[i].slot);
    for (size_t i = query.refined; i < n; ++i) {
      if (i + kAhead < n) keys_.fine->prefetch(list[i + kAhead].slot);
      const Bounds bounds = keys_.fine->bounds(query.fine, list[i].slot);
      list[i].lower = bounds.lower;
      list[i].upper = std::min(list[i].upper, bounds.upper);
    }
  }

  void prune(Query& query) {
    const float threshold = query.threshold;
    auto& list = query.list;
    list.erase(std::remove_if(list.begin(), list.end(), [=](const Candidate& c) { return !(c.upper >= threshold); }),
               list.end());
  }

  // Exact costs in order of promise until no upper bound reaches the k-th best.
  void finish(Query& query, int64_t q, double* cost, int64_t* index) {
    prune(query);
    auto& list = query.list;
    auto promising = [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; };
    const size_t sure = std::min<size_t>(k_, list.size());
    if (sure > 0) std::nth_element(list.begin(), list.begin() + (sure - 1), list.end(), promising);
    settle(query, 0, sure);
    prune_from(query, sure);
    std::sort(list.begin() + sure, list.end(), promising);
    settle(query, sure, list.size());
    std::sort(query.best.begin(), query.best.end());
    for (int i = 0; i < k_; ++i) {
      cost[q * k_ + i] = query.best[i].first;
      index[q * k_ + i] = query.best[i].second;
    }
    query = Query();
  }

  void settle(Query& query, size_t begin, size_t end) {
    constexpr size_t kAhead = 4;
    auto fetch = [&](size_t i) {
      const char* row = reinterpret_cast<const char*>(keys_.keys + keys_.order[query.list[i].slot] * keys_.dim);
      for (int64_t byte = 0; byte < keys_.dim * static_cast<int64_t>(sizeof(Real)); byte += 64) {
        __builtin_prefetch(row + byte);
      }
    };
    for (size_t i = begin; i < std::min(end, begin + kAhead); ++i) fetch(i);
    for (size_t i = begin; i < end; ++i) {
      if (!(query.list[i].upper >= query.threshold)) break;
      if (i + kAhead < end) fetch(i + kAhead);
      evaluate(query, keys_.order[query.list[i].slot]);
      raise(query);
    }
  }

  void prune_from(Query& query, size_t begin) {
    auto& list = query.list;
    const float threshold = query.threshold;
    list.erase(
        std::remove_if(list.begin() + begin, list.end(), [=](const Candidate& c) { return !(c.upper >= threshold); }),
        list.end());
  }

  void merge(Query& query, Query& other) {
    query.list.insert(query.list.end(), other.list.begin(), other.list.end());
    for (const Found& found : other.best) offer(query.best, k_, found);
    query.threshold = std::max(query.threshold, other.threshold);
    raise(query);
  }

  // A block against panels first..end-1; false if the screen lets too many keys through.
  bool scan(std::vector<Query>& block, const Screen& screen, const std::vector<float>& x,
            const std::vector<double>& norms, int64_t first, int64_t end) {
    const TileKernel& kernel = screen.kernel();
    const int64_t n = static_cast<int64_t>(block.size()), tile = kernel.rows, words = screen.words();
    const ScreenRows rows = screen.pack(x.data(), norms.data(), n);
    const int64_t row_panels = (n + tile - 1) / tile;
    std::vector<float> thresholds(row_panels * tile, kAll);
    std::fill(thresholds.begin(), thresholds.begin() + n, kNone);
    const float width = screen.width(rows);
    int64_t kept = 0;
    const int64_t opened = open(block, screen, rows, thresholds, width, first, end, kept);
    alignas(64) float bias[kPanel], value[16 * kPanel];
    uint32_t hits[16];
    const size_t batch = std::max<size_t>(48, k_);
    for (int64_t p = first + opened; p < end; ++p) {
      KeyPanel panel = screen.panel(p);
      screen.certify(p, rows, bias);
      panel.bias = bias;
      const char* next = reinterpret_cast<const char*>(panel.words + words * kPanel);
      const int64_t share = p + 1 < end ? (words * kPanel * 4 / row_panels + 63) / 64 * 64 : 0;
      for (int64_t a = 0; a < row_panels; ++a) {
        const RowPanel row_panel{rows.words.get() + a * words * tile, rows.scale.data() + a * tile,
                                 thresholds.data() + a * tile};
        uint32_t any = kernel.tile(words, row_panel, panel, next + a * share, share, value, hits);
        for (; __builtin_expect(any != 0, 0); any &= any - 1) {
          const int i = __builtin_ctz(any);
          const int64_t row = a * tile + i;
          Query& query = block[row];
          kept += collect(query, value + i * kPanel, hits[i], p * kPanel, width);
          if (query.list.size() >= query.refined + batch) {
            refresh(query, screen.has_basis());
            thresholds[row] = query.threshold;
          }
        }
      }
      if (kept > n * (256 + 100 * k_) + (p + 1 - first) * kPanel * n / 32) return false;
    }
    for (Query& query : block) refresh(query, screen.has_basis());
    return true;
  }

  int64_t collect(Query& query, const float* value, uint32_t hits, int64_t first, float width) {
    int64_t kept = 0;
    for (; hits != 0; hits &= hits - 1) {
      const int j = __builtin_ctz(hits);
      const int64_t slot = first + j;
      if (slot >= keys_.rows || keys_.order[slot] == query.self) continue;
      query.list.push_back({value[j] - width, value[j], static_cast<int32_t>(slot)});
      ++kept;
    }
    return kept;
  }

  // Scores the first panels before anything is kept: the k-th largest of many groups' maxima is a threshold that few of
  // them reach. Returns how many panels are done.
  int64_t open(std::vector<Query>& block, const Screen& screen, const ScreenRows& rows, std::vector<float>& thresholds,
               float width, int64_t first, int64_t end, int64_t& kept) {
    const TileKernel& kernel = screen.kernel();
    const int64_t n = static_cast<int64_t>(block.size()), tile = kernel.rows, words = screen.words();
    int64_t groups = 64;
    while (groups < 4 * k_) groups *= 2;
    int64_t panels = std::min({kOpeningBytes / (words * kPanel * 4), (end - first) / 4, int64_t{128}});
    panels = panels / (groups / kPanel) * (groups / kPanel);
    if (panels * kPanel < 2 * groups || (first + panels) * kPanel > keys_.rows) return 0;
    const int64_t scores = panels * kPanel;
    std::vector<float> buffer(tile * scores), maxima(groups), everything(tile, -kAll), nothing(tile, kAll);
    std::vector<float> biases(scores);
    for (int64_t p = 0; p < panels; ++p) screen.certify(first + p, rows, biases.data() + p * kPanel);
    alignas(64) float value[16 * kPanel];
    uint32_t hits[16];
    for (int64_t a = 0; a * tile < n; ++a) {
      const int64_t here = std::min(tile, n - a * tile);
      for (int64_t p = 0; p < panels; ++p) {
        KeyPanel panel = screen.panel(first + p);
        panel.bias = biases.data() + p * kPanel;
        const RowPanel row_panel{rows.words.get() + a * words * tile, rows.scale.data() + a * tile, everything.data()};
        kernel.tile(words, row_panel, panel, nullptr, 0, value, hits);
        for (int64_t i = 0; i < here; ++i) {
          std::copy(value + i * kPanel, value + (i + 1) * kPanel, buffer.data() + i * scores + p * kPanel);
        }
      }
      for (int64_t i = 0; i < here; ++i) {
        Query& query = block[a * tile + i];
        float* score = buffer.data() + i * scores;
        if (exclude_self_) {
          const int64_t self = slots_[query.self] - first * kPanel;
          if (self >= 0 && self < scores) score[self] = kNone;
        }
        std::copy(score, score + groups, maxima.begin());
        for (int64_t s = groups; s < scores; s += groups) {
          for (int64_t g = 0; g < groups; ++g) maxima[g] = score[s + g] > maxima[g] ? score[s + g] : maxima[g];
        }
        std::nth_element(maxima.begin(), maxima.begin() + (k_ - 1), maxima.end(), std::greater<float>());
        sift(query, score, scores, first * kPanel, maxima[k_ - 1], width);
        refresh(query, screen.has_basis());
        query.list.clear();
        query.refined = 0;
        kept += sift(query, score, scores, first * kPanel, query.threshold, width);
        refresh(query, screen.has_basis());
        thresholds[a * tile + i] = query.threshold;
      }
    }
    return panels;
  }

  // Keeps the scores that reach `least`.
  int64_t sift(Query& query, const float* score, int64_t n, int64_t first, float least, float width) {
    int64_t kept = 0;
    for (int64_t s = 0; s < n; s += kPanel) {
      uint32_t hits = 0;
      for (int j = 0; j < kPanel; ++j) hits |= static_cast<uint32_t>(score[s + j] >= least) << j;
      if (hits != 0) kept += collect(query, score + s, hits, first + s, width);
    }
    return kept;
  }

  Packed& keys_;
  const double* queries_;
  int64_t n_;
  int k_;
  bool exclude_self_;
  int threads_;
  ExactCost<Real> cost_of_;
  std::vector<int64_t> slots_;
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
