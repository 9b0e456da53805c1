// The certified screen: an upper bound of how near each key can be, computed in low precision.
//
// Let c be the center of the keys and s a power of two, x = s (v - c) for a key v and y = s (q - c) for a query q. A key
// is as near as its score is high:
//   L2:  |q - v|^2 = (|y|^2 - 2 S) / s^2          with S = y.x - |x|^2 / 2
//   dot: q.v = S / s^2 + q.c                      with S = y.x + s^2 c.(v - c)
// so S = y.x + bias(key). Centering is exact (c is any fixed vector, x is a definition), and makes |x| small.
//
// Screen vectors. x~ is x rounded to float, or, with a basis U of d1 directions, (p, t/2, t/2, t/2, t/2): p = U'x
// computed in float and t an upper bound of the length of x outside the span of U. Either way
//   y.x <= y~.x~ + kappa |y| |x|                                                                                (1)
// Without a basis kappa covers two roundings to float. With one, let G = U'U and |G - 1| <= skew. Exactly,
// y.x = (U'y)' G^-1 (U'x) + (parts outside the span), the latter at most t_y t_x = 4 (t_y / 2)(t_x / 2), and
// |U'x - p| <= delta |x| with delta = sqrt(d1) (D + 8) 2^-24, so kappa = 1.1 skew + 2.3 delta covers G^-1 and p; the part
// outside has |.|^2 <= |x|^2 - (1 - skew) (|p| - delta |x|)^2.
//
// Rounding to a format gives x^ = x~ + r with |r| measured, likewise y^ = y~ + e:
//   y~.x~ = y^.x^ - e.x~ - y^.r <= y^.x^ + |e| |x~| + |y^| |r|                                                  (2)
// (Cauchy-Schwarz; nothing is assumed about the data). The kernel returns float(y^.x^ + bias): integer sums are exact and
// the last steps round three times; float sums of d terms stay within (d + 8) 2^-24 |y^| |x^| whatever their order. With
//   alpha = |e| + kappa |y|,  span = |x~|,  beta = |y^|,  error = |r| + rounding (|x~| + |r|)
// every S is at most the kernel's value with bias + alpha span + beta error in the place of bias: the certificate. All
// quantities are rounded up, and 1e-20 absolute covers what flushing of denormals can do for |x|, |y| <= 2^40; rows
// beyond that are searched without a screen.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/gemm_tile.h"
#include "cpu/rounding.h"
#include "cpu/search.h"

namespace vlcal {

constexpr double kLongest = 1099511627776.0;  // 2^40
constexpr float kSlack = 1e-20f;

// sum of f(i) over i < n in eight lanes, which compilers turn into vectors
template <class F>
double sum_over(int64_t n, F f) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) lanes[j] += f(i + j);
  }
  for (; i < n; ++i) lanes[0] += f(i);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// Where x and y live. `scale` is a power of two.
struct Frame {
  std::vector<double> center;
  double scale = 1.0;
  Metric metric = Metric::kDistance;
  const Rounding* rounding = nullptr;

  int64_t dim() const { return static_cast<int64_t>(center.size()); }

  // Writes x as floats and returns |x|.
  template <class Real>
  double place(const Real* row, float* x) const;

  // What a key adds to the product, rounded up, given |x| as computed by place.
  template <class Real>
  float bias(const Real* row, double norm) const;

  // The float64 rounding of a bias, for |x| = 1.
  double bias_error() const;
};

// A center and scale that suit the keys (a sample of them; any would be correct).
template <class Real>
Frame frame_of(const Real* keys, int64_t rows, int64_t dim, Metric metric, const Isa& isa);

// Directions that hold most of the keys' variance, nearly orthonormal, for screens of fewer dimensions.
class Basis {
 public:
  Basis(const float* directions, int64_t count, int64_t dim, const Isa& isa);

  int64_t dims() const { return count_ + 4; }
  double kappa() const { return 1.1 * skew_ + 2.3 * delta_; }

  // out[r] = (p, t/2, t/2, t/2, t/2) of row r; n <= kPanel rows x[n][dim] of the given lengths.
  void project(const float* x, const double* norms, int64_t n, float* out) const;

 private:
  const TileKernel* kernel_;
  const Rounding& rounding_;
  int64_t count_, dim_;
  double skew_, delta_;
  Aligned<uint32_t> words_;
};

// Queries in a screen's format.
struct ScreenRows {
  Aligned<uint32_t> words;  // [panels][words][kernel rows]
  std::vector<float> scale;
  double alpha = 0, beta = 0;  // the largest of the block
};

// Keys in one format; `basis` may be nullptr. Slot s holds the key order(s), which spreads any order of the keys.
class Screen {
 public:
  template <class Real>
  Screen(Format format, const Isa& isa, const Frame& frame, const Basis* basis, const Real* keys, int64_t rows,
         const std::vector<int32_t>& order, int threads);

  // x: [n][dim] placed queries of the given lengths.
  ScreenRows pack(const float* x, const double* norms, int64_t n) const;

  KeyPanel panel(int64_t p) const;
  int64_t panels() const { return panels_; }
  int64_t words() const { return words_per_row_; }
  const TileKernel& kernel() const { return *kernel_; }
  bool has_basis() const { return basis_ != nullptr; }
  double longest() const { return longest_; }
  bool usable() const { return longest_ <= kLongest; }

  // bias[j] <- the bias of the certificate for the rows of a block.
  void certify(int64_t p, const ScreenRows& rows, float* bias) const;

  int64_t bytes() const;

  // S >= (certified value) - width for every key and row of the block; infinite with a basis.
  float width(const ScreenRows& rows) const;

 private:
  const TileKernel* kernel_;
  const Rounding* place_;
  const Basis* basis_;
  int64_t dim_, dims_, words_per_row_, panels_;
  double kappa_, rounding_, bias_error_, longest_ = 0;
  Aligned<uint32_t> words_;
  std::vector<int32_t> start_;
  std::vector<float> scale_, bias_, span_, error_;
  float most_span_ = 0, most_error_ = 0, most_bias_ = 0;
};

// Bounds of one key's score; lower <= S <= upper.
struct Bounds {
  float lower, upper;
};

// Keys in int8, one after the other, to refine the candidates of a screen with a basis one by one.
class FineKeys {
 public:
  template <class Real>
  FineKeys(const Isa& isa, const Frame& frame, const Real* keys, int64_t rows, const std::vector<int32_t>& order,
           int threads);

  struct Row {
    std::vector<uint8_t> values;
    double scale = 0, alpha = 0, beta = 0;
  };
  Row pack(const float* x, double norm) const;
  Bounds bounds(const Row& row, int32_t slot) const;
  void prefetch(int32_t slot) const;
  int64_t bytes() const { return rows_ * (kHeader + padded_); }

 private:
  struct Header {
    float scale, bias, span, error;
    int32_t start;
  };
  static constexpr int64_t kHeader = 64;

  DotInt8 dot_;
  const Rounding* place_;
  int64_t rows_, dim_, padded_;
  double bias_error_;
  Aligned<uint8_t> bytes_;
};

}  // namespace vlcal
