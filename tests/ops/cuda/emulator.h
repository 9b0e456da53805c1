// A CPU that stands in for the GPU: runs one block of threads as fibers, so that kernels run unchanged; what is
// special to tensor cores and copies is in emulated_ptx.h.
//
// What is asynchronous on the GPU happens at the extremes of what is allowed: copies as late as a wait permits and
// products at once, so that a stage read too early shows; or copies at once and products as late as can be, so that a
// stage overwritten too early shows. Threads take turns in a random order; shared memory starts as NaN; every address
// is checked.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __forceinline__ inline

namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::printf("emulator: %s\n", what);
  std::exit(1);
}
inline void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

struct Index {
  int x, y, z;
};

struct Barrier {
  int arrivals, pending, bytes = 0;
  uint32_t phase = 0;

  void settle() {
    if (pending == 0 && bytes == 0) {
      pending = arrivals;
      phase ^= 1;
    }
  }
};

// A meeting of the threads that execute one instruction together.
struct Meeting {
  int arrived = 0;
  uint64_t number = 0;
};

struct Product {
  float* sums[128];
  uint64_t left, right;
  bool add;
};

struct Fiber {
  ucontext_t context;  // to start it; later switches are jumps, which leave signal masks alone
  jmp_buf jump;
  std::unique_ptr<char[]> stack;
  bool begun = false, done = false;
};

struct Machine {
  bool late_copies = false;  // else late products
  std::mt19937 random{0};
  uint32_t base = 0;  // first valid address of shared memory
  std::vector<char> memory, is_barrier;
  std::map<uint32_t, Barrier> barriers;
  std::vector<std::function<void()>> engine;  // copies under way
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps, warpgroups;
  std::vector<std::vector<Product>> started;                // of each warpgroup, not yet committed
  std::vector<std::vector<std::vector<Product>>> committed;  // its groups
  std::vector<char> fenced;                                  // whether its products may touch the sums
  Product deposit[8];                                       // one a warpgroup, being filled
  uintptr_t lane_values[64][32];
  Meeting block;
  ucontext_t start;
  jmp_buf scheduler;
  int current = 0, threads = 0, registers = 0;  // registers given back and not yet taken
  uint64_t progress = 0;
  std::function<void()> body;

  char* at(uint32_t address, int bytes) {
    require(address >= base && address + bytes <= base + memory.size(), "an address outside of shared memory");
    require(!is_barrier[address - base] && !is_barrier[address - base + bytes - 1], "data in the place of a barrier");
    return memory.data() + (address - base);
  }
};
inline Machine machine;

inline void yield() {
  if (!_setjmp(machine.fibers[machine.current].jump)) _longjmp(machine.scheduler, 1);
}
// Runs a fiber until it yields or ends.
inline void resume(int which) {
  Fiber& fiber = machine.fibers[which];
  machine.current = which;
  if (_setjmp(machine.scheduler)) return;
  if (fiber.begun) _longjmp(fiber.jump, 1);
  fiber.begun = true;
  swapcontext(&machine.start, &fiber.context);
}

// Blocks until all `size` threads have come; the last one acts for all.
template <class Act>
void meet(Meeting& meeting, int size, Act&& act) {
  const uint64_t number = meeting.number;
  if (++meeting.arrived == size) {
    act();
    meeting.arrived = 0;
    ++meeting.number;
    ++machine.progress;
    return;
  }
  while (meeting.number == number) yield();
}
inline int thread() { return machine.current; }
inline Meeting& warp() { return machine.warps[thread() / 32]; }
inline Meeting& warpgroup() { return machine.warpgroups[thread() / 128]; }

inline void enter() {
  machine.body();
  machine.fibers[machine.current].done = true;
  ++machine.progress;
  yield();
}

// Runs one block to its end.
inline void run_block(int threads, int bytes, bool late_copies, uint32_t seed, std::function<void()> body) {
  Machine& m = machine;
  m = Machine{};
  m.late_copies = late_copies;
  m.random.seed(seed);
  m.base = 0x410 + 16 * (seed % 7);  // not aligned, as the start of dynamic shared memory need not be
  m.memory.assign(bytes, static_cast<char>(0xff));
  m.is_barrier.assign(bytes, 0);
  m.threads = threads;
  m.body = std::move(body);
  m.fibers.resize(threads);
  m.warps.resize(threads / 32);
  m.warpgroups.resize(threads / 128);
  m.started.resize(threads / 128);
  m.committed.resize(threads / 128);
  m.fenced.assign(threads / 128, 0);
  constexpr size_t kStack = 1 << 16;
  for (Fiber& fiber : m.fibers) {
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, enter, 0);
  }
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  int idle = 0;
  for (;;) {
    const uint64_t before = m.progress;
    // warps take turns in a random order
    const int shift = static_cast<int>(m.random() % (threads / 32)) * 32;
    bool alive = false;
    for (int i = 0; i < threads; ++i) {
      const int which = (i + shift) % threads;
      if (m.fibers[which].done || m.random() % 8 == 0) {
        alive |= !m.fibers[which].done;
        continue;
      }
      alive = true;
      resume(which);
    }
    if (!alive) break;
    idle = m.progress == before ? idle + 1 : 0;
    if (idle >= 20 && !m.engine.empty()) {
      // as late as can be: nobody else gets on; in no particular order
      const auto next = m.engine.begin() + m.random() % m.engine.size();
      const auto copy = std::move(*next);
      m.engine.erase(next);
      copy();
      idle = 0;
    }
    require(idle < 2000, "deadlock");
  }
  require(m.engine.empty(), "a copy was never waited for");
  for (const auto& group : m.committed) require(group.empty(), "products were never waited for");
}

}  // namespace emulator

// ---- the parts of CUDA that the kernels use

struct ThreadIndex {
  struct X {
    operator int() const { return emulator::thread(); }
  } x;
};
inline ThreadIndex threadIdx;
inline emulator::Index blockIdx;

inline void __syncthreads() {
  emulator::meet(emulator::machine.block, emulator::machine.threads, [] {});
}

inline void __syncwarp() {
  emulator::meet(emulator::warp(), 32, [] {});
}

inline float shuffle(float value, int from) {
  auto& values = emulator::machine.lane_values[emulator::thread() / 32];
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  values[emulator::thread() % 32] = bits;
  emulator::meet(emulator::warp(), 32, [] {});
  bits = static_cast<uint32_t>(values[from]);
  std::memcpy(&value, &bits, 4);
  emulator::meet(emulator::warp(), 32, [] {});
  return value;
}
inline float __shfl_sync(unsigned, float value, int from) { return shuffle(value, from); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  return shuffle(value, (emulator::thread() % 32) ^ mask);
}

inline int32_t atomicAdd(int32_t* to, int32_t value) {
  const int32_t before = *to;
  *to += value;
  return before;
}
inline void atomicMax(int* to, int value) { *to = std::max(*to, value); }
inline void atomicMin(unsigned* to, unsigned value) { *to = std::min(*to, value); }
