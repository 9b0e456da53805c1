// The screens, for compute capability 9.0: a producer warp streams tiles of keys by the copy engine (TMA) through a ring
// of stages, two warpgroups multiply them (wgmma) with 64 queries each that stay in shared memory as long as they fit.
//
// Each stage has two barriers. `full` counts the bytes of its copies; `empty` counts one arrival of each consumer warp
// once the products that read the stage are done.
#pragma once
#include "search_epilogue.cuh"

namespace vlcal::screen::sm90 {

// Addresses in shared memory.
template <bool kResident>
struct Shared {
  uint32_t start;
  int dim, stages;

  __device__ __forceinline__ uint32_t keys(int stage) const { return start + stage_offset(kResident, dim, stage); }
  __device__ __forceinline__ uint32_t queries(int stage, int chunk) const {
    return kResident ? start + chunk * kQueryTile : keys(stage) + kKeyTile;
  }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return start + full_offset(kResident, dim, stages, stage);
  }
  __device__ __forceinline__ uint32_t empty(int stage) const {
    return start + empty_offset(kResident, dim, stages, stage);
  }
  // the barrier of the resident queries
  __device__ __forceinline__ uint32_t loaded() const { return start + loaded_offset(kResident, dim, stages); }
};

template <bool kResident>
__device__ __forceinline__ void start_barriers(const Shared<kResident>& shared) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < shared.stages; ++stage) {
      ptx::init_barrier(shared.full(stage), 1);
      ptx::init_barrier(shared.empty(stage), kConsumerWarps);
    }
    ptx::init_barrier(shared.loaded(), 1);
    ptx::fence_barriers();
  }
  __syncthreads();
}

// One thread: the copies of every stage, in the order in which they are consumed.
template <bool kResident>
__device__ __forceinline__ void produce(const Shared<kResident>& shared, const ptx::TensorMap& queries,
                                        const ptx::TensorMap& keys, const Range& range) {
  const int chunks = shared.dim / kDepth, query = blockIdx.x * kQueries;
  if (kResident) {
    ptx::expect_bytes(shared.loaded(), chunks * kQueryTile);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::copy_tile(shared.queries(0, chunk), queries, chunk * kDepth, query, shared.loaded());
    }
  }
  Ring ring{0, 0};
  for (int64_t tile = range.first; tile < range.last; ++tile) {
    for (int chunk = 0; chunk < chunks; ++chunk, ring = next(ring, shared.stages)) {
      const uint32_t full = shared.full(ring.stage);
      ptx::wait_barrier(shared.empty(ring.stage), ring.phase ^ 1);
      ptx::expect_bytes(full, stage_bytes(kResident));
      ptx::copy_tile(shared.keys(ring.stage), keys, chunk * kDepth, static_cast<int>(tile * kKeys), full);
      if (!kResident) ptx::copy_tile(shared.queries(ring.stage, chunk), queries, chunk * kDepth, query, full);
    }
  }
}

// Starts the products of one stage: 64 queries x 256 keys x 64 values a warpgroup.
__device__ __forceinline__ void multiply(float (&sums)[4 * kColumnSteps], uint32_t queries, uint32_t keys, bool add) {
  ptx::fence_products();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    ptx::multiply_add(sums, descriptor(queries + step * kStepBytes), descriptor(keys + step * kStepBytes),
                      add || step > 0);
  }
  ptx::commit_products();
}

// A consumer warpgroup: every product of its 64 queries with the keys of the range.
template <bool kResident, class Epilogue>
__device__ __forceinline__ void consume(const Shared<kResident>& shared, const Problem& problem, const Range& range,
                                        const Epilogue& epilogue, int group) {
  const int chunks = shared.dim / kDepth, warp = threadIdx.x % kWarpgroup / kWarp;
  const uint32_t half = group * (kQueryTile / 2);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kQueries + group * 64 + warp * 16;
  const auto release = [&](int stage) {
    if (lane_id() == 0) ptx::arrive(shared.empty(stage));
  };

  if (kResident) ptx::wait_barrier(shared.loaded(), 0);
  Ring ring{0, 0};
  for (int64_t tile = range.first; tile < range.last; ++tile) {
    const int64_t column = tile * kKeys;
    Pair bias[kColumnSteps / 8];
#pragma unroll
    for (int i = 0; i < kColumnSteps / 8; ++i) bias[i] = load_bias(problem, column + 64 * i);
    const typename Epilogue::Rows rows = epilogue.rows(problem, row);
    float sums[4 * kColumnSteps];
    int before = 0;
    for (int chunk = 0; chunk < chunks; ++chunk, ring = next(ring, shared.stages)) {
      ptx::wait_barrier(shared.full(ring.stage), ring.phase);
      multiply(sums, shared.queries(ring.stage, chunk) + half, shared.keys(ring.stage), chunk > 0);
      if (chunk > 0) {
        // one stage stays in flight; the one before it has been read
        ptx::wait_products<1>();
        release(before);
      }
      before = ring.stage;
    }
    ptx::wait_products<0>(sums);
    release(before);
    add_bias<kColumnSteps>(sums, bias);
    epilogue.template take<kColumnSteps>(problem, rows, row, column, sums);
    __syncwarp();  // lanes that had something to store and lanes that had not: products need them together
  }
}

// Every product of one block of queries with one part of the keys.
template <bool kResident, class Epilogue>
__device__ __forceinline__ void run(const ptx::TensorMap& queries, const ptx::TensorMap& keys, const Problem& problem,
                                    const Epilogue& epilogue) {
  const uint32_t start = (ptx::shared_start() + kAlignment - 1) / kAlignment * kAlignment;
  const Shared<kResident> shared{start, problem.dim, problem.stages};
  const Range range = part(pieces(problem.n_keys, kKeys), problem.splits, blockIdx.y);
  start_barriers(shared);
  const int group = threadIdx.x / kWarpgroup;
  if (group == 0) {
    ptx::fewer_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce(shared, queries, keys, range);
  } else {
    ptx::more_registers<kConsumerRegisters>();
    consume(shared, problem, range, epilogue, group - 1);
  }
}

}  // namespace vlcal::screen::sm90
