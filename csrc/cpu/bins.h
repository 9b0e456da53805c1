// The bin of a confidence by exact thresholds. Portable code only: the wide kernels see its Grid.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/binning_words.h"

namespace vlcal {

template <class Real>
bool in_range(Real confidence) {
  return confidence >= 0 && confidence <= 1;  // false for NaN
}

// The thresholds of one call: is a multiplication enough, and what to compare with after it?
template <class Real>
class Bins {
 public:
  Bins(const Real* thresholds, int n_bins)
      : n_bins_(n_bins), next_(std::max(n_bins, kWideBins), std::numeric_limits<Real>::infinity()) {
    std::copy(thresholds, thresholds + n_bins - 1, next_.begin());
    even_ = guess(0) == 0 && guess(1) <= n_bins - 1;
    // the guess is monotone, so the smallest and the largest value of every bin speak for all
    for (int bin = 1; bin < n_bins && even_; ++bin) {
      const Real lowest = next_[bin - 1], below = std::nextafter(lowest, Real{0});
      even_ = in_range(lowest) && guess(lowest) >= bin - 1 && guess(below) <= bin - 1;
    }
  }

  int operator()(Real confidence) const {
    if (!even_) {
      return static_cast<int>(std::upper_bound(next_.begin(), next_.begin() + n_bins_ - 1, confidence) -
                              next_.begin());
    }
    const int low = guess(confidence);
    return low + (confidence >= next_[low]);
  }

  bool even() const { return even_; }
  Grid<Real> grid() const { return {static_cast<Real>(n_bins_), next_.data()}; }

 private:
  int guess(Real confidence) const {
    return static_cast<int>(confidence * static_cast<Real>(n_bins_) - static_cast<Real>(kLow));
  }

  int n_bins_;
  std::vector<Real> next_;
  bool even_;
};

}  // namespace vlcal
