// Bin statistics: see binning_block.cuh.
#include "cuda/binning.h"

#include "cuda/binning_block.cuh"
#include "cuda/common.cuh"

namespace vlcal::cuda {
namespace {

constexpr char kWho[] = "bin_statistics";

__global__ void __launch_bounds__(bins::kThreads)
    bin_kernel(Input input, int64_t tiles, const float* thresholds, int n_bins, Sum* table, int32_t* bad) {
  extern __shared__ uint64_t words[];
  bins::run(words, input, tiles, thresholds, n_bins, table, bad);
}

}  // namespace

void bin_statistics(const float* confidence, const uint8_t* correct, int64_t n, const float* thresholds, int n_bins,
                    int64_t* table, int32_t* bad, const Launch& launch) {
  if (n_bins < 1 || n_bins > kMostBins) refuse(kWho, "takes 1 to ", kMostBins, " bins, got ", n_bins);
  const Input input = input_of(confidence, correct, n);
  const int64_t tiles = tiles_of(input, bins::kThreads);
  if (tiles == 0) return;
  use_device(launch.device, kWho);
  const int shared = bins::shared_bytes(n_bins);
  const int blocks = blocks_for(bin_kernel, bins::kThreads, shared, tiles, launch.device, kWho);
  bin_kernel<<<blocks, bins::kThreads, shared, stream_of(launch.stream)>>>(input, tiles, thresholds, n_bins,
                                                                         reinterpret_cast<Sum*>(table), bad);
  check_launch(kWho);
}

}  // namespace vlcal::cuda
