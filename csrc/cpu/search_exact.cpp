#include "cpu/search_exact.h"

#include "cpu/isa.h"

namespace vlcal {
namespace {

template <class Real, class Term>
double folded_sum(const double* query, const Real* row, int64_t dim, Term term) {
  double lanes[kLanes] = {};
  int64_t start = 0;
  for (; start + kLanes <= dim; start += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += term(query[start + j], static_cast<double>(row[start + j]));
  }
  for (int j = 0; start + j < dim; ++j) lanes[j] += term(query[start + j], static_cast<double>(row[start + j]));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

template <class Real>
double squared_distance(const double* query, const Real* row, int64_t dim) {
  return folded_sum(query, row, dim, [](double q, double v) { return (q - v) * (q - v); });
}

template <class Real>
double negated_dot(const double* query, const Real* row, int64_t dim) {
  return -folded_sum(query, row, dim, [](double q, double v) { return q * v; });
}

float rough_distance(const float* query, const float* row, int64_t dim) {
  constexpr int kWays = 16;
  float sums[kWays] = {};
  int64_t i = 0;
  for (; i + kWays <= dim; i += kWays) {
    for (int j = 0; j < kWays; ++j) sums[j] += (query[i + j] - row[i + j]) * (query[i + j] - row[i + j]);
  }
  for (; i < dim; ++i) sums[0] += (query[i] - row[i]) * (query[i] - row[i]);
  for (int j = 1; j < kWays; ++j) sums[0] += sums[j];
  return sums[0];
}

}  // namespace

RoughCost rough_cost() {
#if defined(__x86_64__)
  if (isa().avx512) return rough_distance_avx512;
  if (isa().avx2) return rough_distance_avx2;
#endif
  return rough_distance;
}

template <class Real>
ExactCosts<Real> exact_costs() {
#if defined(__x86_64__)
  const Isa have = isa();
  if (have.avx512) return {squared_distance_avx512, negated_dot_avx512};
  if (have.avx2) return {squared_distance_avx2, negated_dot_avx2};
#endif
  return {squared_distance<Real>, negated_dot<Real>};
}

template ExactCosts<float> exact_costs<float>();
template ExactCosts<double> exact_costs<double>();

}  // namespace vlcal
