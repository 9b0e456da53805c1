"""The k best classes of each row in the order of float64 products, ties by the lowest index.

A program visits groups of classes from the largest approximate score of a row down, computes their
products in float64, and stops where no group left can hold a better one: score + margin decides.
"""

import triton
import triton.language as tl


@triton.jit
def exact_products(
    image,
    text,
    rows,
    good,
    classes,
    inside,
    dim,
    image_n,
    image_d,
    text_c,
    text_d,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Float64 products [ROWS, COUNT] of rows with classes, added up in one order for all."""
    total = tl.zeros([ROWS, COUNT, BLOCK_D], tl.float64)
    for start in range(0, dim, BLOCK_D):
        col = start + tl.arange(0, BLOCK_D)
        within = (col < dim)[None, None, :]
        at = col.to(tl.int64)[None, None, :]
        x_at = image + rows[:, None, None] * image_n + at * image_d
        x = tl.load(x_at, mask=within & good[:, None, None], other=0.0)
        t_at = text + classes[:, :, None] * text_c + at * text_d
        t = tl.load(t_at, mask=within & inside[:, :, None], other=0.0)
        total += x.to(tl.float32).to(tl.float64) * t.to(tl.float32).to(tl.float64)
    return tl.sum(total, axis=2)


@triton.jit
def _first(values, indices, best):
    """The lowest index of the best value of each row; the largest int64 if there is none."""
    found = (values == best[:, None]) & (values > float("-inf"))
    return tl.min(tl.where(found, indices, 9223372036854775807), axis=1)


@triton.jit
def _insert(values, indices, found, classes):
    """The best of a list [ROWS, K] and of what was found [ROWS, GROUP], in a list of that size."""
    best = tl.max(found, axis=1)
    best_at = _first(found, classes, best)
    worst = tl.min(values, axis=1)
    worst_at = tl.max(tl.where(values == worst[:, None], indices, -1), axis=1)
    better = (best > worst) | ((best == worst) & (best_at < worst_at))
    while tl.max(better.to(tl.int32), axis=0) > 0:
        spot = better[:, None] & (values == worst[:, None]) & (indices == worst_at[:, None])
        values = tl.where(spot, best[:, None], values)
        indices = tl.where(spot, best_at[:, None], indices)
        found = tl.where(classes == best_at[:, None], float("-inf"), found)
        best = tl.max(found, axis=1)
        best_at = _first(found, classes, best)
        worst = tl.min(values, axis=1)
        worst_at = tl.max(tl.where(values == worst[:, None], indices, -1), axis=1)
        better = (best > worst) | ((best == worst) & (best_at < worst_at))
    return values, indices


@triton.jit
def rank(
    image,
    text,
    labels_ptr,
    maxima,
    margin_ptr,
    pivot_ptr,
    index,
    score,
    label_score,
    n,
    n_classes,
    dim,
    groups,
    image_n,
    image_d,
    text_c,
    text_d,
    k,
    LABELS: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`index` and float64 `score` [n, k], best first, and the score of the label."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    good = rows < n
    # what reaches the exact scores: approximate ones lie around pivot
    reach = tl.load(margin_ptr + rows, mask=good, other=0.0)
    reach += tl.load(pivot_ptr + rows, mask=good, other=0.0)
    slot = tl.arange(0, K)[None, :] + tl.zeros([ROWS, 1], tl.int32)
    # places beyond k are never the worst; empty ones differ by their index
    values = tl.where(slot < k, float("-inf"), float("inf")).to(tl.float64)
    indices = slot.to(tl.int64) + n_classes
    for start in range(0, groups, CHUNK):
        group = start + tl.arange(0, CHUNK)[None, :]
        here = good[:, None] & (group < groups)
        left = tl.load(maxima + rows[:, None] * groups + group, mask=here, other=float("-inf"))
        top = tl.max(left, axis=1)
        worst = tl.min(values, axis=1)
        going = (top > float("-inf")) & (top.to(tl.float64) + reach >= worst)
        while tl.max(going.to(tl.int32), axis=0) > 0:
            chosen = tl.min(tl.where(left == top[:, None], group, 2147483647), axis=1)
            left = tl.where(group == chosen[:, None], float("-inf"), left)
            # the classes of `_store_maxima`
            first = (chosen // 8).to(tl.int64) * (8 * GROUP) + chosen % 8
            classes = first[:, None] + 8 * tl.arange(0, GROUP)[None, :]
            inside = going[:, None] & (classes < n_classes)
            found = exact_products(
                image, text, rows, good, classes, inside, dim, image_n, image_d, text_c, text_d,
                ROWS, GROUP, BLOCK_D,
            )  # fmt: skip
            found = tl.where(inside, found, float("-inf"))
            values, indices = _insert(values, indices, found, classes)
            top = tl.max(left, axis=1)
            worst = tl.min(values, axis=1)
            going = (top > float("-inf")) & (top.to(tl.float64) + reach >= worst)
    values = tl.where(slot < k, values, float("-inf"))
    for place in range(k):
        best = tl.max(values, axis=1)
        best_at = _first(values, indices, best)
        tl.store(score + rows * k + place, best, mask=good)
        tl.store(index + rows * k + place, best_at, mask=good)
        values = tl.where(indices == best_at[:, None], float("-inf"), values)
    if LABELS:
        label = tl.load(labels_ptr + rows, mask=good, other=0)[:, None]
        inside = good[:, None] & (label >= 0) & (label < n_classes)
        own = exact_products(
            image, text, rows, good, label, inside, dim, image_n, image_d, text_c, text_d,
            ROWS, 1, BLOCK_D,
        )  # fmt: skip
        tl.store(label_score + rows, tl.max(own, axis=1), mask=good)


@triton.jit
def exact_scores(
    image,
    text,
    out,
    n,
    n_classes,
    dim,
    image_n,
    image_d,
    text_c,
    text_d,
    ROWS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All float64 products [n, C], for calls that want many classes of each row."""
    blocks = tl.cdiv(n_classes, COUNT)
    rows = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = (tl.program_id(0) % blocks).to(tl.int64) * COUNT
    classes = first + tl.arange(0, COUNT)[None, :] + tl.zeros([ROWS, 1], tl.int64)
    good = rows < n
    inside = good[:, None] & (classes < n_classes)
    found = exact_products(
        image, text, rows, good, classes, inside, dim, image_n, image_d, text_c, text_d,
        ROWS, COUNT, BLOCK_D,
    )  # fmt: skip
    tl.store(out + rows[:, None] * n_classes + classes, found, mask=inside)
