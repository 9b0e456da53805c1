// Integer sums over the values of confidences: by their 16 leading bits in shared memory, then by all bits in the cells
// that the caller gives a slot. Lanes of a warp that agree with the first are added up before one of them adds: sure
// models give one value to most samples. Written without a launch, so that it also runs on an emulated GPU.
#pragma once
#include "cuda/binning_sample.h"
#include "cuda/samples.cuh"

namespace vlcal::cuda::mass {

constexpr int kThreads = 512;
constexpr int kCopies = 4;  // of the table, for the lanes of a warp
constexpr int kTiles = 0xffff / (kThreads * kPerThread);  // whose counts fit into 16 bits, whatever the samples are
constexpr unsigned kAll = 0xffffffff;

// Sums of one block since the last flush, per exact cell and copy: count | correct << 16, and the low 16 bits.
struct Cells {
  uint32_t pair[kExactCells * kCopies];
  uint32_t low[kExactCells * kCopies];
};

__device__ void flush(Cells& cells, Sum* sums) {
  __syncthreads();
  for (int i = threadIdx.x; i < kExactCells; i += kThreads) {
    Sum count = 0, correct = 0, low = 0;
    for (int j = i * kCopies; j < (i + 1) * kCopies; ++j) {
      count += cells.pair[j] & 0xffff;
      correct += cells.pair[j] >> 16;
      low += cells.low[j];
      cells.pair[j] = cells.low[j] = 0;
    }
    if (count) {
      const int cell = kFirstExact + i;
      const int64_t units = units_of_cell(cell, static_cast<int64_t>(count), static_cast<int64_t>(low));
      atomicAdd(sums + cell, count | correct << 32);
      atomicAdd(sums + kCells + cell, static_cast<Sum>(units));
    }
  }
  __syncthreads();
}

__device__ __forceinline__ void add_cell(Cells& cells, Sum* sums, float confidence, bool correct, bool good) {
  const uint32_t bits = bits_of_sample(confidence);
  const int cell = good ? static_cast<int>(bits >> 16) : -1;
  const uint32_t low = bits & 0xffff;
  const int first = __shfl_sync(kAll, cell, 0);
  const bool agree = cell == first && first >= kFirstExact;
  const unsigned together = __ballot_sync(kAll, agree), right = __ballot_sync(kAll, agree && correct);
  const unsigned low_sum = __reduce_add_sync(kAll, agree ? low : 0);
  if (agree) {
    if (threadIdx.x % 32 == 0) {
      const int at = (cell - kFirstExact) * kCopies + threadIdx.x / 32 % kCopies;
      atomicAdd(&cells.pair[at], static_cast<uint32_t>(__popc(together) | __popc(right) << 16));
      atomicAdd(&cells.low[at], low_sum);
    }
  } else if (cell >= kFirstExact) {
    const int at = (cell - kFirstExact) * kCopies + threadIdx.x % kCopies;
    atomicAdd(&cells.pair[at], 1u | static_cast<uint32_t>(correct) << 16);
    atomicAdd(&cells.low[at], low);
  } else if (cell >= 0) {
    atomicAdd(sums + cell, Sum{1} | static_cast<Sum>(correct) << 32);
    atomicAdd(sums + kCells + cell, static_cast<Sum>(units_of_float(confidence)));
  }
}

// The share of one block of all tiles.
__device__ __forceinline__ void run_cells(Cells& cells, const Input& input, int64_t tiles, Sum* sums, int32_t* bad) {
  for (int i = threadIdx.x; i < kExactCells * kCopies; i += kThreads) cells.pair[i] = cells.low[i] = 0;
  __syncthreads();
  int wrong = 0, held = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    if (held++ == kTiles) {
      flush(cells, sums);
      held = 1;
    }
    const Samples samples = read_tile<kThreads>(input, tile);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const bool good = samples.real[j] && is_confidence(samples.confidence[j]);
      wrong += samples.real[j] && !good;
      add_cell(cells, sums, samples.confidence[j], samples.correct[j], good);
    }
  }
  flush(cells, sums);
  if (wrong) atomicAdd(bad, wrong);
}

__device__ __forceinline__ void run_values(const Input& input, int64_t tiles, const int32_t* slots, Sum* sums) {
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Samples samples = read_tile<kThreads>(input, tile);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const float confidence = samples.confidence[j];
      const uint32_t bits = bits_of_sample(confidence);
      const int slot = samples.real[j] && is_confidence(confidence) ? __ldg(slots + (bits >> 16)) : 0;
      const bool correct = samples.correct[j];
      const uint32_t first = __shfl_sync(kAll, slot > 0 ? bits : kAll, 0);
      const bool agree = slot > 0 && bits == first;
      const unsigned together = __ballot_sync(kAll, agree), right = __ballot_sync(kAll, agree && correct);
      Sum pair = 1 | static_cast<Sum>(correct) << 32;
      if (agree) pair = static_cast<Sum>(__popc(together)) | static_cast<Sum>(__popc(right)) << 32;
      const bool adds = slot > 0 && (!agree || threadIdx.x % 32 == 0);
      if (adds) atomicAdd(sums + (static_cast<int64_t>(slot - 1) << 16) + (bits & 0xffff), pair);
    }
  }
}

}  // namespace vlcal::cuda::mass
