// Exact costs in float64, summed in one documented order so that every instruction set, and the oracle in PyTorch,
// gives the same bits: partial sum j of 32 adds the terms of coordinates j, j + 32, j + 64, ... in that order, then the
// 32 sums are folded by halves (j += j + 16, then 8, 4, 2, 1). No fused multiply-add.
#pragma once
#include <cstdint>

namespace vlcal {

constexpr int kLanes = 32;

// query: padded with zeros to a multiple of kLanes. row: dim values, not padded.
template <class Real>
using ExactCost = double (*)(const double* query, const Real* row, int64_t dim);

// The sum of squared differences, and minus the dot product: smaller is nearer for both.
template <class Real>
struct ExactCosts {
  ExactCost<Real> squared_distance;
  ExactCost<Real> negated_dot;
};

// For the instruction sets of isa().
template <class Real>
ExactCosts<Real> exact_costs();

// The squared distance in float, in any order: no term is negative, so every rounding counts relative to the sum, and
// with the difference, the square, the sum and a fused or no multiply-add the result is within rough_error(dim) of the
// real number, relatively, and kRoughest absolutely (underflow). Neither row is padded.
using RoughCost = float (*)(const float* query, const float* row, int64_t dim);
RoughCost rough_cost();
inline double rough_error(int64_t dim) { return static_cast<double>(dim + 8) * 6e-8; }
constexpr double kRoughest = 1e-30;

#define VLCAL_EXACT_COSTS(level)                                                           \
  double squared_distance_##level(const double* query, const float* row, int64_t dim);     \
  double squared_distance_##level(const double* query, const double* row, int64_t dim);    \
  double negated_dot_##level(const double* query, const float* row, int64_t dim);          \
  double negated_dot_##level(const double* query, const double* row, int64_t dim);
float rough_distance_avx2(const float* query, const float* row, int64_t dim);
float rough_distance_avx512(const float* query, const float* row, int64_t dim);
VLCAL_EXACT_COSTS(avx2)
VLCAL_EXACT_COSTS(avx512)
#undef VLCAL_EXACT_COSTS

}  // namespace vlcal
