// What the three AVX-512 formats share: 16 lanes a register and the same last step. Included inside an unnamed
// namespace after immintrin.h.
#pragma once
#include "cpu/gemm_tile_leaf.h"

struct Wide {
  using Real = __m512;
  static constexpr int kWidth = 16;
  static inline Real load(const float* at) { return _mm512_loadu_ps(at); }
  static inline uint32_t reached(Real a, float threshold) {
    return _mm512_cmp_ps_mask(a, _mm512_set1_ps(threshold), _CMP_GE_OQ);
  }
  static inline void store(float* at, Real a) { _mm512_storeu_ps(at, a); }
  static inline Real scaled(Real sum, Real scale, float row_scale, Real bias) {
    return _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), _mm512_set1_ps(row_scale), bias);
  }
};
