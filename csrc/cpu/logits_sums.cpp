#include "cpu/logits_sums.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vlcal {
namespace {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

}  // namespace

SoftmaxSums::SoftmaxSums(const LogitsKernels& kernels)
    : kernels_(kernels),
      top_(kernels.lanes),
      log2_factor_(kernels.lanes),
      part_sum_(kernels.lanes),
      part_weighted_(kernels.lanes),
      part_squares_(kernels.lanes),
      factor_(kernels.lanes),
      sum_(kernels.lanes),
      weighted_(kernels.lanes),
      squares_(kernels.lanes) {}

void SoftmaxSums::start(const double* factor) {
  for (int l = 0; l < kernels_.lanes; ++l) {
    factor_[l] = factor[l];
    log2_factor_[l] = static_cast<float>(std::min<double>(factor[l] * kLog2E, std::numeric_limits<float>::max()));
    top_[l] = -std::numeric_limits<float>::infinity();
    sum_[l] = weighted_[l] = squares_[l] = 0;
  }
}

void SoftmaxSums::add(const float* dots, int64_t rows, const float* largest) {
  for (int l = 0; l < kernels_.lanes; ++l) {
    if (largest[l] <= top_[l]) continue;
    if (sum_[l] > 0) {
      // every term 2^u becomes 2^(u + shift)
      const double shift = (static_cast<double>(top_[l]) - largest[l]) * log2_factor_[l], ratio = std::exp2(shift);
      weighted_[l] = ratio > 0 ? ratio * (weighted_[l] + shift * sum_[l]) : 0;
      sum_[l] *= ratio;
      squares_[l] *= ratio * ratio;
    }
    top_[l] = largest[l];
  }
  kernels_.sums(dots, rows, top_.data(), log2_factor_.data(), part_sum_.data(), part_weighted_.data(),
                part_squares_.data());
  for (int l = 0; l < kernels_.lanes; ++l) {
    sum_[l] += part_sum_[l];
    weighted_[l] += part_weighted_[l];
    squares_[l] += part_squares_[l];
  }
}

double SoftmaxSums::entropy(int64_t l) const {
  return std::max(0.0, kLn2 * (std::log2(sum_[l]) - weighted_[l] / sum_[l]));
}

double SoftmaxSums::log_prob(int64_t l, float dot) const {
  return factor_[l] * (static_cast<double>(dot) - top_[l]) - std::log(sum_[l]);
}

}  // namespace vlcal
