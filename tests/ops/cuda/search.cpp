// Runs the screens as they are launched, on a CUDA runtime that is not there: it holds the launchers to its rules, and
// what they launch runs on the emulator, with the tensor maps they made. Results are compared with a plain loop; values
// are small integers, so that every sum is exact in any order.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>

// the emulator brings its own
#undef __device__
#undef __forceinline__
#include "emulated_ptx.h"
// below the stand-in for the instructions it is written in
#include "../../../csrc/cuda/search.h"
#include "../../../csrc/cuda/search_sm90.cuh"

namespace {

using namespace vlcal::screen;
using emulator::require;

struct Device {
  int capability, processors, most_shared;
};
// the last makes the kernel stream the queries, too
constexpr Device kDevices[] = {{90, 2, 232448}, {86, 3, 101376}, {100, 2, 232448}, {90, 132, 232448}, {90, 1, 170000}};

struct Kernel {
  std::string name;
  std::vector<int> allowed = std::vector<int>(std::size(kDevices), 48 * 1024);  // shared memory on each device
};

std::map<const void*, Kernel> kernels;
int current = 0, launches = 0, expected_device = 0;
bool fail_attribute = false, has_encoder = true, late = false;
cudaError_t last_error = cudaSuccess;
const auto kStream = reinterpret_cast<cudaStream_t>(77);
struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} configuration;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// What the documentation of cuTensorMapEncodeTiled demands. Boxes may be larger than the matrix.
CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address, const cuuint64_t* extent,
                const cuuint64_t* bytes, const cuuint32_t* box, const cuuint32_t* steps,
                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                CUtensorMapFloatOOBfill fill) {
  require(current == expected_device, "a tensor map made on another device");
  require(reinterpret_cast<uintptr_t>(map) % 64 == 0, "a tensor map at an unaligned address");
  require(reinterpret_cast<uintptr_t>(address) % 16 == 0, "a matrix at an unaligned address");
  require(type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 && rank == 2, "not a matrix of fp16");
  require(extent[0] > 0 && extent[0] <= 1ull << 32 && extent[1] > 0 && extent[1] <= 1ull << 32, "an extent of a map");
  require(bytes[0] % 16 == 0 && bytes[0] < 1ull << 40 && bytes[0] >= 2 * extent[0], "a stride of a map");
  require(box[0] > 0 && box[1] > 0 && box[0] <= 256 && box[1] <= 256, "a box of a map");
  require(swizzle == CU_TENSOR_MAP_SWIZZLE_128B && 2 * box[0] == 128, "a box that does not fill the swizzle");
  require(steps[0] == 1 && steps[1] == 1 && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE, "a map that leaves rows out");
  require(fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, "a map that fills with NaN");
  const ptx::TensorMap stands_for{static_cast<const char*>(address), static_cast<int64_t>(extent[1]),
                                  static_cast<int64_t>(bytes[0] / 2), static_cast<int64_t>(extent[0]),
                                  static_cast<int>(box[1])};
  std::memcpy(map, &stands_for, sizeof stands_for);
  return CUDA_SUCCESS;
}

template <class Epilogue>
void run_block(bool resident, void** args, const dim3& grid, int threads, int bytes) {
  const auto& problem = *static_cast<const Problem*>(args[2]);
  const auto& epilogue = *static_cast<const Epilogue*>(args[3]);
  ptx::TensorMap maps[2];
  for (int i = 0; i < 2; ++i) std::memcpy(&maps[i], args[i], sizeof maps[i]);
  require(grid.x == pieces(problem.n_queries, 128) && static_cast<int>(grid.y) == problem.splits, "another grid");
  emulator::run_block(threads, bytes, late, 31 * blockIdx.x + blockIdx.y, [&] {
    if (resident) {
      sm90::run<true>(maps[0], maps[1], problem, epilogue);
    } else {
      sm90::run<false>(maps[0], maps[1], problem, epilogue);
    }
  });
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t stream) {
  const Kernel& kernel = kernels.at(function);
  require(current == expected_device && stream == kStream, "a launch on another device or stream");
  if (static_cast<int>(shared) > kernel.allowed[current]) return result(cudaErrorInvalidValue);
  require(grid.y <= 65535 && grid.z == 1 && block.y == 1 && block.z == 1, "a grid that cannot be");
  ++launches;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = {static_cast<int>(x), static_cast<int>(y), 0};
      const bool maxima = kernel.name.find("GroupMaxima") != std::string::npos;
      const auto run = maxima ? run_block<GroupMaxima> : run_block<Survivors>;
      const bool resident = kernel.name.find("ILb1E") != std::string::npos;
      run(resident, args, grid, static_cast<int>(block.x), static_cast<int>(shared));
    }
  }
  return cudaSuccess;
}

}  // namespace

// ---- the runtime

extern "C" {
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  kernels[host].name = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** args, size_t shared,
                               cudaStream_t stream) {
  return launch(kernel, grid, block, args, shared, stream);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** args, size_t shared,
                             cudaStream_t stream) {
  return launch(kernel, grid, block, args, shared, stream);
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  current = device;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t) { return "name"; }
const char* cudaGetErrorString(cudaError_t) { return "text"; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  const Device& is = kDevices[device];
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = is.capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = is.capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = is.processors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = is.most_shared; break;
    default: emulator::fail("an attribute that nobody expected");
  }
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which, int value) {
  require(which == cudaFuncAttributeMaxDynamicSharedMemorySize, "another attribute of a kernel");
  if (fail_attribute || value > kDevices[current].most_shared) return result(cudaErrorInvalidValue);
  kernels.at(function).allowed[current] = value;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** found, unsigned version, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  require(symbol == std::string("cuTensorMapEncodeTiled") && version >= 12000, "another function of the driver");
  *found = has_encoder ? reinterpret_cast<void*>(&encode) : nullptr;
  *status = has_encoder ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
// of toolkits before 12.5
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** found, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* status) {
  return cudaGetDriverEntryPointByVersion(symbol, found, 12000, flags, status);
}
}

// ---- the launches

namespace {

std::mt19937 generator;
int any(int below) { return static_cast<int>(generator() % below); }

struct Case {
  int device, n_queries, n_keys, dim, every;  // every: rows of keys lie so many rows apart
};

// The parts of the keys follow each other, and every plan fits.
void check_arithmetic() {
  for (const int64_t tiles : {1, 2, 7, 132, 3907}) {
    for (const int64_t blocks : {1, 2, 79, 1000}) {
      const int splits = choose_splits(blocks, tiles, 132);
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

// Both screens of small integers, against a plain loop.
class Check {
 public:
  explicit Check(const Case& c)
      : c_(c), query_bytes_(c.n_queries * c.dim / 8), key_bytes_(int64_t{c.n_keys} * c.every * c.dim / 8) {
    auto* queries = reinterpret_cast<_Float16*>(query_bytes_.data());
    auto* keys = reinterpret_cast<_Float16*>(key_bytes_.data());
    for (int i = 0; i < c.n_queries * c.dim; ++i) queries[i] = static_cast<_Float16>(any(9) - 4);
    for (int i = 0; i < c.n_keys * c.every * c.dim; ++i) keys[i] = static_cast<_Float16>(any(9) - 4);
    // behind the last key everything would survive
    bias_.assign(c.n_keys + 300, INFINITY);
    for (int v = 0; v < c.n_keys; ++v) bias_[v] = any(10) ? any(200) / 4.0f : -INFINITY;
    scores_.resize(c.n_queries * c.n_keys);
    for (int q = 0; q < c.n_queries; ++q) {
      for (int v = 0; v < c.n_keys; ++v) {
        float sum = 0;
        for (int d = 0; d < c.dim; ++d) {
          sum += static_cast<float>(queries[q * c.dim + d]) * static_cast<float>(keys[v * c.every * c.dim + d]);
        }
        scores_[q * c.n_keys + v] = sum + bias_[v];
      }
    }
    pairs_ = {queries, c.n_queries, keys, c.n_keys, int64_t{c.every} * c.dim, c.dim, bias_.data()};
  }

  void run() {
    expected_device = c_.device;
    for (const bool copies : {false, true}) {
      late = copies;
      group_max();
      for (const int capacity : {c_.n_keys, 3}) {
        for (const int rungs : {0, 2}) screen(capacity, rungs);
      }
    }
  }

 private:
  vlcal::cuda::Launch at() const { return {c_.device, reinterpret_cast<uintptr_t>(kStream)}; }

  float score(int q, int v) const { return scores_[q * c_.n_keys + v]; }

  void group_max() {
    const int groups = static_cast<int>(pieces(c_.n_keys, kGroup));
    std::vector<float> out(c_.n_queries * groups + 64, 12345.0f);
    const int before = launches;
    vlcal::cuda::group_max(pairs_, out.data(), at());
    require(launches == before + (c_.n_queries > 0), "another number of launches");
    for (int q = 0; q < c_.n_queries; ++q) {
      for (int g = 0; g < groups; ++g) {
        float best = -INFINITY;
        for (int v = g * kGroup; v < std::min(c_.n_keys, (g + 1) * kGroup); ++v) best = std::max(best, score(q, v));
        require(out[q * groups + g] == best, "group_max differs");
      }
    }
    for (int i = 0; i < 64; ++i) require(out[c_.n_queries * groups + i] == 12345.0f, "group_max wrote behind its end");
  }

  void screen(int capacity, int rungs) {
    constexpr int kWanted = 3;
    const int n = c_.n_queries;
    const float floors[] = {-INFINITY, INFINITY, 0, 50, -200};
    std::vector<float> floor(n + 200, -INFINITY), gap(pieces(c_.n_keys, kGapKeys)), rung(n * rungs), rising(n * rungs);
    for (int q = 0; q < n; ++q) floor[q] = floors[any(5)];
    for (float& value : gap) value = any(4) ? any(3) : INFINITY;
    for (int i = 0; i < n * rungs; ++i) {
      rung[i] = -100.0f + 150 * (i % rungs) + any(50);
      rising[i] = rung[i] - any(20);
    }
    const std::vector<float> at_first = floor;
    std::vector<int32_t> count(n + 200), ids((n + 1) * capacity, -7), seen(n * rungs);
    std::vector<float> stored((n + 1) * capacity, 12345.0f);
    vlcal::cuda::screen(pairs_, {floor.data(), capacity, count.data(), ids.data(), stored.data(), gap.data(),
                                 rung.data(), rising.data(), seen.data(), rungs, kWanted}, at());
    for (int q = 0; q < n; ++q) {
      // a floor may be that of any rung which as many keys as are wanted are sure to reach
      float highest = at_first[q];
      for (int i = q * rungs; i < (q + 1) * rungs; ++i) {
        int sure = 0;
        for (int v = 0; v < c_.n_keys; ++v) sure += score(q, v) - gap[v / kGapKeys] >= rung[i];
        if (sure >= kWanted) highest = std::max(highest, rising[i]);
      }
      require(floor[q] >= at_first[q] && floor[q] <= highest, "a floor that is not sure");
      if (floor[q] > at_first[q]) ++(floor[q] < 0 ? raised_below_zero : raised);
      check_list(q, at_first[q], floor[q], count[q], &ids[q * capacity], &stored[q * capacity], capacity);
    }
    for (int q = n; q < n + 200; ++q) require(count[q] == 0, "screen counts a query too many");
    for (int i = 0; i < capacity; ++i) require(ids[n * capacity + i] == -7, "screen wrote behind its end");
  }

  // Entries between the two floors may be in the list; those above both are, if there is room for all.
  void check_list(int q, float low, float high, int count, const int32_t* ids, const float* stored, int capacity) {
    std::map<int, float> listed;
    for (int i = 0; i < capacity; ++i) {
      require((ids[i] >= 0) == (i < std::min(count, capacity)), "screen stores another number than it counts");
      if (ids[i] >= 0) require(listed.emplace(ids[i], stored[i]).second, "screen stores an entry twice");
    }
    int least = 0, most = 0;
    for (int first = 0; first < c_.n_keys; ++first) {
      if (first % kGroup >= kEntryStep) continue;
      float best = -INFINITY;
      for (int key = 0; key < kEntryKeys; ++key) {
        const int v = first + kEntryStep * key;
        if (v < c_.n_keys) best = std::max(best, score(q, v));
      }
      least += best >= high;
      most += best >= low;
      const auto found = listed.find(first);
      if (found == listed.end()) {
        require(best < high || count > capacity, "screen leaves an entry out");
      } else {
        require(best >= low && found->second == best, "screen stores another score");
        listed.erase(found);
      }
    }
    require(listed.empty(), "screen stores keys that no entry begins with");
    require(count >= least && count <= most, "screen counts differently");
  }

  Case c_;
  std::vector<std::aligned_storage_t<16, 16>> query_bytes_, key_bytes_;  // aligned as an allocator aligns rows
  std::vector<float> bias_, scores_;
  vlcal::cuda::Pairs pairs_;

 public:
  static inline int raised = 0, raised_below_zero = 0;
};

// What is thrown contains `why`.
template <class Call>
void check_refusal(const char* why, Call&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    require(std::string(error.what()).find(why) != std::string::npos, error.what());
    return;
  }
  emulator::fail(why);
}

}  // namespace

int main() {
  check_arithmetic();
  const Case cases[] = {{0, 130, 300, 64, 2}, {0, 0, 10, 64, 1},    {4, 1, 1, 64, 1},
                        {0, 200, 700, 64, 2}, {4, 100, 4, 64, 1},   {4, 100, 7, 64, 1},
                        {4, 70, 513, 320, 1}, {3, 65, 257, 576, 1}, {0, 5, 1300, 512, 1}};
  for (const Case& c : cases) {
    Check(c).run();
  }
  // the limit belongs to the kernel: what needs less must not lower it for what needs more
  const auto allowed = [] {
    int least = 1 << 30;
    for (const auto& [_, kernel] : kernels) {
      if (kernel.name.find("ILb1E") != std::string::npos) least = std::min(least, kernel.allowed[0]);
    }
    return least;
  };
  const int most = allowed();
  Check({0, 1, 1, 64, 1}).run();
  require(allowed() == most, "a launch lowers what others may have");

  check_refusal("needs compute capability 9.0, this is 8.6", [] { Check({1, 1, 1, 64, 1}).run(); });
  check_refusal("needs compute capability 9.0, this is 10.0", [] { Check({2, 1, 1, 64, 1}).run(); });
  check_refusal("must be a multiple of 64", [] { Check({0, 1, 1, 72, 1}).run(); });
  has_encoder = false;
  check_refusal("the driver has no tensor maps", [] { Check({0, 1, 1, 64, 1}).run(); });
  has_encoder = true;
  fail_attribute = true;
  check_refusal("CUDA says name: text", [] { Check({0, 1, 1, 64, 1}).run(); });
  fail_attribute = false;
  // which that error does not spoil
  Check({0, 1, 1, 64, 1}).run();
  require(Check::raised > 50 && Check::raised_below_zero > 50, "floors that do not rise");
  std::printf("same\n");
}
