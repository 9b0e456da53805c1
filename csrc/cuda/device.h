// Where kernels run, and whether they can; no CUDA header, so that the bindings need none.
#pragma once
#include <cstdint>
#include <string>

namespace vlcal::cuda {

// Where a kernel is queued: the index of a device, and the handle of a stream there.
struct Launch {
  int device;
  std::uintptr_t stream;
};

// Why the runtime finds no device (no driver, one that is too old, no GPU), or nothing.
std::string problem();

// The version of the CUDA toolkit these kernels were compiled with: 13000 for 13.0.
int toolkit();

}  // namespace vlcal::cuda
