"""Integer sums over the values of confidences: by their 16 leading bits, then by all in some cells.

The bits of floats in 0..1 are in the order of the floats. Samples are scattered with integer
atomics; those of the largest value of a block are added up first, because sure models give one
value to most rows.
"""

import triton
import triton.language as tl


@triton.jit
def read(confidence_ptr, correct_ptr, row, n, stride_confidence, stride_correct):
    """Of rows: the confidence (0 if bad), its bits, count | correct << 32, and what is good."""
    real = row < n
    confidence = tl.load(confidence_ptr + row * stride_confidence, mask=real, other=0.0)
    confidence = confidence.to(tl.float32)
    correct = tl.load(correct_ptr + row * stride_correct, mask=real, other=0)
    good = real & (confidence >= 0.0) & (confidence <= 1.0)
    # -0 is 0
    confidence = tl.where(good & (confidence > 0.0), confidence, 0.0)
    pair = ((correct != 0).to(tl.int64) << 32) + 1
    bits = confidence.to(tl.int32, bitcast=True)
    return confidence, bits, tl.where(good, pair, 0), real & (good == 0)


@triton.jit
def cell_sums(
    confidence_ptr,
    correct_ptr,
    sums_ptr,
    bad_ptr,
    n,
    copies,
    stride_confidence,
    stride_correct,
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums [copies, 2, CELLS] of pairs and units of 2^-30 by the 16 leading bits."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    confidence, bits, pair, bad = read(
        confidence_ptr, correct_ptr, row, n, stride_confidence, stride_correct
    )
    scaled = confidence * 1073741824.0
    # from 2^23 on a float32 is an integer
    units = tl.where(scaled < 8388608.0, scaled + 8388608.0 - 8388608.0, scaled).to(tl.int64)
    units = tl.where(pair != 0, units, 0)
    cell = bits >> 16
    most = tl.max(cell, 0)
    alone = (pair != 0) & (cell != most)
    to = sums_ptr + (tl.program_id(0) % copies).to(tl.int64) * 2 * CELLS
    tl.atomic_add(to + cell, pair, mask=alone)
    tl.atomic_add(to + CELLS + cell, units, mask=alone)
    tl.atomic_add(to + most, tl.sum(tl.where(cell == most, pair, 0), 0))
    tl.atomic_add(to + CELLS + most, tl.sum(tl.where(cell == most, units, 0), 0))
    tl.atomic_add(bad_ptr, tl.sum(bad.to(tl.int32), 0))


@triton.jit
def value_sums(
    confidence_ptr,
    correct_ptr,
    slot_ptr,
    sums_ptr,
    n,
    stride_confidence,
    stride_correct,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums [slots, VALUES] of pairs by the other bits, of cells whose slot is 1 or more."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _, bits, pair, _ = read(confidence_ptr, correct_ptr, row, n, stride_confidence, stride_correct)
    slot = tl.load(slot_ptr + (bits >> 16))
    pair = tl.where(slot > 0, pair, 0)
    value = (slot - 1).to(tl.int64) * VALUES + (bits & (VALUES - 1))
    most = tl.max(tl.where(pair != 0, value, 0), 0)
    tl.atomic_add(sums_ptr + value, pair, mask=(pair != 0) & (value != most))
    tl.atomic_add(sums_ptr + most, tl.sum(tl.where(value == most, pair, 0), 0))
