// The two screens of exact search over all pairs of a query and a key: fp16 products on tensor cores, accumulated in
// fp32, plus one bias a key. Which kernel runs is the caller's choice; each refuses devices it cannot run on.
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

// Lists of the keys that reach a floor: `count` [n_queries] starts at 0 and counts those that no longer fit, too.
struct SurvivorLists {
  const float* floor;  // [n_queries]
  int64_t capacity;
  int32_t* count;
  int32_t* ids;  // [n_queries, capacity]
  float* scores;
};

// Tensor cores of capability 8.0 and later (mma.sync).
void screen_sm80(const Pairs& pairs, const SurvivorLists& lists, const Launch& launch);
// The largest score of each 64 consecutive keys, [n_queries, ceil(n_keys / 64)].
void group_max_sm80(const Pairs& pairs, float* out, const Launch& launch);

// The same on capability 9.0 (wgmma, TMA), if this was compiled for sm_90a.
void screen_sm90(const Pairs& pairs, const SurvivorLists& lists, const Launch& launch);
void group_max_sm90(const Pairs& pairs, float* out, const Launch& launch);

}  // namespace vlcal::cuda
