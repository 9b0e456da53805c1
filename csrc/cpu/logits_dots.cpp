#include "cpu/logits_dots.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"

namespace vlcal {
namespace {

// longer sums round more: beyond this depth a product is computed in several parts
constexpr int64_t kDepth = 320;

// Packed classes that are read again and again: about what the caches hold.
constexpr int64_t kWindowBytes = 8 << 20;

// The mean of up to 2048 rows, evenly spaced: centring by any row is exact, by about the mean it helps.
std::vector<float> mean_row(Features rows) {
  const int64_t step = (rows.count + 2047) / 2048;
  std::vector<double> total(rows.dim, 0.0);
  for (int64_t i = 0; i < rows.count; i += step) {
    for (int64_t k = 0; k < rows.dim; ++k) total[k] += rows.row(i)[k];
  }
  const double seen = static_cast<double>((rows.count + step - 1) / step);
  std::vector<float> mean(rows.dim);
  for (int64_t k = 0; k < rows.dim; ++k) mean[k] = static_cast<float>(total[k] / seen);
  return mean;
}

// Addresses of rows first .. first + width - 1, of `missing` where there is none.
void addresses(Features rows, int64_t first, int64_t width, const float* missing, const float** out) {
  for (int64_t r = 0; r < width; ++r) out[r] = first + r < rows.count ? rows.row(first + r) : missing;
}

// A bound on the norm from a float32 sum of squares, or the norm in float64 where that sum may be far off.
double norm_bound(float squares, const float* row, const float* mean, int64_t dim) {
  return squares > 1e-25f && squares < 1e30f ? (1 + dim * 0x1p-24) * std::sqrt(squares) : norm(row, mean, dim);
}

}  // namespace

int64_t window_of(int64_t dim) {
  const int64_t chunk_bytes = kChunk * dim * static_cast<int64_t>(sizeof(float));
  return kChunk * std::max<int64_t>(kWindowBytes / chunk_bytes, 1);
}

double norm(const float* row, const float* mean, int64_t dim) {
  double total = 0;
  for (int64_t k = 0; k < dim; ++k) {
    const double value = mean ? static_cast<double>(row[k]) - mean[k] : row[k];
    total += value * value;
  }
  return std::sqrt(total);
}

void pack_panel(const LogitsKernels& kernels, Features images, int64_t first, float* panel, double* norms) {
  const float* rows[kMostLanes];
  float squares[kMostLanes];
  const std::vector<float> zeros(images.count - first < kernels.lanes ? images.dim : 0, 0.0f);
  addresses(images, first, kernels.lanes, zeros.data(), rows);
  kernels.pack_panel(rows, images.dim, panel, squares);
  for (int r = 0; r < kernels.lanes; ++r) norms[r] = norm_bound(squares[r], rows[r], nullptr, images.dim);
}

PackedClasses::PackedClasses(const LogitsKernels& kernels, Features classes, int64_t window, int threads)
    : kernels(kernels),
      classes(classes),
      padded((classes.count + kernels.tile - 1) / kernels.tile * kernels.tile),
      window(std::min(padded, window)),
      mean(mean_row(classes)),
      // with room to read a tile beyond the last dimension
      tiles_(aligned_floats(this->window * classes.dim + kernels.tile * kernels.tile)) {
  std::fill_n(tiles_.get() + this->window * classes.dim, kernels.tile * kernels.tile, 0.0f);
  const bool all = this->window == padded;
  const int64_t tiles = padded / kernels.tile, size = kernels.tile * classes.dim;
  const AlignedFloats scratch = aligned_floats(all ? 0 : std::max(threads, 1) * size);
  std::vector<double> largest_of(tiles, 0.0);
  std::vector<char> finite(tiles, true);
  parallel_for(tiles, threads, [&](int64_t tile, int worker) {
    const float* rows[kMostLanes];
    float squares[kMostLanes];
    pack(tile, all ? tiles_.get() + tile * size : scratch.get() + worker * size, rows, squares);
    for (int r = 0; r < kernels.tile; ++r) {
      const double bound = norm_bound(squares[r], rows[r], mean.data(), classes.dim);
      finite[tile] &= std::isfinite(bound);
      largest_of[tile] = std::max(largest_of[tile], bound);
    }
  });
  largest = *std::max_element(largest_of.begin(), largest_of.end());
  this->finite = std::find(finite.begin(), finite.end(), false) == finite.end();
  held_ = all ? 0 : -1;
}

void PackedClasses::pack(int64_t tile, float* out, const float** rows, float* squares) const {
  addresses(classes, tile * kernels.tile, kernels.tile, mean.data(), rows);  // the mean less the mean: zeros
  kernels.pack_tile(rows, mean.data(), classes.dim, out, squares);
}

void PackedClasses::hold(int64_t first, int threads) {
  if (held_ == first) return;
  held_ = first;
  parallel_for(std::min(window, padded - first) / kernels.tile, threads, [&](int64_t tile, int) {
    const float* rows[kMostLanes];
    float squares[kMostLanes];
    pack(first / kernels.tile + tile, tiles_.get() + tile * kernels.tile * classes.dim, rows, squares);
  });
}

void PackedClasses::dots(const float* panel, int panels, int64_t first, int64_t rows, float* dots,
                         int64_t apart) const {
  const int64_t dim = classes.dim, lanes = kernels.lanes;
  const int64_t parts = (dim + kDepth - 1) / kDepth, depth = (dim + parts - 1) / parts;
  for (int64_t r = 0; r < rows; r += kernels.tile) {
    const float* tile = tiles_.get() + (first - held_ + r) * dim;
    for (int p = 0; p < panels; ++p) {
      for (int64_t k = 0; k < dim; k += depth) {
        kernels.product(std::min(depth, dim - k), tile + k * kernels.tile, panel + (p * dim + k) * lanes,
                        dots + p * apart + r * lanes, lanes, k > 0);
      }
    }
  }
}

void PackedClasses::weighted_sums(const float* weights, int64_t weights_apart, int panels, float* out,
                                  int64_t out_apart) const {
  const int64_t dim = classes.dim, lanes = kernels.lanes, tile = kernels.tile;
  for (int64_t first = 0; first < padded; first += kChunk) {
    const int64_t tiles = std::min(kChunk, padded - first) / tile;
    for (int64_t d = 0; d < dim; d += tile) {
      for (int p = 0; p < panels; ++p) {
        kernels.sum_rows(tiles, dim * tile, tiles_.get() + first * dim + d * tile,
                         weights + p * weights_apart + first * lanes, out + p * out_apart + d * lanes, lanes,
                         first > 0);
      }
    }
  }
}

double PackedClasses::error(double norm) const {
  // each of at most kDepth + dim / kDepth + 3 roundings (centring among them) is off by 2^-24 of the sum of absolute
  // products, which Cauchy-Schwarz bounds; products below the normal range may vanish
  const double roundings = std::min<int64_t>(classes.dim, kDepth) + classes.dim / kDepth + 4.0;
  return 1.01 * roundings * 0x1p-24 * norm * largest + classes.dim * 0x1p-126;
}

}  // namespace vlcal
