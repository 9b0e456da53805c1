// What every CUDA launcher needs: the device, the stream from a number, and errors as text. In this order: guard,
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

// The device that this thread launches on, while in scope.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* who) {
    check(cudaGetDevice(&before_), who);
    check(cudaSetDevice(device), who);
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// A stream of anybody's runtime: handles belong to the driver.
inline cudaStream_t stream_of(std::uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

inline int multiprocessors(int device, const char* who) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), who);
  return count;
}

// Allows a kernel without static shared memory all that a block may have, however little this launch takes: threads
// that launch the same kernel with different amounts would take it from each other, and graphs from later launches.
template <class Kernel>
void allow_shared(Kernel* kernel, int device, const char* who) {
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), who);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), who);
}

// Blocks that fill the device once, or one a tile if there are fewer; allows the kernel its dynamic shared memory.
template <class Kernel>
int blocks_for(Kernel* kernel, int threads, int shared, int64_t tiles, int device, const char* who) {
  int resident = 0;
  if (shared > 48 * 1024) allow_shared(kernel, device, who);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared), who);
  if (resident < 1) refuse(who, "the device has no room for a block with ", shared, " bytes of shared memory");
  return static_cast<int>(std::min<int64_t>(tiles, int64_t{resident} * multiprocessors(device, who)));
}

}  // namespace vlcal::cuda
