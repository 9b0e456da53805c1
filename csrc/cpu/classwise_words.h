// The wide kernel of one row of probabilities.
#pragma once
#include "cpu/binning_words.h"

namespace vlcal {

// Add the words of a row, none of them correct, to words[bin][classes]; from the first group of 16 that holds a value
// outside 0..1 (or -0) on, nothing is added. How many classes were.
int64_t add_row_avx512(const float* probs, int64_t classes, Grid<float> grid, uint64_t* words);

}  // namespace vlcal
