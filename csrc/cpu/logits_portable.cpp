// The leaf kernels for any CPU: four lanes that compilers turn into their smallest vectors; and the choice of a set.
#include <cmath>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/logits_kernels.h"

namespace {

#include "cpu/logits_leaf.h"

struct Four {
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Bits __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static inline Reg load(const float* at) {
    Reg a;
    std::memcpy(&a, at, sizeof a);
    return a;
  }
  static inline void store(float* at, Reg a) { std::memcpy(at, &a, sizeof a); }
  static inline Reg set(float a) { return Reg{a, a, a, a}; }
  static inline Reg add(Reg a, Reg b) { return a + b; }
  static inline Reg sub(Reg a, Reg b) { return a - b; }
  static inline Reg mul(Reg a, Reg b) { return a * b; }
  static inline Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static inline Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static inline Reg min(Reg a, Reg b) { return a < b ? a : b; }
  static inline Reg abs(Reg a) { return a < 0.0f ? -a : a; }
  // 1.5 * 2^23: the sum has no fraction bits left; |a| < 2^22
  static inline Reg round(Reg a) { return (a + 12582912.0f) - 12582912.0f; }
  static inline Reg exp2_scale(Reg p, Reg n) {
    const Bits exponent = (__builtin_convertvector(n, Bits) + 127) << 23;
    return p * (Reg)exponent;
  }
  static inline void transpose(Reg (&m)[4]) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) {
        const float other = m[i][j];
        m[i][j] = m[j][i];
        m[j][i] = other;
      }
    }
  }
  static inline unsigned reached(Reg a, Reg b) {
    const Bits bits = a >= b;
    return (bits[0] & 1) | (bits[1] & 2) | (bits[2] & 4) | (bits[3] & 8);
  }
};

}  // namespace

namespace vlcal {

const LogitsKernels logits_portable = Leaf<Four, 4, 2>::kernels();

const LogitsKernels& logits_kernels() {
#if defined(__x86_64__)
  const Isa have = isa();
  if (have.avx512) return logits_avx512;
  if (have.avx2) return logits_avx2;
#endif
  return logits_portable;
}

}  // namespace vlcal
