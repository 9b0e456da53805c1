// What becomes of the scores: the two screens share their kernels and differ here. A fragment is what one warp holds,
// 16 queries x 64 n keys; see search_layout.cuh. Include it below the instructions it is written in.
#pragma once
#include <cstring>

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

// What a floor can rise to while keys pass: once `wanted` different keys are sure to score at least a rung, no neighbor
// scores less than the floor of that rung. Rungs ascend; the floors of a query rise for all blocks.
struct Ladder {
  const float* gap;    // of each 256 keys, how much less than its score a key may really have
  const float* rung;   // [n_queries, rungs]
  const float* floor;  // [n_queries, rungs]
  int32_t* seen;       // [n_queries, rungs], keys counted so far
  int rungs;
  int wanted;
};

// More than float32 rounds by in a score, its difference to a gap, and the score it stands for.
constexpr float kRounding = 0x1p-21f;

// The largest of what is there and a value that is not NaN: bits of floats are ordered as integers, backwards below 0.
__device__ __forceinline__ void raise(float* to, float value) {
  int bits;
  memcpy(&bits, &value, sizeof bits);
  if (bits >= 0) {
    atomicMax(reinterpret_cast<int*>(to), bits);
  } else {
    atomicMin(reinterpret_cast<unsigned*>(to), static_cast<unsigned>(bits));
  }
}

// Appends the entries of which a key reaches its query's floor to the query's list, in any order.
struct Survivors {
  float* floor;
  int64_t capacity;
  int32_t* count;
  int32_t* ids;
  float* scores;
  Ladder ladder;

  // The floors of this lane's two rows; a row that does not exist has one that no score reaches.
  struct Rows {
    float floor[2];
  };
  __device__ __forceinline__ Rows rows(const Problem& problem, int64_t row) const {
    Rows mine;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = row + fragment_row(lane_id(), 2 * half);
      mine.floor[half] = query < problem.n_queries ? ptx::load_relaxed(floor + query) : INFINITY;
    }
    return mine;
  }

  template <int kColumnSteps>
  __device__ __forceinline__ void take(const Problem& problem, const Rows& mine, int64_t row, int64_t column,
                                       const float (&scores)[4 * kColumnSteps]) const {
    constexpr int kEntries = kColumnSteps / 4;
    float best[2][kEntries], most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 2 * kEntries; ++i) {
      const int half = i / kEntries, entry = i % kEntries;
      float largest = scores[entry_value(half, entry, 0)];
#pragma unroll
      for (int key = 1; key < kEntryKeys; ++key) largest = fmaxf(largest, scores[entry_value(half, entry, key)]);
      best[half][entry] = largest;
      most[half] = fmaxf(most[half], largest);
    }
    float least = mine.floor[0];
    // one copy of the code for both rows: the rarely used must not push the products out of the instruction cache
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int64_t query = row + fragment_row(lane_id(), 2 * half);
      if (most[0] >= least) append(problem, least, query, column, best[0], most[0]);
#pragma unroll
      for (int entry = 0; entry < kEntries; ++entry) best[0][entry] = best[1][entry];
      most[0] = most[1];
      least = mine.floor[1];
    }
  }

  // One atomic for all the entries of a row that this lane holds.
  template <int kEntries>
  __device__ __forceinline__ void append(const Problem& problem, float least, int64_t query, int64_t column,
                                         const float (&best)[kEntries], float most) const {
    if (query >= problem.n_queries) return;
    const auto survives = [&](int entry) {
      return best[entry] >= least && column + entry_column(lane_id(), entry) < problem.n_keys;
    };
    int32_t hits = 0;
#pragma unroll
    for (int entry = 0; entry < kEntries; ++entry) hits += survives(entry);
    if (hits == 0) return;
    const int32_t place = atomicAdd(count + query, hits);
    climb(query, column, least, most);
    int64_t room = capacity - place;
    int32_t* id = ids + query * capacity + place;
    float* stored = this->scores + query * capacity + place;
#pragma unroll
    for (int entry = 0; entry < kEntries; ++entry) {
      if (survives(entry) && room-- > 0) {
        *id++ = static_cast<int32_t>(column) + entry_column(lane_id(), entry);
        *stored++ = best[entry];
      }
    }
  }

  // Counts the best key of those appended on every rung that it is sure to reach.
  __device__ __forceinline__ void climb(int64_t query, int64_t column, float least, float most) const {
    const float gap = ladder.gap[column / kGapKeys];
    const float sure = most - gap - kRounding * fmaxf(fabsf(most), gap);
#pragma unroll 1
    for (int64_t at = query * ladder.rungs; at < (query + 1) * ladder.rungs && sure >= ladder.rung[at]; ++at) {
      if (ladder.floor[at] <= least) continue;  // the floor is past this rung
      if (atomicAdd(ladder.seen + at, 1) + 1 >= ladder.wanted) raise(floor + query, ladder.floor[at]);
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
