"""Integer bin sums on the GPU: any order of the additions gives the same bits.

A sample is one 64-bit word, count << 52 | correct << 40 | confidence in units of 2^-30, so that one
addition counts it; an accumulator holds 1023 of them before it is taken apart. Every thread keeps
its own accumulators, one per bin, and adds a sample to all bins whose lower border it reaches: no
atomic operation, no index, and no slower when all samples are in one bin. The sums are cumulative
over the bins; the launcher takes differences. Groups that are too many for that are scattered with
integer atomics.
"""

import triton
import triton.language as tl

COUNT = tl.constexpr(52)
CORRECT = tl.constexpr(40)
UNITS = tl.constexpr((1 << 40) - 1)


@triton.jit
def units_of(confidence):
    """A confidence in 0..1 in units of 2^-30, half to even, int64."""
    scaled = confidence * 1073741824.0
    if confidence.dtype == tl.float64:
        # adding 1.5 * 2^52 rounds to an integer
        return (scaled + 6755399441055744.0 - 6755399441055744.0).to(tl.int64)
    # from 2^23 on a float32 is an integer
    short = scaled + 8388608.0 - 8388608.0
    return tl.where(scaled < 8388608.0, short, scaled).to(tl.int64)


@triton.jit
def add_to(ptr, value, mask):
    """Add nonzero values in relaxed order; Triton's default fences the device at each addition."""
    tl.atomic_add(ptr, value, mask=mask & (value != 0), sem="relaxed")


@triton.jit
def count_bad(bad_ptr, wrong):
    """Add the number of bad rows of this program to one counter, unless it is 0."""
    total = tl.sum(wrong, 0)
    tl.atomic_add(bad_ptr, total, mask=total != 0, sem="relaxed")


@triton.jit
def add_words(sums_ptr, words, stride, column, mask):
    """Take words [..., BINS] apart, add them up over the first axis, and add that to three rows."""
    add_to(sums_ptr + column, tl.sum(words >> COUNT, 0), mask)
    add_to(sums_ptr + stride + column, tl.sum((words >> CORRECT) & 0xFFF, 0), mask)
    add_to(sums_ptr + 2 * stride + column, tl.sum(words & UNITS, 0), mask)


@triton.jit
def bin_sums(
    key_ptr,
    confidence_ptr,
    correct_ptr,
    threshold_ptr,
    sums_ptr,
    bad_ptr,
    n,
    n_bins,
    steps,
    stride_key,
    stride_confidence,
    stride_correct,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Sums [3, n_bins] over the samples that reach each threshold; with GROUPS, of each group.

    Program i takes `steps` <= 1023 blocks of rows from row i * steps * BLOCK on. Bad samples are
    counted alone.
    """
    column = tl.arange(0, BINS)
    inside = column < n_bins
    if not GROUPS:
        threshold = tl.load(threshold_ptr + column, mask=inside, other=float("inf"))
    words = tl.zeros((BLOCK, BINS), tl.int64)
    wrong = tl.zeros((BLOCK,), tl.int32)
    row = tl.program_id(0).to(tl.int64) * steps * BLOCK + tl.arange(0, BLOCK)
    next_confidence = tl.load(confidence_ptr + row * stride_confidence, row < n, 0.0)
    next_correct = tl.load(correct_ptr + row * stride_correct, row < n, 0)
    if GROUPS:
        next_key = tl.load(key_ptr + row * stride_key, row < n, 0)
    for _ in range(steps):
        real = row < n
        confidence = next_confidence
        correct = next_correct
        if GROUPS:
            key = next_key
        # of the next step, under way during this one
        row += BLOCK
        next_confidence = tl.load(confidence_ptr + row * stride_confidence, row < n, 0.0)
        next_correct = tl.load(correct_ptr + row * stride_correct, row < n, 0)
        if confidence.dtype != tl.float64:
            confidence = confidence.to(tl.float32)
        good = real & (confidence >= 0.0) & (confidence <= 1.0)
        if GROUPS:
            next_key = tl.load(key_ptr + row * stride_key, row < n, 0)
            good = good & (key >= 0) & (key < n_bins)
        wrong += (real & (good == 0)).to(tl.int32)
        confidence = tl.where(good, confidence, 0.0)
        word = units_of(confidence) + ((correct != 0).to(tl.int64) << CORRECT)
        word = tl.where(good, word + (tl.full((BLOCK,), 1, tl.int64) << COUNT), 0)
        if GROUPS:
            reached = key[:, None] == column[None, :]
        else:
            reached = confidence[:, None] >= threshold[None, :]
        words += tl.where(reached, word[:, None], 0)
    add_words(sums_ptr, words, n_bins, column, inside)
    count_bad(bad_ptr, wrong)


@triton.jit
def group_sums(
    group_ptr,
    confidence_ptr,
    correct_ptr,
    sums_ptr,
    bad_ptr,
    n,
    n_groups,
    copies,
    stride_group,
    stride_confidence,
    stride_correct,
    BLOCK: tl.constexpr,
):
    """Sums [copies, 3, n_groups]: one block of rows a program, scattered into its copy."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = row < n
    group = tl.load(group_ptr + row * stride_group, mask=real, other=0)
    confidence = tl.load(confidence_ptr + row * stride_confidence, mask=real, other=0.0)
    if confidence.dtype != tl.float64:
        confidence = confidence.to(tl.float32)
    correct = tl.load(correct_ptr + row * stride_correct, mask=real, other=0) != 0
    good = real & (group >= 0) & (group < n_groups) & (confidence >= 0.0) & (confidence <= 1.0)
    units = units_of(tl.where(good, confidence, 0.0))
    copy = tl.program_id(0).to(tl.int64) % copies
    to = sums_ptr + copy * n_groups * 3 + tl.where(good, group, 0)
    one = tl.full((BLOCK,), 1, tl.int64)
    add_to(to, one, good)
    add_to(to + n_groups, one, good & correct)
    add_to(to + n_groups + n_groups, units, good)
    count_bad(bad_ptr, (real & (good == 0)).to(tl.int32))


@triton.jit
def classwise_sums(
    prob_ptr,
    label_ptr,
    threshold_ptr,
    sums_ptr,
    bad_ptr,
    n,
    n_classes,
    n_bins,
    steps,
    stride_row,
    stride_class,
    stride_label,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    BINS: tl.constexpr,
):
    """Sums [3, n_classes, n_bins] over the probabilities that reach each threshold.

    A program takes `steps` <= 1023 times ROWS rows, CLASSES classes and BINS thresholds.
    """
    lane = tl.arange(0, ROWS * CLASSES)
    row = tl.program_id(0).to(tl.int64) * steps * ROWS + lane // CLASSES
    label = tl.program_id(1) * CLASSES + lane % CLASSES
    column = tl.program_id(2) * BINS + tl.arange(0, BINS)
    inside = column < n_bins
    threshold = tl.load(threshold_ptr + column, mask=inside, other=float("inf"))
    words = tl.zeros((ROWS * CLASSES, BINS), tl.int64)
    wrong = tl.zeros((ROWS * CLASSES,), tl.int32)
    one = tl.full((ROWS * CLASSES,), 1, tl.int64)
    from_class = prob_ptr + label.to(tl.int64) * stride_class
    real = (row < n) & (label < n_classes)
    next_prob = tl.load(from_class + row * stride_row, real, 0.0)
    next_true = tl.load(label_ptr + row * stride_label, real, 0)
    for _ in range(steps):
        real = (row < n) & (label < n_classes)
        prob = next_prob.to(tl.float32)
        true = next_true
        # of the next step, under way during this one
        row += ROWS
        ahead = (row < n) & (label < n_classes)
        next_prob = tl.load(from_class + row * stride_row, ahead, 0.0)
        next_true = tl.load(label_ptr + row * stride_label, ahead, 0)
        good = real & (prob >= 0.0) & (prob <= 1.0)
        known = (true >= 0) & (true < n_classes)
        wrong += (real & ((good & known) == 0)).to(tl.int32)
        prob = tl.where(good, prob, 0.0)
        word = units_of(prob) + (one << COUNT) + ((label == true).to(tl.int64) << CORRECT)
        reached = prob[:, None] >= threshold[None, :]
        words += tl.where(reached, tl.where(good, word, 0)[:, None], 0)
    size = tl.full((1, 1), n_bins, tl.int64) * n_classes
    to = sums_ptr + label.to(tl.int64)[:, None] * n_bins + column[None, :]
    mask = (label < n_classes)[:, None] & inside[None, :]
    add_to(to, words >> COUNT, mask)
    add_to(to + size, (words >> CORRECT) & 0xFFF, mask)
    add_to(to + 2 * size, words & UNITS, mask)
    count_bad(bad_ptr, wrong)
