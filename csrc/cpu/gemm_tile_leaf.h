// The micro-kernel written once over a vector type V. Included by one file per instruction set, inside its own unnamed
// namespace, so that no function compiled with wide instructions can replace a portable one.
#pragma once
#include <cstdint>

#include "cpu/gemm_tile.h"

// V: Sum and Word registers of kWidth lanes; start, word, broadcast, step (sum += row word . key word), and
// value (float(sum) * scale * row_scale + bias), reached (bits of lanes with value >= threshold), store
template <class V, int kRows, int kVectors>
struct Tile {
  static constexpr int kColumns = V::kWidth * kVectors;
  static_assert(vlcal::kPanel % kColumns == 0, "a panel is a whole number of tiles");

  static inline __attribute__((always_inline)) uint32_t columns(int64_t words, const vlcal::RowPanel& rows,
                                                                const vlcal::KeyPanel& keys, int first, float* value,
                                                                uint32_t* hits) {
    typename V::Sum sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] = V::start(keys.start + first + v * V::kWidth);
    }
    const uint32_t* row = rows.words;
    const uint32_t* key = keys.words + first;
    for (int64_t k = 0; k < words; ++k, row += kRows, key += vlcal::kPanel) {
      typename V::Word word[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) word[v] = V::word(key + v * V::kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const typename V::Word one = V::broadcast(row[i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[i][v] = V::step(sum[i][v], one, word[v]);
      }
    }
    typename V::Real scale[kVectors], bias[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      scale[v] = V::load(keys.scale + first + v * V::kWidth);
      bias[v] = V::load(keys.bias + first + v * V::kWidth);
    }
    uint32_t any = 0;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      typename V::Real out[kVectors];
      uint32_t bits = 0;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        out[v] = V::value(sum[i][v], scale[v], rows.scale[i], bias[v]);
        bits |= V::reached(out[v], rows.threshold[i]) << (first + v * V::kWidth);
      }
      hits[i] = first == 0 ? bits : hits[i] | bits;
      if (__builtin_expect(bits != 0, 0)) {
        any |= 1u << i;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) V::store(value + i * vlcal::kPanel + first + v * V::kWidth, out[v]);
      }
    }
    return any;
  }

  static uint32_t run(int64_t words, const vlcal::RowPanel& rows, const vlcal::KeyPanel& keys, const char* next,
                      int64_t next_bytes, float* value, uint32_t* hits) {
    for (int64_t i = 0; i < next_bytes; i += 64) __builtin_prefetch(next + i, 0, 2);
    uint32_t any = 0;
#pragma GCC unroll 1
    for (int first = 0; first < vlcal::kPanel; first += kColumns) {
      any |= columns(words, rows, keys, first, value, hits);
    }
    return any;
  }
};
