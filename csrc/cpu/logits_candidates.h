// The k largest dot products of each image of a panel, in the order of their float64 values.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/logits_dots.h"
#include "cpu/search_exact.h"

namespace vlcal {

struct Candidate {
  float dot;  // centred, float32
  int64_t index;
};

// What one thread needs while it looks at candidates.
struct CandidateScratch {
  explicit CandidateScratch(const PackedClasses& classes);
  std::vector<float> threshold, groups, group_low, ordered;
  std::vector<Hit> hits;
  std::vector<double> query;
};

// Collects, chunk by chunk, every class whose float32 dot product could belong to the k largest; at the end those that
// float32 cannot order are computed again in float64. Equal ones are ordered by index.
class Candidates {
 public:
  Candidates(const PackedClasses& classes, int64_t k);

  // Starts a panel of `count` images; image(lane) = images.row(first + lane).
  void start(Features images, int64_t first, int64_t count, const double* norms);

  // Sees dots [rows][lanes] of the classes from `first` on, and their largest per lane.
  void see(const float* dots, int64_t first, int64_t rows, const float* largest, CandidateScratch& scratch);

  // The k largest of this lane, best first; `best` once at the end, `listed` after it.
  const std::vector<Candidate>& best(int64_t lane, CandidateScratch& scratch);
  const std::vector<Candidate>& listed(int64_t lane) const { return lanes_[lane].list; }

 private:
  void thresholds(const float* dots, int64_t rows, const float* largest, CandidateScratch& scratch) const;
  float kth_largest(const float* values, int64_t count, int64_t stride, std::vector<float>& ordered) const;
  void prune(int64_t lane);
  void order_exactly(Candidate* begin, Candidate* end, const double* query) const;

  struct Lane {
    std::vector<Candidate> list;
    float kept;    // the k-th largest so far, -inf while there are fewer
    double slack;  // two float32 dot products further apart than this are in the right order
  };
  const PackedClasses& classes_;
  const int64_t k_;
  Features images_{};
  int64_t first_ = 0, count_ = 0;
  std::vector<Lane> lanes_;
};

}  // namespace vlcal
