// CPU detection: CPUID through the compiler's built-ins, which also check that the system saves the wide registers.
#include "cpu/isa.h"

#include <atomic>

#include "checks.h"

namespace vlcal {
namespace {

std::atomic<int> limit{3};  // 0 portable, 1 avx2, 2 avx512, 3 no limit

Isa detect() {
  Isa found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  found.avx512 = found.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  found.bf16 = found.avx512 && __builtin_cpu_supports("avx512bf16");
  found.vnni = found.avx512 && __builtin_cpu_supports("avx512vnni");
#endif
  return found;
}

}  // namespace

Isa isa() {
  static const Isa detected = detect();
  const int most = limit.load(std::memory_order_relaxed);
  Isa allowed = detected;
  if (most < 3) allowed.bf16 = allowed.vnni = false;
  if (most < 2) allowed.avx512 = false;
  if (most < 1) allowed.avx2 = false;
  return allowed;
}

void limit_isa(const std::string& level) {
  static const char* names[] = {"portable", "avx2", "avx512", "native"};
  for (int i = 0; i < 4; ++i) {
    if (level == names[i]) {
      limit.store(i);
      return;
    }
  }
  refuse("limit_isa", "level must be portable, avx2, avx512 or native, got '", level, "'");
}

std::vector<std::string> isa_names() {
  const Isa have = isa();
  std::vector<std::string> names{"portable"};
  if (have.avx2) names.push_back("avx2");
  if (have.avx512) names.push_back("avx512");
  if (have.bf16) names.push_back("bf16");
  if (have.vnni) names.push_back("vnni");
  return names;
}

}  // namespace vlcal
