// The sums of one row of logits, compiled for AVX2.
#include "cpu/softmax_row.h"

namespace vlcal {

void row_sums_avx2(const float* row, int64_t classes, RowSums* out) { row_sums_of(row, classes, out); }

}  // namespace vlcal
