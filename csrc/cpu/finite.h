// Whether values hold NaN or an infinity.
#pragma once
#include <cstdint>

namespace vlcal {

template <class Real>
bool all_finite(const Real* values, int64_t n, int threads);

}  // namespace vlcal
