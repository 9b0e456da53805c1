// The running sums of a softmax over chunks of classes, one per lane of a panel.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/logits_kernels.h"

namespace vlcal {

// With p_c the softmax of factor * dot_c: sum = sum_c exp(factor (dot_c - top)), and alike in units of log2.
// Online softmax (Milakov & Gimelshein 2018), moved once per chunk.
class SoftmaxSums {
 public:
  explicit SoftmaxSums(const LogitsKernels& kernels);

  // factor[lane] in nats per dot product; 0 for a lane without an image.
  void start(const double* factor);

  // Adds dots [rows][lanes], whose largest per lane is given.
  void add(const float* dots, int64_t rows, const float* largest);

  float top(int64_t lane) const { return top_[lane]; }
  double factor(int64_t lane) const { return factor_[lane]; }
  double sum(int64_t lane) const { return sum_[lane]; }
  double entropy(int64_t lane) const;
  double sum_squares(int64_t lane) const { return squares_[lane] / (sum_[lane] * sum_[lane]); }
  double log_prob(int64_t lane, float dot) const;

  const float* tops() const { return top_.data(); }
  const float* factors() const { return log2_factor_.data(); }

 private:
  const LogitsKernels& kernels_;
  std::vector<float> top_, log2_factor_, part_sum_, part_weighted_, part_squares_;
  std::vector<double> factor_, sum_, weighted_, squares_;
};

}  // namespace vlcal
