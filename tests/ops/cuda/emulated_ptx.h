// Stands in for csrc/cuda/search_ptx.cuh: the same functions, written from the rules of the PTX ISA. Quoted are the
// sections and instructions of its version 9.0 where a rule stands; where it has but a figure, or nothing, public code
// that is wrong without the rule.
#pragma once
#include "../../../csrc/cuda/search_layout.cuh"
#include "emulator.h"

namespace vlcal::screen::ptx {

using emulator::machine;
using emulator::require;

struct TensorMap {
  const char* rows;
  int64_t n, stride, dim;  // stride and dim in values
  int box;
};

inline uint32_t shared_start() { return machine.base; }

inline float load_relaxed(const float* from) { return *from; }

// "Phase Completion of the mbarrier object": no pending arrival and no pending byte; the next phase expects as many
// arrivals again. "mbarrier.try_wait" with .parity: true once the phase of that parity has completed, so that the
// parity 1 is complete from the start.
inline emulator::Barrier& barrier_at(uint32_t address) {
  require(machine.barriers.count(address), "a barrier that was not initialized");
  return machine.barriers[address];
}
inline void init_barrier(uint32_t barrier, int arrivals) {
  require(barrier % 8 == 0, "a barrier at an unaligned address");
  machine.at(barrier, 8);
  for (int byte = 0; byte < 8; ++byte) machine.is_barrier[barrier - machine.base + byte] = 1;
  machine.barriers[barrier] = {arrivals, arrivals};
}
inline void fence_barriers() {}
inline void arrive(uint32_t barrier) {
  auto& at = barrier_at(barrier);
  require(at.pending > 0, "more arrivals than a barrier expects");
  --at.pending;
  at.settle();
  ++machine.progress;
}
inline void expect_bytes(uint32_t barrier, int bytes) {
  require(bytes < 1 << 20, "more bytes than a barrier can count");
  barrier_at(barrier).bytes += bytes;
  arrive(barrier);
}
inline void wait_barrier(uint32_t barrier, uint32_t parity) {
  while (barrier_at(barrier).phase == parity) emulator::yield();
}

// The copy engine writes byte b of row r of a box at 128 r + b and, in 128-byte swizzle, exchanges address bits 4..6 by
// exclusive or with bits 7..9 ("Swizzling Modes" has tables; CUTLASS calls the same Swizzle<3, 4, 3>). "Out of Boundary
// Access": zero. A box brings all its bytes to the barrier, those outside of the matrix too: the main loops of CUTLASS
// for this capability expect one number of bytes for whole and for partial tiles.
inline uint32_t swizzled(uint32_t address) {
  uint32_t row = 0, piece = 0;
  for (int bit = 0; bit < 3; ++bit) {
    row |= (address >> (7 + bit) & 1) << bit;
    piece |= (address >> (4 + bit) & 1) << bit;
  }
  return (address & ~uint32_t{0x70}) | (row ^ piece) << 4;
}
inline void copy_tile(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
  require(to % 128 == 0, "a box at an unaligned address");
  const auto copy = [=] {
    for (int r = 0; r < map.box; ++r) {
      for (int c = 0; c < 64; ++c) {
        _Float16 value = 0;
        if (row + r < map.n && column + c < map.dim) {
          std::memcpy(&value, map.rows + ((row + r) * map.stride + column + c) * 2, 2);
        }
        std::memcpy(machine.at(swizzled(to + 128 * r + 2 * c), 2), &value, 2);
      }
    }
    auto& at = barrier_at(barrier);
    at.bytes -= map.box * 128;
    at.settle();
    ++machine.progress;
  };
  if (machine.late_copies) {
    machine.engine.push_back(copy);
  } else {
    copy();
  }
}

// "setmaxnreg": a warpgroup gives registers to the pool of its block, or waits until the pool has what it wants; 24 to
// 256 a thread, in eights. The block starts with as many for each.
template <int kCount>
void fewer_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= sm90::kEvenRegisters, "not a count of registers");
  emulator::meet(emulator::warpgroup(), 128, [] { machine.registers += 128 * (sm90::kEvenRegisters - kCount); });
}
template <int kCount>
void more_registers() {
  static_assert(kCount % 8 == 0 && kCount >= sm90::kEvenRegisters && kCount <= 256, "not a count of registers");
  constexpr int kMore = 128 * (kCount - sm90::kEvenRegisters);
  while (machine.registers < kMore) emulator::yield();
  emulator::meet(emulator::warpgroup(), 128, [] { machine.registers -= kMore; });
  require(machine.registers >= 0, "more registers than the block has");
}

// "wgmma.fence": by all warps before the first product, and between any other access to the sums and the next product.
inline void fence_products() {
  emulator::meet(emulator::warpgroup(), 128, [] { machine.fenced[emulator::thread() / 128] = 1; });
}

inline float half_at(uint32_t address) {
  _Float16 value;
  std::memcpy(&value, machine.at(address, 2), 2);
  return static_cast<float>(value);
}

// Element (row, k) of a K-major operand, "Canonical Layouts" and "Matrix Descriptor Format": 128 bytes from row to row,
// the stride from 8 rows to 8 rows, then the swizzle of the address; base offset 0 says that the pattern of 8 rows
// starts at a multiple of 1024. A product of 16 values of depth starts 32 bytes further in the row than the one before:
// the figures show what lies where, DeepGEMM and CUTLASS (DescriptorIterator) step through a row this way.
inline float element(uint64_t descriptor, int row, int k) {
  require(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "not a descriptor of 128-byte swizzle at offset 0");
  const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  require((start & 0x380) == 0, "a pattern that does not start at a multiple of 1024 has another base offset");
  require(start % 128 + 32 <= 128, "a product that leaves its row of shared memory");
  return half_at(swizzled(start + row / 8 * stride + row % 8 * 128 + 2 * k));
}
inline void execute(const emulator::Product& product) {
  static float a[64][16], b[256][16];
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < 64; ++row) a[row][k] = element(product.left, row, k);
    for (int row = 0; row < 256; ++row) b[row][k] = element(product.right, row, k);
  }
  // "Matrix Fragments for wgmma.mma_async.m64nNk16": lane i of warp w holds rows 16 w + i / 4 and 8 more, of each 8
  // columns those 2 (i % 4) and the next
  for (int thread = 0; thread < 128; ++thread) {
    for (int j = 0; j < 128; ++j) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (j % 4 / 2);
      const int column = j / 4 * 8 + 2 * (thread % 4) + j % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
      product.sums[thread][j] = (product.add ? product.sums[thread][j] : 0) + sum;
    }
  }
}
inline void multiply_add(float (&sums)[128], uint64_t left, uint64_t right, bool add) {
  const int group = emulator::thread() / 128;
  require(machine.fenced[group], "products that were not fenced from other accesses to their sums");
  auto& mine = machine.deposit[group];
  if (machine.warpgroups[group].arrived > 0) {
    require(mine.left == left && mine.right == right && mine.add == add, "a warpgroup that does not agree");
  }
  mine.sums[emulator::thread() % 128] = sums;
  mine.left = left;
  mine.right = right;
  mine.add = add;
  emulator::meet(emulator::warpgroup(), 128, [&] {
    if (!machine.late_copies) {
      machine.started[group].push_back(mine);
    } else {
      execute(mine);
    }
  });
}
inline void commit_products() {
  const int group = emulator::thread() / 128;
  emulator::meet(emulator::warpgroup(), 128, [&] {
    machine.committed[group].push_back(std::move(machine.started[group]));
    machine.started[group].clear();
  });
}
template <int kPending>
void wait_products() {
  const int group = emulator::thread() / 128;
  emulator::meet(emulator::warpgroup(), 128, [&] {
    auto& groups = machine.committed[group];
    while (static_cast<int>(groups.size()) > kPending) {
      for (const auto& product : groups.front()) execute(product);
      groups.erase(groups.begin());
    }
  });
}
template <int kPending>
void wait_products(float (&)[128]) {
  wait_products<kPending>();
  emulator::meet(emulator::warpgroup(), 128, [] { machine.fenced[emulator::thread() / 128] = 0; });
}

}  // namespace vlcal::screen::ptx
