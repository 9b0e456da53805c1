// Which instruction sets this CPU has. Kernels are chosen at run time, never by -march=native.
#pragma once
#include <string>
#include <vector>

namespace vlcal {

// Ordered: a larger value can run everything below it, except that bf16 and vnni are independent of each other.
struct Isa {
  bool avx2 = false;    // AVX2, FMA, F16C
  bool avx512 = false;  // F, BW, DQ, VL
  bool bf16 = false;    // AVX512-BF16
  bool vnni = false;    // AVX512-VNNI
};

// What the CPU and the operating system offer, less what limit_isa has switched off.
Isa isa();

// Pretend that the CPU has only the named level: "portable", "avx2", "avx512" or "native" (no limit).
// For tests and measurements; throws std::invalid_argument for another name.
void limit_isa(const std::string& level);

// The names of the sets in isa(), e.g. {"portable", "avx2", "avx512", "bf16", "vnni"}.
std::vector<std::string> isa_names();

}  // namespace vlcal
