// Sums over the values of confidences: see equal_mass_block.cuh.
#include "cuda/binning.h"
#include "cuda/common.cuh"
#include "cuda/equal_mass_block.cuh"

namespace vlcal::cuda {
namespace {

constexpr char kWho[] = "equal_mass_statistics";

__global__ void __launch_bounds__(mass::kThreads) cell_kernel(Input input, int64_t tiles, Sum* sums, int32_t* bad) {
  __shared__ mass::Cells cells;
  mass::run_cells(cells, input, tiles, sums, bad);
}

__global__ void __launch_bounds__(mass::kThreads)
    value_kernel(Input input, int64_t tiles, const int32_t* slots, Sum* sums) {
  mass::run_values(input, tiles, slots, sums);
}

}  // namespace

void cell_sums(const float* confidence, const uint8_t* correct, int64_t n, int64_t* sums, int32_t* bad,
               const Launch& launch) {
  const Input input = input_of(confidence, correct, n);
  const int64_t tiles = tiles_of(input, mass::kThreads);
  if (tiles == 0) return;
  use_device(launch.device, kWho);
  const int blocks = blocks_for(cell_kernel, mass::kThreads, 0, tiles, launch.device, kWho);
  cell_kernel<<<blocks, mass::kThreads, 0, stream_of(launch.stream)>>>(input, tiles, reinterpret_cast<Sum*>(sums), bad);
  check_launch(kWho);
}

void value_sums(const float* confidence, const uint8_t* correct, int64_t n, const int32_t* slot, int64_t* sums,
                const Launch& launch) {
  const Input input = input_of(confidence, correct, n);
  const int64_t tiles = tiles_of(input, mass::kThreads);
  if (tiles == 0) return;
  use_device(launch.device, kWho);
  const int blocks = blocks_for(value_kernel, mass::kThreads, 0, tiles, launch.device, kWho);
  value_kernel<<<blocks, mass::kThreads, 0, stream_of(launch.stream)>>>(input, tiles, slot,
                                                                       reinterpret_cast<Sum*>(sums));
  check_launch(kWho);
}

}  // namespace vlcal::cuda
