// Every thread has its own table of words in shared memory, [bin][thread], so that no two threads of a warp ever meet in
// a bank or an address: no atomic operation a sample, and the same time whether one bin holds all samples or none. What
// a block does is written without a launch, so that it also runs on an emulated GPU.
#pragma once
#include "cuda/binning_sample.h"
#include "cuda/samples.cuh"

namespace vlcal::cuda::bins {

constexpr int kThreads = 256;
constexpr int kTiles = kWordSamples / kPerThread;  // that a word can hold

// Words, and the threshold above each bin.
constexpr int shared_bytes(int n_bins) { return n_bins * (kThreads * 8 + 4); }

__device__ __forceinline__ Sum warp_sum(Sum value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
  return value;
}

// Add the words of all threads to the table and clear them.
__device__ void flush(uint64_t* words, int n_bins, Sum* table) {
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int bin = threadIdx.x / 32; bin < n_bins; bin += kThreads / 32) {
    Sum count = 0, correct = 0, units = 0;
    for (int i = lane; i < kThreads; i += 32) {
      const uint64_t word = words[bin * kThreads + i];
      words[bin * kThreads + i] = 0;
      count += word >> kCountBit;
      correct += (word >> kCorrectBit) & 0xfff;
      units += word & ((uint64_t{1} << kCorrectBit) - 1);
    }
    count = warp_sum(count);
    correct = warp_sum(correct);
    units = warp_sum(units);
    if (lane == 0 && count) {
      atomicAdd(table + bin, count);
      if (correct) atomicAdd(table + n_bins + bin, correct);
      if (units) atomicAdd(table + 2 * n_bins + bin, units);
    }
  }
  __syncthreads();
}

// Add the samples of a thread to its table; how many were no confidence. A tile without such is added without a branch.
template <bool kGuesses>
__device__ __forceinline__ int add(uint64_t* words, const Samples& samples, const float* next, int n_bins) {
  uint64_t* mine = words + threadIdx.x;
  const auto add_one = [&](int j) {
    const int bin = bin_of(samples.confidence[j], next, n_bins, kGuesses);
    mine[bin * kThreads] += word_of_sample(samples.confidence[j], samples.correct[j]);
  };
  bool clean = true;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) clean &= samples.real[j] & is_confidence(samples.confidence[j]);
  if (clean) {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) add_one(j);
    return 0;
  }
  int wrong = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    if (!samples.real[j]) continue;
    if (is_confidence(samples.confidence[j])) {
      add_one(j);
    } else {
      ++wrong;
    }
  }
  return wrong;
}

// Add every tile of this block; how many samples of this thread were no confidence.
template <bool kGuesses>
__device__ __forceinline__ int add_tiles(uint64_t* words, const Input& input, int64_t tiles, const float* next,
                                         int n_bins, Sum* table) {
  int wrong = 0, held = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    if (held++ == kTiles) {
      flush(words, n_bins, table);
      held = 1;
    }
    wrong += add<kGuesses>(words, read_tile<kThreads>(input, tile), next, n_bins);
  }
  flush(words, n_bins, table);
  return wrong;
}

// The share of one block of all tiles; `words` is shared_bytes(n_bins) of shared memory.
__device__ __forceinline__ void run(uint64_t* words, const Input& input, int64_t tiles, const float* thresholds,
                                    int n_bins, Sum* table, int32_t* bad) {
  float* next = reinterpret_cast<float*>(words + n_bins * kThreads);
  for (int bin = threadIdx.x; bin < n_bins; bin += kThreads) {
    next[bin] = bin < n_bins - 1 ? thresholds[bin] : INFINITY;
  }
  for (int i = threadIdx.x; i < n_bins * kThreads; i += kThreads) words[i] = 0;
  __syncthreads();
  bool serves = true;
  for (int bin = 1 + threadIdx.x; bin < n_bins; bin += kThreads) serves &= guess_serves(next, bin, n_bins);
  const int wrong = __syncthreads_and(serves) ? add_tiles<true>(words, input, tiles, next, n_bins, table)
                                              : add_tiles<false>(words, input, tiles, next, n_bins, table);
  if (wrong) atomicAdd(bad, wrong);
}

}  // namespace vlcal::cuda::bins
