"""The certificate of the GPU's screen: with the worst adder a GPU may have, no neighbor is lost.

The rows are rounded to fp16 and the biases made by the kernels themselves; only the accumulation,
which tensor cores leave open, is emulated, in ways that lose at least as much as they do.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.test_screens import DATA, draw
from tests.oracle import device_of
from vlcal.ops import _triton, reference
from vlcal.ops._triton import search as gpu
from vlcal.ops._triton import search_rows
from vlcal.ops._triton.search_bounds import Doubts, doubts, frame_of, frame_of_queries, placed

DEVICE = device_of("triton")

pytestmark = pytest.mark.skipif(_triton.missing() is not None, reason=str(_triton.missing()))


def cut(values, bits=24):
    """Float64 values with all but the leading bits of their mantissas dropped."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.trunc(np.ldexp(mantissa, bits)), exponent - bits)


def one_by_one(products):
    """A float32 adder that truncates after every addition."""
    total = np.zeros(products.shape[:-1])
    for d in range(products.shape[-1]):
        total = cut(total + products[..., d])
    return total


def in_steps(n):
    """Tensor cores: n products and the accumulator, aligned to the largest, cut, added, cut."""

    def add(products):
        total = np.zeros(products.shape[:-1])
        for start in range(0, products.shape[-1], n):
            part = np.concatenate([total[..., None], products[..., start : start + n]], -1)
            _, exponent = np.frexp(np.abs(part).max(-1, keepdims=True))
            aligned = np.ldexp(np.trunc(np.ldexp(part, 24 - exponent)), exponent - 24)
            total = cut(aligned.sum(-1))
        return total

    return add


def forwards(products):
    return products


def backwards(products):
    return products[..., ::-1]


def shuffled(products):
    return products[..., np.random.default_rng(0).permutation(products.shape[-1])]


def largest_first(products):
    return np.take_along_axis(products, np.argsort(-np.abs(products), axis=-1), -1)


def negative_first(products):
    return np.sort(products, axis=-1)


# kRounding of csrc/cuda/search_epilogue.cuh
SLACK = 2.0**-21
ADDERS = {"one by one": one_by_one} | {f"{n} at a time": in_steps(n) for n in (4, 8, 16)}
ORDERS = (forwards, backwards, shuffled, largest_first, negative_first)


def scores(q16, k16, bias, adder, order):
    """What a kernel may return for every pair [Q, V], as float64."""
    products = q16.double().numpy()[:, None] * k16.double().numpy()
    total = ADDERS[adder](order(products))
    return torch.from_numpy(cut(total + bias.double().numpy()))


def on_cpu(value):
    if isinstance(value, torch.Tensor):
        return value.cpu()
    parts = [on_cpu(part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else parts


def prepared(queries, keys, dot):
    queries, keys = queries.to(DEVICE), keys.to(DEVICE)
    frame = frame_of(keys, dot)
    rows = placed(keys, frame, dot)
    there = placed(queries, frame_of_queries(queries, frame), dot)
    trust = doubts(there, rows, dot)
    return on_cpu((there, rows, trust, search_rows.biases(rows.norms, trust.factors)))


def wanted_scores(queries, keys, dot, trust: Doubts):
    """The scores that count, of costs as float64 evaluates them."""
    if dot:
        cost = -torch.stack(
            [reference.folded_sum(query.double() * keys.double()) for query in queries]
        )
    else:
        cost = reference.squared_distances(queries, keys)
    return trust.base[:, None] - trust.unit * cost


def problem(name, dim, n=130):
    keys = DATA[name](n, dim)
    return torch.cat([keys[:4], DATA[name](12, dim)[4:].flip(1)]), keys


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("adder", ADDERS)
@pytest.mark.parametrize("name", DATA)
def test_no_score_is_further_off_than_the_doubts(name, adder, dot):
    queries, keys = problem(name, 70)
    there, rows, trust, (upper, lower, _) = prepared(queries, keys, dot)
    true = wanted_scores(queries, keys, dot, trust)
    # every adder meets every order over the names
    for order in ORDERS[sum(map(ord, name)) % 2 :: 2]:
        above = scores(there.half, rows.half, upper, adder, order) + trust.query[:, None]
        below = scores(there.half, rows.half, lower, adder, order) - trust.query[:, None]
        assert (above >= true).all()
        assert (below <= true).all()


def screens_of(adder, order):
    """Screens that add as badly as they may."""

    def group_max(q16, k16, bias):
        every = scores(q16, k16, bias, adder, order).float()
        return torch.stack([part.amax(1) for part in every.split(gpu.GROUP, dim=1)], 1)

    return group_max


@settings(max_examples=40, deadline=None)
@given(
    more=st.integers(1, 170),
    dim=st.integers(1, 40),
    k=st.sampled_from([1, 2, 4]),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    step=st.sampled_from([0.0, 0.25, 1.0]),
    shift=st.sampled_from([0.0, 3.0, 1e4]),
    size=st.sampled_from([1e-30, 1.0, 1e12]),
    far=st.sampled_from([1.0, 1e-4, 1e4]),
    adder=st.sampled_from(list(ADDERS)),
    order=st.sampled_from(ORDERS),
    dot=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_no_neighbor_is_lost(more, dim, k, spread, step, shift, size, far, adder, order, dot, seed):
    n = 128 * k + more
    both = draw(n + 10, dim, seed=seed) * (spread * draw(n + 10, 1, seed=1)).exp()
    both = ((both / step).round() * step if step else both) + shift
    queries, keys = (both[n:].double() * size * far), both[:n].double() * size
    there, rows, trust, (upper, lower, gap) = prepared(queries, keys, dot)
    true = wanted_scores(queries, keys, dot, trust)
    # neighbors as they come: by cost, ties by index
    nearest = true.sort(dim=1, descending=True, stable=True).indices[:, :k]
    group_max = screens_of(adder, order)
    pair = gpu.Screens(group_max, lambda *_: None)
    floor, rungs, rising = gpu._floors(there.half, rows.half, lower, trust.query, k, pair)
    above = scores(there.half, rows.half, upper, adder, order).float()
    # all keys have passed: the floor is as high as its ladder lets it become
    gap = gap.repeat_interleave(search_rows.GAP_KEYS)[:n]
    sure = above - gap - SLACK * above.abs().maximum(gap)
    for rung, floor_there in zip(rungs.T, rising.T, strict=True):
        reached = (sure >= rung[:, None]).sum(1) >= k
        floor = torch.where(reached, floor.maximum(floor_there), floor)
    listed = above >= floor[:, None]
    assert listed.gather(1, nearest).all()
    # and none that scores as much as the last of them
    assert listed[true >= true.gather(1, nearest[:, -1:])].all()


# how much of the doubts is needed


def test_doubts_of_rounding_are_reached():
    # every coordinate of the queries is rounded down by almost half a unit, the keys by nothing,
    # and they point the same way: the inequality of Cauchy and Schwarz is an equality
    dim = 64
    keys = torch.ones(400, dim) * torch.tensor([1.0, -1.0]).repeat(200)[:, None]
    queries = torch.full((3, dim), 1 + 2.0**-11 - 2.0**-20)
    there, rows, trust, (upper, lower, _) = prepared(queries, keys, False)
    true = wanted_scores(queries, keys, False, trust)
    middle = scores(there.half, rows.half, (upper + lower) / 2, "one by one", forwards)
    doubt = trust.query[:, None] + (upper - lower).double() / 2
    assert ((true - middle).abs() >= doubt / 1.3).all()


def test_doubts_of_adding_are_at_most_four_times_what_an_adder_loses():
    # one large product, and then many of almost a unit in its last place, every one cut off
    dim = 1024
    key, query = torch.full((dim,), 2.0**-11 * (1 - 2.0**-10)), torch.full((1, dim), 2.0**-11)
    key[0] = query[0, 0] = 1
    keys = key * torch.tensor([1.0, -1.0]).repeat(200)[:, None]
    there, rows, trust, (upper, lower, _) = prepared(query, keys, False)
    assert not rows.norms[1].any()
    assert not there.norms[1].any()
    true = wanted_scores(query, keys, False, trust)
    middle = (upper + lower) / 2
    off = (scores(there.half, rows.half, middle, "one by one", forwards) - true).abs()
    doubt = trust.query[:, None] + (upper - lower).double() / 2
    assert (off <= doubt).all()
    assert (doubt <= 4 * off).all()


@pytest.mark.parametrize("dim", [64, 512, 1024])
@pytest.mark.parametrize("name", ["clustered", "sphere"])
def test_doubts_of_ordinary_rows_cost_little_over_the_bound_of_each_pair(name, dim):
    queries, keys = problem(name, dim, 600)
    there, rows, trust, (upper, lower, _) = prepared(queries, keys, False)
    doubt = trust.query[:, None] + (upper - lower).double() / 2
    query, key = there.norms[:, :, None], rows.norms
    pair = query[1] * key[0] + (query[0] + query[1]) * key[1] + dim * 2.0**-22 * query[0] * key[0]
    assert (doubt <= 2 * pair).all()
    assert doubt.mean() <= 1.3 * pair.mean()


def test_odd_rows_do_not_loosen_the_doubts_of_others():
    # but for moving the center: by a few lengths of the others, which counts squared
    queries, keys = problem("sphere", 64, 600)
    _, _, trust, (upper, lower, _) = prepared(queries, keys, False)
    alone = trust.query[4:, None] / trust.unit + (upper - lower).double() / 2 / trust.unit
    keys = torch.cat([keys, keys[:1] * 2000])
    queries = torch.cat([queries, queries[:1] * 500])
    _, _, trust, (upper, lower, _) = prepared(queries, keys, False)
    beside = trust.query[4:-1, None] / trust.unit + (upper - lower)[:-1].double() / 2 / trust.unit
    assert beside.median() <= 12 * alone.median()
