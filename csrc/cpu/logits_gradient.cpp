#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/logits.h"
#include "cpu/logits_sums.h"
#include "cpu/logits_walk.h"

namespace vlcal {
namespace {

constexpr int64_t kImages = 256;            // summed up in registers for the gradient of the classes
constexpr int64_t kBufferBytes = 64 << 20;  // of logits, unless a single panel needs more

struct Call {
  Features images;
  const int64_t* labels;
  double scale;
  const double* weights;
  float *losses, *image_gradient, *class_gradient;
  double weight(int64_t i) const { return weights ? weights[i] : 1.0; }
};

// The losses of one panel, and the gradient by its logits.
class Panel {
 public:
  struct Scratch {
    Scratch(const PackedClasses&, const Call&) {}
  };

  Panel(const PackedClasses& classes, const Call& call)
      : classes_(classes),
        call_(call),
        sums_(classes.kernels),
        largest_(classes.kernels.lanes),
        smallest_(classes.kernels.lanes),
        label_dot_(classes.kernels.lanes),
        weight_(classes.kernels.lanes),
        part_(classes.kernels.lanes) {}

  void start(int64_t first, int64_t count, const double*) {
    first_ = first;
    count_ = count;
    std::vector<double> factor(classes_.kernels.lanes, 0.0);
    std::fill(factor.begin(), factor.begin() + count, call_.scale);
    sums_.start(factor.data());
  }

  void see(const float* dots, int64_t first_class, int64_t rows, Scratch&) {
    classes_.kernels.extremes(dots, rows, largest_.data(), smallest_.data());
    sums_.add(dots, rows, largest_.data());
    for (int64_t l = 0; l < count_; ++l) {
      const int64_t row = call_.labels[first_ + l] - first_class;
      if (row >= 0 && row < rows) label_dot_[l] = dots[row * classes_.kernels.lanes + l];
    }
  }

  void finish(const float*, Scratch&) {
    for (int64_t l = 0; l < count_; ++l) {
      call_.losses[first_ + l] = static_cast<float>(0.0 - sums_.log_prob(l, label_dot_[l]));
    }
  }

  // Turns the dots of all classes (zeros for padded ones) into the gradient by the dots; returns this panel's part of
  // the gradient by scale.
  double to_gradient(float* dots) {
    const int64_t lanes = classes_.kernels.lanes, count = classes_.classes.count;
    for (int64_t l = 0; l < lanes; ++l) {
      const double share = l < count_ ? call_.weight(first_ + l) * call_.scale / sums_.sum(l) : 0.0;
      weight_[l] = static_cast<float>(share);
    }
    double moment = 0;
    for (int64_t first = 0; first < count; first += kChunk) {
      classes_.kernels.gradient(dots + first * lanes, std::min(kChunk, count - first), sums_.tops(), sums_.factors(),
                                weight_.data(), part_.data());
      for (int64_t l = 0; l < count_; ++l) moment += part_[l];
    }
    for (int64_t l = 0; l < count_; ++l) {
      const double whole = call_.weight(first_ + l) * call_.scale;
      dots[call_.labels[first_ + l] * lanes + l] -= static_cast<float>(whole);
      moment -= whole * (static_cast<double>(label_dot_[l]) - sums_.top(l));
    }
    return moment / call_.scale;
  }

 private:
  const PackedClasses& classes_;
  const Call& call_;
  SoftmaxSums sums_;
  std::vector<float> largest_, smallest_, label_dot_, weight_, part_;
  int64_t first_ = 0, count_ = 0;
};

// Blocks of images: logits, their gradient in place, and the products of it with the classes and with the images.
class Gradients {
 public:
  Gradients(const PackedClasses& classes, const Call& call, int threads)
      : classes_(classes), call_(call), threads_(threads), workers_(std::max(threads, 1)) {
    const LogitsKernels& kernels = classes.kernels;
    const int64_t panel_bytes = classes.padded * kernels.lanes * static_cast<int64_t>(sizeof(float));
    const int64_t most = std::max<int64_t>(kBufferBytes / panel_bytes, 1);
    summed_ = std::min(most, kImages / kernels.lanes);
    // a few panels for every thread, in whole sums, so that results do not depend on the threads
    const int64_t sums = std::clamp<int64_t>((2 * threads + summed_ - 1) / summed_, 1, most / summed_);
    panels_ = std::min(summed_ * sums, (call.images.count + kernels.lanes - 1) / kernels.lanes);
    each_ = panels_per_task(panels_, threads);
    dots_ = aligned_floats(panels_ * classes.padded * kernels.lanes);
    if (call.class_gradient) {
      strips_ = (call.images.dim + kernels.lanes - 1) / kernels.lanes;
      images_ = aligned_floats(strips_ * panels_ * kernels.lanes * kernels.lanes);
      std::fill(call.class_gradient, call.class_gradient + classes.classes.count * call.images.dim, 0.0f);
    }
  }

  // Returns the first image that is not finite or may overflow, or -1.
  int64_t run(double* scale_gradient) {
    const int64_t lanes = classes_.kernels.lanes, all = (call_.images.count + lanes - 1) / lanes;
    double moment = 0;
    for (int64_t first = 0; first < all; first += panels_) {
      const int64_t here = std::min(panels_, all - first);
      std::vector<double> moments(here, 0.0);
      std::vector<int64_t> bad(here, -1);
      parallel_for((here + each_ - 1) / each_, threads_, [&](int64_t task, int worker) {
        const int64_t begin = task * each_, end = std::min(here, begin + each_);
        by_images(first, begin, end, workers_[worker], moments.data(), bad.data());
      });
      for (int64_t p = 0; p < here; ++p) {
        if (bad[p] >= 0) return bad[p];
        moment += moments[p];
      }
      if (call_.class_gradient) by_classes(here);
    }
    if (scale_gradient) *scale_gradient = moment;
    return -1;
  }

 private:
  struct Worker {
    AlignedFloats panel, out;
    std::vector<double> norms;
    std::vector<std::unique_ptr<Panel>> states;
  };

  void by_images(int64_t block, int64_t begin, int64_t end, Worker& mine, double* moments, int64_t* bad) {
    const LogitsKernels& kernels = classes_.kernels;
    const int64_t lanes = kernels.lanes, dim = call_.images.dim, apart = classes_.padded * lanes;
    prepare(mine);
    float* dots = dots_.get() + begin * apart;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = (block + p) * lanes, valid = std::min(lanes, call_.images.count - first);
      pack_panel(kernels, call_.images, first, mine.panel.get() + (p - begin) * dim * lanes, mine.norms.data());
      for (int64_t l = 0; l < valid && bad[p] < 0; ++l) {
        if (may_overflow(call_.scale, mine.norms[l], classes_.largest)) bad[p] = first + l;
      }
      mine.states[p - begin]->start(first, valid, nullptr);
      if (call_.class_gradient) pack_strips(first, p);
    }
    if (*std::max_element(bad + begin, bad + end) >= 0) return;
    const int here = static_cast<int>(end - begin);
    Panel::Scratch scratch(classes_, call_);
    for (int64_t first = 0; first < classes_.classes.count; first += kChunk) {
      const int64_t rows = std::min(kChunk, classes_.classes.count - first);
      classes_.dots(mine.panel.get(), here, first, std::min(kChunk, classes_.padded - first), dots + first * lanes,
                    apart);
      for (int p = 0; p < here; ++p) mine.states[p]->see(dots + p * apart + first * lanes, first, rows, scratch);
    }
    for (int p = 0; p < here; ++p) {
      mine.states[p]->finish(nullptr, scratch);
      moments[begin + p] = mine.states[p]->to_gradient(dots + p * apart);
    }
    if (call_.image_gradient) by_dimensions(block + begin, here, dots, mine);
  }

  void prepare(Worker& mine) {
    if (mine.panel) return;
    const int64_t lanes = classes_.kernels.lanes, tile = classes_.kernels.tile, dim = call_.images.dim;
    mine.panel = aligned_floats(each_ * dim * lanes);
    mine.out = aligned_floats(each_ * (dim + tile) * lanes);
    mine.norms.resize(lanes);
    for (int64_t p = 0; p < each_; ++p) mine.states.push_back(std::make_unique<Panel>(classes_, call_));
  }

  // image_gradient of panels `panel` and following = gradient by dots x centred classes; centring changes nothing,
  // since the gradients by the logits of an image add up to zero
  void by_dimensions(int64_t panel, int panels, const float* dots, Worker& mine) {
    const LogitsKernels& kernels = classes_.kernels;
    const int64_t lanes = kernels.lanes, dim = call_.images.dim, size = (dim + kernels.tile) * lanes;
    classes_.weighted_sums(dots, classes_.padded * lanes, panels, mine.out.get(), size);
    for (int p = 0; p < panels; ++p) {
      const int64_t first = (panel + p) * lanes, valid = std::min(lanes, call_.images.count - first);
      float* rows[kMostLanes];
      for (int64_t l = 0; l < valid; ++l) rows[l] = call_.image_gradient + (first + l) * dim;
      kernels.unpack_panel(mine.out.get() + p * size, dim, rows, static_cast<int>(valid));
    }
  }

  // images_: for each strip of `lanes` dimensions [panels * lanes images][lanes]
  void pack_strips(int64_t first, int64_t panel) {
    const int64_t lanes = classes_.kernels.lanes, dim = call_.images.dim;
    for (int64_t s = 0; s < strips_; ++s) {
      const int64_t width = std::min(lanes, dim - s * lanes);
      float* out = images_.get() + (s * panels_ + panel) * lanes * lanes;
      for (int64_t l = 0; l < lanes; ++l, out += lanes) {
        std::fill(out, out + lanes, 0.0f);
        if (first + l >= call_.images.count) continue;
        const float* row = call_.images.row(first + l) + s * lanes;
        std::copy(row, row + width, out);
      }
    }
  }

  // class_gradient += gradient by dots, transposed, x images; every entry in the same order for any thread count
  void by_classes(int64_t panels) {
    const LogitsKernels& kernels = classes_.kernels;
    const int64_t lanes = kernels.lanes, tile = kernels.tile, dim = call_.images.dim;
    const int64_t apart = classes_.padded * lanes;
    parallel_for(classes_.padded / tile, threads_, [&](int64_t t, int) {
      alignas(64) float edge[kMostLanes * kMostLanes];
      const int64_t first = t * tile, rows = std::min(tile, classes_.classes.count - first);
      for (int64_t s = 0; s < strips_; ++s) {
        float* out = call_.class_gradient + first * dim + s * lanes;
        const int64_t width = std::min(lanes, dim - s * lanes);
        for (int64_t p = 0; p < panels; p += summed_) {
          const float* a = dots_.get() + p * apart + first * lanes;
          const float* b = images_.get() + (s * panels_ + p) * lanes * lanes;
          const int64_t here = std::min(summed_, panels - p);
          if (rows == tile && width == lanes) {
            kernels.sum_images(here, apart, a, b, out, dim);
            continue;
          }
          std::fill(edge, edge + tile * lanes, 0.0f);
          kernels.sum_images(here, apart, a, b, edge, lanes);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t j = 0; j < width; ++j) out[r * dim + j] += edge[r * lanes + j];
          }
        }
      }
    });
  }

  const PackedClasses& classes_;
  const Call& call_;
  const int threads_;
  int64_t summed_, panels_, each_, strips_ = 0;
  AlignedFloats dots_, images_;
  std::vector<Worker> workers_;
};

}  // namespace

int64_t cross_entropy(Features images, Features classes, const int64_t* labels, double scale, const double* weights,
                      float* losses, float* image_gradient, float* class_gradient, double* scale_gradient,
                      int threads) {
  threads = useful_threads(threads, images.count, classes.count, images.dim);
  const bool gradients = image_gradient || class_gradient || scale_gradient;
  PackedClasses packed(logits_kernels(), classes, gradients ? kAllClasses : window_of(classes.dim), threads);
  if (!packed.finite) return 0;
  const Call call{images, labels, scale, weights, losses, image_gradient, class_gradient};
  if (gradients) return Gradients(packed, call, threads).run(scale_gradient);
  return walk<Panel>(packed, nullptr, images, false, [&](int64_t) { return scale; }, threads, call);
}

}  // namespace vlcal
