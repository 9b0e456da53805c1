// The CUDA part of the bindings; called only if the extension is built with CUDA.
#pragma once
#include <pybind11/pybind11.h>

namespace vlcal {

void bind_cuda(pybind11::module_& m);

}  // namespace vlcal
