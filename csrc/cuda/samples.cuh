// Confidences and correctness read side by side: 16 and 4 bytes at a time where both are aligned, eight samples a
// thread, so that enough loads are on their way.
#pragma once
#include <cstdint>

namespace vlcal::cuda {

constexpr int kPerThread = 8;
using Sum = unsigned long long;  // what atomicAdd takes

struct Input {
  const float* confidence;
  const uint8_t* correct;
  int64_t n;
  int64_t first;  // where groups of four begin: 0 or, if the first samples are not aligned, -1..-3
  bool aligned;
};

inline Input input_of(const float* confidence, const uint8_t* correct, int64_t n) {
  const auto at = reinterpret_cast<std::uintptr_t>(confidence);
  const int64_t skipped = static_cast<int64_t>(at % 16 / sizeof(float));
  const bool aligned = at % sizeof(float) == 0 && (reinterpret_cast<std::uintptr_t>(correct) - skipped) % 4 == 0;
  return {confidence, correct, n, aligned ? -skipped : 0, aligned};
}

inline int64_t tiles_of(const Input& input, int threads) {
  const int64_t tile = static_cast<int64_t>(threads) * kPerThread;
  return (input.n - input.first + tile - 1) / tile;
}

// What one thread reads of one tile of kThreads * kPerThread samples.
struct Samples {
  float confidence[kPerThread];
  bool correct[kPerThread];
  bool real[kPerThread];  // false beyond the ends
};

template <int kThreads>
__device__ __forceinline__ Samples read_tile(const Input& input, int64_t tile) {
  Samples out;
  const int64_t base = input.first + tile * (kThreads * kPerThread);
#pragma unroll
  for (int part = 0; part < kPerThread / 4; ++part) {
    const int64_t i = base + (part * kThreads + static_cast<int>(threadIdx.x)) * 4;
    if (input.aligned && i >= 0 && i + 4 <= input.n) {
      const float4 four = __ldcs(reinterpret_cast<const float4*>(input.confidence + i));
      const uchar4 right = __ldcs(reinterpret_cast<const uchar4*>(input.correct + i));
      const float values[4] = {four.x, four.y, four.z, four.w};
      const uint8_t flags[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out.confidence[part * 4 + j] = values[j];
        out.correct[part * 4 + j] = flags[j] != 0;
        out.real[part * 4 + j] = true;
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool real = i + j >= 0 && i + j < input.n;
        out.confidence[part * 4 + j] = real ? input.confidence[i + j] : 0.0f;
        out.correct[part * 4 + j] = real && input.correct[i + j] != 0;
        out.real[part * 4 + j] = real;
      }
    }
  }
  return out;
}

}  // namespace vlcal::cuda
