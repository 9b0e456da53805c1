// Rows on their way into a screen: placed around the center, then rounded to a format, with the length of what is lost.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace vlcal {

// A row in a format: its length and that of what rounding took away, both rounded up.
struct Rounded {
  float scale;
  int32_t sum;  // of the integers
  double span, error;
};

struct Rounding {
  // x = scale (row - center) as floats; returns |x|
  double (*place_float)(const float* row, const double* center, double scale, int64_t n, float* x);
  double (*place_double)(const double* row, const double* center, double scale, int64_t n, float* x);
  double (*length)(const float* x, int64_t n);
  Rounded (*to_int8)(const float* x, int64_t n, int8_t* out);
  Rounded (*to_bfloat)(const float* x, int64_t n, uint16_t* out);
};

extern const Rounding rounding_portable;
#if defined(__x86_64__)
extern const Rounding rounding_avx2;
extern const Rounding rounding_avx512;
#endif

const Rounding& rounding(const Isa& isa);

}  // namespace vlcal
