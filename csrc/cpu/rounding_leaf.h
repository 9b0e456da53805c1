// The loops of rounding.h, plain C++ that compilers turn into the vectors they are allowed. Included by one file per
// instruction set, inside its own unnamed namespace, so that no function compiled with wide instructions can replace a
// portable one.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/rounding.h"

constexpr int kSums = 16;
constexpr double kUp = 1.0 + 1e-6;  // covers the float64 and float roundings of a length
constexpr float kAtRest = 1e-30f;   // a row this short is stored as zero

// sum of f(i) over i < n in 16 lanes
template <class F>
inline __attribute__((always_inline)) double lane_sum(int64_t n, F f) {
  double lanes[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums; ++j) lanes[j] += f(i + j);
  }
  for (; i < n; ++i) lanes[i % kSums] += f(i);
  double sum = 0;
  for (int j = 0; j < kSums; ++j) sum += lanes[j];
  return sum;
}

template <class Real>
double place(const Real* row, const double* center, double scale, int64_t n, float* __restrict x) {
  return __builtin_sqrt(lane_sum(n, [=](int64_t i) {
    const float value = static_cast<float>((static_cast<double>(row[i]) - center[i]) * scale);
    x[i] = value;
    return static_cast<double>(value) * value;
  }));
}

double length(const float* x, int64_t n) {
  return __builtin_sqrt(lane_sum(n, [=](int64_t i) { return static_cast<double>(x[i]) * x[i]; }));
}

float largest(const float* x, int64_t n) {
  float lanes[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums; ++j) {
      const float size = __builtin_fabsf(x[i + j]);
      lanes[j] = size > lanes[j] ? size : lanes[j];
    }
  }
  for (; i < n; ++i) lanes[0] = __builtin_fabsf(x[i]) > lanes[0] ? __builtin_fabsf(x[i]) : lanes[0];
  float most = lanes[0];
  for (int j = 1; j < kSums; ++j) most = lanes[j] > most ? lanes[j] : most;
  return most;
}

vlcal::Rounded to_int8(const float* x, int64_t n, int8_t* __restrict out) {
  vlcal::Rounded row{1.0f, 0, length(x, n) * kUp, 0.0};
  const float most = largest(x, n);
  if (!(most > kAtRest)) {
    std::memset(out, 0, n);
    row.error = row.span;
    return row;
  }
  row.scale = most / 127.0f;
  const float inverse = 1.0f / row.scale;
  const double scale = row.scale;
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    // 1.5 * 2^23: the sum has no fraction bits left
    float value = (x[i] * inverse + 12582912.0f) - 12582912.0f;
    value = value < -127.0f ? -127.0f : value;
    value = value > 127.0f ? 127.0f : value;
    const int32_t integer = static_cast<int32_t>(value);
    out[i] = static_cast<int8_t>(integer);
    sum += integer;
  }
  row.sum = sum;
  row.error = kUp * __builtin_sqrt(lane_sum(n, [=](int64_t i) {
                const double left = x[i] - scale * out[i];
                return left * left;
              }));
  return row;
}

vlcal::Rounded to_bfloat(const float* x, int64_t n, uint16_t* __restrict out) {
  vlcal::Rounded row{1.0f, 0, length(x, n) * kUp, 0.0};
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    out[i] = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  row.error = kUp * __builtin_sqrt(lane_sum(n, [=](int64_t i) {
                const uint32_t bits = static_cast<uint32_t>(out[i]) << 16;
                float value;
                std::memcpy(&value, &bits, sizeof value);
                const double left = static_cast<double>(x[i]) - value;
                return left * left;
              }));
  return row;
}

constexpr vlcal::Rounding kRounding = {place<float>, place<double>, length, to_int8, to_bfloat};
