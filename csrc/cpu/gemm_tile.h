// The packed micro-kernels of the screens: upper bounds of a few rows (queries) against 32 keys, compared with a
// threshold per row before they ever reach memory. One word is 1 float, 2 bfloat16 or 4 int8 of consecutive dimensions.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace vlcal {

enum class Format { kFloat, kBfloat, kInt8 };

constexpr int kPanel = 32;  // keys side by side in a panel

constexpr int dimensions_per_word(Format format) {
  return format == Format::kInt8 ? 4 : format == Format::kBfloat ? 2 : 1;
}

// words: [words][kPanel]. start: what the integer sums begin with, -128 times the sum of the key, because the rows are
// stored as int8 + 128; not read for the other formats.
struct KeyPanel {
  const uint32_t* words;
  const int32_t* start;
  const float* scale;
  const float* bias;
};

// words: [words][rows].
struct RowPanel {
  const uint32_t* words;
  const float* scale;
  const float* threshold;
};

struct TileKernel {
  Format format;
  int rows;

  // value[i][j] = dot(i, j) * keys.scale[j] * rows.scale[i] + keys.bias[j], i < rows, j < kPanel.
  // Bit j of hits[i]: value[i][j] >= rows.threshold[i]; bit i of the result: hits[i] is not 0, and then value[i] is
  // written. `next` is fetched into the cache meanwhile.
  uint32_t (*tile)(int64_t words, const RowPanel& rows, const KeyPanel& keys, const char* next, int64_t next_bytes,
                   float* value, uint32_t* hits);
};

// The kernel of `format`, or nullptr where `isa` has none. There is always one for floats.
const TileKernel* tile_kernel(Format format, const Isa& isa);

// sum of a[i] * b[i], exact; n is a multiple of 64.
using DotInt8 = int32_t (*)(const uint8_t* a, const int8_t* b, int64_t n);
DotInt8 dot_int8(const Isa& isa);

extern const TileKernel tile_float_portable;
#if defined(__x86_64__)
extern const TileKernel tile_float_avx2;
extern const TileKernel tile_float_avx512;
extern const TileKernel tile_bfloat_avx512;
extern const TileKernel tile_int8_vnni;
int32_t dot_int8_avx2(const uint8_t* a, const int8_t* b, int64_t n);
int32_t dot_int8_vnni(const uint8_t* a, const int8_t* b, int64_t n);
#endif

}  // namespace vlcal
