// Where everything lies: the index arithmetic of the screen kernels, without a single CUDA instruction, so that the
// same functions are checked on a CPU. Sections named below are those of the PTX ISA.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define VLCAL_ANYWHERE __host__ __device__ constexpr
#else
#define VLCAL_ANYWHERE constexpr
#endif

namespace vlcal::screen {

// The problem: dot + bias of every query with every key.
struct Problem {
  const float* bias;
  int64_t n_queries;
  int64_t n_keys;
  int dim;      // of both, a multiple of kDepth
  int splits;   // parts of the keys, each for its own blocks
  int stages;   // of the pipeline
};

constexpr int kWarp = 32;
constexpr int kWarpgroup = 128;
constexpr int kGroup = 64;      // consecutive keys that share one maximum
constexpr int kDepth = 64;      // fp16 values of a row in one tile of shared memory ...
constexpr int kRowBytes = 128;  // ... which fill one row of the 128-byte swizzle
constexpr int kStep = 16;       // depth of one tensor-core instruction
constexpr int kSteps = kDepth / kStep;
constexpr int kStepBytes = kStep * 2;
constexpr int64_t kMostDim = 1 << 24;
constexpr int64_t kMostRows = (int64_t{1} << 31) - 1024;  // coordinates of the copy engine and ids are int32

VLCAL_ANYWHERE int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Tiles [first, last) of the keys that one of `splits` parts walks; the parts differ by at most one tile.
struct Range {
  int64_t first, last;
};
VLCAL_ANYWHERE Range part(int64_t tiles, int splits, int which) {
  return {tiles * which / splits, tiles * (which + 1) / splits};
}

// The number of parts that keeps the processors busiest: rounds of blocks x (tiles of a part + loading the queries,
// half a tile's time). More than four rounds gain nothing.
VLCAL_ANYWHERE int choose_splits(int64_t query_blocks, int64_t tiles, int64_t at_once) {
  int64_t best = 1, best_cost = INT64_MAX;
  const int64_t useful = 4 * at_once / query_blocks;
  for (int64_t splits = 1; splits <= tiles && (splits == 1 || splits <= useful); ++splits) {
    const int64_t cost = pieces(query_blocks * splits, at_once) * (2 * pieces(tiles, splits) + 1);
    if (cost < best_cost) {
      best = splits;
      best_cost = cost;
    }
  }
  return static_cast<int>(best);
}

// ---- shared memory: rows of 128 bytes whose 16-byte pieces are exchanged by the row's number modulo 8

// CU_TENSOR_MAP_SWIZZLE_128B, and Swizzle<3, 4, 3> of "Canonical Layouts": address bits 4..6 ^= bits 7..9.
VLCAL_ANYWHERE uint32_t swizzle(uint32_t address) { return address ^ ((address >> 3) & 0x70); }

// Byte of piece `piece` (16 bytes each, 8 a row) of a row, in a tile that starts at a multiple of 1024.
VLCAL_ANYWHERE uint32_t piece_offset(int row, int piece) {
  return swizzle(static_cast<uint32_t>(row * kRowBytes + piece * 16));
}

// "Matrix Descriptor Format" for a K-major operand in 128-byte swizzle at `address`: 8 rows are 1024 bytes apart from
// the next 8 (the stride), the leading offset is not used ("assumed to be 1"), base offset 0 as tiles are aligned.
VLCAL_ANYWHERE uint64_t descriptor(uint32_t address) {
  const uint64_t start = (address & 0x3ffff) >> 4, leading = 1, stride = 1024 >> 4, swizzled = 1;
  return start | leading << 16 | stride << 32 | swizzled << 62;
}

// ---- accumulators: a warp holds 16 rows x 8 n columns of the product, thread `lane` the values 4 i + e of step i < n.
// "Matrix Fragments for wgmma.mma_async.m64nNk16".

VLCAL_ANYWHERE int fragment_row(int lane, int e) { return lane / 4 + 8 * (e / 2); }
VLCAL_ANYWHERE int fragment_column(int lane, int i, int e) { return 8 * i + 2 * (lane % 4) + e % 2; }

// The bias of 64 columns is held two values a lane, columns 2 lane and 2 lane + 1: the lane that holds those of step i.
VLCAL_ANYWHERE int bias_lane(int lane, int i) { return 4 * (i % 8) + lane % 4; }

// ---- entries: what one lane holds of a row in 64 columns, even or odd ones apart: kEntryKeys keys, kEntryStep apart

constexpr int kEntryKeys = 8;
constexpr int kEntryStep = 8;
constexpr int kGapKeys = 256;  // consecutive keys that share one gap, see Ladder: those of a tile
VLCAL_ANYWHERE int entry_column(int lane, int entry) { return 64 * (entry / 2) + 2 * (lane % 4) + entry % 2; }
VLCAL_ANYWHERE int entry_value(int half, int entry, int key) {
  return 4 * (8 * (entry / 2) + key) + 2 * half + entry % 2;
}

// ---- the ring of stages between producer and consumers

// A full barrier is waited for with `phase`, an empty one with `phase ^ 1`: the first round finds every stage empty.
struct Ring {
  int stage;
  uint32_t phase;
};
VLCAL_ANYWHERE Ring next(Ring ring, int stages) {
  return ring.stage + 1 < stages ? Ring{ring.stage + 1, ring.phase} : Ring{0, ring.phase ^ 1};
}

// ---- compute capability 9.0: one producer warp, two warpgroups of 64 queries x 256 keys

namespace sm90 {
constexpr int kQueries = 128;
constexpr int kKeys = 256;
constexpr int kColumnSteps = kKeys / 8;
constexpr int kConsumerWarps = 8;
constexpr int kWarpgroups = 3;
constexpr int kThreads = kWarpgroups * kWarpgroup;
// registers of a thread: the launch gives all the same, in eights; the producer's leave room for the accumulators
constexpr int kEvenRegisters = 65536 / kThreads / 8 * 8;
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= kWarpgroups * kEvenRegisters, "a consumer would wait");
constexpr int kQueryTile = kQueries * kRowBytes;
constexpr int kKeyTile = kKeys * kRowBytes;
constexpr int kFewestStages = 3;
constexpr int kMostStages = 6;
constexpr int kAlignment = 1024;

// Queries stay in shared memory if that leaves room for enough stages, else both operands are streamed.
struct Plan {
  bool resident;
  int stages;
  int bytes;  // to ask for, with room to align
};
VLCAL_ANYWHERE int stage_bytes(bool resident) { return kKeyTile + (resident ? 0 : kQueryTile); }
VLCAL_ANYWHERE int fixed_bytes(bool resident, int dim) {
  return kAlignment + (resident ? dim / kDepth * kQueryTile : 0) + (2 * kMostStages + 1) * 8;
}
VLCAL_ANYWHERE Plan plan_with(bool resident, int dim, int limit) {
  const int room = (limit - fixed_bytes(resident, dim)) / stage_bytes(resident);
  const int stages = room < kMostStages ? room : kMostStages;
  return {resident, stages, fixed_bytes(resident, dim) + stages * stage_bytes(resident)};
}
VLCAL_ANYWHERE Plan plan(int dim, int limit) {
  // beyond this the queries alone exceed any limit, and their bytes an int
  const bool fits = dim <= 1024 && plan_with(true, dim, limit).stages >= kFewestStages;
  return plan_with(fits, dim, limit);
}

// Offsets from the aligned start: the resident queries, the stages (keys, then queries if streamed), the barriers.
VLCAL_ANYWHERE uint32_t stage_offset(bool resident, int dim, int stage) {
  return static_cast<uint32_t>((resident ? dim / kDepth * kQueryTile : 0) + stage * stage_bytes(resident));
}
VLCAL_ANYWHERE uint32_t full_offset(bool resident, int dim, int stages, int stage) {
  return stage_offset(resident, dim, stages) + static_cast<uint32_t>(8 * stage);
}
VLCAL_ANYWHERE uint32_t empty_offset(bool resident, int dim, int stages, int stage) {
  return full_offset(resident, dim, stages, stages + stage);
}
VLCAL_ANYWHERE uint32_t loaded_offset(bool resident, int dim, int stages) {
  return full_offset(resident, dim, stages, 2 * stages);
}
}  // namespace sm90

}  // namespace vlcal::screen
