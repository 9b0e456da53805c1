// The module vlcal._C: every binding, one line each. Arguments are addresses, sizes and thread counts; vlcal/_native.py
// is the only caller and guarantees contiguous tensors of the stated types.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>

#include "cpu/binning.h"
#include "cpu/classwise.h"
#include "cpu/density.h"
#include "cpu/equal_mass.h"
#include "cpu/finite.h"
#include "cpu/isa.h"
#include "cpu/logits.h"
#include "cpu/search.h"
#include "cpu/softmax.h"
#ifdef VLCAL_CUDA
#include "cuda/module_cuda.h"
#endif

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

// raised with every change of what vlcal/_native.py or vlcal/_cuda.py call; they compare it with theirs
constexpr int kInterface = 5;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class Real>
bool all_finite(Address values, int64_t n, int threads) {
  return vlcal::all_finite(at<const Real>(values), n, threads);
}

template <class Real>
int64_t bin_statistics(Address confidence, Address correct, int64_t n, Address thresholds, int n_bins, Address table,
                       int threads) {
  return vlcal::bin_statistics(at<const Real>(confidence), at<const uint8_t>(correct), n, at<const Real>(thresholds),
                               n_bins, at<int64_t>(table), threads);
}

template <class Real>
int64_t group_statistics(Address group, Address confidence, Address correct, int64_t n, int64_t n_groups, Address table,
                         int threads) {
  return vlcal::group_statistics(at<const int64_t>(group), at<const Real>(confidence), at<const uint8_t>(correct), n,
                                 n_groups, at<int64_t>(table), threads);
}

int64_t equal_mass_statistics(Address confidence, Address correct, int64_t n, int n_bins, bool together, Address table,
                              int threads) {
  return vlcal::equal_mass_statistics(at<const float>(confidence), at<const uint8_t>(correct), n, n_bins, together,
                                      at<int64_t>(table), threads);
}

int64_t classwise_statistics(Address probs, Address labels, int64_t n, int64_t classes, Address thresholds, int n_bins,
                             Address table, int threads) {
  return vlcal::classwise_statistics(at<const float>(probs), at<const int64_t>(labels), n, classes,
                                     at<const float>(thresholds), n_bins, at<int64_t>(table), threads);
}

int64_t softmax_statistics(Address logits, Address labels, int64_t n, int64_t classes, Address predicted,
                           Address confidence, Address entropy, Address log_likelihood, Address sum_squares,
                           int threads) {
  const vlcal::StoredSoftmax out{at<int64_t>(predicted), at<float>(confidence), at<float>(entropy),
                                  at<float>(log_likelihood), at<float>(sum_squares)};
  return vlcal::softmax_statistics(at<const float>(logits), at<const int64_t>(labels), n, classes, out, threads);
}

void kernel_density(Address queries, int64_t n, Address points, int64_t m, Address bandwidth, Address density,
                    int threads) {
  vlcal::kernel_density(at<const float>(queries), n, at<const float>(points), m, at<const double>(bandwidth),
                        at<float>(density), threads);
}

template <class Real>
void dots(Address query, Address keys, int64_t rows, int64_t dim, Address out, int threads) {
  vlcal::dots(at<const double>(query), at<const Real>(keys), rows, dim, at<double>(out), threads);
}

template <class Real>
std::unique_ptr<vlcal::SearchIndex<Real>> build_index(Address keys, int64_t rows, int64_t dim, bool dot,
                                                      Address directions, int64_t count) {
  const auto metric = dot ? vlcal::Metric::kDot : vlcal::Metric::kDistance;
  return std::make_unique<vlcal::SearchIndex<Real>>(at<const Real>(keys), rows, dim, metric,
                                                    at<const float>(directions), count);
}

template <class Real>
void search(const vlcal::SearchIndex<Real>& keys, Address queries, int64_t n, int k, bool exclude_self, Address cost,
            Address index, int threads) {
  keys.search(at<const double>(queries), n, k, exclude_self, at<double>(cost), at<int64_t>(index), threads);
}

template <class Real>
void bind_index(py::module_& m, const char* name) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<vlcal::SearchIndex<Real>>(m, name)
      .def(py::init(&build_index<Real>), nogil())
      .def("pack", &vlcal::SearchIndex<Real>::pack, nogil())
      .def("bytes", &vlcal::SearchIndex<Real>::bytes, nogil())
      .def("search", &search<Real>, nogil());
}

vlcal::Features features(Address values, int64_t count, int64_t dim) { return {at<const float>(values), count, dim}; }

int64_t calibrated_softmax(Address images, int64_t n, Address classes, int64_t c, int64_t dim, double scale,
                           Address row_scale, Address predicted_scale, Address labels, int64_t k, Address predicted,
                           Address confidence, Address entropy, Address log_likelihood, Address sum_squares,
                           Address topk_index, Address topk_prob, int threads) {
  const vlcal::SoftmaxOutputs out{at<int64_t>(predicted),    at<float>(confidence),  at<float>(entropy),
                                  at<float>(log_likelihood), at<float>(sum_squares), at<int64_t>(topk_index),
                                  at<float>(topk_prob)};
  return vlcal::calibrated_softmax(features(images, n, dim), features(classes, c, dim), scale,
                                   at<const double>(row_scale), at<const double>(predicted_scale),
                                   at<const int64_t>(labels), k, out, threads);
}

int64_t logit_statistics(Address images, int64_t n, Address classes, int64_t c, int64_t dim, double scale,
                         Address other_images, Address other_classes, int64_t other_dim, Address largest,
                         Address argmax, Address smallest, Address difference, int threads) {
  const int64_t others = other_classes ? c : 0;
  return vlcal::logit_statistics(features(images, n, dim), features(classes, c, dim), scale,
                                 features(other_images, n, other_dim), features(other_classes, others, other_dim),
                                 at<float>(largest), at<int64_t>(argmax), at<float>(smallest), at<float>(difference),
                                 threads);
}

int64_t cross_entropy(Address images, int64_t n, Address classes, int64_t c, int64_t dim, Address labels, double scale,
                      Address weights, Address losses, Address image_gradient, Address class_gradient,
                      Address scale_gradient, int threads) {
  return vlcal::cross_entropy(features(images, n, dim), features(classes, c, dim), at<const int64_t>(labels), scale,
                              at<const double>(weights), at<float>(losses), at<float>(image_gradient),
                              at<float>(class_gradient), at<double>(scale_gradient), threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("interface") = kInterface;
  m.attr("compiler") = __VERSION__;
  m.def("isa_names", &vlcal::isa_names);
  m.def("limit_isa", &vlcal::limit_isa);

  m.def("all_finite_float32", &all_finite<float>, nogil());
  m.def("all_finite_float64", &all_finite<double>, nogil());
  m.def("bin_statistics_float32", &bin_statistics<float>, nogil());
  m.def("bin_statistics_float64", &bin_statistics<double>, nogil());
  m.def("group_statistics_float32", &group_statistics<float>, nogil());
  m.def("group_statistics_float64", &group_statistics<double>, nogil());
  m.def("equal_mass_statistics", &equal_mass_statistics, nogil());
  m.def("classwise_statistics", &classwise_statistics, nogil());
  m.def("softmax_statistics", &softmax_statistics, nogil());
  m.def("kernel_density", &kernel_density, nogil());

  bind_index<float>(m, "SearchIndexFloat32");
  bind_index<double>(m, "SearchIndexFloat64");
  m.def("dots_float32", &dots<float>, nogil());
  m.def("dots_float64", &dots<double>, nogil());

  m.def("calibrated_softmax", &calibrated_softmax, nogil());
  m.def("logit_statistics", &logit_statistics, nogil());
  m.def("cross_entropy", &cross_entropy, nogil());

#ifdef VLCAL_CUDA
  vlcal::bind_cuda(m);
#endif
}
