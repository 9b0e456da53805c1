// Whether CUDA can run here; no CUDA header, so that the bindings need none.
#pragma once
#include <string>

namespace vlcal::cuda {

// Why the runtime finds no device (no driver, one that is too old, no GPU), or nothing.
std::string problem();

// The version of the CUDA toolkit these kernels were compiled with: 13000 for 13.0.
int toolkit();

}  // namespace vlcal::cuda
