// The leaf kernels with 16 lanes a register: 14 x 2 accumulators.
// gcc 12 warns inside its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/logits_kernels.h"

namespace {

#include "cpu/logits_leaf.h"

struct Wide {
  using Reg = __m512;
  static constexpr int kWidth = 16;
  static inline Reg load(const float* at) { return _mm512_loadu_ps(at); }
  static inline void store(float* at, Reg a) { _mm512_storeu_ps(at, a); }
  static inline Reg set(float a) { return _mm512_set1_ps(a); }
  static inline Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static inline Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static inline Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static inline Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static inline Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static inline Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static inline Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static inline Reg round(Reg a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static inline Reg exp2_scale(Reg p, Reg n) { return _mm512_scalef_ps(p, n); }
  static inline unsigned reached(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
};

}  // namespace

namespace vlcal {
const LogitsKernels logits_avx512 = Leaf<Wide, 14, 2>::kernels();
}  // namespace vlcal
