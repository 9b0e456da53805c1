// What the launchers of both screens share.
#pragma once
#include <string>

#include "checks.h"
#include "cuda/common.cuh"
#include "cuda/search.h"
#include "cuda/search_epilogue.cuh"

namespace vlcal::cuda {

inline screen::Survivors epilogue_of(const SurvivorLists& lists) {
  return {lists.floor, lists.capacity, lists.count, lists.ids, lists.scores};
}
inline screen::GroupMaxima epilogue_of(const Pairs& pairs, float* out) {
  return {out, screen::pieces(pairs.n_keys, screen::kGroup)};
}

inline void check_pairs(const Pairs& pairs, const char* who) {
  if (pairs.dim <= 0 || pairs.dim % screen::kDepth || pairs.dim > screen::kMostDim) {
    refuse(who, "the dimension must be a multiple of ", screen::kDepth, " up to ", screen::kMostDim, ", got ",
           pairs.dim);
  }
  if (pairs.n_queries > screen::kMostRows || pairs.n_keys > screen::kMostRows) {
    refuse(who, "takes at most ", screen::kMostRows, " rows, got ", pairs.n_queries, " queries and ", pairs.n_keys,
           " keys");
  }
}

inline screen::Problem problem_of(const Pairs& pairs, int splits, int stages) {
  return {pairs.bias, pairs.n_queries, pairs.n_keys, static_cast<int>(pairs.dim), splits, stages};
}

inline int attribute(cudaDeviceAttr which, int device, const char* who) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), who);
  return value;
}

// Capability 9.0 is 90.
inline int capability(int device, const char* who) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device, who) +
         attribute(cudaDevAttrComputeCapabilityMinor, device, who);
}

}  // namespace vlcal::cuda
