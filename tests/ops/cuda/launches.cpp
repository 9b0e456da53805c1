// Runs the launchers of the screens, as nvcc compiles them, on a CUDA runtime that is not there: it holds them to its
// rules, and what they launch runs on the emulator, with the tensor maps they made.
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
#include "../../../csrc/cuda/search_sm80.cuh"
#include "../../../csrc/cuda/search_sm90.cuh"

namespace {

using namespace vlcal::screen;
using emulator::require;

struct Device {
  int capability, processors, most_shared;
};
constexpr Device kDevices[] = {{90, 2, 232448}, {86, 3, 101376}, {100, 2, 232448}, {75, 2, 65536}, {90, 1, 232448}};

struct Kernel {
  std::string name;
  std::vector<int> allowed = std::vector<int>(std::size(kDevices), 48 * 1024);  // shared memory on each device
};

std::map<const void*, Kernel> kernels;
int current = 0, launches = 0, expected_device = 0;
bool fail_attribute = false, has_encoder = true;
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
void run_block(const std::string& name, void** args, const dim3& grid, int threads, int bytes) {
  const auto run = [&](const Problem& problem, auto&& body) {
    require(grid.x == pieces(problem.n_queries, 128) && static_cast<int>(grid.y) == problem.splits, "another grid");
    emulator::run_block(threads, bytes, (blockIdx.x + blockIdx.y) % 2, 31 * blockIdx.x + blockIdx.y, body);
  };
  if (name.find("screen_kernelILb") == std::string::npos) {
    const auto& problem = *static_cast<const Problem*>(args[1]);
    run(problem, [&] {
      sm80::run(*static_cast<const sm80::Operands*>(args[0]), problem, *static_cast<const Epilogue*>(args[2]));
    });
    return;
  }
  const auto& problem = *static_cast<const Problem*>(args[2]);
  const auto& epilogue = *static_cast<const Epilogue*>(args[3]);
  ptx::TensorMap maps[2];
  for (int i = 0; i < 2; ++i) std::memcpy(&maps[i], args[i], sizeof maps[i]);
  run(problem, [&] {
    if (name.find("ILb1E") != std::string::npos) {
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
      run(kernel.name, args, grid, static_cast<int>(block.x), static_cast<int>(shared));
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

struct Screens {
  decltype(&vlcal::cuda::screen_sm80) screen;
  decltype(&vlcal::cuda::group_max_sm80) group_max;
};
constexpr Screens kSm80{vlcal::cuda::screen_sm80, vlcal::cuda::group_max_sm80};
constexpr Screens kSm90{vlcal::cuda::screen_sm90, vlcal::cuda::group_max_sm90};

// Both screens of small integers on one device, against a plain loop.
void check(const Screens& screens, int device, int n_queries, int n_keys, int dim, int every) {
  const int capacity = n_keys, groups = static_cast<int>(pieces(n_keys, kGroup));
  // rows are aligned as an allocator aligns them
  std::vector<std::aligned_storage_t<16, 16>> query_bytes(n_queries * dim / 8), key_bytes(n_keys * every * dim / 8);
  auto* queries = reinterpret_cast<_Float16*>(query_bytes.data());
  auto* keys = reinterpret_cast<_Float16*>(key_bytes.data());
  for (int i = 0; i < n_queries * dim; ++i) queries[i] = static_cast<_Float16>(any(9) - 4);
  for (int i = 0; i < n_keys * every * dim; ++i) keys[i] = static_cast<_Float16>(any(9) - 4);
  std::vector<float> bias(n_keys), floor(n_queries), best(n_queries * groups), scores(n_queries * capacity);
  std::vector<int32_t> count(n_queries), ids(n_queries * capacity);
  for (float& value : bias) value = any(200) / 4.0f;
  for (float& value : floor) value = 50.0f + any(100);
  emulator::machine.readable = {{reinterpret_cast<char*>(queries), 2ll * n_queries * dim},
                                {reinterpret_cast<char*>(keys), 2ll * n_keys * every * dim}};
  const vlcal::cuda::Pairs pairs{queries, n_queries, keys, n_keys, int64_t{every} * dim, dim, bias.data()};
  const vlcal::cuda::Launch at{device, reinterpret_cast<uintptr_t>(kStream)};
  const int before = launches;
  expected_device = device;
  screens.group_max(pairs, best.data(), at);
  screens.screen(pairs, {floor.data(), capacity, count.data(), ids.data(), scores.data()}, at);
  require(current == 0, "another device is left behind");
  require(launches == before + (n_queries > 0 ? 2 : 0), "another number of launches");
  for (int q = 0; q < n_queries; ++q) {
    std::vector<float> expected(groups, -INFINITY);
    int32_t reach = 0;
    for (int v = 0; v < n_keys; ++v) {
      float score = 0;
      for (int d = 0; d < dim; ++d) {
        score += static_cast<float>(queries[q * dim + d]) * static_cast<float>(keys[(v * every) * dim + d]);
      }
      score += bias[v];
      reach += score >= floor[q];
      expected[v / kGroup] = std::fmax(expected[v / kGroup], score);
    }
    require(count[q] == reach, "screen counts differently");
    for (int g = 0; g < groups; ++g) require(best[q * groups + g] == expected[g], "group_max differs");
  }
}

// What is thrown contains `why`.
template <class Call>
void check_refusal(const char* why, Call&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    require(std::string(error.what()).find(why) != std::string::npos, error.what());
    require(current == 0, "another device is left behind by an error");
    return;
  }
  emulator::fail(why);
}

}  // namespace

int main() {
  check(kSm80, 0, 130, 300, 64, 1);
  check(kSm80, 0, 0, 10, 64, 1);
  check(kSm80, 1, 3, 129, 128, 3);
  check(kSm80, 2, 1, 1, 64, 1);
  check(kSm90, 0, 130, 300, 64, 2);
  check(kSm90, 4, 5, 257, 1024, 1);

  // the limit belongs to the kernel: what needs less must not lower it for what needs more
  const auto allowed = [] {
    int least = 1 << 30;
    for (const auto& [_, kernel] : kernels) {
      if (kernel.name.find("ILb1E") != std::string::npos) least = std::min(least, kernel.allowed[0]);
    }
    return least;
  };
  check(kSm90, 0, 1, 1, 512, 1);
  const int most = allowed();
  check(kSm90, 0, 1, 1, 64, 1);
  require(allowed() == most, "a launch lowers what others may have");

  check_refusal("needs compute capability 9.0, this is 8.6", [] { check(kSm90, 1, 1, 1, 64, 1); });
  check_refusal("needs compute capability 9.0, this is 10.0", [] { check(kSm90, 2, 1, 1, 64, 1); });
  check_refusal("needs compute capability 8.0 or later, this is 7.5", [] { check(kSm80, 3, 1, 1, 64, 1); });
  check_refusal("must be a multiple of 64", [] { check(kSm80, 0, 1, 1, 72, 1); });
  has_encoder = false;
  check_refusal("the driver has no tensor maps", [] { check(kSm90, 0, 1, 1, 64, 1); });
  has_encoder = true;
  fail_attribute = true;
  check_refusal("CUDA says name: text", [] { check(kSm90, 0, 1, 1, 64, 1); });
  fail_attribute = false;
  // which that error does not spoil
  check(kSm90, 0, 1, 1, 64, 1);
  std::printf("same; %d launches\n", launches);
}
