// The loops of rounding.h for any CPU; and the choice.
#include "cpu/rounding.h"

namespace {

#include "cpu/rounding_leaf.h"

}  // namespace

namespace vlcal {

const Rounding rounding_portable = kRounding;

const Rounding& rounding(const Isa& isa) {
#if defined(__x86_64__)
  if (isa.avx512) return rounding_avx512;
  if (isa.avx2) return rounding_avx2;
#endif
  return rounding_portable;
}

}  // namespace vlcal
