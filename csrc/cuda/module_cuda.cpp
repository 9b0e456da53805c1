// The CUDA part of the module vlcal._C: every binding, one line each. Arguments are addresses on the device, sizes, the
// device and a stream; vlcal/_cuda.py is the only caller and guarantees contiguous tensors of the stated types there.
#include "cuda/module_cuda.h"

#include <cstdint>

#include "cuda/device.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace vlcal {
namespace {

template <class T>
[[maybe_unused]] T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.attr("cuda_architectures") = VLCAL_CUDA;
  m.attr("cuda_toolkit") = cuda::toolkit();
  m.def("cuda_problem", &cuda::problem);
}

}  // namespace vlcal
