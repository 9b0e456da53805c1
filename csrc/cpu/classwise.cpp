#include "cpu/classwise.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/bins.h"
#include "cpu/classwise_words.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace vlcal {
namespace {

// Words [bins][classes] and the table [3][classes][bins] of one worker.
struct ClassTally {
  ClassTally(int64_t classes, int64_t n_bins)
      : classes(classes), n_bins(n_bins), words(classes * n_bins), table(3 * classes * n_bins) {}

  void flush() {
    const int64_t size = classes * n_bins;
    for (int64_t bin = 0; bin < n_bins; ++bin) {
      for (int64_t c = 0; c < classes; ++c) {
        const uint64_t word = std::exchange(words[bin * classes + c], 0);
        if (!word) continue;
        int64_t* to = table.data() + c * n_bins + bin;
        to[0] += word >> kCountBit;
        to[size] += (word >> kCorrectBit) & 0xfff;
        to[2 * size] += word & ((uint64_t{1} << kCorrectBit) - 1);
      }
    }
  }

  int64_t classes, n_bins;
  std::vector<uint64_t> words;
  std::vector<int64_t> table;
};

int64_t add_wide(const float* probs, int64_t classes, const Bins<float>& bins, uint64_t* words) {
#if defined(__x86_64__)
  if (bins.even() && isa().avx512) return add_row_avx512(probs, classes, bins.grid(), words);
#endif
  return 0;
}

// The first class whose probability is not one, or -1.
int64_t add_row(const float* probs, int64_t label, const Bins<float>& bins, ClassTally& tally) {
  uint64_t* words = tally.words.data();
  for (int64_t c = add_wide(probs, tally.classes, bins, words); c < tally.classes; ++c) {
    if (!in_range(probs[c])) return c;
    words[bins(probs[c]) * tally.classes + c] += word_of(static_cast<double>(probs[c]), false);
  }
  words[bins(probs[label]) * tally.classes + label] += uint64_t{1} << kCorrectBit;
  return -1;
}

}  // namespace

int64_t classwise_statistics(const float* probs, const int64_t* labels, int64_t n, int64_t classes,
                             const float* thresholds, int n_bins, int64_t* table, int threads) {
  const Bins<float> bins(thresholds, n_bins);
  const int64_t blocks = (n + kWordSamples - 1) / kWordSamples;  // rows that a word can hold
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, blocks)));
  std::vector<ClassTally> tallies(workers, ClassTally(classes, n_bins));
  std::vector<int64_t> bad(workers, n * classes);
  parallel_for(blocks, workers, [&](int64_t block, int worker) {
    for (int64_t i = block * kWordSamples; i < std::min(n, (block + 1) * kWordSamples); ++i) {
      const int64_t c = add_row(probs + i * classes, labels[i], bins, tallies[worker]);
      if (c >= 0) bad[worker] = std::min(bad[worker], i * classes + c);
    }
    tallies[worker].flush();
  });
  std::fill(table, table + 3 * classes * n_bins, 0);
  for (const ClassTally& tally : tallies) {
    for (size_t i = 0; i < tally.table.size(); ++i) table[i] += tally.table[i];
  }
  const int64_t first = *std::min_element(bad.begin(), bad.end());
  return first < n * classes ? first : -1;
}

}  // namespace vlcal
