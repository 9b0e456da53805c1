// What becomes of the scores: the two screens share their kernels and differ here. A fragment is what one warp holds,
// 16 queries x 64 n keys; see search_layout.cuh.
#pragma once
#include "search_layout.cuh"

namespace vlcal::screen {

struct Pair {
  float x, y;
};

__device__ __forceinline__ int lane_id() { return threadIdx.x % kWarp; }

// The two biases this lane keeps of 64 keys from `column` on; keys that do not exist score minus infinity.
__device__ __forceinline__ Pair load_bias(const Problem& problem, int64_t column) {
  const int64_t first = column + 2 * lane_id();
  const float none = -INFINITY;
  return {first < problem.n_keys ? problem.bias[first] : none,
          first + 1 < problem.n_keys ? problem.bias[first + 1] : none};
}

// Turns the products of a fragment into scores.
template <int kColumnSteps>
__device__ __forceinline__ void add_bias(float (&scores)[4 * kColumnSteps], const Pair (&bias)[kColumnSteps / 8]) {
#pragma unroll
  for (int i = 0; i < kColumnSteps; ++i) {
    const int from = bias_lane(lane_id(), i);
    const float x = __shfl_sync(0xffffffff, bias[i / 8].x, from);
    const float y = __shfl_sync(0xffffffff, bias[i / 8].y, from);
    scores[4 * i] += x;
    scores[4 * i + 1] += y;
    scores[4 * i + 2] += x;
    scores[4 * i + 3] += y;
  }
}

// Appends the keys that reach their query's floor to the query's list, in any order.
struct Survivors {
  const float* floor;
  int64_t capacity;
  int32_t* count;
  int32_t* ids;
  float* scores;

  // The floors of this lane's two rows; a row that does not exist has one that no score reaches.
  struct Rows {
    float floor[2];
  };
  __device__ __forceinline__ Rows rows(const Problem& problem, int64_t row) const {
    Rows mine;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = row + fragment_row(lane_id(), 2 * half);
      mine.floor[half] = query < problem.n_queries ? floor[query] : INFINITY;
    }
    return mine;
  }

  template <int kColumnSteps>
  __device__ __forceinline__ void take(const Problem& problem, const Rows& mine, int64_t row, int64_t column,
                                       const float (&scores)[4 * kColumnSteps]) const {
    float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 4 * kColumnSteps; ++i) best[i % 4 / 2] = fmaxf(best[i % 4 / 2], scores[i]);
    if (best[0] >= mine.floor[0]) append<0, kColumnSteps>(problem, mine.floor[0], row, column, scores);
    if (best[1] >= mine.floor[1]) append<1, kColumnSteps>(problem, mine.floor[1], row, column, scores);
  }

  // The rare path: one atomic for all the survivors of a row that this lane holds.
  template <int kHalf, int kColumnSteps>
  __device__ __forceinline__ void append(const Problem& problem, float least, int64_t row, int64_t column,
                                         const float (&scores)[4 * kColumnSteps]) const {
    const int64_t query = row + fragment_row(lane_id(), 2 * kHalf);
    if (query >= problem.n_queries) return;
    // columns that exist, counted from this lane's first
    const int64_t rest = problem.n_keys - column;
    const int exist = static_cast<int>(rest < 8 * kColumnSteps ? rest : 8 * kColumnSteps) - 2 * (lane_id() % 4);
    const auto survives = [&](int i) {
      return scores[i / 2 * 4 + 2 * kHalf + i % 2] >= least && fragment_column(0, i / 2, i % 2) < exist;
    };
    int32_t hits = 0;
#pragma unroll
    for (int i = 0; i < 2 * kColumnSteps; ++i) hits += survives(i);
    if (hits == 0) return;
    const int32_t place = atomicAdd(count + query, hits);
    const int32_t first = static_cast<int32_t>(column) + fragment_column(lane_id(), 0, 0);
    int64_t room = capacity - place;
    int32_t* id = ids + query * capacity + place;
    float* stored = this->scores + query * capacity + place;
#pragma unroll
    for (int i = 0; i < 2 * kColumnSteps; ++i) {
      if (survives(i) && room-- > 0) {
        *id++ = first + fragment_column(0, i / 2, i % 2);
        *stored++ = scores[i / 2 * 4 + 2 * kHalf + i % 2];
      }
    }
  }
};

// The largest score of every group of 64 consecutive keys, [queries, groups].
struct GroupMaxima {
  float* out;
  int64_t groups;

  struct Rows {};
  __device__ __forceinline__ Rows rows(const Problem&, int64_t) const { return {}; }

  template <int kColumnSteps>
  __device__ __forceinline__ void take(const Problem& problem, const Rows&, int64_t row, int64_t column,
                                       const float (&scores)[4 * kColumnSteps]) const {
#pragma unroll
    for (int g = 0; g < kColumnSteps / 8; ++g) {
      float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 32 * g; i < 32 * g + 32; ++i) best[i % 4 / 2] = fmaxf(best[i % 4 / 2], scores[i]);
      const int64_t group = column / kGroup + g;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // the four lanes of a row hold its 64 columns
        best[half] = fmaxf(best[half], __shfl_xor_sync(0xffffffff, best[half], 1));
        best[half] = fmaxf(best[half], __shfl_xor_sync(0xffffffff, best[half], 2));
        const int64_t query = row + fragment_row(lane_id(), 2 * half);
        if (lane_id() % 4 == g && query < problem.n_queries && group < groups) out[query * groups + group] = best[half];
      }
    }
  }
};

}  // namespace vlcal::screen
