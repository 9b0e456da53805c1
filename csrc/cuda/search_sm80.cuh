// Screen for compute capability 8.0 and later: mma.sync on tiles of 128 queries x 128 keys, both operands streamed by
// cp.async through three stages of shared memory.
#pragma once
#include "search_epilogue.cuh"

namespace vlcal::screen::sm80 {

struct Operands {
  const char* queries;  // fp16 rows of `dim` values
  const char* keys;
  int64_t key_stride;  // values from one key to the next
};

// One stage of the walk: a tile of keys and a piece of the depth.
struct Position {
  int64_t tile;
  int chunk;
};
VLCAL_ANYWHERE Position after(Position at, int chunks) {
  return at.chunk + 1 < chunks ? Position{at.tile, at.chunk + 1} : Position{at.tile + 1, 0};
}

// Starts the copy of 128 rows from `first` on, 64 values of each; rows that do not exist become zero.
__device__ __forceinline__ void copy_rows(uint32_t to, const char* from, int64_t stride, int64_t first, int64_t n,
                                          int chunk) {
  const int piece = copy_piece(threadIdx.x);
#pragma unroll
  for (int copy = 0; copy < kCopies; ++copy) {
    const int row = copy_row(threadIdx.x, copy);
    const bool exists = first + row < n;
    const int64_t offset = ((exists ? first + row : 0) * stride + chunk * kDepth) * 2 + piece * 16;
    ptx::copy_piece(to + piece_offset(row, piece), from + offset, exists ? 16 : 0);
  }
}

// Adds the products of one stage: 32 queries x 64 keys x 64 values a warp.
__device__ __forceinline__ void multiply(uint32_t stage, float (&sums)[kRowSteps][4 * kColumnSteps]) {
  const int warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t left[kRowSteps][4];
#pragma unroll
    for (int m = 0; m < kRowSteps; ++m) {
      const int row = warp_row(warp) + 16 * m + left_row(lane_id());
      ptx::load_matrices(left[m], stage + piece_offset(row, left_piece(lane_id(), step)));
    }
#pragma unroll
    for (int n = 0; n < kColumnSteps; n += 2) {
      uint32_t right[4];
      const int row = warp_column(warp) + 8 * n + right_row(lane_id());
      ptx::load_matrices(right, stage + kTile + piece_offset(row, right_piece(lane_id(), step)));
#pragma unroll
      for (int m = 0; m < kRowSteps; ++m) {
        ptx::multiply_add(&sums[m][4 * n], left[m], right[0], right[1]);
        ptx::multiply_add(&sums[m][4 * n + 4], left[m], right[2], right[3]);
      }
    }
  }
}

// Every product of one block of queries with one part of the keys.
template <class Epilogue>
__device__ __forceinline__ void run(const Operands& operands, const Problem& problem, const Epilogue& epilogue) {
  const uint32_t shared = ptx::shared_start();
  const int warp = threadIdx.x / kWarp, chunks = problem.dim / kDepth;
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kQueries, row = query + warp_row(warp);
  const Range range = part(pieces(problem.n_keys, kKeys), problem.splits, blockIdx.y);
  Position ahead{range.first, 0};

  const auto load = [&](int stage) {
    if (ahead.tile < range.last) {
      const uint32_t to = shared + stage * kStageBytes;
      copy_rows(to, operands.queries, problem.dim, query, problem.n_queries, ahead.chunk);
      copy_rows(to + kTile, operands.keys, operands.key_stride, ahead.tile * kKeys, problem.n_keys, ahead.chunk);
      ahead = after(ahead, chunks);
    }
    ptx::commit_copies();  // an empty group too, so that the count of groups stays that of the stages
  };

  typename Epilogue::Rows rows[kRowSteps];
#pragma unroll
  for (int m = 0; m < kRowSteps; ++m) rows[m] = epilogue.rows(problem, row + 16 * m);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage);

  int stage = 0;
  for (int64_t tile = range.first; tile < range.last; ++tile) {
    const int64_t column = tile * kKeys + warp_column(warp);
    const Pair bias[1] = {load_bias(problem, column)};
    float sums[kRowSteps][4 * kColumnSteps] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::wait_copies<kStages - 2>();
      __syncthreads();  // this stage has arrived for everyone, and everyone has left the one before
      load((stage + kStages - 1) % kStages);
      multiply(shared + stage * kStageBytes, sums);
      stage = (stage + 1) % kStages;
    }
#pragma unroll
    for (int m = 0; m < kRowSteps; ++m) {
      add_bias<kColumnSteps>(sums[m], bias);
      epilogue.template take<kColumnSteps>(problem, rows[m], row + 16 * m, column, sums[m]);
    }
  }
}

}  // namespace vlcal::screen::sm80
