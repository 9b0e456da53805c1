// A block of queries against the panels of one screen: what survives is a short list per query.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/screen.h"

namespace vlcal {

struct Contender {
  float lower, upper;  // of the score
  int32_t slot;
};

struct Shortlist {
  std::vector<Contender> list;
  std::vector<Contender> early;                            // of the first panels, not refined
  std::vector<float> certain;                              // the k largest lower bounds, a heap, smallest on top
  float threshold = std::numeric_limits<float>::lowest();  // a score that at least k keys are certain to reach
  size_t most = 64;                                        // length of the list at which it is pruned

  void add(const Contender& one, size_t k);
  void prune();
};

struct ScanQueries {
  int64_t n;
  const float* x;  // [n][dim], placed
  const double* norms;
  const FineKeys::Row* fine;    // nullptr without a basis
  const int64_t* excluded;      // slot that does not count, or -1
  std::atomic<float>* reached;  // [n], the thresholds of whoever scans other keys for the same queries, or nullptr
};

class Scan {
 public:
  // overflow(row): the list of this row grows beyond reason; it may empty it and raise the threshold.
  Scan(const Screen& screen, const FineKeys* fine, int64_t keys, int k, std::function<void(int64_t)> overflow)
      : screen_(screen), fine_(fine), keys_(keys), k_(k), overflow_(std::move(overflow)) {}

  // Fills the short lists from panels first..end-1; false if the screen lets too many keys through.
  bool run(const ScanQueries& queries, int64_t first, int64_t end, Shortlist* out);

 private:
  struct Hit {
    int32_t row, slot;
    float upper;
  };

  int64_t open(int64_t first, int64_t end);
  void open_row(int64_t row, float* score, int64_t n, int64_t groups, int64_t first);
  float promising(const float* score, int64_t n, int64_t groups);
  void collect(int64_t row, const float* value, uint32_t hits, int64_t slot);
  void take();
  void learn();
  void close(int64_t row);
  void tidy(int64_t row);

  const Screen& screen_;
  const FineKeys* fine_;  // refines what a basis lets through
  const int64_t keys_;
  const int k_;
  const std::function<void(int64_t)> overflow_;

  const ScanQueries* queries_ = nullptr;
  Shortlist* out_ = nullptr;
  ScreenRows rows_;
  float width_ = 0;
  int64_t kept_ = 0;
  std::vector<float> thresholds_;
  std::vector<Hit> hits_;
  std::vector<float> maxima_;
};

}  // namespace vlcal
