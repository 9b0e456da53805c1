// The leaf kernels of the fused logits, one set per instruction set. Images lie side by side in the lanes of a panel,
// classes follow one another: a panel of dots is [classes][lanes], so every reduction over classes is vertical.
#pragma once
#include <cstdint>

namespace vlcal {

constexpr int kMostLanes = 32;  // in a panel; a tile is never taller

// One entry of a panel that reached its threshold.
struct Hit {
  int32_t row;
  int32_t lane;
};

struct LogitsKernels {
  int lanes;  // images in a panel
  int tile;   // rows (classes, or dimensions) computed at once

  // Rows side by side, out[k * width + r] = rows[r][k] - mean[k] (mean null: 0), and per row the sum of squares of what
  // was written, in float32. Panels are `lanes` rows wide, tiles `tile`; missing rows point at zeros.
  void (*pack_panel)(const float* const* rows, int64_t depth, float* out, float* squares);
  void (*pack_tile)(const float* const* rows, const float* mean, int64_t depth, float* out, float* squares);

  // The way back: rows[r][k] = panel[k][r] for the first `count` rows of a panel.
  void (*unpack_panel)(const float* panel, int64_t depth, float* const* rows, int count);

  // out[i][lane] (rows `stride` apart) = sum over k < depth of a[k][i] b[k][lane], plus what was there if `add`.
  // a: [depth][tile], b: [depth][lanes].
  void (*product)(int64_t depth, const float* a, const float* b, float* out, int64_t stride, bool add);

  // The same with the rows of `a` summed over: out[i][lane] = sum over tiles t and their rows r of
  // a[t * tile_size + i * tile + r] b[t * tile + r][lane]; b: [tiles * tile][lanes].
  void (*sum_rows)(int64_t tiles, int64_t tile_size, const float* a, const float* b, float* out, int64_t stride,
                   bool add);

  // The same with the images summed over, and always added: out[i][j] += sum over panels p and their lanes l of
  // a[p * panel_size + i * lanes + l] b[p * lanes + l][j]; b: [panels * lanes][lanes].
  void (*sum_images)(int64_t panels, int64_t panel_size, const float* a, const float* b, float* out, int64_t stride);

  // The largest and smallest entry of each lane over rows 0..n-1, n >= 1.
  void (*extremes)(const float* dots, int64_t n, float* largest, float* smallest);

  // The entries with dots >= threshold[lane]; returns how many.
  int64_t (*hits)(const float* dots, int64_t n, const float* threshold, Hit* hits);

  // With u = max(-126, (dots - top[lane]) * factor[lane]) and e = 2^u, per lane: sums of e, of e u and of e^2.
  void (*sums)(const float* dots, int64_t n, const float* top, const float* factor, float* sum, float* weighted,
               float* squares);

  // dots <- weight[lane] e, and per lane the sum of weight e (dots - top).
  void (*gradient)(float* dots, int64_t n, const float* top, const float* factor, const float* weight, float* moment);

  // Per lane the sum of |dots - other + offset[lane]|.
  void (*difference)(const float* dots, const float* other, int64_t n, const float* offset, float* sum);
};

extern const LogitsKernels logits_portable;
#if defined(__x86_64__)
extern const LogitsKernels logits_avx2;
extern const LogitsKernels logits_avx512;
#endif

// The widest set that isa() allows.
const LogitsKernels& logits_kernels();

}  // namespace vlcal
