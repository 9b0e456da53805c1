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

void group_max(Address queries, int64_t n_queries, Address keys, int64_t n_keys, int64_t key_stride, int64_t dim,
               Address bias, Address out, int device, Address stream) {
  cuda::group_max(pairs(queries, n_queries, keys, n_keys, key_stride, dim, bias), at<float>(out), {device, stream});
}

void screen(Address queries, int64_t n_queries, Address keys, int64_t n_keys, int64_t key_stride, int64_t dim,
            Address bias, Address floor, int64_t capacity, Address count, Address ids, Address scores, Address gap,
            Address rung, Address rising_floor, Address seen, int rungs, int wanted, int device, Address stream) {
  cuda::screen(pairs(queries, n_queries, keys, n_keys, key_stride, dim, bias),
               {at<float>(floor), capacity, at<int32_t>(count), at<int32_t>(ids), at<float>(scores),
                at<const float>(gap), at<const float>(rung), at<const float>(rising_floor), at<int32_t>(seen), rungs,
                wanted},
               {device, stream});
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
  m.attr("cuda_toolkit") = cuda::toolkit();
  m.def("cuda_problem", &cuda::problem);

  m.def("bin_statistics_cuda", &bin_statistics, nogil());
  m.def("cell_sums", &cell_sums, nogil());
  m.def("value_sums", &value_sums, nogil());

  m.def("group_max", &group_max, nogil());
  m.def("screen", &screen, nogil());
}

}  // namespace vlcal
