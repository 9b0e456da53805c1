// The exact costs of search_exact.h, eight lanes a register: four registers are the 32 lanes.
// gcc 12 warns inside its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/search_exact.h"

namespace vlcal {
namespace {

inline __m512d load(const float* row, __mmask8 mask) { return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, row)); }
inline __m512d load(const double* row, __mmask8 mask) { return _mm512_maskz_loadu_pd(mask, row); }

struct Square {
  static __m512d term(__m512d q, __m512d v) {
    const __m512d difference = _mm512_sub_pd(q, v);
    return _mm512_mul_pd(difference, difference);
  }
};
struct Product {
  static __m512d term(__m512d q, __m512d v) { return _mm512_mul_pd(q, v); }
};

template <class Term, class Real>
inline __m512d add(__m512d sum, const double* query, const Real* row, __mmask8 mask) {
  return _mm512_add_pd(sum, Term::term(_mm512_loadu_pd(query), load(row, mask)));
}

inline __mmask8 first(int64_t n) { return n >= 8 ? 0xff : n <= 0 ? 0 : static_cast<__mmask8>((1u << n) - 1); }

template <class Term, class Real>
inline double folded_sum(const double* query, const Real* row, int64_t dim) {
  __m512d s0 = _mm512_setzero_pd(), s1 = s0, s2 = s0, s3 = s0;
  int64_t start = 0;
  for (; start + kLanes <= dim; start += kLanes, query += kLanes, row += kLanes) {
    s0 = add<Term>(s0, query, row, 0xff);
    s1 = add<Term>(s1, query + 8, row + 8, 0xff);
    s2 = add<Term>(s2, query + 16, row + 16, 0xff);
    s3 = add<Term>(s3, query + 24, row + 24, 0xff);
  }
  if (const int64_t left = dim - start; left > 0) {
    s0 = add<Term>(s0, query, row, first(left));
    s1 = add<Term>(s1, query + 8, row + 8, first(left - 8));
    s2 = add<Term>(s2, query + 16, row + 16, first(left - 16));
    s3 = add<Term>(s3, query + 24, row + 24, first(left - 24));
  }
  const __m512d eight = _mm512_add_pd(_mm512_add_pd(s0, s2), _mm512_add_pd(s1, s3));
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

}  // namespace

double squared_distance_avx512(const double* query, const float* row, int64_t dim) {
  return folded_sum<Square>(query, row, dim);
}
double squared_distance_avx512(const double* query, const double* row, int64_t dim) {
  return folded_sum<Square>(query, row, dim);
}
double negated_dot_avx512(const double* query, const float* row, int64_t dim) {
  return -folded_sum<Product>(query, row, dim);
}
double negated_dot_avx512(const double* query, const double* row, int64_t dim) {
  return -folded_sum<Product>(query, row, dim);
}

float rough_distance_avx512(const float* query, const float* row, int64_t dim) {
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  int64_t i = 0;
  for (; i + 64 <= dim; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(query + i + 16 * j), _mm512_loadu_ps(row + i + 16 * j));
      sums[j] = _mm512_fmadd_ps(d, d, sums[j]);
    }
  }
  for (; i < dim; i += 16) {
    const __mmask16 mask = dim - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (dim - i)) - 1);
    const __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, query + i), _mm512_maskz_loadu_ps(mask, row + i));
    sums[0] = _mm512_fmadd_ps(d, d, sums[0]);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

}  // namespace vlcal
