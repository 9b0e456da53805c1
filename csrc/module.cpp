// The module vlcal._C: every binding, one line each. Arguments are addresses, sizes and thread counts; vlcal/_native.py
// is the only caller and guarantees contiguous tensors of the stated types.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>

#include "cpu/binning.h"
#include "cpu/isa.h"
#include "cpu/search.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class Real>
int64_t bin_statistics(Address confidence, Address correct, int64_t n, Address thresholds, int n_bins, Address table,
                       int threads) {
  return vlcal::bin_statistics(at<const Real>(confidence), at<const uint8_t>(correct), n, at<const Real>(thresholds),
                               n_bins, at<int64_t>(table), threads);
}

template <class Real>
void dots(Address query, Address keys, int64_t rows, int64_t dim, Address out, int threads) {
  vlcal::dots(at<const double>(query), at<const Real>(keys), rows, dim, at<double>(out), threads);
}

template <class Real>
std::unique_ptr<vlcal::SearchIndex<Real>> build_index(Address keys, int64_t rows, int64_t dim, bool dot, int threads) {
  const auto metric = dot ? vlcal::Metric::kDot : vlcal::Metric::kDistance;
  return std::make_unique<vlcal::SearchIndex<Real>>(at<const Real>(keys), rows, dim, metric, threads);
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
      .def("search", &search<Real>, nogil());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("compiler") = __VERSION__;
  m.def("isa_names", &vlcal::isa_names);
  m.def("limit_isa", &vlcal::limit_isa);

  m.def("bin_statistics_float32", &bin_statistics<float>, nogil());
  m.def("bin_statistics_float64", &bin_statistics<double>, nogil());

  bind_index<float>(m, "SearchIndexFloat32");
  bind_index<double>(m, "SearchIndexFloat64");
  m.def("dots_float32", &dots<float>, nogil());
  m.def("dots_float64", &dots<double>, nogil());
}
