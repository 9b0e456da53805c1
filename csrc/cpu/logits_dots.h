// Blocks of dot products between images and classes: packing, and the certified error of a float32 dot product.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/logits_kernels.h"

namespace vlcal {

// Contiguous rows of features.
struct Features {
  const float* values;
  int64_t count, dim;
  const float* row(int64_t i) const { return values + i * dim; }
};

// Classes visited at once; a multiple of the tile of every instruction set, so that results do not depend on how many
// images or threads there are.
constexpr int64_t kChunk = 504;

constexpr int64_t kAllClasses = INT64_MAX;

// Classes worth packing at once, of `dim` values: packing all of many would cost a copy of them.
int64_t window_of(int64_t dim);

// The classes less (about) their mean, in tiles. A softmax does not see the mean (it adds one constant to a row), and
// without it dot products are smaller and round less.
class PackedClasses {
 public:
  // Packs all classes if `window` has room for them, else only reads them: then hold() packs some.
  PackedClasses(const LogitsKernels& kernels, Features classes, int64_t window, int threads);

  // Packs classes first .. first + window - 1 (`first` a multiple of the window) unless they are packed.
  void hold(int64_t first, int threads);

  // dots[r][lane] for classes first .. first + rows - 1 (both multiples of the tile, and held) and each of `panels`
  // panels, which are dim * lanes apart; the results of a panel are `apart` floats from those of the last.
  void dots(const float* panel, int panels, int64_t first, int64_t rows, float* dots, int64_t apart) const;

  // [panels][dim][lanes] = the transposed product of the tiles and `weights` [classes][lanes] (padded classes: zeros),
  // panels `weights_apart` and `out_apart` apart; out has room for a tile more. All classes must be held.
  void weighted_sums(const float* weights, int64_t weights_apart, int panels, float* out, int64_t out_apart) const;

  // Bound on |float32 dot product - (row - mean) . image| for an image of this norm.
  double error(double norm) const;

  const LogitsKernels& kernels;
  const Features classes;
  const int64_t padded;      // count rounded up to tiles
  const int64_t window;      // classes held at once: a multiple of kChunk, or `padded`
  std::vector<float> mean;   // [dim]
  double largest = 0;        // bound on the norms of centred classes
  bool finite = true;        // every value

 private:
  // The tile, the addresses of its rows, and per row a sum of squares.
  void pack(int64_t tile, float* out, const float** rows, float* squares) const;

  AlignedFloats tiles_;
  int64_t held_ = 0;  // the first class that is packed, -1 if none is
};

// Rows first .. first + lanes - 1 of `images` as a panel [dim][lanes], missing ones as zeros, and bounds on their norms
// (barely above them; not finite exactly if a value is not).
void pack_panel(const LogitsKernels& kernels, Features images, int64_t first, float* panel, double* norms);

// Euclidean norm of row - mean (mean null: 0); not finite exactly if a value is not.
double norm(const float* row, const float* mean, int64_t dim);

}  // namespace vlcal
