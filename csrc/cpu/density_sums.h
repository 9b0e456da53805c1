// Sums of 2^-d over all points for a few queries, and the one body that the portable and the AVX2 kernel come from.
#pragma once
#include <cstdint>

namespace vlcal {

constexpr int kQueries = 16;         // of one call, side by side: no sum crosses lanes
constexpr int64_t kShortSum = 16;    // points added up in float before double takes over
constexpr float kFarthest = 125.0f;  // 2^-d of more counts as 0

// Coordinates of the queries apart, of the points in pairs; d = (a (x - p0))^2 + (b (y - p1))^2.
struct GaussianSums {
  const float* x;
  const float* y;
  const float* points;
  int64_t m;
  float a, b;
};

void gaussian_sums_avx2(const GaussianSums& in, double* sums);
void gaussian_sums_avx512(const GaussianSums& in, double* sums);

// 2^f for |f| <= 1/2
constexpr float kPower2[] = {1.535336188319500e-4f, 1.339887440266574e-3f, 9.618437357674640e-3f,
                             5.550332471162809e-2f, 2.402264791363012e-1f, 6.931472028550421e-1f, 1.0f};  // Cephes

// leaf files must not share instantiations, hence internal linkage
namespace {

typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightBits __attribute__((vector_size(32)));
typedef double EightDoubles __attribute__((vector_size(64)));

__attribute__((always_inline)) inline void add_power(const Eight* distance, Eight* sum) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: subtracting from it rounds to an integer
  const Eight shifted = kMagic - *distance, f = (kMagic - shifted) - *distance;
  Eight power = Eight{} + kPower2[0];
  for (int i = 1; i < 7; ++i) power = power * f + kPower2[i];
  EightBits bits, exponent;
  __builtin_memcpy(&bits, &power, sizeof bits);
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  __builtin_memcpy(&power, &bits, sizeof power);
  // what is too far may be anything until here
  *sum += *distance < kFarthest ? power : Eight{};
}

inline void gaussian_sums_of(const GaussianSums& in, double* sums) {
  for (int lane = 0; lane < kQueries; lane += 8) {
    Eight x, y;
    __builtin_memcpy(&x, in.x + lane, sizeof x);
    __builtin_memcpy(&y, in.y + lane, sizeof y);
    EightDoubles total{};
    for (int64_t begin = 0; begin < in.m; begin += kShortSum) {
      const int64_t end = begin + kShortSum < in.m ? begin + kShortSum : in.m;
      Eight sum{};
      for (int64_t j = begin; j < end; ++j) {
        const Eight dx = (x - in.points[2 * j]) * in.a, dy = (y - in.points[2 * j + 1]) * in.b;
        const Eight distance = dx * dx + dy * dy;
        add_power(&distance, &sum);
      }
      total += __builtin_convertvector(sum, EightDoubles);
    }
    __builtin_memcpy(sums + lane, &total, sizeof total);
  }
}

}  // namespace
}  // namespace vlcal
