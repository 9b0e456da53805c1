// The loops of rounding.h with the vectors of this file's flags.
#include "cpu/rounding.h"

namespace {

#include "cpu/rounding_leaf.h"

}  // namespace

namespace vlcal {
const Rounding rounding_avx2 = kRounding;
}  // namespace vlcal
