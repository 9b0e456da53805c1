"""What the calibration metrics need of stored logits, in one read of them.

A program takes a few rows and walks their classes once with a running maximum (online softmax,
Milakov and Gimelshein 2018). Beside the sum of e = exp(d), d = logit - maximum, it keeps the sums
of e^2 and e d; the latter gives the entropy. A row depends on nothing but itself.
"""

import triton
import triton.language as tl

from vlcal.ops._triton.binning_kernels import count_bad

LOWEST = tl.constexpr(-200.0)  # exp of less is 0 in float32, and 0 * -inf would be NaN


@triton.jit
def softmax_rows(
    logit_ptr,
    label_ptr,
    predicted_ptr,
    confidence_ptr,
    entropy_ptr,
    likelihood_ptr,
    squares_ptr,
    bad_ptr,
    n,
    n_classes,
    stride_row,
    stride_class,
    stride_label,
    LABELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A bad row (NaN, +inf, nothing but -inf, a label out of range) is counted and gets NaN."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    from_row = logit_ptr + row * stride_row
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    predicted = tl.zeros((ROWS,), tl.int64)
    total = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    wrong = tl.zeros((ROWS,), tl.int32)
    for start in range(0, n_classes, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = inside[:, None] & (column < n_classes)[None, :]
        x = tl.load(from_row[:, None] + column[None, :] * stride_class, mask, float("-inf"))
        x = x.to(tl.float32)
        good = x < float("inf")
        wrong += tl.sum((good == 0).to(tl.int32), 1)
        x = tl.where(good, x, float("-inf"))
        high = tl.max(x, 1)
        first = tl.min(tl.where(x == high[:, None], column[None, :], 1 << 62), 1)
        predicted = tl.where(high > largest, first, predicted)
        new = tl.maximum(largest, high)
        shift = tl.where(new == float("-inf"), 0.0, new)
        moved = tl.maximum(largest - shift, LOWEST)
        factor = tl.exp(moved)
        d = tl.maximum(x - shift[:, None], LOWEST)
        e = tl.exp(d)
        weighted = factor * (weighted + moved * total) + tl.sum(e * d, 1)
        total = factor * total + tl.sum(e, 1)
        squares = factor * factor * squares + tl.sum(e * e, 1)
        largest = new
    good_row = (wrong == 0) & (largest > float("-inf"))
    total = tl.where(total > 0.0, total, 1.0)
    log_total = tl.log(total)
    if LABELS:
        label = tl.load(label_ptr + row * stride_label, mask=inside, other=0)
        known = (label >= 0) & (label < n_classes)
        good_row = good_row & known
        logit = tl.load(from_row + label * stride_class, mask=inside & known, other=0.0)
        likelihood = logit.to(tl.float32) - tl.where(good_row, largest, 0.0) - log_total
        likelihood = tl.where(good_row, likelihood, float("nan"))
        tl.store(likelihood_ptr + row, likelihood, mask=inside)
    tl.store(predicted_ptr + row, predicted, mask=inside)
    # a division may be an approximation, and 1.0000001 is no confidence
    confidence = tl.where(good_row, tl.minimum(1.0 / total, 1.0), float("nan"))
    tl.store(confidence_ptr + row, confidence, mask=inside)
    entropy = tl.where(good_row, log_total - weighted / total, float("nan"))
    tl.store(entropy_ptr + row, entropy, mask=inside)
    squares = tl.where(good_row, squares / (total * total), float("nan"))
    tl.store(squares_ptr + row, squares, mask=inside)
    count_bad(bad_ptr, (inside & (good_row == 0)).to(tl.int32))


# how a row is shared out among threads, and so the order of its sums, would depend on the address
# of a column's first row: rows of a part of the batch would not be the same bits
softmax_columns = triton.jit(softmax_rows.fn, do_not_specialize_on_alignment=["logit_ptr"])
