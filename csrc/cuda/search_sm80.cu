#include "cuda/search_launch.cuh"
#include "cuda/search_ptx.cuh"
// below the instructions it is written in
#include "cuda/search_sm80.cuh"

namespace vlcal::cuda {
namespace {

namespace sm80 = screen::sm80;

template <class Epilogue>
__global__ void __launch_bounds__(sm80::kThreads)
    screen_kernel(const sm80::Operands operands, const screen::Problem problem, const Epilogue epilogue) {
  sm80::run(operands, problem, epilogue);
}

template <class Epilogue>
void launch(const Pairs& pairs, const Epilogue& epilogue, const Launch& at, const char* who) {
  check_pairs(pairs, who);
  if (pairs.n_queries == 0 || pairs.n_keys == 0) return;
  const DeviceGuard guard(at.device, who);
  if (const int is = capability(at.device, who); is < 80) {
    refuse(who, "needs compute capability 8.0 or later, this is ", is / 10, ".", is % 10);
  }
  const int64_t blocks = screen::pieces(pairs.n_queries, sm80::kQueries);
  const int64_t tiles = screen::pieces(pairs.n_keys, sm80::kKeys);
  const int splits = screen::choose_splits(blocks, tiles, multiprocessors(at.device, who));
  const screen::Problem problem = problem_of(pairs, splits, sm80::kStages);
  const sm80::Operands operands{static_cast<const char*>(pairs.queries), static_cast<const char*>(pairs.keys),
                                pairs.key_stride};
  const auto kernel = screen_kernel<Epilogue>;
  allow_shared(kernel, at.device, who);
  const dim3 grid(static_cast<unsigned>(blocks), splits);
  kernel<<<grid, sm80::kThreads, sm80::kBytes, stream_of(at.stream)>>>(operands, problem, epilogue);
  check_launch(who);
}

}  // namespace

void screen_sm80(const Pairs& pairs, const SurvivorLists& lists, const Launch& at) {
  launch(pairs, epilogue_of(lists), at, "screen (mma.sync)");
}

void group_max_sm80(const Pairs& pairs, float* out, const Launch& at) {
  launch(pairs, epilogue_of(pairs, out), at, "group_max (mma.sync)");
}

}  // namespace vlcal::cuda
