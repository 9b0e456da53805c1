// The leading bits of a float in 0..1 are a monotone cell number: one pass counts and sums cells of 16 bits. Only cells
// that reach over a border of two bins are looked into, by 10 more bits and then by the last 6. Small inputs are sorted.
#include "cpu/equal_mass.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/binning_words.h"
#include "cpu/parallel.h"

namespace vlcal {
namespace {

constexpr int64_t kSorted = 1 << 14;  // samples up to which sorting is faster
constexpr int kMostBins = 256;        // a border cuts one cell, and a byte numbers the cut cells
constexpr uint32_t kOne = 0x3f800000;
constexpr int kCells = (kOne >> 16) + 1;
constexpr int kParts = 1 << 10;  // of a cell
constexpr int kValues = 1 << 6;  // of a part
constexpr int64_t kChunk = 1 << 17;

// samples in the low, correct ones in the high half
struct Pair {
  uint64_t both = 0;

  void operator+=(const Pair& other) { both += other.both; }

  void add(bool correct) { both += 1 + (static_cast<uint64_t>(correct) << 32); }
  int64_t count() const { return static_cast<int64_t>(both & 0xffffffff); }
  int64_t correct() const { return static_cast<int64_t>(both >> 32); }
};

struct Cell {
  Pair pair;
  int64_t units = 0;

  void operator+=(const Cell& other) {
    pair += other.pair;
    units += other.units;
  }
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

  // a cell that reaches over no border, from its first rank on
  void add(int64_t rank, const Cell& cell) {
    if (cell.pair.count()) add(of(rank), cell.pair.count(), cell.pair.correct(), cell.units);
  }
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

// Sum of the tables that `body(chunk, table)` of every worker fills.
template <class Entry, class Body>
std::vector<Entry> tallied(int64_t n, size_t size, int threads, Body&& body) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, chunks)));
  std::vector<std::vector<Entry>> tables(workers, std::vector<Entry>(size));
  parallel_for(chunks, workers, [&](int64_t chunk, int worker) { body(chunk, tables[worker].data()); });
  for (int worker = 1; worker < workers; ++worker) {
    for (size_t i = 0; i < size; ++i) tables[0][i] += tables[worker][i];
  }
  return std::move(tables[0]);
}

// The cells, and one more for what is NaN or outside 0..1.
std::vector<Cell> count_cells(const float* confidence, const uint8_t* correct, int64_t n, int threads) {
  return tallied<Cell>(n, kCells + 1, threads, [&](int64_t chunk, Cell* cells) {
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) {
      const uint32_t bits = bits_of(confidence[i]);
      Cell& cell = cells[bits > kOne ? kCells : bits >> 16];
      cell.pair.add(correct[i] != 0);
      cell.units += units_of(static_cast<double>(confidence[i]));
    }
  });
}

int64_t first_outside(const float* confidence, int64_t n) {
  int64_t i = 0;
  while (i < n && bits_of(confidence[i]) <= kOne) ++i;
  return i < n ? i : -1;
}

// Number + 1 of the cells that reach over a border, 0 for the others.
struct Cuts {
  std::vector<uint8_t> slot;
  int count = 0;

  explicit Cuts(size_t cells) : slot(cells) {}

  void look(size_t cell, int64_t rank, int64_t samples, const RankBins& bins) {
    if (samples && bins.cut(rank, rank + samples)) slot[cell] = static_cast<uint8_t>(++count);
  }
};

// The samples of the cut cells in the order of their rows: bits << 1 | correct. Every chunk has its own stretch.
struct Kept {
  std::unique_ptr<uint32_t[]> keys;  // [n], not initialized
  std::vector<int64_t> count;        // per chunk

  Kept(const float* confidence, const uint8_t* correct, int64_t n, const Cuts& cuts, int threads)
      : keys(new uint32_t[n]), count((n + kChunk - 1) / kChunk) {
    parallel_for(static_cast<int64_t>(count.size()), threads, [&](int64_t chunk, int) {
      uint32_t* to = begin(chunk);
      for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) {
        const uint32_t bits = bits_of(confidence[i]);
        *to = bits << 1 | (correct[i] != 0);
        to += cuts.slot[bits >> 16] != 0;  // no branch: it would be guessed wrong too often
      }
      count[chunk] = to - begin(chunk);
    });
  }

  uint32_t* begin(int64_t chunk) const { return keys.get() + chunk * kChunk; }

  template <class Body>
  void each(int64_t chunk, Body&& body) const {
    const uint32_t* key = begin(chunk);
    for (const uint32_t* end = key + count[chunk]; key < end; ++key) body(*key >> 1, (*key & 1) != 0);
  }
};

size_t part_of(uint32_t bits, const Cuts& cells) {
  return static_cast<size_t>(cells.slot[bits >> 16] - 1) * kParts + (bits >> 6 & (kParts - 1));
}

std::vector<Cell> count_parts(const Kept& kept, int64_t n, const Cuts& cells, int threads) {
  return tallied<Cell>(n, static_cast<size_t>(cells.count) * kParts, threads, [&](int64_t chunk, Cell* parts) {
    kept.each(chunk, [&](uint32_t bits, bool correct) {
      Cell& part = parts[part_of(bits, cells)];
      part.pair.add(correct);
      part.units += units_of_bits(bits);
    });
  });
}

std::vector<Pair> count_values(const Kept& kept, int64_t n, const Cuts& cells, const Cuts& parts, int threads) {
  return tallied<Pair>(n, static_cast<size_t>(parts.count) * kValues, threads, [&](int64_t chunk, Pair* values) {
    kept.each(chunk, [&](uint32_t bits, bool correct) {
      const int slot = parts.slot[part_of(bits, cells)];
      if (slot) values[(slot - 1) * kValues + (bits & (kValues - 1))].add(correct);
    });
  });
}

void add_split_runs(const Kept& kept, std::vector<SplitRun>& runs, RankBins& bins) {
  for (size_t chunk = 0; !runs.empty() && chunk < kept.count.size(); ++chunk) {
    kept.each(static_cast<int64_t>(chunk), [&](uint32_t bits, bool correct) {
      for (SplitRun& run : runs) {
        if (run.bits != bits) continue;
        while (run.rank >= run.border) run.border = bins.border(++run.bin);
        ++run.rank;
        bins.table[bins.n_bins + run.bin] += correct;
      }
    });
  }
}

// Everything of one cell that reaches over a border, from its first rank on.
struct Inside {
  RankBins& bins;
  const Cuts& cells;
  const Cuts& parts;
  const std::vector<Cell>& part;
  const std::vector<Pair>& value;
  std::vector<SplitRun> split;

  void add(uint32_t cell, int64_t rank) {
    const size_t first = static_cast<size_t>(cells.slot[cell] - 1) * kParts;
    for (uint32_t i = 0; i < kParts; ++i) {
      const Cell& whole = part[first + i];
      if (parts.slot[first + i]) {
        add_values(cell << 16 | i << 6, rank, value.data() + (parts.slot[first + i] - 1) * kValues);
      } else {
        bins.add(rank, whole);
      }
      rank += whole.pair.count();
    }
  }

  void add_values(uint32_t bits, int64_t rank, const Pair* runs) {
    for (int i = 0; i < kValues; ++i) {
      if (!runs[i].count()) continue;
      if (!add_run(bins, rank, runs[i], bits | i)) {
        split.push_back({bits | i, rank, bins.of(rank), bins.border(bins.of(rank))});
      }
      rank += runs[i].count();
    }
  }
};

void add_cells(const float* confidence, const uint8_t* correct, const std::vector<Cell>& cell, RankBins& bins,
               int threads) {
  Cuts cells(kCells);
  int64_t rank = 0;
  for (int i = 0; i < kCells; rank += cell[i++].pair.count()) cells.look(i, rank, cell[i].pair.count(), bins);
  const Kept kept(confidence, correct, bins.n, cells, threads);
  const std::vector<Cell> part = count_parts(kept, bins.n, cells, threads);
  Cuts parts(part.size());
  rank = 0;
  for (int i = 0; i < kCells; rank += cell[i++].pair.count()) {
    if (!cells.slot[i]) continue;
    int64_t inner = rank;
    for (size_t j = (cells.slot[i] - 1) * kParts; j < static_cast<size_t>(cells.slot[i]) * kParts; ++j) {
      parts.look(j, inner, part[j].pair.count(), bins);
      inner += part[j].pair.count();
    }
  }
  const std::vector<Pair> value = count_values(kept, bins.n, cells, parts, threads);
  Inside inside{bins, cells, parts, part, value, {}};
  rank = 0;
  for (int i = 0; i < kCells; rank += cell[i++].pair.count()) {
    if (cells.slot[i]) {
      inside.add(i, rank);
    } else {
      bins.add(rank, cell[i]);
    }
  }
  add_split_runs(kept, inside.split, bins);
}

}  // namespace

int64_t equal_mass_statistics(const float* confidence, const uint8_t* correct, int64_t n, int n_bins, bool together,
                              int64_t* table, int threads) {
  std::fill(table, table + 3 * static_cast<int64_t>(n_bins), 0);
  RankBins bins{n, n_bins, together, table};
  if (n <= kSorted || n_bins > kMostBins) {
    const int64_t bad = first_outside(confidence, n);
    if (bad < 0) add_sorted(confidence, correct, bins);
    return bad;
  }
  const std::vector<Cell> cells = count_cells(confidence, correct, n, threads);
  if (cells[kCells].pair.count()) return first_outside(confidence, n);
  add_cells(confidence, correct, cells, bins, threads);
  return -1;
}

}  // namespace vlcal
