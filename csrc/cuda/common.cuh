// What every CUDA launcher needs: the device, the stream from a number, and errors as text. In this order: device,
// stream, launch, check.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "checks.h"

namespace vlcal::cuda {

inline void check(cudaError_t status, const char* who) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the check of the next launch does not meet it again
  throw std::runtime_error(std::string(who) + ": CUDA says " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

// After every launch: a bad configuration shows here, what goes wrong inside shows at the next synchronization.
inline void check_launch(const char* who) { check(cudaGetLastError(), who); }

inline int attribute(cudaDeviceAttr which, int device, const char* who) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), who);
  return value;
}

// Launches of this thread go to the device from here on, which must have compute capability 9.0. The caller has made it
// torch's device too, and puts that back. Putting ours back would make a context on a device that nobody uses.
inline void use_device(int device, const char* who) {
  const int is = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device, who) +
                 attribute(cudaDevAttrComputeCapabilityMinor, device, who);
  if (is != 90) refuse(who, "needs compute capability 9.0, this is ", is / 10, ".", is % 10);
  check(cudaSetDevice(device), who);
}

// A stream of anybody's runtime: handles belong to the driver.
inline cudaStream_t stream_of(std::uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

// Allows a kernel without static shared memory all that a block may have, however little this launch takes: threads
// that launch the same kernel with different amounts would take it from each other, and graphs from later launches.
template <class Kernel>
void allow_shared(Kernel* kernel, int device, const char* who) {
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, who);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), who);
}

// Blocks that fill the device once, or one a tile if there are fewer; allows the kernel its dynamic shared memory.
template <class Kernel>
int blocks_for(Kernel* kernel, int threads, int shared, int64_t tiles, int device, const char* who) {
  int resident = 0;
  if (shared > 48 * 1024) allow_shared(kernel, device, who);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared), who);
  if (resident < 1) refuse(who, "the device has no room for a block with ", shared, " bytes of shared memory");
  const int64_t at_once = int64_t{resident} * attribute(cudaDevAttrMultiProcessorCount, device, who);
  return static_cast<int>(std::min(tiles, at_once));
}

}  // namespace vlcal::cuda
