// The module vlcal._C: every binding, one line each. Arguments are addresses, sizes and thread counts; vlcal/_native.py
// is the only caller and guarantees contiguous tensors of the stated types.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "cpu/binning.h"
#include "cpu/isa.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("compiler") = __VERSION__;
  m.def("isa_names", &vlcal::isa_names);
  m.def("limit_isa", &vlcal::limit_isa);

  m.def("bin_statistics_float32", &bin_statistics<float>, nogil());
  m.def("bin_statistics_float64", &bin_statistics<double>, nogil());
}
