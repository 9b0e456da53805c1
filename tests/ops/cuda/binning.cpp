// Runs the binning kernels on an emulated GPU and compares every integer with plain loops over what the CPU kernels
// compute of one sample. Arguments: kernel, samples, bins, blocks, kind of confidences, kind of thresholds.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "emulator.h"

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
template <class T>
T __ldcs(const T* from) {
  emulator::require(reinterpret_cast<std::uintptr_t>(from) % alignof(T) == 0, "a load from an unaligned address");
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline int32_t __ldg(const int32_t* from) { return *from; }
inline emulator::Index gridDim;

// Every lane deposits a value and gets what `pick` makes of all.
template <class Pick>
auto of_warp(uint64_t value, Pick&& pick) {
  auto& values = emulator::machine.lane_values[emulator::thread() / 32];
  values[emulator::thread() % 32] = value;
  emulator::meet(emulator::warp(), 32, [] {});
  const auto result = pick(values);
  emulator::meet(emulator::warp(), 32, [] {});
  return result;
}
using Lanes = uintptr_t[32];
inline unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, int mask) {
  return of_warp(value, [=](const Lanes& all) -> unsigned long long { return all[(threadIdx.x % 32) ^ mask]; });
}
inline int __shfl_sync(unsigned, int value, int from) {
  return of_warp(static_cast<uint32_t>(value), [=](const Lanes& all) { return static_cast<int>(all[from]); });
}
inline uint32_t __shfl_sync(unsigned, uint32_t value, int from) {
  return of_warp(value, [=](const Lanes& all) { return static_cast<uint32_t>(all[from]); });
}
inline unsigned __ballot_sync(unsigned, bool value) {
  return of_warp(value, [](const Lanes& all) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all[lane] & 1) << lane;
    return bits;
  });
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  return of_warp(value, [](const Lanes& all) {
    unsigned sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += static_cast<unsigned>(all[lane]);
    return sum;
  });
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline bool __syncthreads_and(bool value) {
  static bool all;
  emulator::meet(emulator::machine.block, emulator::machine.threads, [] { all = true; });
  all &= value;
  __syncthreads();
  const bool result = all;
  __syncthreads();
  return result;
}
inline void atomicAdd(unsigned long long* to, unsigned long long value) { *to += value; }
inline void atomicAdd(uint32_t* to, uint32_t value) { *to += value; }

#include "../../../csrc/cpu/bins.h"
#include "../../../csrc/cuda/binning_block.cuh"
#include "../../../csrc/cuda/equal_mass_block.cuh"

namespace {

using emulator::require;
using vlcal::cuda::Input;
using vlcal::cuda::Sum;
constexpr int kCells = vlcal::cuda::kCells;

struct Data {
  std::vector<float> confidence;
  std::vector<uint8_t> correct;
  Input input;
};

// Samples that begin a few elements behind an aligned address, with NaN around them.
Data data_of(int n, const std::string& kind, const std::vector<float>& thresholds, int skip, int skip_correct) {
  std::mt19937 random(n + 7 * skip + skip_correct);
  std::uniform_real_distribution<float> uniform;
  Data data{std::vector<float>(n + 16, NAN), std::vector<uint8_t>(n + 16, 255), {}};
  float* confidence = data.confidence.data();
  while (reinterpret_cast<std::uintptr_t>(confidence) % 16) ++confidence;
  uint8_t* correct = data.correct.data();
  while (reinterpret_cast<std::uintptr_t>(correct) % 4) ++correct;
  confidence += skip;
  correct += skip_correct;
  for (int i = 0; i < n; ++i) {
    const float u = uniform(random);
    correct[i] = random() % 3 == 0 ? 1 + random() % 2 : 0;
    if (kind == "uniform") confidence[i] = u;
    if (kind == "one") confidence[i] = 1.0f;
    if (kind == "sure") confidence[i] = random() % 5 ? 1.0f : 1.0f - u * u * u * 0.01f;
    if (kind == "small") confidence[i] = std::ldexp(u, -static_cast<int>(random() % 60));
    if (kind == "edges") {
      const float edge = thresholds.empty() ? 0.5f : thresholds[random() % thresholds.size()];
      const float near[] = {edge, std::nextafter(edge, 0.0f), std::nextafter(edge, 1.0f), 0.0f, -0.0f, 1.0f};
      confidence[i] = near[random() % 6];
    }
    if (kind == "bad") {
      const float bad[] = {NAN, -1e-9f, 1.0000001f, INFINITY, -INFINITY, u, u, u};
      confidence[i] = bad[random() % 8];
    }
  }
  data.input = vlcal::cuda::input_of(confidence, correct, n);
  return data;
}

template <class Body>
void run_blocks(int blocks, int threads, Body&& body) {
  gridDim = {blocks, 1, 1};
  for (int x = 0; x < blocks; ++x) {
    blockIdx = {x, 0, 0};
    emulator::run_block(threads, 0, false, 31 * x + 1, body);
  }
}

void check_bins(const Data& data, const std::vector<float>& thresholds, int blocks) {
  namespace bins = vlcal::cuda::bins;
  const int n_bins = static_cast<int>(thresholds.size()) + 1;
  const int64_t tiles = vlcal::cuda::tiles_of(data.input, bins::kThreads);
  std::vector<Sum> table(3 * n_bins), truth(3 * n_bins);
  int32_t bad = 0, truly_bad = 0;
  std::vector<uint64_t> words(bins::shared_bytes(n_bins) / 8 + 1, 0xabababababababab);
  run_blocks(blocks, bins::kThreads, [&] {
    bins::run(words.data(), data.input, tiles, thresholds.data(), n_bins, table.data(), &bad);
  });
  const vlcal::Bins<float> bin(thresholds.data(), n_bins);
  for (int64_t i = 0; i < data.input.n; ++i) {
    const float confidence = data.input.confidence[i];
    if (!vlcal::in_range(confidence)) {
      ++truly_bad;
      continue;
    }
    const int at = bin(confidence);
    truth[at] += 1;
    truth[n_bins + at] += data.input.correct[i] != 0;
    truth[2 * n_bins + at] += vlcal::units_of(confidence);
  }
  require(table == truth, "the table differs");
  require(bad == truly_bad, "another number of bad rows");
}

uint32_t bits_of(float confidence) {
  uint32_t bits;
  std::memcpy(&bits, &confidence, sizeof bits);
  return bits == 0x80000000 ? 0 : bits;
}

void check_cells(const Data& data, int blocks) {
  namespace mass = vlcal::cuda::mass;
  const int64_t tiles = vlcal::cuda::tiles_of(data.input, mass::kThreads);
  std::vector<Sum> sums(2 * kCells), truth(2 * kCells);
  int32_t bad = 0, truly_bad = 0;
  static mass::Cells cells;
  std::memset(&cells, 0xab, sizeof cells);
  run_blocks(blocks, mass::kThreads, [&] { mass::run_cells(cells, data.input, tiles, sums.data(), &bad); });
  for (int64_t i = 0; i < data.input.n; ++i) {
    const float confidence = data.input.confidence[i];
    if (!vlcal::in_range(confidence)) {
      ++truly_bad;
      continue;
    }
    const int cell = bits_of(confidence) >> 16;
    truth[cell] += 1 + (Sum{data.input.correct[i] != 0} << 32);
    truth[kCells + cell] += vlcal::units_of(confidence);
  }
  require(sums == truth, "the cells differ");
  require(bad == truly_bad, "another number of bad rows");
}

void check_values(const Data& data, int blocks) {
  namespace mass = vlcal::cuda::mass;
  const int64_t tiles = vlcal::cuda::tiles_of(data.input, mass::kThreads);
  std::vector<int32_t> slots(kCells);
  int count = 0;
  for (int64_t i = 0; i < data.input.n && count < 40; i += 5) {
    const float confidence = data.input.confidence[i];
    if (vlcal::in_range(confidence) && !slots[bits_of(confidence) >> 16]) slots[bits_of(confidence) >> 16] = ++count;
  }
  std::vector<Sum> sums((count + 1) << 16), truth(sums.size());
  run_blocks(blocks, mass::kThreads, [&] { mass::run_values(data.input, tiles, slots.data(), sums.data()); });
  for (int64_t i = 0; i < data.input.n; ++i) {
    const float confidence = data.input.confidence[i];
    const uint32_t bits = bits_of(confidence);
    const int slot = vlcal::in_range(confidence) ? slots[bits >> 16] : 0;
    if (slot) truth[(slot - 1) * 65536 + (bits & 0xffff)] += 1 + (Sum{data.input.correct[i] != 0} << 32);
  }
  require(sums == truth, "the values differ");
}

std::vector<float> thresholds_of(int n_bins, const std::string& kind) {
  std::vector<float> out;
  for (int bin = 1; bin < n_bins; ++bin) {
    const double edge = static_cast<double>(bin) / n_bins;
    const auto near = static_cast<float>(kind == "squares" ? edge * edge : edge);
    out.push_back(kind == "right" && near <= edge ? std::nextafter(near, 1.0f) : near);
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 7, "six arguments");
  const std::string kernel = argv[1], kind = argv[5];
  const int n = std::atoi(argv[2]), n_bins = std::atoi(argv[3]), blocks = std::atoi(argv[4]);
  const std::vector<float> thresholds = thresholds_of(n_bins, argv[6]);
  // all alignments of both, if that is quick
  for (int skip = 0; skip < (n < 5000 ? 4 : 1); ++skip) {
    for (int skip_correct = 0; skip_correct < (n < 5000 ? 4 : 1); ++skip_correct) {
      const Data data = data_of(n, kind, thresholds, skip, skip_correct);
      require(data.input.aligned == ((skip_correct - skip) % 4 == 0), "wide loads where they should not be");
      if (kernel == "bins") check_bins(data, thresholds, blocks);
      if (kernel == "cells") check_cells(data, blocks);
      if (kernel == "values") check_values(data, blocks);
    }
  }
  std::printf("same\n");
}
