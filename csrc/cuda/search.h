// The two screens of exact search over all pairs of a query and a key: fp16 products on tensor cores, accumulated in
// fp32, plus one bias a key.
#pragma once
#include <cstdint>

#include "cuda/device.h"

namespace vlcal::cuda {

// fp16 rows on the device, `dim` a multiple of 64, addresses multiples of 16; rows of queries are contiguous.
struct Pairs {
  const void* queries;
  int64_t n_queries;
  const void* keys;
  int64_t n_keys;
  int64_t key_stride;  // values from one key to the next, a multiple of 8
  int64_t dim;
  const float* bias;  // [n_keys]
};

// Lists of entries. An entry of id i stands for the keys i, i + 8, ..., i + 56 that exist, and has the largest of their
// scores; it is in the list of a query if that reaches the query's floor. `count` [n_queries] starts at 0 and counts the
// entries that no longer fit, too. Floors rise with the rungs of a query, of which there may be none.
struct SurvivorLists {
  float* floor;  // [n_queries]
  int64_t capacity;
  int32_t* count;
  int32_t* ids;  // [n_queries, capacity]
  float* scores;
  const float* gap;           // [ceil(n_keys / 256)], how much less than its score one of these keys may have
  const float* rung;          // [n_queries, rungs], scores ...
  const float* rising_floor;  // ... that raise the floor to this once `wanted` keys have them
  int32_t* seen;              // [n_queries, rungs], starts at 0
  int rungs;
  int wanted;
};

// Both need compute capability 9.0 (wgmma, TMA).
void screen(const Pairs& pairs, const SurvivorLists& lists, const Launch& launch);
// The largest score of each 64 consecutive keys, [n_queries, ceil(n_keys / 64)].
void group_max(const Pairs& pairs, float* out, const Launch& launch);

}  // namespace vlcal::cuda
