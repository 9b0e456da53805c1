#include "cuda/device.h"

#include "cuda/common.cuh"

namespace vlcal::cuda {

std::string problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return {};
  cudaGetLastError();  // so that nobody else meets it
  return status == cudaSuccess ? "no CUDA device was found" : cudaGetErrorString(status);
}

int toolkit() { return CUDART_VERSION; }

}  // namespace vlcal::cuda
