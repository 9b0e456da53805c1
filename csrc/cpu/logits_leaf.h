// The leaf kernels written once over a vector type V. Included by one file per instruction set, inside its own unnamed
// namespace, so that no function compiled with wide instructions can replace a portable one.
#pragma once
#include <cstdint>

#include "cpu/logits_kernels.h"

// V: Reg, kWidth, transpose (of kWidth registers), load, store, set, add, sub, mul, fma (a b + c), max, min, abs,
// round, exp2_scale (p 2^n), reached (bits of lanes with a >= b)
template <class V, int kTile, int kVectors>
struct Leaf {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kWidth * kVectors;

  static inline __attribute__((always_inline)) void store(Reg (&acc)[kTile][kVectors], float* out, int64_t stride,
                                                          bool add) {
    if (add) {
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[i][v] = V::add(V::load(out + i * stride + v * V::kWidth), acc[i][v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) V::store(out + i * stride + v * V::kWidth, acc[i][v]);
    }
  }

  static inline void clear(Reg (&acc)[kTile][kVectors]) {
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[i][v] = V::set(0.0f);
    }
  }

  // a(i) = a[i * step]
  template <int kStep>
  static inline __attribute__((always_inline)) void rank_one(Reg (&acc)[kTile][kVectors], const float* a,
                                                             const float* b) {
    Reg column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = V::load(b + v * V::kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
      const Reg value = V::set(a[i * kStep]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[i][v] = V::fma(value, column[v], acc[i][v]);
    }
  }

  // kWidth rows, of which the first `keep` are real, to columns `width` apart
  template <bool kCentred>
  static inline void pack_rows(const float* const* rows, int keep, const float* mean, int64_t depth, int width,
                               float* out, float* squares) {
    Reg total = V::set(0.0f);
    int64_t k = 0;
    // a whole register is stored even where fewer rows are kept; the next column overwrites the rest, so the last
    // columns of a tile are left to the loop below
    for (; k + V::kWidth + (keep < V::kWidth) <= depth; k += V::kWidth) {
      Reg block[V::kWidth];
#pragma GCC unroll 16
      for (int r = 0; r < V::kWidth; ++r) block[r] = V::load(rows[r < keep ? r : 0] + k);
      V::transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < V::kWidth; ++j) {
        const Reg column = kCentred ? V::sub(block[j], V::set(mean[k + j])) : block[j];
        total = V::fma(column, column, total);
        V::store(out + (k + j) * width, column);
      }
    }
    float sums[V::kWidth];
    V::store(sums, total);
    for (int r = 0; r < keep; ++r) {
      for (int64_t j = k; j < depth; ++j) {
        const float value = kCentred ? rows[r][j] - mean[j] : rows[r][j];
        out[j * width + r] = value;
        sums[r] += value * value;
      }
      squares[r] = sums[r];
    }
  }

  static void pack_panel(const float* const* rows, int64_t depth, float* out, float* squares) {
    for (int v = 0; v < kLanes; v += V::kWidth) {
      pack_rows<false>(rows + v, V::kWidth, nullptr, depth, kLanes, out + v, squares + v);
    }
  }

  static void unpack_panel(const float* panel, int64_t depth, float* const* rows, int count) {
    for (int v = 0; v < count; v += V::kWidth) {
      const int here = count - v < V::kWidth ? count - v : V::kWidth;
      int64_t k = 0;
      for (; k + V::kWidth <= depth; k += V::kWidth) {
        Reg block[V::kWidth];
#pragma GCC unroll 16
        for (int j = 0; j < V::kWidth; ++j) block[j] = V::load(panel + (k + j) * kLanes + v);
        V::transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < V::kWidth; ++r) {
          if (r < here) V::store(rows[v + r] + k, block[r]);
        }
      }
      for (; k < depth; ++k) {
        for (int r = 0; r < here; ++r) rows[v + r][k] = panel[k * kLanes + v + r];
      }
    }
  }

  static void pack_tile(const float* const* rows, const float* mean, int64_t depth, float* out, float* squares) {
    static_assert(kTile <= V::kWidth, "a tile is packed from one register of rows");
    pack_rows<true>(rows, kTile, mean, depth, kTile, out, squares);
  }

  static void product(int64_t depth, const float* a, const float* b, float* out, int64_t stride, bool add) {
    Reg acc[kTile][kVectors];
    clear(acc);
    for (int64_t k = 0; k < depth; ++k) rank_one<1>(acc, a + k * kTile, b + k * kLanes);
    store(acc, out, stride, add);
  }

  // `kDepth` columns from each of `parts` parts of a and b; a(i, column) = a[i * kDepth + column]
  template <int kDepth>
  static inline void sum_parts(Reg (&acc)[kTile][kVectors], int64_t parts, int64_t part_size, const float* a,
                               const float* b) {
    clear(acc);
    for (int64_t p = 0; p < parts; ++p, a += part_size) {
      for (int l = 0; l < kDepth; ++l, b += kLanes) rank_one<kDepth>(acc, a + l, b);
    }
  }

  static void sum_rows(int64_t tiles, int64_t tile_size, const float* a, const float* b, float* out, int64_t stride,
                       bool add) {
    Reg acc[kTile][kVectors];
    sum_parts<kTile>(acc, tiles, tile_size, a, b);
    store(acc, out, stride, add);
  }

  static void sum_images(int64_t panels, int64_t panel_size, const float* a, const float* b, float* out,
                         int64_t stride) {
    Reg acc[kTile][kVectors];
    sum_parts<kLanes>(acc, panels, panel_size, a, b);
    store(acc, out, stride, true);
  }

  static void extremes(const float* dots, int64_t n, float* largest, float* smallest) {
    for (int v = 0; v < kLanes; v += V::kWidth) {
      Reg high = V::load(dots + v), low = high;
      for (int64_t i = 1; i < n; ++i) {
        const Reg value = V::load(dots + i * kLanes + v);
        high = V::max(high, value);
        low = V::min(low, value);
      }
      V::store(largest + v, high);
      V::store(smallest + v, low);
    }
  }

  static int64_t hits(const float* dots, int64_t n, const float* threshold, vlcal::Hit* out) {
    int64_t found = 0;
    for (int v = 0; v < kLanes; v += V::kWidth) {
      const Reg limit = V::load(threshold + v);
      for (int64_t i = 0; i < n; ++i) {
        unsigned bits = V::reached(V::load(dots + i * kLanes + v), limit);
        for (; __builtin_expect(bits != 0, 0); bits &= bits - 1) {
          out[found++] = {static_cast<int32_t>(i), v + __builtin_ctz(bits)};
        }
      }
    }
    return found;
  }

  // 2^u for -126 <= u <= 1; relative error of the polynomial 2e-9 on [-1/2, 1/2], and 2^0 is exactly 1
  static inline Reg exp2(Reg u) {
    const Reg n = V::round(u);
    const Reg f = V::sub(u, n);
    Reg p = V::set(1.53533650e-4f);
    p = V::fma(p, f, V::set(1.33989134e-3f));
    p = V::fma(p, f, V::set(9.61843785e-3f));
    p = V::fma(p, f, V::set(5.55033237e-2f));
    p = V::fma(p, f, V::set(2.40226477e-1f));
    p = V::fma(p, f, V::set(6.93147182e-1f));
    p = V::fma(p, f, V::set(1.0f));
    return V::exp2_scale(p, n);
  }

  static void sums(const float* dots, int64_t n, const float* top, const float* factor, float* sum, float* weighted,
                   float* squares) {
    const Reg least = V::set(-126.0f);
    for (int v = 0; v < kLanes; v += V::kWidth) {
      const Reg m = V::load(top + v), scale = V::load(factor + v);
      Reg s = V::set(0.0f), w = s, q = s;
      for (int64_t i = 0; i < n; ++i) {
        const Reg u = V::max(V::mul(V::sub(V::load(dots + i * kLanes + v), m), scale), least);
        const Reg e = exp2(u);
        s = V::add(s, e);
        w = V::fma(e, u, w);
        q = V::fma(e, e, q);
      }
      V::store(sum + v, s);
      V::store(weighted + v, w);
      V::store(squares + v, q);
    }
  }

  static void gradient(float* dots, int64_t n, const float* top, const float* factor, const float* weight,
                       float* moment) {
    const Reg least = V::set(-126.0f);
    for (int v = 0; v < kLanes; v += V::kWidth) {
      const Reg m = V::load(top + v), scale = V::load(factor + v), share = V::load(weight + v);
      Reg total = V::set(0.0f);
      for (int64_t i = 0; i < n; ++i) {
        float* at = dots + i * kLanes + v;
        const Reg below = V::sub(V::load(at), m);
        const Reg e = V::mul(share, exp2(V::max(V::mul(below, scale), least)));
        total = V::fma(e, below, total);
        V::store(at, e);
      }
      V::store(moment + v, total);
    }
  }

  static void difference(const float* dots, const float* other, int64_t n, const float* offset, float* sum) {
    for (int v = 0; v < kLanes; v += V::kWidth) {
      const Reg shift = V::load(offset + v);
      Reg total = V::set(0.0f);
      for (int64_t i = 0; i < n; ++i) {
        const Reg gap = V::sub(V::load(dots + i * kLanes + v), V::load(other + i * kLanes + v));
        total = V::add(total, V::abs(V::add(gap, shift)));
      }
      V::store(sum + v, total);
    }
  }

  static constexpr vlcal::LogitsKernels kernels() {
    return {kLanes, kTile, pack_panel, pack_tile, unpack_panel, product, sum_rows, sum_images,
            extremes, hits, sums, gradient, difference};
  }
};
