// The sums of one row of logits, and the one body that the portable and the AVX2 kernel are compiled from.
#pragma once
#include <cstdint>

namespace vlcal {

// with d = logit - largest and e = exp(d): sums of e, e^2 and e d; not finite if the row has no softmax
struct RowSums {
  float largest;
  int64_t argmax;
  double sum, squares, weighted;
};

void row_sums_avx2(const float* row, int64_t classes, RowSums* out);
void row_sums_avx512(const float* row, int64_t classes, RowSums* out);

constexpr int64_t kRowBlock = 4096;          // classes added up in float before double takes over
constexpr float kLowest = -87.0f;            // exp of less counts as exp of this: 1e-38
constexpr float kLog2E = 1.44269504088896f;  // exp(d) = 2^n 2^f with n + f = d log2(e), |f| <= 1/2
constexpr float kExp2[] = {1.535336188319500e-4f, 1.339887440266574e-3f, 9.618437357674640e-3f,
                           5.550332471162809e-2f, 2.402264791363012e-1f, 6.931472028550421e-1f, 1.0f};  // Cephes

// leaf files must not share instantiations, hence internal linkage
namespace {

typedef float Lanes __attribute__((vector_size(32)));
typedef int32_t LaneBits __attribute__((vector_size(32)));

inline int64_t first_of(const float* row, int64_t classes, float value) {
  int64_t index = 0;
  while (index < classes - 1 && row[index] != value) ++index;
  return index;
}

__attribute__((always_inline)) inline void load(Lanes* lanes, const float* from) {
  __builtin_memcpy(lanes, from, sizeof *lanes);
}

__attribute__((always_inline)) inline void add_exponentials(const Lanes* logits, float largest, Lanes* sum,
                                                            Lanes* squares, Lanes* weighted) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Lanes d = *logits - largest;
  d = d < kLowest ? (Lanes{} + kLowest) : d;  // keeps NaN
  const Lanes y = d * kLog2E, shifted = y + kMagic, f = d * kLog2E - (shifted - kMagic);
  Lanes power = Lanes{} + kExp2[0];
  for (int i = 1; i < 7; ++i) power = power * f + kExp2[i];
  LaneBits bits, exponent;
  __builtin_memcpy(&bits, &power, sizeof bits);
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  Lanes e;
  __builtin_memcpy(&e, &bits, sizeof e);
  *sum += e;
  *squares += e * e;
  *weighted += e * d;
}

inline void row_sums_of(const float* row, int64_t classes, RowSums* out) {
  constexpr int64_t kLanes = 8;
  const float nothing = -__builtin_inff();
  Lanes high = Lanes{} + nothing, x;
  int64_t c = 0;
  for (; c + kLanes <= classes; c += kLanes) {
    load(&x, row + c);
    high = x > high ? x : high;
  }
  float largest = nothing;
  for (int lane = 0; lane < kLanes; ++lane) largest = high[lane] > largest ? high[lane] : largest;
  for (; c < classes; ++c) largest = row[c] > largest ? row[c] : largest;
  *out = {largest, first_of(row, classes, largest), 0.0, 0.0, 0.0};
  for (int64_t begin = 0; begin < classes; begin += kRowBlock) {
    const int64_t end = begin + kRowBlock < classes ? begin + kRowBlock : classes;
    Lanes sum{}, squares{}, weighted{};
    for (c = begin; c + kLanes <= end; c += kLanes) {
      load(&x, row + c);
      add_exponentials(&x, largest, &sum, &squares, &weighted);
    }
    if (c < end) {
      x = Lanes{} + nothing;
      __builtin_memcpy(&x, row + c, (end - c) * sizeof(float));
      add_exponentials(&x, largest, &sum, &squares, &weighted);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      out->sum += sum[lane];
      out->squares += squares[lane];
      out->weighted += weighted[lane];
    }
  }
}

}  // namespace
}  // namespace vlcal
