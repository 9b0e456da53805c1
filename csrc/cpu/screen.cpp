#include "cpu/screen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "checks.h"
#include "cpu/parallel.h"

namespace vlcal {
namespace {

constexpr double kUnit = 5.9604644775390625e-08;  // 2^-24, half an ulp of a float near 1
constexpr double kUp = 1.0 + 1e-6;                // covers the float64 and float roundings of a norm

float up(double value) {
  const float near = static_cast<float>(value);
  return near < value ? std::nextafter(near, std::numeric_limits<float>::infinity()) : near;
}

// the same without a library call, not as tight
float above(double value) { return static_cast<float>(value + 1.3e-7 * std::fabs(value) + 1e-37); }

// words: the row in its format, padded with zeros.
Rounded round_row(const Rounding& rounding, Format format, const float* x, int64_t n, std::vector<uint32_t>& words) {
  words.back() = 0;
  if (format == Format::kInt8) return rounding.to_int8(x, n, reinterpret_cast<int8_t*>(words.data()));
  if (format == Format::kBfloat) return rounding.to_bfloat(x, n, reinterpret_cast<uint16_t*>(words.data()));
  std::memcpy(words.data(), x, n * sizeof(float));
  return {1.0f, 0, rounding.length(x, n) * kUp, 0.0};
}

void scatter(const std::vector<uint32_t>& words, uint32_t flip, int64_t stride, uint32_t* out) {
  for (size_t k = 0; k < words.size(); ++k) out[k * stride] = words[k] ^ flip;
}

// Places n <= kPanel rows; `rows(r)` gives their addresses.
struct Placed {
  std::vector<float> x, screened;
  std::vector<double> norms;

  template <class Row>
  void place(const Frame& frame, const Basis* basis, int64_t n, Row row) {
    x.resize(n * frame.dim());
    norms.resize(n);
    for (int64_t r = 0; r < n; ++r) norms[r] = frame.place(row(r), x.data() + r * frame.dim());
    if (basis) {
      screened.resize(n * basis->dims());
      basis->project(x.data(), norms.data(), n, screened.data());
    }
  }
};

}  // namespace

template <class Real>
double Frame::place(const Real* row, float* x) const {
  if constexpr (sizeof(Real) == sizeof(float)) {
    return rounding->place_float(row, center.data(), scale, dim(), x);
  } else {
    return rounding->place_double(row, center.data(), scale, dim(), x);
  }
}

template <class Real>
float Frame::bias(const Real* row, double norm) const {
  if (metric == Metric::kDistance) return up(-0.5 * norm * norm * (1 - 8 * kUnit)) + kSlack;
  const double* c = center.data();
  const double product = sum_over(dim(), [=](int64_t i) { return c[i] * (static_cast<double>(row[i]) - c[i]); });
  return up(scale * scale * product + bias_error() * norm) + kSlack;
}

double Frame::bias_error() const {
  if (metric == Metric::kDistance) return 0.0;
  const double* c = center.data();
  const double size = std::sqrt(sum_over(dim(), [c](int64_t i) { return c[i] * c[i]; }));
  return scale * size * static_cast<double>(dim() + 16) * 5e-16;
}

template <class Real>
Frame frame_of(const Real* keys, int64_t rows, int64_t dim, Metric metric, const Isa& isa) {
  Frame frame;
  frame.rounding = &rounding(isa);
  frame.metric = metric;
  frame.center.assign(dim, 0.0);
  const int64_t step = std::max<int64_t>(1, rows / 8192), count = (rows + step - 1) / step;
  for (int64_t i = 0; i < rows; i += step) {
    for (int64_t j = 0; j < dim; ++j) frame.center[j] += static_cast<double>(keys[i * dim + j]);
  }
  for (double& value : frame.center) value = static_cast<Real>(value / static_cast<double>(count));
  double most = 0;
  for (int64_t i = 0; i < rows; i += step) {
    for (int64_t j = 0; j < dim; ++j) most = std::max(most, std::fabs(keys[i * dim + j] - frame.center[j]));
  }
  int exponent = 0;
  std::frexp(most, &exponent);
  frame.scale = std::ldexp(1.0, -std::clamp(exponent, -300, 300));
  return frame;
}

Basis::Basis(const float* directions, int64_t count, int64_t dim, const Isa& isa)
    : kernel_(tile_kernel(Format::kFloat, isa)), rounding_(rounding(isa)), count_(count), dim_(dim) {
  double off = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const float *a = directions + i * dim, *b = directions + j * dim;
      const double g = sum_over(dim, [=](int64_t k) { return static_cast<double>(a[k]) * b[k]; }) - (i == j);
      off += (i == j ? 1 : 2) * g * g;
    }
  }
  skew_ = std::sqrt(off) * kUp + 1e-12;
  delta_ = std::sqrt(static_cast<double>(count)) * static_cast<double>(dim + 8) * kUnit;
  if (!(skew_ <= 0.01 && delta_ <= 0.1)) refuse("SearchIndex", "directions must be orthonormal, they are off by ", skew_);
  const int rows = kernel_->rows;
  const int64_t panels = (count + rows - 1) / rows;
  words_ = aligned<uint32_t>(panels * dim * rows);
  std::fill(words_.get(), words_.get() + panels * dim * rows, 0u);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t* out = words_.get() + i / rows * dim * rows + i % rows;
    for (int64_t k = 0; k < dim; ++k) std::memcpy(out + k * rows, directions + i * dim + k, sizeof(float));
  }
}

void Basis::project(const float* x, const double* norms, int64_t n, float* out) const {
  const int rows = kernel_->rows;
  Aligned<uint32_t> keys = aligned<uint32_t>(dim_ * kPanel);
  std::fill(keys.get(), keys.get() + dim_ * kPanel, 0u);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t k = 0; k < dim_; ++k) std::memcpy(keys.get() + k * kPanel + r, x + r * dim_ + k, sizeof(float));
  }
  float ones[kPanel], zeros[kPanel] = {}, values[16 * kPanel], everything[16];
  uint32_t hits[16];
  std::fill(ones, ones + kPanel, 1.0f);
  std::fill(everything, everything + 16, -std::numeric_limits<float>::infinity());
  for (int64_t first = 0; first < count_; first += rows) {
    const RowPanel panel{words_.get() + first * dim_, ones, everything};
    kernel_->tile(dim_, panel, {keys.get(), nullptr, ones, zeros}, nullptr, 0, values, hits);
    for (int64_t i = first; i < std::min(first + rows, count_); ++i) {
      for (int64_t r = 0; r < n; ++r) out[r * dims() + i] = values[(i - first) * kPanel + r];
    }
  }
  for (int64_t r = 0; r < n; ++r) {
    float* row = out + r * dims();
    const double norm = norms[r] * kUp, inside = std::max(0.0, rounding_.length(row, count_) - delta_ * norm) / kUp;
    const double outside = std::sqrt(std::max(0.0, norm * norm - (1 - skew_) * inside * inside));
    std::fill(row + count_, row + dims(), up(outside * kUp / 2));
  }
}

template <class Real>
Screen::Screen(Format format, const Isa& isa, const Frame& frame, const Basis* basis, const Real* keys, int64_t rows,
               const std::vector<int32_t>& order, int threads)
    : kernel_(tile_kernel(format, isa)), place_(frame.rounding), basis_(basis), dim_(frame.dim()), dims_(basis ? basis->dims() : dim_) {
  const int per_word = dimensions_per_word(format);
  words_per_row_ = (dims_ + per_word - 1) / per_word;
  panels_ = (rows + kPanel - 1) / kPanel;
  kappa_ = (basis ? basis->kappa() : 0.0) + 8 * kUnit;
  bias_error_ = frame.bias_error();
  rounding_ = (format == Format::kInt8 ? 8.0 : static_cast<double>(2 * dims_ + 8)) * kUnit;
  words_ = aligned<uint32_t>(panels_ * words_per_row_ * kPanel);
  start_.assign(panels_ * kPanel, 0);
  scale_.assign(panels_ * kPanel, 0.0f);
  bias_.assign(panels_ * kPanel, -1e38f);  // slots without a key
  span_.assign(panels_ * kPanel, 0.0f);
  error_.assign(panels_ * kPanel, 0.0f);
  std::vector<double> longest(panels_, 0.0);
  parallel_for(panels_, threads, [&](int64_t p, int) {
    const int64_t first = p * kPanel, n = std::min<int64_t>(kPanel, rows - first);
    uint32_t* out = words_.get() + p * words_per_row_ * kPanel;
    std::fill(out, out + words_per_row_ * kPanel, 0u);
    auto key = [&](int64_t r) { return keys + order[first + r] * dim_; };
    Placed placed;
    placed.place(frame, basis_, n, key);
    std::vector<uint32_t> words(words_per_row_);
    for (int64_t r = 0; r < n; ++r) {
      longest[p] = std::max(longest[p], placed.norms[r]);
      const Rounded row = round_row(*frame.rounding, format, (basis_ ? placed.screened : placed.x).data() + r * dims_, dims_, words);
      scatter(words, 0u, kPanel, out + r);
      const int64_t slot = first + r;
      start_[slot] = -128 * row.sum;
      scale_[slot] = row.scale;
      bias_[slot] = frame.bias(key(r), placed.norms[r]);
      span_[slot] = up(std::max(row.span, placed.norms[r] * kUp));
      error_[slot] = up(row.error + rounding_ * (row.span + row.error));
    }
  });
  longest_ = *std::max_element(longest.begin(), longest.end());
  for (int64_t slot = 0; slot < rows; ++slot) {
    most_span_ = std::max(most_span_, span_[slot]);
    most_error_ = std::max(most_error_, error_[slot]);
    most_bias_ = std::max(most_bias_, std::fabs(bias_[slot]));
  }
}

ScreenRows Screen::pack(const float* x, const double* norms, int64_t n) const {
  const int tile = kernel_->rows;
  const int64_t panels = (n + tile - 1) / tile;
  ScreenRows rows;
  rows.words = aligned<uint32_t>(panels * words_per_row_ * tile);
  std::fill(rows.words.get(), rows.words.get() + panels * words_per_row_ * tile, 0u);
  rows.scale.assign(panels * tile, 0.0f);
  std::vector<float> screened;
  if (basis_) {
    screened.resize(n * dims_);
    for (int64_t r = 0; r < n; r += kPanel) {
      basis_->project(x + r * dim_, norms + r, std::min<int64_t>(kPanel, n - r), screened.data() + r * dims_);
    }
    x = screened.data();
  }
  const uint32_t flip = kernel_->format == Format::kInt8 ? 0x80808080u : 0u;
  std::vector<uint32_t> words(words_per_row_);
  for (int64_t r = 0; r < n; ++r) {
    const Rounded row = round_row(*place_, kernel_->format, x + r * dims_, dims_, words);
    scatter(words, flip, tile, rows.words.get() + r / tile * words_per_row_ * tile + r % tile);
    rows.scale[r] = row.scale;
    const double norm = std::max(norms[r] * kUp, row.span);
    rows.alpha = std::max(rows.alpha, (row.error + kappa_ * norm) * kUp);
    rows.beta = std::max(rows.beta, (row.span + row.error) * kUp);
  }
  return rows;
}

KeyPanel Screen::panel(int64_t p) const {
  const int64_t first = p * kPanel;
  return {words_.get() + first * words_per_row_, start_.data() + first, scale_.data() + first, bias_.data() + first};
}

void Screen::certify(int64_t p, const ScreenRows& rows, float* bias) const {
  const float alpha = up(rows.alpha * kUp), beta = up(rows.beta * kUp);
  for (int64_t j = 0, slot = p * kPanel; j < kPanel; ++j, ++slot) {
    bias[j] = bias_[slot] + 4.8e-7f * std::fabs(bias_[slot]) + (alpha * span_[slot] + beta * error_[slot]) + kSlack;
  }
}

float Screen::width(const ScreenRows& rows) const {
  if (basis_) return std::numeric_limits<float>::infinity();
  const double certificate = rows.alpha * most_span_ + rows.beta * most_error_;
  return up(2.001 * (certificate + bias_error_ * most_span_) + 32 * kUnit * (most_bias_ + rows.beta * most_span_) + 4.0 * kSlack);
}

int64_t Screen::bytes() const {
  return panels_ * kPanel * (4 * words_per_row_ + static_cast<int64_t>(sizeof(int32_t) + 4 * sizeof(float)));
}

template <class Real>
FineKeys::FineKeys(const Isa& isa, const Frame& frame, const Real* keys, int64_t rows,
                   const std::vector<int32_t>& order, int threads)
    : dot_(dot_int8(isa)), place_(frame.rounding), rows_(rows), dim_(frame.dim()), padded_((dim_ + 63) / 64 * 64), bias_error_(frame.bias_error()) {
  const int64_t stride = kHeader + padded_;
  bytes_ = aligned<uint8_t>(rows * stride);
  parallel_for((rows + kPanel - 1) / kPanel, threads, [&](int64_t task, int) {
    std::vector<float> x(dim_);
    for (int64_t slot = task * kPanel; slot < std::min(rows, (task + 1) * kPanel); ++slot) {
      const Real* key = keys + order[slot] * dim_;
      const double norm = frame.place(key, x.data());
      int8_t* values = reinterpret_cast<int8_t*>(bytes_.get() + slot * stride + kHeader);
      std::fill(values, values + padded_, int8_t{0});
      const Rounded row = frame.rounding->to_int8(x.data(), dim_, values);
      const Header header{row.scale, frame.bias(key, norm), up(row.span), up(row.error), -128 * row.sum};
      std::memcpy(bytes_.get() + slot * stride, &header, sizeof header);
    }
  });
}

FineKeys::Row FineKeys::pack(const float* x, double norm) const {
  Row out;
  std::vector<int8_t> values(padded_, 0);
  const Rounded row = place_->to_int8(x, dim_, values.data());
  out.values.resize(padded_);
  for (int64_t i = 0; i < padded_; ++i) out.values[i] = static_cast<uint8_t>(values[i] + 128);
  out.scale = row.scale;
  out.alpha = (row.error + 8 * kUnit * norm) * kUp;
  out.beta = (row.span + row.error) * kUp;
  return out;
}

Bounds FineKeys::bounds(const Row& row, int32_t slot) const {
  const uint8_t* at = bytes_.get() + slot * (kHeader + padded_);
  Header header;
  std::memcpy(&header, at, sizeof header);
  const int32_t sum = header.start + dot_(row.values.data(), reinterpret_cast<const int8_t*>(at + kHeader), padded_);
  const double value = row.scale * header.scale * sum + header.bias;
  const double certificate = kUp * (row.alpha * header.span + row.beta * header.error) + kSlack;
  const double bias = 16 * kUnit * std::fabs(header.bias) + 2.001 * bias_error_ * header.span + 4.0 * kSlack;
  return {-above(certificate + bias - value), above(value + certificate)};
}

void FineKeys::prefetch(int32_t slot) const {
  const uint8_t* at = bytes_.get() + slot * (kHeader + padded_);
  for (int64_t i = 0; i < kHeader + padded_; i += 64) __builtin_prefetch(at + i);
}

#define VLCAL_SCREEN(Real)                                                                                        \
  template double Frame::place(const Real*, float*) const;                                                        \
  template Frame frame_of(const Real*, int64_t, int64_t, Metric, const Isa&);                                                 \
  template Screen::Screen(Format, const Isa&, const Frame&, const Basis*, const Real*, int64_t,                   \
                          const std::vector<int32_t>&, int);                                                      \
  template FineKeys::FineKeys(const Isa&, const Frame&, const Real*, int64_t, const std::vector<int32_t>&, int);
VLCAL_SCREEN(float)
VLCAL_SCREEN(double)

}  // namespace vlcal
