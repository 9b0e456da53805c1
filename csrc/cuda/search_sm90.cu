// Launches the screens: see search_sm90.cuh.
#include <string>

#include "checks.h"
#include "cuda/common.cuh"
#include "cuda/search.h"
#include "cuda/search_ptx.cuh"
// below the instructions it is written in
#include "cuda/search_sm90.cuh"

namespace vlcal::cuda {
namespace {

namespace sm90 = screen::sm90;

template <bool kResident, class Epilogue>
__global__ void __launch_bounds__(sm90::kThreads, 1)
    score_kernel(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap keys,
                  const screen::Problem problem, const Epilogue epilogue) {
  sm90::run<kResident>(queries, keys, problem, epilogue);
}

// The driver's encoder, looked up at run time: the extension imports where there is no driver.
decltype(&cuTensorMapEncodeTiled) encoder(const char* who) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result), who);
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result), who);
#endif
  if (result != cudaDriverEntryPointSuccess || !found) {
    throw std::runtime_error(std::string(who) + ": the driver has no tensor maps (cuTensorMapEncodeTiled)");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

// Boxes of `box` rows x 64 values in 128-byte swizzle; zero beyond the last row.
CUtensorMap map_of(const void* rows, int64_t n, int64_t stride, int64_t dim, int box, const char* who) {
  CUtensorMap map;
  const cuuint64_t extent[2] = {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(n)};
  const cuuint64_t bytes[1] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t boxes[2] = {screen::kDepth, static_cast<cuuint32_t>(box)}, steps[2] = {1, 1};
  const CUresult status = encoder(who)(
      &map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(rows), extent, bytes, boxes, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(who) + ": the driver cannot describe a matrix of " + std::to_string(n) +
                             " rows of " + std::to_string(dim) + " (error " + std::to_string(status) + ")");
  }
  return map;
}

template <bool kResident, class Epilogue>
void launch_planned(const Pairs& pairs, const sm90::Plan& plan, const Epilogue& epilogue, const Launch& at,
                    const char* who) {
  const int64_t blocks = screen::pieces(pairs.n_queries, sm90::kQueries);
  const int64_t tiles = screen::pieces(pairs.n_keys, sm90::kKeys);
  const int splits = screen::choose_splits(blocks, tiles, attribute(cudaDevAttrMultiProcessorCount, at.device, who));
  const screen::Problem problem{pairs.bias, pairs.n_queries, pairs.n_keys, static_cast<int>(pairs.dim), splits,
                                plan.stages};
  const CUtensorMap queries = map_of(pairs.queries, pairs.n_queries, pairs.dim, pairs.dim, sm90::kQueries, who);
  const CUtensorMap keys = map_of(pairs.keys, pairs.n_keys, pairs.key_stride, pairs.dim, sm90::kKeys, who);
  const auto kernel = score_kernel<kResident, Epilogue>;
  allow_shared(kernel, at.device, who);
  const dim3 grid(static_cast<unsigned>(blocks), splits);
  kernel<<<grid, sm90::kThreads, plan.bytes, stream_of(at.stream)>>>(queries, keys, problem, epilogue);
  check_launch(who);
}

template <class Epilogue>
void launch(const Pairs& pairs, const Epilogue& epilogue, const Launch& at, const char* who) {
  if (pairs.dim <= 0 || pairs.dim % screen::kDepth || pairs.dim > screen::kMostDim) {
    refuse(who, "the dimension must be a multiple of ", screen::kDepth, " up to ", screen::kMostDim, ", got ",
           pairs.dim);
  }
  if (pairs.n_queries > screen::kMostRows || pairs.n_keys > screen::kMostRows) {
    refuse(who, "takes at most ", screen::kMostRows, " rows, got ", pairs.n_queries, " queries and ", pairs.n_keys,
           " keys");
  }
  if (pairs.n_queries == 0 || pairs.n_keys == 0) return;
  use_device(at.device, who);
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, at.device, who);
  const sm90::Plan plan = sm90::plan(static_cast<int>(pairs.dim), most);
  const auto run = plan.resident ? launch_planned<true, Epilogue> : launch_planned<false, Epilogue>;
  run(pairs, plan, epilogue, at, who);
}

}  // namespace

void screen(const Pairs& pairs, const SurvivorLists& lists, const Launch& at) {
  const screen::Ladder ladder{lists.gap, lists.rung, lists.rising_floor, lists.seen, lists.rungs, lists.wanted};
  launch(pairs, screen::Survivors{lists.floor, lists.capacity, lists.count, lists.ids, lists.scores, ladder}, at,
         "screen");
}

void group_max(const Pairs& pairs, float* out, const Launch& at) {
  launch(pairs, screen::GroupMaxima{out, screen::pieces(pairs.n_keys, screen::kGroup)}, at, "group_max");
}

}  // namespace vlcal::cuda
