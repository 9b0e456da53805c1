#include "cpu/logits_dots.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"

namespace vlcal {
namespace {

// longer sums round more: beyond this depth a product is computed in several parts
constexpr int64_t kDepth = 320;

std::vector<float> mean_row(Features rows) {
  std::vector<double> total(rows.dim, 0.0);
  for (int64_t i = 0; i < rows.count; ++i) {
    for (int64_t k = 0; k < rows.dim; ++k) total[k] += rows.row(i)[k];
  }
  std::vector<float> mean(rows.dim);
  for (int64_t k = 0; k < rows.dim; ++k) mean[k] = static_cast<float>(total[k] / rows.count);
  return mean;
}

}  // namespace

double norm(const float* row, int64_t dim) {
  double parts[8] = {};
  int64_t k = 0;
  for (; k + 8 <= dim; k += 8) {
    for (int j = 0; j < 8; ++j) parts[j] += static_cast<double>(row[k + j]) * row[k + j];
  }
  for (; k < dim; ++k) parts[0] += static_cast<double>(row[k]) * row[k];
  double total = 0;
  for (double part : parts) total += part;
  return std::sqrt(total);
}

void pack_rows(Features rows, int64_t first, int64_t width, const float* mean, float* out) {
  constexpr int64_t kBlock = 64;  // the columns written stay in the first cache while the rows go by
  for (int64_t start = 0; start < rows.dim; start += kBlock) {
    const int64_t end = std::min(rows.dim, start + kBlock);
    for (int64_t r = 0; r < width; ++r) {
      if (first + r >= rows.count) {
        for (int64_t k = start; k < end; ++k) out[k * width + r] = 0.0f;
        continue;
      }
      const float* row = rows.row(first + r);
      for (int64_t k = start; k < end; ++k) out[k * width + r] = mean ? row[k] - mean[k] : row[k];
    }
  }
}

void pack_panel(const LogitsKernels& kernels, Features images, int64_t first, float* panel, double* norms) {
  pack_rows(images, first, kernels.lanes, nullptr, panel);
  for (int64_t r = 0; r < kernels.lanes; ++r) {
    norms[r] = first + r < images.count ? norm(images.row(first + r), images.dim) : 0.0;
  }
}

PackedClasses::PackedClasses(const LogitsKernels& kernels, Features classes, int threads)
    : kernels(kernels),
      classes(classes),
      padded((classes.count + kernels.tile - 1) / kernels.tile * kernels.tile),
      mean(mean_row(classes)),
      tiles_(aligned_floats(padded * classes.dim)) {
  const int64_t tiles = padded / kernels.tile;
  std::vector<double> largest_of(tiles, 0.0);
  std::vector<int64_t> bad_of(tiles, classes.count);
  parallel_for(tiles, threads, [&](int64_t tile, int) {
    const int64_t first = tile * kernels.tile, end = std::min(classes.count, first + kernels.tile);
    pack_rows(classes, first, kernels.tile, mean.data(), tiles_.get() + first * classes.dim);
    std::vector<float> centred(classes.dim);
    for (int64_t i = first; i < end; ++i) {
      for (int64_t k = 0; k < classes.dim; ++k) centred[k] = classes.row(i)[k] - mean[k];
      largest_of[tile] = std::max(largest_of[tile], norm(centred.data(), classes.dim));
      if (bad_of[tile] == classes.count && !std::isfinite(norm(classes.row(i), classes.dim))) bad_of[tile] = i;
    }
  });
  largest = *std::max_element(largest_of.begin(), largest_of.end());
  const int64_t first_bad = *std::min_element(bad_of.begin(), bad_of.end());
  bad = first_bad < classes.count ? first_bad : -1;
}

void PackedClasses::dots(const float* panel, int panels, int64_t first, int64_t rows, float* dots,
                         int64_t apart) const {
  const int64_t dim = classes.dim, lanes = kernels.lanes;
  const int64_t parts = (dim + kDepth - 1) / kDepth, depth = (dim + parts - 1) / parts;
  for (int64_t r = 0; r < rows; r += kernels.tile) {
    const float* tile = tiles_.get() + (first + r) * dim;
    for (int p = 0; p < panels; ++p) {
      for (int64_t k = 0; k < dim; k += depth) {
        kernels.product(std::min(depth, dim - k), tile + k * kernels.tile, panel + (p * dim + k) * lanes,
                        dots + p * apart + r * lanes, lanes, k > 0);
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
