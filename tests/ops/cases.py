"""Named inputs per op, shared by the tests and by the gates of the benchmarks."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vlcal import ops


class Case(NamedTuple):
    """`make()` gives the positional and keyword arguments of one call."""

    name: str
    make: Callable[[], tuple[tuple, dict]]

    def __str__(self) -> str:
        return self.name


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def confidences(n, dtype=torch.float32, seed=0):
    """Confidences with exact edges, 0 and 1 among them, and correctness that follows them."""
    generator = _generator(seed)
    confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    edges = torch.linspace(0, 1, 31, dtype=torch.float64)
    confidence[: len(edges)] = edges[:n]
    correct = torch.rand(n, generator=generator, dtype=torch.float64) < confidence
    return confidence.to(dtype), correct


BINNING = [
    Case("thousand", lambda: (confidences(1000), {})),
    Case("one bin", lambda: ((*confidences(100), 1), {})),
    Case("ten bins closed left", lambda: ((*confidences(1000), 10), {"closed": "left"})),
    Case("more bins than samples", lambda: ((*confidences(40), 100), {})),
    Case("many chunks", lambda: (confidences(200_003), {})),
    Case("empty", lambda: (confidences(0), {})),
    Case("all one", lambda: ((torch.ones(50), torch.arange(50) % 2 == 0), {})),
    Case("all zero", lambda: ((torch.zeros(50), torch.arange(50) % 2 == 0), {"closed": "left"})),
    Case("float64", lambda: (confidences(1000, torch.float64), {})),
    Case("float16", lambda: (confidences(1000, torch.float16), {})),
    Case("bfloat16", lambda: (confidences(1000, torch.bfloat16), {"closed": "left"})),
    Case("strided", lambda: (tuple(values[::3] for values in confidences(999)), {})),
    Case("expanded", lambda: ((torch.tensor(0.3).expand(77), torch.tensor(True).expand(77)), {})),
]


def tied(n, dtype=torch.float32):
    """Confidences of which many are equal, half of them 1, correct ones mixed among the ties."""
    confidence, correct = confidences(n, torch.float64)
    steps = (confidence * 7).round() / 7
    return torch.where(torch.arange(n) % 2 == 0, steps, 1.0).to(dtype), correct


EQUAL_MASS = [
    Case(f"{name}, ties {ties}", lambda make=make, ties=ties: (make(), {"ties": ties}))
    for ties in ("together", "order")
    for name, make in {
        "thousand": lambda: confidences(1000),
        "four bins": lambda: (*confidences(1001), 4),
        "many": lambda: confidences(100_003),
        "many in one bin": lambda: (*confidences(100_003), 1),
        "many in 400 bins": lambda: (*confidences(100_003), 400),
        "tied": lambda: tied(999),
        "many tied": lambda: (*tied(100_003), 10),
        "many equal": lambda: (torch.full((70_000,), 0.7), torch.arange(70_000) % 3 == 0),
        "many zeros": lambda: (torch.zeros(70_000), torch.arange(70_000) % 3 == 0),
        "minus zero": lambda: (torch.tensor([0.0, -0.0, 0.5, -0.0]), torch.arange(4) % 2 == 0, 2),
        "more bins than samples": lambda: (*confidences(40), 100),
        "empty": lambda: confidences(0),
        "float16": lambda: confidences(40_000, torch.float16),
        "strided": lambda: tuple(values[::3] for values in confidences(99_999)),
    }.items()
]


def grouped(n, n_groups, dtype=torch.float32):
    confidence, correct = confidences(n, dtype)
    return torch.arange(n) * 7 % n_groups, confidence, correct, n_groups


GROUPS = [
    Case("ten groups", lambda: (grouped(1000, 10), {})),
    Case("many samples", lambda: (grouped(300_003, 1000), {})),
    Case("more groups than samples", lambda: (grouped(50, 5000), {})),
    Case("one group", lambda: (grouped(1000, 1), {})),
    Case("empty", lambda: (grouped(0, 3), {})),
    Case("float64", lambda: (grouped(1000, 10, torch.float64), {})),
    Case("bfloat16", lambda: (grouped(1000, 10, torch.bfloat16), {})),
]


def stored_logits(n, classes, scale=4.0, dtype=torch.float32):
    values = scale * torch.randn(n, classes, generator=_generator(), dtype=torch.float64)
    return values.to(dtype), torch.arange(n) * 5 % classes


def stored_probs(n, classes, scale=4.0, dtype=torch.float32):
    values, labels = stored_logits(n, classes, scale, torch.float64)
    probs = values.softmax(-1).to(dtype)
    exact = torch.linspace(0, 1, 31, dtype=torch.float64).to(dtype)
    probs.flatten()[: len(exact)] = exact[: probs.numel()]
    return probs, labels


CLASSWISE = [
    Case("twenty classes", lambda: (stored_probs(300, 20), {})),
    Case("ten bins closed left", lambda: ((*stored_probs(300, 37), 10), {"closed": "left"})),
    Case("many rows", lambda: (stored_probs(2500, 100), {})),
    Case("flat", lambda: (stored_probs(1100, 50, scale=0.1), {})),
    Case("one class", lambda: (stored_probs(50, 1), {})),
    Case("one bin", lambda: ((*stored_probs(50, 33), 1), {})),
    Case("hundred bins", lambda: ((*stored_probs(200, 33), 100), {})),
    Case("no rows", lambda: (stored_probs(0, 5), {})),
    Case("float16", lambda: (stored_probs(60, 20, dtype=torch.float16), {})),
    Case("transposed", lambda: ((stored_probs(40, 40)[0].T, torch.arange(40)), {})),
]


def _masked():
    values, labels = stored_logits(20, 50)
    values[:, 1::2] = -torch.inf
    return values, labels // 2 * 2


STORED_LOGITS = [
    Case("thousand classes", lambda: (stored_logits(50, 1000), {})),
    Case("without labels", lambda: (stored_logits(50, 100)[:1], {})),
    *[
        Case(f"{classes} classes", lambda classes=classes: (stored_logits(40, classes), {}))
        for classes in (1, 2, 15, 16, 17, 33, 4097, 20_000)
    ],
    Case("sure", lambda: (stored_logits(50, 100, scale=60.0), {})),
    Case("flat", lambda: (stored_logits(50, 100, scale=1e-3), {})),
    Case("only ties", lambda: ((torch.full((9, 40), 3.0), torch.arange(9)), {})),
    Case("huge", lambda: (stored_logits(50, 100, scale=1e30), {})),
    Case("masked classes", lambda: (_masked(), {})),
    Case("no rows", lambda: (stored_logits(0, 5), {})),
    Case("float16", lambda: (stored_logits(20, 100, dtype=torch.float16), {})),
    Case("bfloat16", lambda: (stored_logits(20, 100, dtype=torch.bfloat16), {})),
    Case("transposed", lambda: ((stored_logits(40, 40)[0].T, torch.arange(40)), {})),
]


def rows(n, dim, dtype=torch.float32, seed=0):
    """Clustered rows with a large common component: unit norm, mean cosine near 0.7."""
    generator = _generator(seed)
    center = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    spread = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    values = 1.5 + center[torch.arange(n) % 5] + 0.3 * spread
    return torch.nn.functional.normalize(values, dim=1).to(dtype)


def search(n, m, dim, k, dtype=torch.float32):
    """Queries [n, dim], keys [m, dim] that are not in the queries, and k."""
    both = rows(n + m, dim, dtype)
    return both[:n], both[n:], k


def _twins(n, dim):
    values = rows(n, dim)
    return values[torch.arange(2 * n) % n]


def _near_twins(n, dim):
    values = 1000.0 + rows(n, dim)
    return torch.cat([values, values + 1e-4])


# one list for knn and proximity: the same arguments, the same traps
SEARCH = [
    Case("ten nearest", lambda: (search(20, 300, 64, 10), {})),
    Case("nearest", lambda: (search(20, 300, 64, 1), {})),
    Case("all keys", lambda: (search(9, 40, 33, 40), {})),
    Case("one key", lambda: (search(9, 1, 12, 1), {})),
    Case("one query", lambda: (search(1, 500, 512, 5), {})),
    Case("no queries", lambda: (search(0, 50, 16, 5), {})),
    *[
        Case(f"{dim} dimensions", lambda dim=dim: (search(11, 70, dim, 7), {}))
        for dim in (1, 3, 7, 33, 512, 513)
    ],
    Case("many keys", lambda: (search(3, 40_000, 4, 12), {})),
    Case("twins", lambda: ((rows(10, 32), _twins(40, 32), 9), {})),
    Case("near twins", lambda: ((_near_twins(3, 32), _near_twins(40, 32), 9), {})),
    Case("only ties", lambda: ((rows(4, 32), rows(1, 32).expand(100, 32), 50), {})),
    Case("rows of zeros", lambda: ((torch.zeros(5, 24), torch.zeros(60, 24), 11), {})),
    Case("huge", lambda: (_scaled(1e18), {})),
    Case("tiny", lambda: (_scaled(1e-18), {})),
    Case("one huge key", lambda: (_with_huge_key(), {})),
    Case("float64", lambda: (search(20, 300, 65, 10, torch.float64), {})),
    Case("float16", lambda: (search(20, 300, 65, 10, torch.float16), {})),
    Case("bfloat16", lambda: (search(20, 300, 65, 10, torch.bfloat16), {})),
    Case("mixed precisions", lambda: ((rows(8, 20, torch.float64), rows(90, 20), 4), {})),
    Case("transposed", lambda: ((rows(40, 16).T, rows(40, 90, seed=1).T, 5), {})),
    Case("expanded", lambda: ((rows(1, 16).expand(6, 16), rows(9, 1).expand(9, 16), 5), {})),
    Case("without itself", lambda: ((rows(80, 40), rows(80, 40), 6), {"exclude_self": True})),
    Case("all others", lambda: ((rows(30, 40), rows(30, 40), 29), {"exclude_self": True})),
]


def _scaled(factor):
    queries, keys, k = search(6, 200, 40, 8)
    return queries * factor, keys * factor, k


def _with_huge_key():
    queries, keys, k = search(6, 200, 40, 8)
    return queries, torch.cat([keys[:100], keys[:1] * 1e18, keys[100:]]), k


RANKING = [
    Case(
        f"{reduce} of {dtype}",
        lambda reduce=reduce, dtype=dtype: (search(300, 12, 65, 40, dtype), {"reduce": reduce}),
    )
    for reduce in ("mean", "max")
    for dtype in (torch.float32, torch.float64, torch.float16)
] + [
    Case("twins", lambda: ((_twins(50, 20), rows(4, 20, seed=1), 30), {})),
    Case("every twin", lambda: ((_twins(50, 20), rows(4, 20, seed=1), 100), {"reduce": "max"})),
    Case("one candidate", lambda: ((rows(1, 5), rows(1, 5, seed=1), 1), {})),
    Case("rows of zeros", lambda: ((torch.zeros(9, 5), rows(2, 5), 4), {"reduce": "max"})),
    Case("transposed", lambda: ((rows(16, 40).T, rows(16, 7, seed=1).T, 5), {"reduce": "max"})),
]


def features(n, c, dim, dtype=torch.float32, seed=0):
    """Image features [n, dim] near the text features [c, dim] of their labels, and the labels."""
    generator = _generator(seed)
    text = rows(c, dim, torch.float64, seed)
    labels = torch.randint(c, (n,), generator=generator)
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64) / dim**0.5
    image = torch.nn.functional.normalize(0.5 * text[labels] + noise, dim=1)
    return image.to(dtype), text.to(dtype), labels


def coarse_features(n, c, dim):
    """Features in eighths: dot products are exact in any precision and order, so ties are ties."""
    generator = _generator()
    image = torch.randint(-4, 5, (n, dim), generator=generator) / 8
    text = torch.randint(-4, 5, (c, dim), generator=generator) / 8
    return image, text[torch.randint(c, (3 * c,), generator=generator)]


def factors(size, seed=0):
    return 0.5 + torch.rand(size, generator=_generator(seed))


def _softmax(n, c, dim, dtype=torch.float32, scale=100.0, names=(), k=1):
    image, text, labels = features(n, c, dim, dtype)
    optional = {
        "labels": labels,
        "row_scale": factors(n).to(dtype),
        "predicted_scale": factors(c, 1).to(dtype),
    }
    return (image, text, scale), {"k": k, **{name: optional[name] for name in names}}


ALL = ("labels", "row_scale", "predicted_scale")

SOFTMAX = [
    Case("plain", lambda: _softmax(50, 40, 64)),
    *[Case(name, lambda name=name: _softmax(50, 40, 64, names=(name,))) for name in ALL],
    Case("everything", lambda: _softmax(50, 40, 64, names=ALL, k=5)),
    Case("all classes", lambda: _softmax(21, 40, 64, names=ALL, k=40)),
    Case("one class", lambda: _softmax(21, 1, 64, names=ALL)),
    Case("one image", lambda: _softmax(1, 40, 64, names=ALL, k=3)),
    Case("no images", lambda: _softmax(0, 40, 64, names=ALL, k=3)),
    Case("chunks", lambda: _softmax(37, 1300, 16, names=ALL[:2], k=3)),
    Case("chunks by prediction", lambda: _softmax(37, 1300, 16, names=ALL, k=3)),
    Case("more wanted than a chunk", lambda: _softmax(5, 1300, 16, k=700)),
    Case("deep", lambda: _softmax(9, 30, 1024, names=ALL)),
    *[
        Case(f"{dim} dimensions", lambda dim=dim: _softmax(33, 45, dim, names=ALL, k=2))
        for dim in (1, 3, 321, 513)
    ],
    Case("ties", lambda: ((*coarse_features(40, 30, 4), 10.0), {"k": 7})),
    Case("only ties", lambda: ((torch.ones(4, 8), torch.ones(100, 8), 100.0), {"k": 50})),
    Case("rows of zeros", lambda: ((torch.zeros(4, 8), torch.zeros(60, 8), 100.0), {"k": 11})),
    Case("huge logits", lambda: _softmax(50, 40, 64, scale=1e4, names=ALL, k=3)),
    Case("tiny logits", lambda: _softmax(50, 40, 64, scale=1e-4, names=("labels",), k=3)),
    Case("float16", lambda: _softmax(50, 40, 64, torch.float16, names=ALL, k=3)),
    Case("bfloat16", lambda: _softmax(50, 40, 64, torch.bfloat16, names=ALL, k=3)),
    Case(
        "mixed precisions",
        lambda: ((features(9, 20, 16)[0].half(), features(9, 20, 16)[1], torch.tensor(30.0)), {}),
    ),
    Case("transposed", lambda: ((rows(64, 50).T, rows(64, 40, seed=1).T, 20.0), {"k": 3})),
    Case("strided", lambda: ((rows(90, 64)[::3, ::2], rows(40, 64, seed=1)[:, ::2], 20.0), {})),
    Case("expanded", lambda: ((rows(1, 16).expand(6, 16), rows(9, 1).expand(9, 16), 5.0), {})),
]


def _pair(n, c, dim, other_dim=0, dtype=torch.float32):
    image, text, _ = features(n, c, dim, dtype)
    kwargs = {"other": features(n, c, other_dim, dtype, seed=1)[:2]} if other_dim else {}
    return (image, text, 100.0), kwargs


STATISTICS = [
    Case("alone", lambda: _pair(50, 40, 64)),
    Case("with another", lambda: _pair(50, 40, 64, 64)),
    Case("of other width", lambda: _pair(50, 40, 64, 33)),
    Case("chunks", lambda: _pair(37, 1300, 16, 20)),
    Case("one class", lambda: _pair(21, 1, 64, 64)),
    Case("no images", lambda: _pair(0, 40, 64, 64)),
    Case("ties", lambda: ((*coarse_features(40, 30, 4), 10.0), {})),
    Case("rows of zeros", lambda: ((torch.zeros(4, 8), torch.zeros(60, 8), 100.0), {})),
    Case("float16", lambda: _pair(50, 40, 64, 64, torch.float16)),
    Case("bfloat16", lambda: _pair(50, 40, 64, 64, torch.bfloat16)),
    Case("transposed", lambda: ((rows(64, 50).T, rows(64, 40, seed=1).T, 20.0), {})),
]


def _training(n, c, dim, reduction="mean", dtype=torch.float32, scale=100.0, wanted="its"):
    image, text, labels = features(n, c, dim, dtype)
    factor = torch.tensor(scale, requires_grad="s" in wanted)
    args = (image.requires_grad_("i" in wanted), text.requires_grad_("t" in wanted), labels, factor)
    return args, {"reduction": reduction}


def _strided_training():
    image, text, labels = features(60, 40, 64)
    leaves = (image[::2, ::2].T.contiguous().T, text[:, ::2])
    args = (*(leaf.detach().requires_grad_() for leaf in leaves), labels[::2], 20.0)
    return args, {"reduction": "none"}


CROSS_ENTROPY = [
    *[
        Case(name, lambda name=name: _training(50, 40, 64, name))
        for name in ("mean", "sum", "none")
    ],
    *[Case(f"only {name}", lambda name=name: _training(50, 40, 64, wanted=name)) for name in "its"],
    Case("no gradients", lambda: _training(50, 40, 64, wanted="")),
    Case("chunks", lambda: _training(37, 1300, 16)),
    Case("many images", lambda: _training(1500, 20, 8, "none")),
    Case("one class", lambda: _training(21, 1, 64)),
    Case("one image", lambda: _training(1, 40, 64)),
    Case("no images", lambda: _training(0, 40, 64, "sum")),
    Case("one dimension", lambda: _training(33, 45, 1)),
    Case("odd dimensions", lambda: _training(33, 45, 321)),
    Case("huge logits", lambda: _training(50, 40, 64, scale=1e4)),
    Case("tiny logits", lambda: _training(50, 40, 64, scale=1e-4)),
    Case("float16", lambda: _training(50, 40, 64, dtype=torch.float16)),
    Case("bfloat16", lambda: _training(50, 40, 64, "none", torch.bfloat16)),
    Case("strided", lambda: _strided_training()),
]


def plane(n, m, dtype=torch.float32, bandwidth=(0.07, 0.02)):
    """Pairs of confidence and proximity: queries, other points, and a bandwidth."""
    values = torch.rand(n + m, 2, generator=_generator(), dtype=torch.float64)
    values = (values ** torch.tensor([0.3, 2.0])).to(dtype)
    return values[:n], values[n:], torch.tensor(bandwidth, dtype=torch.float64)


def _line(n):
    return torch.stack([torch.linspace(0, 1, n), torch.full((n,), 0.5)], 1)


DENSITY = [
    Case("three hundred", lambda: (plane(70, 300), {})),
    *[
        Case(f"{n} queries, {m} points", lambda n=n, m=m: (plane(n, m), {}))
        for n, m in ((1, 1), (0, 5), (15, 16), (16, 15), (17, 33), (3, 5000), (1000, 2))
    ],
    Case("many slices", lambda: (plane(5, 70_001), {})),
    Case("wide", lambda: (plane(40, 90, bandwidth=(30.0, 1e6)), {})),
    Case("narrow", lambda: (plane(40, 90, bandwidth=(1e-3, 1e-3)), {})),
    # one axis counts for nothing and the other has one value: the density is 1 / (2 pi h1 h2)
    Case("infinitely wide", lambda: ((_line(40), _line(90), [1e46, 1e-40]), {})),
    Case("on the points", lambda: ((plane(0, 90)[1], plane(0, 90)[1], [0.4, 0.4]), {})),
    Case("only ties", lambda: ((torch.ones(9, 2), torch.ones(40, 2), [0.3, 0.2]), {})),
    Case("far tails", lambda: ((torch.arange(80.0).view(40, 2), torch.zeros(7, 2), [1, 2]), {})),
    Case("far from zero", lambda: ((plane(9, 1)[0] + 1000, plane(0, 90)[1] + 1000, [3, 2]), {})),
    Case("huge", lambda: ((plane(9, 1)[0] * 1e30, plane(0, 90)[1] * 1e30, [3e29, 1e29]), {})),
    Case("float16", lambda: (plane(40, 90, torch.float16), {})),
    Case("bfloat16", lambda: (plane(40, 90, torch.bfloat16), {})),
    Case("mixed", lambda: ((plane(40, 1)[0].half(), plane(0, 90)[1], [0.3, 0.2]), {})),
    Case("strided", lambda: ((rows(60, 9)[::2, 1::4], rows(50, 4)[:, ::3], [0.3, 0.2]), {})),
    Case("transposed", lambda: ((rows(2, 40).T, rows(2, 50, seed=1).T, [0.3, 0.2]), {})),
    Case("expanded", lambda: ((rows(1, 2).expand(6, 2), rows(9, 1).expand(9, 2), [0.1, 0.2]), {})),
]

# op name -> (public function, cases, whether the result must be exact whatever the input dtype)
CASES = {
    "bin_statistics": (ops.bin_statistics, BINNING, True),
    "calibrated_softmax": (ops.calibrated_softmax, SOFTMAX, False),
    "cosine_cross_entropy": (ops.cosine_cross_entropy, CROSS_ENTROPY, False),
    "classwise_statistics": (ops.classwise_statistics, CLASSWISE, True),
    "equal_mass_statistics": (ops.equal_mass_statistics, EQUAL_MASS, True),
    "group_statistics": (ops.group_statistics, GROUPS, True),
    "kernel_density": (ops.kernel_density, DENSITY, True),
    "knn": (ops.knn, SEARCH, True),
    "logit_statistics": (ops.logit_statistics, STATISTICS, False),
    "proximity": (ops.proximity, SEARCH, True),
    "rank_vocabulary": (ops.rank_vocabulary, RANKING, True),
    "softmax_statistics": (ops.softmax_statistics, STORED_LOGITS, False),
}
