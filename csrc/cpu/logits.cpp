#include "cpu/logits.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/logits_candidates.h"
#include "cpu/logits_sums.h"
#include "cpu/logits_walk.h"

namespace vlcal {
namespace {

struct Call {
  Features images;
  double scale;
  const double* row_scale;
  const double* predicted_scale;
  const int64_t* labels;
  int64_t k;
  SoftmaxOutputs out;
};

// One panel of images on its way through the classes.
class Panel {
 public:
  struct Scratch : CandidateScratch {
    Scratch(const PackedClasses& classes, const Call&) : CandidateScratch(classes) {}
  };

  Panel(const PackedClasses& classes, const Call& call)
      : classes_(classes),
        call_(call),
        candidates_(classes, call.k),
        sums_(classes.kernels),
        largest_(classes.kernels.lanes),
        smallest_(classes.kernels.lanes),
        factor_(classes.kernels.lanes),
        label_dot_(classes.kernels.lanes) {}

  void start(int64_t first, int64_t count, const double* norms) {
    first_ = first;
    count_ = count;
    candidates_.start(call_.images, first, count, norms);
    for (int64_t l = 0; l < classes_.kernels.lanes; ++l) {
      factor_[l] = l < count ? call_.scale * (call_.row_scale ? call_.row_scale[first + l] : 1.0) : 0.0;
    }
    sums_.start(factor_.data());
  }

  void see(const float* dots, int64_t first_class, int64_t rows, Scratch& scratch) {
    classes_.kernels.extremes(dots, rows, largest_.data(), smallest_.data());
    candidates_.see(dots, first_class, rows, largest_.data(), scratch);
    if (!call_.predicted_scale) sums_.add(dots, rows, largest_.data());
    for (int64_t l = 0; call_.labels && l < count_; ++l) {
      const int64_t row = call_.labels[first_ + l] - first_class;
      if (row >= 0 && row < rows) label_dot_[l] = dots[row * classes_.kernels.lanes + l];
    }
  }

  // With predicted_scale the factor is known only now: `dots` holds all classes.
  void finish(const float* dots, Scratch& scratch) {
    for (int64_t l = 0; l < count_; ++l) {
      const std::vector<Candidate>& best = candidates_.best(l, scratch);
      if (call_.predicted_scale) factor_[l] *= call_.predicted_scale[best[0].index];
    }
    if (call_.predicted_scale) {
      sums_.start(factor_.data());
      for (int64_t first = 0; first < classes_.classes.count; first += kChunk) {
        const float* chunk = dots + first * classes_.kernels.lanes;
        const int64_t rows = std::min(kChunk, classes_.classes.count - first);
        classes_.kernels.extremes(chunk, rows, largest_.data(), smallest_.data());
        sums_.add(chunk, rows, largest_.data());
      }
    }
    for (int64_t l = 0; l < count_; ++l) write(l);
  }

 private:
  void write(int64_t l) {
    const int64_t i = first_ + l;
    const std::vector<Candidate>& best = candidates_.listed(l);
    for (int64_t j = 0; j < call_.k; ++j) {
      call_.out.topk_index[i * call_.k + j] = best[j].index;
      call_.out.topk_prob[i * call_.k + j] = static_cast<float>(std::exp(sums_.log_prob(l, best[j].dot)));
    }
    call_.out.predicted[i] = best[0].index;
    call_.out.confidence[i] = call_.out.topk_prob[i * call_.k];
    call_.out.entropy[i] = static_cast<float>(sums_.entropy(l));
    call_.out.sum_squares[i] = static_cast<float>(sums_.sum_squares(l));
    if (call_.labels) call_.out.log_likelihood[i] = static_cast<float>(sums_.log_prob(l, label_dot_[l]));
  }

  const PackedClasses& classes_;
  const Call& call_;
  Candidates candidates_;
  SoftmaxSums sums_;
  std::vector<float> largest_, smallest_;
  std::vector<double> factor_;
  std::vector<float> label_dot_;
  int64_t first_ = 0, count_ = 0;
};

}  // namespace

int64_t calibrated_softmax(Features images, Features classes, double scale, const double* row_scale,
                           const double* predicted_scale, const int64_t* labels, int64_t k, SoftmaxOutputs out,
                           int threads) {
  threads = useful_threads(threads, images.count, classes.count, images.dim);
  // a factor that depends on the prediction is known late: then every dot product of a panel is kept
  const bool whole = predicted_scale != nullptr;
  PackedClasses packed(logits_kernels(), classes, whole ? kAllClasses : window_of(classes.dim), threads);
  if (!packed.finite) return 0;
  const Call call{images, scale, row_scale, predicted_scale, labels, k, out};
  const double most = predicted_scale ? *std::max_element(predicted_scale, predicted_scale + classes.count) : 1.0;
  const auto factor = [&](int64_t i) { return scale * most * (row_scale ? row_scale[i] : 1.0); };
  return walk<Panel>(packed, nullptr, images, whole, factor, threads, call);
}

}  // namespace vlcal
