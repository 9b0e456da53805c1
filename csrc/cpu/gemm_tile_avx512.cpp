// The micro-kernel for floats with 16 lanes a register: 14 x 2 accumulators.
// gcc 12 warns inside its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/gemm_tile.h"

namespace {

#include "cpu/gemm_tile_512.h"

struct WideFloat : Wide {
  using Sum = __m512;
  using Word = __m512;
  static inline Sum start(const int32_t*) { return _mm512_setzero_ps(); }
  static inline Word word(const uint32_t* at) { return _mm512_loadu_ps(at); }
  static inline Word broadcast(uint32_t bits) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits))); }
  static inline Sum step(Sum sum, Word row, Word key) { return _mm512_fmadd_ps(row, key, sum); }
  static inline Real value(Sum sum, Real scale, float row_scale, Real bias) {
    return scaled(sum, scale, row_scale, bias);
  }
};

}  // namespace

namespace vlcal {
const TileKernel tile_float_avx512 = {Format::kFloat, 14, Tile<WideFloat, 14, 2>::run};
}  // namespace vlcal
