#include "cpu/binning.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/binning_words.h"
#include "cpu/bins.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace vlcal {
namespace {

constexpr int64_t kChunk = 16 * kBlock;

// Counts, correct ones and units of one worker; short sums in words first.
class Tally {
 public:
  explicit Tally(int64_t groups)
      : groups_(groups), stride_(std::max<int64_t>(groups, kWideBins)), words_(stride_ * kCopies), table_(3 * groups) {}

  uint64_t* words() { return words_.data(); }
  uint64_t& word(int64_t sample, int64_t group) { return words_[(sample % kCopies) * stride_ + group]; }

  void flush() {
    for (int copy = 0; copy < kCopies; ++copy) {
      for (int64_t group = 0; group < groups_; ++group) {
        const uint64_t word = std::exchange(words_[copy * stride_ + group], 0);
        table_[group] += word >> kCountBit;
        table_[groups_ + group] += (word >> kCorrectBit) & 0xfff;
        table_[2 * groups_ + group] += word & ((uint64_t{1} << kCorrectBit) - 1);
      }
    }
  }

  void add(int64_t group, int64_t units, bool correct) {
    table_[group] += 1;
    table_[groups_ + group] += correct;
    table_[2 * groups_ + group] += units;
  }

  const std::vector<int64_t>& table() const { return table_; }

 private:
  int64_t groups_, stride_;
  std::vector<uint64_t> words_;
  std::vector<int64_t> table_;
};

int64_t add_wide(const float* confidence, const uint8_t* correct, int64_t n, const Bins<float>& bins, Tally& tally) {
  const Grid<float> grid = bins.grid();
  if (!bins.even() || grid.bins > kWideBins) return 0;
#if defined(__x86_64__)
  if (isa().avx512) return add_words_avx512(confidence, correct, n, grid, tally.words());
  if (isa().avx2) return add_words_avx2(confidence, correct, n, grid, tally.words());
#endif
  return 0;
}

int64_t add_wide(const double*, const uint8_t*, int64_t, const Bins<double>&, Tally&) { return 0; }

// One tally a worker, body(begin, end, tally) for every chunk giving its first bad row or n; then the sum of the tables.
template <class Body>
int64_t tallied(int64_t n, int64_t groups, int64_t* table, int threads, Body&& body) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, chunks)));
  std::vector<Tally> tallies(workers, Tally(groups));
  std::vector<int64_t> bad(workers, n);
  parallel_for(chunks, workers, [&](int64_t chunk, int worker) {
    const int64_t first = body(chunk * kChunk, std::min(n, (chunk + 1) * kChunk), tallies[worker]);
    bad[worker] = std::min(bad[worker], first);
  });
  std::fill(table, table + 3 * groups, 0);
  for (const Tally& tally : tallies) {
    for (int64_t i = 0; i < 3 * groups; ++i) table[i] += tally.table()[i];
  }
  const int64_t first = *std::min_element(bad.begin(), bad.end());
  return first < n ? first : -1;
}

}  // namespace

template <class Real>
int64_t bin_statistics(const Real* confidence, const uint8_t* correct, int64_t n, const Real* thresholds, int n_bins,
                       int64_t* table, int threads) {
  const Bins<Real> bins(thresholds, n_bins);
  return tallied(n, n_bins, table, threads, [&](int64_t begin, int64_t end, Tally& tally) {
    int64_t bad = n;
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t stop = std::min(end, block + kBlock);
      int64_t i = block + add_wide(confidence + block, correct + block, stop - block, bins, tally);
      for (; i < stop; ++i) {
        if (!in_range(confidence[i])) {
          bad = std::min(bad, i);
        } else {
          tally.word(i - block, bins(confidence[i])) += word_of(static_cast<double>(confidence[i]), correct[i] != 0);
        }
      }
      tally.flush();
    }
    return bad;
  });
}

template <class Real>
int64_t group_statistics(const int64_t* group, const Real* confidence, const uint8_t* correct, int64_t n,
                         int64_t n_groups, int64_t* table, int threads) {
  return tallied(n, n_groups, table, threads, [&](int64_t begin, int64_t end, Tally& tally) {
    for (int64_t i = begin; i < end; ++i) {
      if (group[i] < 0 || group[i] >= n_groups || !in_range(confidence[i])) return i;
      tally.add(group[i], units_of(static_cast<double>(confidence[i])), correct[i] != 0);
    }
    return n;
  });
}

template int64_t bin_statistics<float>(const float*, const uint8_t*, int64_t, const float*, int, int64_t*, int);
template int64_t bin_statistics<double>(const double*, const uint8_t*, int64_t, const double*, int, int64_t*, int);
template int64_t group_statistics<float>(const int64_t*, const float*, const uint8_t*, int64_t, int64_t, int64_t*, int);
template int64_t group_statistics<double>(const int64_t*, const double*, const uint8_t*, int64_t, int64_t, int64_t*,
                                          int);

}  // namespace vlcal
