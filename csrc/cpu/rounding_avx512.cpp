// The loops of rounding.h with the vectors of this file's flags.
#include "cpu/rounding.h"

namespace {

#include "cpu/rounding_leaf.h"

}  // namespace

namespace vlcal {
const Rounding rounding_avx512 = kRounding;
}  // namespace vlcal
