"""Calls of every op for the GPU of `fake_cuda`: tensors with shapes and without values.

`CALLS` and `SEARCHES` are small and reach every branch of the launchers; `BENCHMARKS` have the
shapes of `benchmarks/gpu_plan.py`; `ODD` have sizes that Triton turns into constants or cannot know
to be multiples of 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vlcal import ops
from vlcal.ops import SearchIndex, cross_entropy, knn, proximity, rank_vocabulary

N, C, D = 5000, 300, 100
Call = Callable[[torch.device], Any]


def made(device, *shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=device)


def softmax(device, dtype=torch.float32, scale=None, n=N, c=C, d=D, **options):
    image, text = made(device, n, d, dtype=dtype), made(device, c, d)
    labels = made(device, n, dtype=torch.int32)
    scale = made(device) if scale is None else scale
    return ops.calibrated_softmax(image, text, scale, labels=labels, **options)


def softmax_of_everything(device):
    scales = {"row_scale": made(device, N), "predicted_scale": made(device, C)}
    return softmax(device, torch.float16, precision="fast", k=5, **scales)


def statistics(device, n=N, c=C, d=D, **options):
    pair = made(device, n, d), made(device, c, d)
    other = made(device, 2 * n, 7)[::2], made(device, 9, c).T
    return ops.logit_statistics(*pair, 100.0, (other[0], other[1][:, :7]), **options)


def loss(device, n=N, scale=None, **options):
    image, text = made(device, n, D), made(device, C, D)
    labels = made(device, n, dtype=torch.int64)
    scale = made(device) if scale is None else scale
    return ops.cosine_cross_entropy(image, text, labels, scale, **options)


def gradients(device, scale=None, kind=cross_entropy._backward, n=N, c=C, d=D, fast=False):
    scale = made(device) if scale is None else scale
    image, text = made(device, n, d, dtype=torch.bfloat16), made(device, c, d)
    labels = made(device, n, dtype=torch.int64)
    precision = "fast" if fast else "accurate"
    args = image, text, labels, scale, True, True, scale.is_cuda, "", precision
    if kind is cross_entropy._backward:
        return kind(made(device).expand(n), *args)
    total, *parts = kind(*args)
    return [cross_entropy._scaled_gradient(torch.ones_like(total), part) for part in parts[:2]]


def stored(device, dtype=torch.float32, n=N, c=C, columns=True, part=slice(None)):
    labels = made(device, n, dtype=torch.int64)
    logits = made(device, c, n, dtype=dtype).T if columns else made(device, n, c, dtype=dtype)
    return ops.softmax_statistics(logits[part], labels[part])


def density(device, bandwidth=None, n=N, m=C):
    bandwidth = made(device, 2) if bandwidth is None else bandwidth
    return ops.kernel_density(made(device, n, 2), made(device, m, 2).half(), bandwidth)


def bins(device, op=ops.bin_statistics, dtype=torch.float32, n=N, step=2, **options):
    confidence = made(device, step * n, dtype=dtype)[::step]
    return op(confidence, made(device, n, dtype=torch.bool), **options)


def groups(device, n_groups):
    args = made(device, N), made(device, N, dtype=torch.bool), n_groups
    return ops.group_statistics(made(device, N, dtype=torch.int32), *args)


def classes(device, n=N, c=C, columns=True, **options):
    labels = made(device, n, dtype=torch.int64)
    probs = made(device, c, n).T if columns else made(device, n, c)
    return ops.classwise_statistics(probs, labels, **options)


def searched(device, call, n=300, m=100_000, d=512, dtype=torch.float32):
    return call(made(device, n, d), made(device, m, d, dtype=dtype))


def indexed(device, n, m, d=512, k=10):
    return SearchIndex(made(device, m, d)).knn(made(device, n, d), k)


MASS = {"op": ops.equal_mass_statistics}
# those that wait once, to look at a count of bad rows
ONCE: dict[str, Call] = {
    "stored logits": stored,
    "stored logits by rows": partial(stored, columns=False),
    "stored half logits": partial(stored, dtype=torch.bfloat16),
    "no stored logits": partial(stored, n=0),
    "bins": bins,
    "many bins": partial(bins, n_bins=100, closed="left"),
    "bins of doubles": partial(bins, dtype=torch.float64),
    "no samples": partial(bins, n=0),
    "groups": partial(groups, n_groups=10),
    "many groups": partial(groups, n_groups=1000),
    "classes": partial(classes, n_bins=20),
    "equal mass": partial(bins, **MASS),
    "equal mass of halves": partial(bins, **MASS, dtype=torch.float16),
    "equal mass, ties in order": partial(bins, **MASS, ties="order"),
    "equal mass, many bins": partial(bins, **MASS, n_bins=100),
    "equal mass, one bin": partial(bins, **MASS, n_bins=1),
    "equal mass of nothing": partial(bins, **MASS, n=0),
}
CALLS: dict[str, Call] = ONCE | {
    "softmax": softmax,
    "softmax of everything": softmax_of_everything,
    "softmax under a number": partial(softmax, scale=100.0, k=40),
    "softmax of nothing": partial(softmax, n=0, k=3),
    "statistics": statistics,
    "fast statistics": partial(statistics, precision="fast"),
    "statistics of nothing": partial(statistics, n=0),
    "mean loss": loss,
    "losses under a number": partial(loss, scale=100.0, reduction="none"),
    "loss of nothing": partial(loss, n=0, reduction="sum"),
    "gradients": gradients,
    "gradients under a number": partial(gradients, scale=torch.tensor(9.0)),
    "gradients of the sum": partial(
        gradients, scale=torch.tensor(9.0), kind=cross_entropy._cross_entropy_sum
    ),
    "density": density,
    "density of numbers": partial(density, bandwidth=[0.5, 2.0]),
    "density of a tensor on the CPU": partial(density, bandwidth=torch.ones(2)),
}
SEARCHES: dict[str, Call] = {
    "knn": partial(searched, call=lambda q, k: knn(q, k, 10)),
    "knn of few queries": partial(searched, call=lambda q, k: knn(q[:3], k, 10)),
    "knn of few keys": partial(searched, call=lambda q, k: knn(q, k[:700], 10)),
    "knn in half precision": partial(searched, call=lambda q, k: knn(q.half(), k.bfloat16(), 10)),
    "knn of the keys": partial(
        searched, call=lambda q, k: knn(k[:20_000], k[:20_000], 3, exclude_self=True)
    ),
    "proximity": partial(searched, call=lambda q, k: proximity(q, k, 10)),
    "mean": partial(searched, call=lambda q, k: rank_vocabulary(k, q, 10)),
    "max": partial(searched, call=lambda q, k: rank_vocabulary(q, k, 10, reduce="max")),
}
BENCHMARKS: dict[str, Call] = {
    "knn 1000 in 1M": partial(indexed, n=1000, m=1_000_000),
    "softmax 50k x 1000, fast": partial(softmax, n=50_000, c=1000, d=512, precision="fast"),
    "softmax 10k x 100k, fast": partial(softmax, n=10_000, c=100_000, d=512, precision="fast"),
    "softmax 10k x 100k, accurate": partial(softmax, n=10_000, c=100_000, d=512),
    "statistics 10k x 100k": partial(statistics, n=10_000, c=100_000, d=512),
    "loss 32k x 32k, fast": partial(gradients, n=32_768, c=32_768, d=512, fast=True),
    "loss 32k x 32k, accurate": partial(gradients, n=32_768, c=32_768, d=512),
    "ECE of 1e8": partial(bins, n=100_000_000, step=1),
    "classwise 50k x 1000": partial(classes, n=50_000, c=1000, columns=False),
    "stored 50k x 1000": partial(stored, n=50_000, c=1000, columns=False),
    "density 100k x 100k": partial(density, n=100_000, m=100_000),
}
ODD: dict[str, Call] = {
    "softmax of ones": partial(softmax, n=5, c=1, d=1),
    "statistics of ones": partial(statistics, n=5, c=7, d=1),
    "gradients of ones": partial(gradients, n=5, c=1, d=1),
    "many neighbors": partial(indexed, n=20, m=300_000, k=2000),
    "odd search": partial(
        searched, call=lambda q, k: knn(q, k, 7), n=67, m=2051, d=70, dtype=torch.bfloat16
    ),
    "search of ones": partial(searched, call=lambda q, k: knn(q, k, 1), n=1, m=1, d=1),
    "odd maxima": partial(
        searched,
        call=lambda q, k: rank_vocabulary(k, q, 5, reduce="max"),
        n=3000,
        m=130,
        d=1,
        dtype=torch.float64,
    ),
    "bins of one": partial(bins, n=1),
    "classes of one": partial(classes, n=1, c=1),
    "stored one": partial(stored, n=1, c=1),
    **{
        f"{'columns' if columns else 'rows'} of stored logits {part}": partial(
            stored, n=208, c=64, columns=columns, part=slice(*part)
        )
        for columns in (True, False)
        for part in ((0, None), (1, None), (5, 6))
    },
    "density of one": partial(density, n=1, m=1),
}
FURTHER = (
    *("many bins", "bins of doubles", "groups", "many groups", "classes"),
    *("softmax under a number", "mean", "max"),
)
BUDGETED: dict[str, Call] = BENCHMARKS | ODD | {name: (CALLS | SEARCHES)[name] for name in FURTHER}
