#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/logits.h"
#include "cpu/logits_candidates.h"
#include "cpu/logits_walk.h"

namespace vlcal {
namespace {

struct Call {
  Features images;
  double scale;
  const PackedClasses* other_classes;
  Features other_images;
  float *largest, *smallest, *difference;
  int64_t* argmax;
};

class Panel {
 public:
  struct Scratch : CandidateScratch {
    Scratch(const PackedClasses& classes, const Call& call) : CandidateScratch(classes) {
      if (call.other_classes) other_dots = aligned_floats(std::min(kChunk, classes.padded) * classes.kernels.lanes);
    }
    AlignedFloats other_dots;
  };

  Panel(const PackedClasses& classes, const Call& call)
      : classes_(classes),
        call_(call),
        candidates_(classes, 1),
        largest_(classes.kernels.lanes),
        smallest_(classes.kernels.lanes),
        high_(classes.kernels.lanes),
        low_(classes.kernels.lanes),
        offset_(classes.kernels.lanes),
        part_(classes.kernels.lanes),
        shift_(classes.kernels.lanes),
        difference_(classes.kernels.lanes),
        norms_(classes.kernels.lanes) {
    if (call.other_classes) other_panel_ = aligned_floats(call.other_images.dim * classes.kernels.lanes);
  }

  void start(int64_t first, int64_t count, const double* norms) {
    first_ = first;
    count_ = count;
    candidates_.start(call_.images, first, count, norms);
    std::fill(high_.begin(), high_.end(), -std::numeric_limits<float>::infinity());
    std::fill(low_.begin(), low_.end(), std::numeric_limits<float>::infinity());
    std::fill(difference_.begin(), difference_.end(), 0.0);
    std::fill(offset_.begin(), offset_.end(), 0.0f);
    for (int64_t l = 0; l < count; ++l) shift_[l] = mean_dot(call_.images, classes_, first + l);
    if (!call_.other_classes) return;
    pack_panel(classes_.kernels, call_.other_images, first, other_panel_.get(), norms_.data());
    for (int64_t l = 0; l < count; ++l) {
      const double other = mean_dot(call_.other_images, *call_.other_classes, first + l);
      offset_[l] = static_cast<float>(shift_[l] - other);
    }
  }

  void see(const float* dots, int64_t first_class, int64_t rows, Scratch& scratch) {
    classes_.kernels.extremes(dots, rows, largest_.data(), smallest_.data());
    candidates_.see(dots, first_class, rows, largest_.data(), scratch);
    for (int l = 0; l < classes_.kernels.lanes; ++l) {
      high_[l] = std::max(high_[l], largest_[l]);
      low_[l] = std::min(low_[l], smallest_[l]);
    }
    if (!call_.other_classes) return;
    const int64_t filled = std::min(kChunk, classes_.padded - first_class);
    call_.other_classes->dots(other_panel_.get(), 1, first_class, filled, scratch.other_dots.get(), 0);
    classes_.kernels.difference(dots, scratch.other_dots.get(), rows, offset_.data(), part_.data());
    for (int l = 0; l < classes_.kernels.lanes; ++l) difference_[l] += part_[l];
  }

  void finish(const float*, Scratch& scratch) {
    for (int64_t l = 0; l < count_; ++l) {
      const int64_t i = first_ + l;
      call_.argmax[i] = candidates_.best(l, scratch)[0].index;
      call_.largest[i] = static_cast<float>(call_.scale * (shift_[l] + high_[l]));
      call_.smallest[i] = static_cast<float>(call_.scale * (shift_[l] + low_[l]));
      const double mean = difference_[l] / classes_.classes.count;
      if (call_.other_classes) call_.difference[i] = static_cast<float>(call_.scale * mean);
    }
  }

 private:
  // what centring took away from every dot product of an image
  static double mean_dot(Features images, const PackedClasses& classes, int64_t i) {
    double total = 0;
    for (int64_t k = 0; k < images.dim; ++k) total += static_cast<double>(images.row(i)[k]) * classes.mean[k];
    return total;
  }

  const PackedClasses& classes_;
  const Call& call_;
  Candidates candidates_;
  std::vector<float> largest_, smallest_, high_, low_, offset_, part_;
  std::vector<double> shift_, difference_, norms_;
  AlignedFloats other_panel_;
  int64_t first_ = 0, count_ = 0;
};

int64_t first_bad(Features images, double scale, double largest) {
  for (int64_t i = 0; i < images.count; ++i) {
    if (may_overflow(scale, norm(images.row(i), nullptr, images.dim), largest)) return i;
  }
  return -1;
}

}  // namespace

int64_t logit_statistics(Features images, Features classes, double scale, Features other_images,
                         Features other_classes, float* largest, int64_t* argmax, float* smallest, float* difference,
                         int threads) {
  threads = useful_threads(threads, images.count, classes.count, images.dim);
  const LogitsKernels& kernels = logits_kernels();
  const int64_t window = window_of(classes.dim + other_classes.dim);  // the same of both
  PackedClasses packed(kernels, classes, window, threads);
  if (!packed.finite) return 0;
  std::unique_ptr<PackedClasses> other;
  if (other_classes.count > 0) {
    other = std::make_unique<PackedClasses>(kernels, other_classes, window, threads);
    if (!other->finite) return 0;
    if (const int64_t bad = first_bad(other_images, scale, other->largest); bad >= 0) return bad;
  }
  const Call call{images, scale, other.get(), other_images, largest, smallest, difference, argmax};
  return walk<Panel>(packed, other.get(), images, false, [&](int64_t) { return scale; }, threads, call);
}

}  // namespace vlcal
