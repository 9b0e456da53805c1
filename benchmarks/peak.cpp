// What one core can do: independent multiply-adds in registers, billions of operations a second.
#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <ctime>

constexpr int kChains = 20;  // enough to hide the latency of one instruction
constexpr int64_t kSteps = 4000000;

// keeps a value in its register and unknown to the optimizer
template <class T>
inline void hide(T& value) {
  asm volatile("" : "+v"(value));
}

template <class Vector, class Step>
void report(const char* name, double operations, Vector zero, Step step) {
  double best = 0;
  for (int round = 0; round < 15; ++round) {
    Vector sum[kChains];
#pragma GCC unroll 20
    for (int j = 0; j < kChains; ++j) sum[j] = zero;
    const std::clock_t start = std::clock();  // of the processor: others may take the core
    for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 20
      for (int j = 0; j < kChains; ++j) {
        sum[j] = step(sum[j]);
        hide(sum[j]);
      }
    }
    const double taken = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    const double rate = operations * kChains * kSteps / taken / 1e9;
    best = rate > best ? rate : best;
  }
  std::printf("%s %.0f\n", name, best);
}

int main() {
#if defined(__AVX2__) && defined(__FMA__)
  const __m256 near = _mm256_set1_ps(0.999f), small = _mm256_set1_ps(1e-3f);
  report("avx2", 16, small, [=](__m256 x) { return _mm256_fmadd_ps(x, near, small); });
#endif
#if defined(__AVX512F__)
  const __m512 wide_near = _mm512_set1_ps(0.999f), wide_small = _mm512_set1_ps(1e-3f);
  report("float32", 32, wide_small, [=](__m512 x) { return _mm512_fmadd_ps(x, wide_near, wide_small); });
#endif
#if defined(__AVX512BF16__)
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00), b = (__m512bh)_mm512_set1_epi16(0x3c00);
  report("bfloat16", 64, wide_small, [=](__m512 x) { return _mm512_dpbf16_ps(x, a, b); });
#endif
#if defined(__AVX512VNNI__)
  const __m512i u = _mm512_set1_epi8(3), v = _mm512_set1_epi8(5);
  report("int8", 128, _mm512_setzero_si512(), [=](__m512i x) { return _mm512_dpbusd_epi32(x, u, v); });
#endif
}
