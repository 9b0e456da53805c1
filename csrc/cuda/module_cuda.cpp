// The CUDA part of the module vlcal._C: every binding, one line each. Arguments are addresses on the device, sizes, the
// device and a stream; vlcal/_cuda.py is the only caller and guarantees contiguous tensors of the stated types there.
#include "cuda/module_cuda.h"

#include <cstdint>

#include "cuda/binning.h"
#include "cuda/device.h"
#include "cuda/search.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace vlcal {
namespace {

template <class T>
[[maybe_unused]] T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cuda::Pairs pairs(Address queries, int64_t n_queries, Address keys, int64_t n_keys, int64_t key_stride, int64_t dim,
                  Address bias) {
  return {at<const void>(queries), n_queries, at<const void>(keys), n_keys, key_stride, dim, at<const float>(bias)};
}

template <auto Run>
void group_max(Address queries, int64_t n_queries, Address keys, int64_t n_keys, int64_t key_stride, int64_t dim,
               Address bias, Address out, int device, Address stream) {
  Run(pairs(queries, n_queries, keys, n_keys, key_stride, dim, bias), at<float>(out), {device, stream});
}

template <auto Run>
void screen(Address queries, int64_t n_queries, Address keys, int64_t n_keys, int64_t key_stride, int64_t dim,
            Address bias, Address floor, int64_t capacity, Address count, Address ids, Address scores, int device,
            Address stream) {
  Run(pairs(queries, n_queries, keys, n_keys, key_stride, dim, bias),
      {at<const float>(floor), capacity, at<int32_t>(count), at<int32_t>(ids), at<float>(scores)}, {device, stream});
}

void bin_statistics(Address confidence, Address correct, int64_t n, Address thresholds, int n_bins, Address table,
                    Address bad, int device, Address stream) {
  cuda::bin_statistics(at<const float>(confidence), at<const uint8_t>(correct), n, at<const float>(thresholds), n_bins,
                       at<int64_t>(table), at<int32_t>(bad), {device, stream});
}

void cell_sums(Address confidence, Address correct, int64_t n, Address sums, Address bad, int device, Address stream) {
  cuda::cell_sums(at<const float>(confidence), at<const uint8_t>(correct), n, at<int64_t>(sums), at<int32_t>(bad),
                  {device, stream});
}

void value_sums(Address confidence, Address correct, int64_t n, Address slot, Address sums, int device,
                Address stream) {
  cuda::value_sums(at<const float>(confidence), at<const uint8_t>(correct), n, at<const int32_t>(slot),
                   at<int64_t>(sums), {device, stream});
}

}  // namespace

void bind_cuda(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("cuda_architectures") = VLCAL_CUDA;
  m.attr("cuda_toolkit") = cuda::toolkit();
  m.def("cuda_problem", &cuda::problem);

  m.def("bin_statistics_cuda", &bin_statistics, nogil());
  m.def("cell_sums", &cell_sums, nogil());
  m.def("value_sums", &value_sums, nogil());

  m.def("group_max_sm80", &group_max<cuda::group_max_sm80>, nogil());
  m.def("group_max_sm90", &group_max<cuda::group_max_sm90>, nogil());
  m.def("screen_sm80", &screen<cuda::screen_sm80>, nogil());
  m.def("screen_sm90", &screen<cuda::screen_sm90>, nogil());
}

}  // namespace vlcal
