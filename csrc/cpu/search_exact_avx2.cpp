// The exact costs of search_exact.h, four lanes a register: eight registers are the 32 lanes.
#include <immintrin.h>

#include "cpu/search_exact.h"

namespace vlcal {
namespace {

inline __m256d load(const float* row) { return _mm256_cvtps_pd(_mm_loadu_ps(row)); }
inline __m256d load(const double* row) { return _mm256_loadu_pd(row); }

struct Square {
  static __m256d term(__m256d q, __m256d v) {
    const __m256d difference = _mm256_sub_pd(q, v);
    return _mm256_mul_pd(difference, difference);
  }
};
struct Product {
  static __m256d term(__m256d q, __m256d v) { return _mm256_mul_pd(q, v); }
};

template <class Term, class Real>
inline void add(__m256d (&sums)[8], const double* query, const Real* row) {
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    sums[r] = _mm256_add_pd(sums[r], Term::term(_mm256_loadu_pd(query + 4 * r), load(row + 4 * r)));
  }
}

template <class Term, class Real>
inline double folded_sum(const double* query, const Real* row, int64_t dim) {
  __m256d sums[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) sums[r] = _mm256_setzero_pd();
  int64_t start = 0;
  for (; start + kLanes <= dim; start += kLanes) add<Term>(sums, query + start, row + start);
  if (start < dim) {
    Real tail[kLanes] = {};
    for (int64_t j = 0; start + j < dim; ++j) tail[j] = row[start + j];
    add<Term>(sums, query + start, tail);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) sums[r] = _mm256_add_pd(sums[r], sums[r + 4]);
  const __m256d four = _mm256_add_pd(_mm256_add_pd(sums[0], sums[2]), _mm256_add_pd(sums[1], sums[3]));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

}  // namespace

double squared_distance_avx2(const double* query, const float* row, int64_t dim) {
  return folded_sum<Square>(query, row, dim);
}
double squared_distance_avx2(const double* query, const double* row, int64_t dim) {
  return folded_sum<Square>(query, row, dim);
}
double negated_dot_avx2(const double* query, const float* row, int64_t dim) {
  return -folded_sum<Product>(query, row, dim);
}
double negated_dot_avx2(const double* query, const double* row, int64_t dim) {
  return -folded_sum<Product>(query, row, dim);
}

float rough_distance_avx2(const float* query, const float* row, int64_t dim) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= dim; i += 32) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(query + i + 8 * j), _mm256_loadu_ps(row + i + 8 * j));
      sums[j] = _mm256_fmadd_ps(d, d, sums[j]);
    }
  }
  const __m256 eight = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  float sum = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  for (; i < dim; ++i) sum += (query[i] - row[i]) * (query[i] - row[i]);
  return sum;
}

}  // namespace vlcal
