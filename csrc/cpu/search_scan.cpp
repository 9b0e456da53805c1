#include "cpu/search_scan.h"

#include <algorithm>
#include <functional>

namespace vlcal {
namespace {

constexpr int64_t kOpeningBytes = 512 << 10;  // of keys scored before the first threshold
constexpr int kMostRows = 16;                 // of any kernel
constexpr int64_t kLearning = 8;              // panels between two looks at what others reached
constexpr float kAll = std::numeric_limits<float>::infinity();

// use(slot, score) for the scores in least..below
template <class Use>
void each_between(const float* score, int64_t n, float least, float below, Use use) {
  for (int64_t s = 0; s < n; s += kPanel) {
    int any = 0;
    for (int j = 0; j < kPanel; ++j) any |= score[s + j] >= least;
    if (!any) continue;
    for (int64_t j = s; j < s + kPanel; ++j) {
      if (score[j] >= least && score[j] < below) use(j, score[j]);
    }
  }
}

}  // namespace

void Shortlist::add(const Contender& one, size_t k) {
  list.push_back(one);
  if (certain.size() == k) {
    if (!(one.lower > certain.front())) return;
    std::pop_heap(certain.begin(), certain.end(), std::greater<float>());
    certain.pop_back();
  }
  certain.push_back(one.lower);
  std::push_heap(certain.begin(), certain.end(), std::greater<float>());
  if (certain.size() == k) threshold = std::max(threshold, certain.front());
}

void Shortlist::prune() {
  const float least = threshold;
  list.erase(std::remove_if(list.begin(), list.end(), [=](const Contender& one) { return !(one.upper >= least); }),
             list.end());
}

bool Scan::run(const ScanQueries& queries, int64_t first, int64_t end, Shortlist* out) {
  queries_ = &queries;
  out_ = out;
  rows_ = screen_.pack(queries.x, queries.norms, queries.n);
  width_ = screen_.width(rows_);
  const TileKernel& kernel = screen_.kernel();
  const int64_t n = queries.n, tile = kernel.rows, words = screen_.words(), row_panels = (n + tile - 1) / tile;
  thresholds_.assign(row_panels * tile, kAll);
  std::fill(thresholds_.begin(), thresholds_.begin() + n, std::numeric_limits<float>::lowest());
  kept_ = 0;
  learn();
  alignas(64) float bias[kPanel], value[kMostRows * kPanel];
  uint32_t hits[kMostRows];
  for (int64_t p = first + open(first, end); p < end; ++p) {
    KeyPanel panel = screen_.panel(p);
    screen_.certify(p, rows_, bias);
    panel.bias = bias;
    const char* next = reinterpret_cast<const char*>(panel.words + words * kPanel);
    const int64_t share = p + 1 < end ? (words * kPanel * 4 / row_panels + 63) / 64 * 64 : 0;
    for (int64_t a = 0; a < row_panels; ++a) {
      const RowPanel row_panel{rows_.words.get() + a * words * tile, rows_.scale.data() + a * tile,
                               thresholds_.data() + a * tile};
      uint32_t any = kernel.tile(words, row_panel, panel, next + a * share, share, value, hits);
      for (; any != 0; any &= any - 1) {
        const int i = __builtin_ctz(any);
        collect(a * tile + i, value + i * kPanel, hits[i], p * kPanel);
      }
    }
    take();
    if (p % kLearning == 0) learn();
    // what a threshold still finding its height lets through, and one key in 32
    if (kept_ > n * (256 + 100 * k_) + (p + 1 - first) * kPanel * n / 32) return false;
  }
  for (int64_t row = 0; row < n; ++row) close(row);
  return true;
}

// By now few of the early ones reach the threshold.
void Scan::close(int64_t row) {
  Shortlist& query = out_[row];
  for (const Contender& one : query.early) {
    if (one.upper >= query.threshold) {
      hits_.push_back({static_cast<int32_t>(row), one.slot, one.upper});
      if (fine_) fine_->prefetch(one.slot);
    }
  }
  take();
  query.early.clear();
}

void Scan::collect(int64_t row, const float* value, uint32_t hits, int64_t slot) {
  for (; hits != 0; hits &= hits - 1) {
    const int j = __builtin_ctz(hits);
    hits_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(slot + j), value[j]});
    if (fine_) fine_->prefetch(static_cast<int32_t>(slot + j));
  }
}

// Moves the hits of a panel, refined while their keys are in the cache, to the lists of their queries.
void Scan::take() {
  kept_ += static_cast<int64_t>(hits_.size());
  for (const Hit& hit : hits_) {
    if (hit.slot >= keys_ || hit.slot == queries_->excluded[hit.row]) continue;
    Shortlist& query = out_[hit.row];
    Bounds bounds{hit.upper - width_, hit.upper};
    if (fine_) bounds = fine_->bounds(queries_->fine[hit.row], hit.slot);
    if (!(bounds.upper >= query.threshold)) continue;
    query.add({bounds.lower, bounds.upper, hit.slot}, k_);
    if (query.threshold > thresholds_[hit.row]) {
      thresholds_[hit.row] = query.threshold;
      // a smaller value may overwrite a larger one: both are certain, and the larger comes back
      if (queries_->reached && query.threshold > queries_->reached[hit.row].load(std::memory_order_relaxed)) {
        queries_->reached[hit.row].store(query.threshold, std::memory_order_relaxed);
      }
    }
    if (query.list.size() >= query.most) tidy(hit.row);
  }
  hits_.clear();
}

// Raises the thresholds to what scans of other keys have reached.
void Scan::learn() {
  if (!queries_->reached) return;
  for (int64_t row = 0; row < queries_->n; ++row) {
    const float reached = queries_->reached[row].load(std::memory_order_relaxed);
    if (reached > thresholds_[row]) thresholds_[row] = out_[row].threshold = reached;
  }
}

void Scan::tidy(int64_t row) {
  Shortlist& query = out_[row];
  query.prune();
  if (query.list.size() >= 1024 + 8 * static_cast<size_t>(k_)) {
    overflow_(row);
    thresholds_[row] = query.threshold;
  }
  query.most = std::max<size_t>(64, 2 * query.list.size());
}

// Scores the first panels before anything is kept: the k-th largest of many groups' maxima is a score that few reach.
// Returns how many panels are done.
int64_t Scan::open(int64_t first, int64_t end) {
  const float least = *std::min_element(thresholds_.begin(), thresholds_.begin() + queries_->n);
  if (least > std::numeric_limits<float>::lowest()) return 0;
  const TileKernel& kernel = screen_.kernel();
  const int64_t n = queries_->n, tile = kernel.rows, words = screen_.words();
  int64_t groups = 64;
  while (groups < 4 * k_) groups *= 2;
  int64_t panels = std::min({kOpeningBytes / (words * kPanel * 4), (end - first) / 4, int64_t{128}});
  panels = panels / (groups / kPanel) * (groups / kPanel);
  if (panels * kPanel < 2 * groups || (first + panels) * kPanel > keys_) return 0;
  const int64_t scores = panels * kPanel;
  std::vector<float> buffer(tile * scores), biases(scores), everything(tile, -kAll);
  for (int64_t p = 0; p < panels; ++p) screen_.certify(first + p, rows_, biases.data() + p * kPanel);
  alignas(64) float value[kMostRows * kPanel];
  uint32_t hits[kMostRows];
  for (int64_t a = 0; a * tile < n; ++a) {
    const int64_t here = std::min(tile, n - a * tile);
    const RowPanel row_panel{rows_.words.get() + a * words * tile, rows_.scale.data() + a * tile, everything.data()};
    for (int64_t p = 0; p < panels; ++p) {
      KeyPanel panel = screen_.panel(first + p);
      panel.bias = biases.data() + p * kPanel;
      kernel.tile(words, row_panel, panel, nullptr, 0, value, hits);
      for (int64_t i = 0; i < here; ++i) {
        std::copy(value + i * kPanel, value + (i + 1) * kPanel, buffer.data() + i * scores + p * kPanel);
      }
    }
    for (int64_t i = 0; i < here; ++i) {
      open_row(a * tile + i, buffer.data() + i * scores, scores, groups, first * kPanel);
    };
  }
  return panels;
}

// The k-th largest of `groups` interleaved groups' maxima: at least k scores reach it.
float Scan::promising(const float* score, int64_t n, int64_t groups) {
  maxima_.assign(score, score + groups);
  float* __restrict most = maxima_.data();
  for (int64_t s = groups; s + groups <= n; s += groups) {
    for (int64_t g = 0; g < groups; ++g) most[g] = score[s + g] > most[g] ? score[s + g] : most[g];
  }
  std::nth_element(maxima_.begin(), maxima_.begin() + (k_ - 1), maxima_.end(), std::greater<float>());
  return maxima_[k_ - 1];
}

void Scan::open_row(int64_t row, float* score, int64_t n, int64_t groups, int64_t first) {
  const int64_t excluded = queries_->excluded[row] - first;
  if (excluded >= 0 && excluded < n) score[excluded] = std::numeric_limits<float>::lowest();
  const float high = std::max(promising(score, n, groups), out_[row].threshold);
  auto hit = [&](int64_t s, float upper) {
    hits_.push_back({static_cast<int32_t>(row), static_cast<int32_t>(first + s), upper});
    if (fine_) fine_->prefetch(static_cast<int32_t>(first + s));
  };
  Shortlist& query = out_[row];
  each_between(score, n, high, kAll, hit);
  take();
  if (!fine_) query.threshold = std::max(query.threshold, high - width_);
  thresholds_[row] = query.threshold;
  each_between(score, n, query.threshold, high, [&](int64_t s, float upper) {
    query.early.push_back({-kAll, upper, static_cast<int32_t>(first + s)});
  });
  // without a basis nothing is left to refine
  if (!fine_) close(row);
}

}  // namespace vlcal
