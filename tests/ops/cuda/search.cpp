// Runs the screen kernels of csrc/cuda on the emulator, against a plain loop, bit for bit: values are small integers,
// so that every sum is exact in any order.
//
//   search <kernel: 80 | 90> <queries> <keys> <dim> <key stride / dim> <processors> <shared memory limit> <seed>
#include "emulated_ptx.h"

// below the stand-in for the instructions it is written in
#include "../../../csrc/cuda/search_sm80.cuh"
#include "../../../csrc/cuda/search_sm90.cuh"

namespace {

using namespace vlcal::screen;
using emulator::require;

struct Case {
  int kernel;
  int64_t n_queries, n_keys;
  int dim, stride, processors, limit;
  uint32_t seed;
};

std::mt19937 generator;
int any(int below) { return static_cast<int>(generator() % below); }

struct Data {
  std::vector<_Float16> queries, keys;
  std::vector<float> bias, floor;
  int64_t key_stride;
};

Data data_of(const Case& c) {
  Data data;
  data.key_stride = static_cast<int64_t>(c.dim) * c.stride;
  data.queries.resize(c.n_queries * c.dim);
  data.keys.resize(c.n_keys * data.key_stride);
  for (auto& value : data.queries) value = static_cast<_Float16>(any(9) - 4);
  for (auto& value : data.keys) value = static_cast<_Float16>(any(9) - 4);
  // behind the last key everything would survive
  data.bias.assign(c.n_keys + 300, INFINITY);
  for (int64_t v = 0; v < c.n_keys; ++v) data.bias[v] = any(10) ? any(200) / 4.0f : -INFINITY;
  data.floor.assign(c.n_queries + 200, -INFINITY);
  const float floors[] = {-INFINITY, INFINITY, 100, 200, 300, 0};
  for (int64_t q = 0; q < c.n_queries; ++q) data.floor[q] = floors[any(6)];
  return data;
}

float score_of(const Case& c, const Data& data, int64_t q, int64_t v) {
  float sum = 0;
  for (int d = 0; d < c.dim; ++d) {
    sum += static_cast<float>(data.queries[q * c.dim + d]) * static_cast<float>(data.keys[v * data.key_stride + d]);
  }
  return sum + data.bias[v];
}

// The parts of the keys follow each other, and every plan fits.
void check_arithmetic() {
  for (const int64_t tiles : {1, 2, 7, 132, 3907}) {
    for (const int64_t blocks : {1, 2, 79, 1000}) {
      const int splits = choose_splits(blocks, tiles, 132);
      require(splits >= 1 && splits <= tiles, "a part without a tile");
      int64_t next = 0;
      for (int which = 0; which < splits; ++which) {
        const Range range = part(tiles, splits, which);
        require(range.first == next && range.last > next, "parts that do not follow each other");
        next = range.last;
      }
      require(next == tiles, "parts that leave keys out");
    }
  }
  require(choose_splits(8, 3907, 132) == 33 && choose_splits(132, 40, 132) == 1, "a poor choice of parts");
  for (int dim = kDepth; dim <= 4096; dim += kDepth) {
    const sm90::Plan plan = sm90::plan(dim, 232448);
    const uint32_t end = sm90::kAlignment + sm90::loaded_offset(plan.resident, dim, plan.stages) + 8;
    require(plan.resident == (dim <= 512) && plan.stages >= 3, "another plan than intended");
    require(plan.bytes <= 232448 && end <= static_cast<uint32_t>(plan.bytes), "a plan that does not fit");
  }
}

int64_t longest_part = 0;

template <class Epilogue>
void run_all(const Case& c, const Data& data, const Epilogue& epilogue, bool late_copies) {
  const bool new_kernel = c.kernel == 90;
  const sm90::Plan plan = sm90::plan(c.dim, c.limit);
  require(plan.bytes <= c.limit && (plan.stages >= 2), "a plan that does not fit");
  const int64_t blocks = pieces(c.n_queries, 128), tiles = pieces(c.n_keys, new_kernel ? sm90::kKeys : sm80::kKeys);
  const Problem problem{data.bias.data(), c.n_queries, c.n_keys, c.dim, choose_splits(blocks, tiles, c.processors),
                        plan.stages};
  const auto* queries = reinterpret_cast<const char*>(data.queries.data());
  const auto* keys = reinterpret_cast<const char*>(data.keys.data());
  emulator::machine.readable = {{queries, 2 * static_cast<int64_t>(data.queries.size())},
                                {keys, 2 * static_cast<int64_t>(data.keys.size())}};
  const ptx::TensorMap query_map{queries, c.n_queries, c.dim, c.dim, sm90::kQueries};
  const ptx::TensorMap key_map{keys, c.n_keys, data.key_stride, c.dim, sm90::kKeys};
  const sm80::Operands operands{queries, keys, data.key_stride};
  for (int y = 0; y < problem.splits; ++y) {
    const Range range = part(tiles, problem.splits, y);
    longest_part = std::max(longest_part, range.last - range.first);
    for (int x = 0; x < blocks; ++x) {
      blockIdx = {x, y, 0};
      const uint32_t seed = c.seed + 31 * x + y;
      if (!new_kernel) {
        emulator::run_block(sm80::kThreads, sm80::kBytes, late_copies, seed,
                            [&] { sm80::run(operands, problem, epilogue); });
      } else if (plan.resident) {
        emulator::run_block(sm90::kThreads, plan.bytes, late_copies, seed,
                            [&] { sm90::run<true>(query_map, key_map, problem, epilogue); });
      } else {
        emulator::run_block(sm90::kThreads, plan.bytes, late_copies, seed,
                            [&] { sm90::run<false>(query_map, key_map, problem, epilogue); });
      }
    }
  }
}

void check_group_max(const Case& c, const Data& data, bool late_copies) {
  const int64_t groups = pieces(c.n_keys, kGroup);
  std::vector<float> out(c.n_queries * groups + 64, 12345.0f);
  run_all(c, data, GroupMaxima{out.data(), groups}, late_copies);
  for (int64_t q = 0; q < c.n_queries; ++q) {
    for (int64_t g = 0; g < groups; ++g) {
      float best = -INFINITY;
      for (int64_t v = g * kGroup; v < std::min(c.n_keys, (g + 1) * kGroup); ++v) {
        best = std::max(best, score_of(c, data, q, v));
      }
      require(out[q * groups + g] == best, "group_max differs");
    }
  }
  for (int i = 0; i < 64; ++i) require(out[c.n_queries * groups + i] == 12345.0f, "group_max wrote behind its end");
}

void check_screen(const Case& c, const Data& data, bool late_copies, int64_t capacity) {
  std::vector<int32_t> count(c.n_queries + 200), ids((c.n_queries + 1) * capacity, -7);
  std::vector<float> scores((c.n_queries + 1) * capacity, 12345.0f);
  run_all(c, data, Survivors{data.floor.data(), capacity, count.data(), ids.data(), scores.data()}, late_copies);
  for (int64_t q = 0; q < c.n_queries; ++q) {
    int32_t expected = 0;
    for (int64_t v = 0; v < c.n_keys; ++v) expected += score_of(c, data, q, v) >= data.floor[q];
    require(count[q] == expected, "screen counts differently");
    std::vector<char> seen(c.n_keys, 0);
    const int64_t stored = std::min<int64_t>(expected, capacity);
    for (int64_t i = 0; i < capacity; ++i) {
      const int32_t id = ids[q * capacity + i];
      if (i >= stored) {
        require(id == -7, "screen stores more than it counts");
        continue;
      }
      require(id >= 0 && id < c.n_keys && !seen[id], "screen stores an id twice or none");
      seen[id] = 1;
      const float score = score_of(c, data, q, id);
      require(score >= data.floor[q] && scores[q * capacity + i] == score, "screen stores another score");
    }
  }
  for (int64_t q = c.n_queries; q < c.n_queries + 200; ++q) require(count[q] == 0, "screen counts a query too many");
  for (int64_t i = 0; i < capacity; ++i) require(ids[c.n_queries * capacity + i] == -7, "screen wrote behind its end");
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 9, "eight arguments");
  const auto given = [&](int i) { return std::atoi(argv[i]); };
  const Case c{given(1), given(2), given(3), given(4), given(5), given(6), given(7), static_cast<uint32_t>(given(8))};
  check_arithmetic();
  generator.seed(c.seed);
  const Data data = data_of(c);
  for (const bool late_copies : {false, true}) {
    check_group_max(c, data, late_copies);
    check_screen(c, data, late_copies, c.n_keys);
    check_screen(c, data, late_copies, 3);
  }
  const sm90::Plan plan = sm90::plan(c.dim, c.limit);
  std::printf("same; %s, %d stages, up to %d tiles a block\n", plan.resident ? "resident" : "streamed", plan.stages,
              static_cast<int>(longest_part));
}
