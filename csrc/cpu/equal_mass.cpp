// The 16 leading bits of a float in 0..1 are a monotone cell number: one pass counts and sums the cells. Only cells that
// reach over a border of two bins are looked into, by a second pass that counts their 65536 values. Small inputs are sorted.
#include "cpu/equal_mass.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/binning_words.h"
#include "cpu/parallel.h"

namespace vlcal {
namespace {

constexpr int64_t kSorted = 1 << 15;  // samples up to which sorting is faster
constexpr int kLooked = 255;          // cells that may be looked into: 512 KiB each and thread
constexpr int kCells = 0x3f80 + 1;    // 1.0f is 0x3f800000
constexpr int kValues = 1 << 16;
constexpr int64_t kChunk = 1 << 17;

// samples in the low, correct ones in the high half
struct Pair {
  uint64_t both = 0;

  void add(bool correct) { both += 1 + (static_cast<uint64_t>(correct) << 32); }
  int64_t count() const { return static_cast<int64_t>(both & 0xffffffff); }
  int64_t correct() const { return static_cast<int64_t>(both >> 32); }
};

struct Cell {
  Pair pair;
  int64_t units = 0;
};

// Bits of a confidence, with -0 as 0; more than those of 1 if it is NaN or outside 0..1.
uint32_t bits_of(float confidence) {
  uint32_t bits;
  std::memcpy(&bits, &confidence, sizeof bits);
  return bits == 0x80000000 ? 0 : bits;
}

int64_t units_of_bits(uint32_t bits) {
  float confidence;
  std::memcpy(&confidence, &bits, sizeof confidence);
  return units_of(static_cast<double>(confidence));
}

// Which bins ranks belong to, and the table they are added to.
struct RankBins {
  int64_t n, n_bins;
  bool together;
  int64_t* table;

  int64_t of(int64_t rank, int64_t end) const {
    return static_cast<int64_t>(static_cast<__int128>(n_bins) * (rank + end) / (2 * n));
  }
  int64_t of(int64_t rank) const { return of(rank, rank + 1); }
  // the first rank of the next bin, for ranks alone: the smallest r with n_bins (2 r + 1) >= 2 n (bin + 1)
  int64_t border(int64_t bin) const {
    const __int128 above = static_cast<__int128>(2 * n) * (bin + 1) - n_bins + (2 * n_bins - 1);
    return static_cast<int64_t>(above / (2 * n_bins));
  }
  bool cut(int64_t rank, int64_t end) const { return of(rank) != of(end - 1); }

  void add(int64_t bin, int64_t count, int64_t correct, int64_t units) {
    table[bin] += count;
    table[n_bins + bin] += correct;
    table[2 * n_bins + bin] += units;
  }
};

// A run of equal confidences with mixed correctness that reaches over a border: rows must be looked at in order.
struct SplitRun {
  uint32_t bits;
  int64_t rank, bin, border;  // of the next sample
};

// Add a run of equal confidences; false if its correct ones must still be added row by row.
bool add_run(RankBins& bins, int64_t rank, Pair run, uint32_t bits) {
  const int64_t end = rank + run.count(), units = units_of_bits(bits);
  if (bins.together || !bins.cut(rank, end)) {
    bins.add(bins.together ? bins.of(rank, end) : bins.of(rank), run.count(), run.correct(), run.count() * units);
    return true;
  }
  const bool all = run.correct() == run.count(), none = run.correct() == 0;
  for (int64_t from = rank, to; from < end; from = to) {
    const int64_t bin = bins.of(from);
    to = std::min(end, bins.border(bin));
    bins.add(bin, to - from, all ? to - from : 0, (to - from) * units);
  }
  return all || none;
}

void add_sorted(const float* confidence, const uint8_t* correct, RankBins& bins) {
  std::vector<uint64_t> keys(bins.n);
  for (int64_t i = 0; i < bins.n; ++i) keys[i] = static_cast<uint64_t>(bits_of(confidence[i])) << 32 | i;
  std::sort(keys.begin(), keys.end());
  for (int64_t rank = 0, end; rank < bins.n; rank = end) {
    const uint32_t bits = static_cast<uint32_t>(keys[rank] >> 32);
    for (end = rank; end < bins.n && keys[end] >> 32 == bits; ++end) {}
    const int64_t units = units_of_bits(bits), shared = bins.of(rank, end);
    for (int64_t i = rank; i < end; ++i) {
      bins.add(bins.together ? shared : bins.of(i), 1, correct[keys[i] & 0xffffffff] != 0, units);
    }
  }
}

std::vector<Cell> count_cells(const float* confidence, const uint8_t* correct, int64_t n, int threads) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<std::vector<Cell>> tables(std::max(threads, 1), std::vector<Cell>(kCells));
  parallel_for(chunks, threads, [&](int64_t chunk, int worker) {
    Cell* cells = tables[worker].data();
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) {
      Cell& cell = cells[bits_of(confidence[i]) >> 16];
      cell.pair.add(correct[i] != 0);
      cell.units += units_of(static_cast<double>(confidence[i]));
    }
  });
  for (size_t worker = 1; worker < tables.size(); ++worker) {
    for (int i = 0; i < kCells; ++i) {
      tables[0][i].pair.both += tables[worker][i].pair.both;
      tables[0][i].units += tables[worker][i].units;
    }
  }
  return tables[0];
}

// The values inside the cells that have a slot: [slots][kValues].
std::vector<Pair> count_values(const float* confidence, const uint8_t* correct, int64_t n,
                               const std::vector<uint8_t>& slot, int slots, int threads) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<std::vector<Pair>> tables(std::max(threads, 1), std::vector<Pair>(static_cast<size_t>(slots) * kValues));
  parallel_for(chunks, threads, [&](int64_t chunk, int worker) {
    Pair* values = tables[worker].data();
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) {
      const uint32_t bits = bits_of(confidence[i]);
      const int one_more = slot[bits >> 16];
      if (one_more) values[(one_more - 1) * kValues + (bits & 0xffff)].add(correct[i] != 0);
    }
  });
  for (size_t worker = 1; worker < tables.size(); ++worker) {
    for (size_t i = 0; i < tables[0].size(); ++i) tables[0][i].both += tables[worker][i].both;
  }
  return tables[0];
}

void add_split_runs(const float* confidence, const uint8_t* correct, std::vector<SplitRun>& runs, RankBins& bins) {
  for (int64_t i = 0; i < bins.n; ++i) {
    const uint32_t bits = bits_of(confidence[i]);
    for (SplitRun& run : runs) {
      if (run.bits != bits) continue;
      while (run.rank >= run.border) run.border = bins.border(++run.bin);
      ++run.rank;
      bins.table[bins.n_bins + run.bin] += correct[i] != 0;
    }
  }
}

int64_t first_outside(const float* confidence, int64_t n, int threads) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<int64_t> bad(std::max(threads, 1), n);
  parallel_for(chunks, threads, [&](int64_t chunk, int worker) {
    const int64_t begin = chunk * kChunk, end = std::min(n, begin + kChunk);
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; ++i) largest = std::max(largest, bits_of(confidence[i]));
    for (int64_t i = begin; largest > 0x3f800000 && i < end; ++i) {
      if (bits_of(confidence[i]) > 0x3f800000) {
        bad[worker] = std::min(bad[worker], i);
        break;
      }
    }
  });
  const int64_t first = *std::min_element(bad.begin(), bad.end());
  return first < n ? first : -1;
}

// Slot + 1 of every cell that reaches over a border, 0 for the others; the number of slots.
int slots_of(const std::vector<Cell>& cells, const RankBins& bins, std::vector<uint8_t>& slot) {
  int slots = 0;
  int64_t rank = 0;
  for (int i = 0; i < kCells; ++i) {
    const int64_t end = rank + cells[i].pair.count();
    if (end > rank && bins.cut(rank, end)) {
      if (slots == kLooked) return kLooked + 1;
      slot[i] = static_cast<uint8_t>(++slots);
    }
    rank = end;
  }
  return slots;
}

}  // namespace

int64_t equal_mass_statistics(const float* confidence, const uint8_t* correct, int64_t n, int n_bins, bool together,
                              int64_t* table, int threads) {
  std::fill(table, table + 3 * static_cast<int64_t>(n_bins), 0);
  const int64_t bad = first_outside(confidence, n, threads);
  if (bad >= 0) return bad;
  RankBins bins{n, n_bins, together, table};
  if (n <= kSorted) {
    add_sorted(confidence, correct, bins);
    return -1;
  }
  const std::vector<Cell> cells = count_cells(confidence, correct, n, threads);
  std::vector<uint8_t> slot(kCells);
  const int slots = slots_of(cells, bins, slot);
  if (slots > kLooked) {
    add_sorted(confidence, correct, bins);
    return -1;
  }
  const std::vector<Pair> values = count_values(confidence, correct, n, slot, slots, threads);
  std::vector<SplitRun> split;
  int64_t rank = 0;
  for (int i = 0; i < kCells; ++i) {
    if (!slot[i]) {
      if (cells[i].pair.count()) {
        bins.add(bins.of(rank), cells[i].pair.count(), cells[i].pair.correct(), cells[i].units);
      }
      rank += cells[i].pair.count();
      continue;
    }
    for (int low = 0; low < kValues; ++low) {
      const Pair run = values[static_cast<size_t>(slot[i] - 1) * kValues + low];
      if (!run.count()) continue;
      const uint32_t bits = static_cast<uint32_t>(i) << 16 | low;
      if (!add_run(bins, rank, run, bits)) split.push_back({bits, rank, bins.of(rank), bins.border(bins.of(rank))});
      rank += run.count();
    }
  }
  if (!split.empty()) add_split_runs(confidence, correct, split, bins);
  return -1;
}

}  // namespace vlcal
