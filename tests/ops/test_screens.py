"""Screens in low precision never change an answer: every instruction set, hint and kind of data."""

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases import rows
from vlcal import _native
from vlcal.ops import SearchIndex, _directions, knn, rank_vocabulary, reference

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason=str(_native.missing()))

K = 5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lost_in_int8(n, dim):
    """One large coordinate of either sign makes the steps of int8 wider than all the others."""
    values = 0.49 * draw(n, dim).sign()
    values[:, 0] = 127 * values[:, 0].sign()
    return values


def seen_by_few(n, dim):
    values = torch.zeros(n, dim)
    values[torch.arange(n), torch.arange(n) % dim] = 1
    return values


# name -> [n, dim] keys; some of them are among the queries
DATA = {
    "clustered": rows,
    "sphere": lambda n, dim: torch.nn.functional.normalize(draw(n, dim), dim=1),
    "far from the origin": lambda n, dim: draw(n, dim) + 50,
    "twins": lambda n, dim: draw(n // 7 + 1, dim)[torch.arange(n) % (n // 7 + 1)],
    "only twins": lambda n, dim: draw(1, dim).expand(n, dim).clone(),
    "near twins": lambda n, dim: draw(1, dim) + 1e-6 * draw(n, dim),
    "all norms": lambda n, dim: draw(n, dim) * (2 * draw(n, 1, seed=1)).exp(),
    "zero rows": lambda n, dim: draw(n, dim) * (torch.arange(n) % 3 > 0)[:, None],
    "only zeros": torch.zeros,
    "huge": lambda n, dim: draw(n, dim) * 1e18,
    "as large as float32 holds": lambda n, dim: draw(n, dim) * 5e37,
    "tiny": lambda n, dim: draw(n, dim) * 1e-30,
    "denormal": lambda n, dim: draw(n, dim) * 1e-40,
    "one huge row": lambda n, dim: draw(n, dim) * (1 + 1e6 * (torch.arange(n) == n // 2)[:, None]),
    "grid": lambda n, dim: draw(n, dim).round(),
    "unit vectors": seen_by_few,
    "lost in int8": lost_in_int8,
}


@lru_cache
def problem(name, dim):
    keys = DATA[name](1500, dim)
    queries = torch.cat([keys[:20], DATA[name](60, dim)[20:].flip(1)])
    return queries, keys, reference.knn(queries, keys, K, False)


def assert_found(index, queries, expected):
    squared, found = index.search(queries, expected[1].shape[1], False)
    assert torch.equal(found, expected[1])
    assert torch.equal(squared.sqrt().float(), expected[0])


@pytest.mark.parametrize("dim", [1, 7, 64, 130])
@pytest.mark.parametrize("name", DATA)
def test_screens_find_what_float64_finds(kernels, name, dim):
    queries, keys, expected = problem(name, dim)
    assert_found(_native.SearchIndex(keys), queries, expected)
    assert_found(_native.SearchIndex(keys.double()), queries, expected)


@pytest.mark.parametrize("count", [1, 12, 40, 64])
@pytest.mark.parametrize("name", DATA)
def test_directions_are_only_a_hint(kernels, name, count):
    queries, keys, expected = problem(name, 64)
    directions = torch.linalg.qr(draw(64, count)).Q.T.contiguous()
    assert_found(_native.SearchIndex(keys, directions=directions), queries, expected)


def test_directions_that_are_not_orthonormal_are_refused():
    with pytest.raises(ValueError, match="directions must be orthonormal, they are off by"):
        _native.SearchIndex(rows(50, 8), directions=torch.ones(2, 8))
    with pytest.raises(ValueError, match="directions must be orthonormal, they are off by"):
        _native.SearchIndex(rows(50, 8), directions=torch.full((2, 8), torch.nan))


@pytest.mark.parametrize("name", ["clustered", "twins", "all norms", "lost in int8"])
def test_excluding_itself_survives_the_screens(kernels, name):
    _, keys, _ = problem(name, 64)
    expected = reference.knn(keys[:600], keys[:600], K, True)
    found = knn(keys[:600], keys[:600], K, exclude_self=True, backend="native")
    assert torch.equal(found.index, expected[1])
    index = _native.SearchIndex(keys[:600], directions=torch.eye(64)[:12].contiguous())
    assert torch.equal(index.search(keys[:600], K, True)[1], expected[1])


@pytest.mark.parametrize("name", ["clustered", "far from the origin", "all norms", "lost in int8"])
def test_largest_dot_products_survive_the_screens(kernels, name):
    queries, keys, _ = problem(name, 64)
    native, believed = (
        rank_vocabulary(queries, keys, 60, reduce="max", backend=backend)
        for backend in ("native", "reference")
    )
    assert torch.equal(native.index, believed.index)
    assert torch.equal(native.score, believed.score)


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_keys_sorted_by_distance_change_nothing(kernels, order):
    queries, keys, _ = problem("clustered", 64)
    far = (keys - queries[0]).norm(dim=1)
    keys = keys[far.argsort(descending=order == "descending")]
    assert_found(_native.SearchIndex(keys), queries, reference.knn(queries, keys, K, False))


def test_one_query_among_thousands_of_near_ties(kernels):
    # its list overflows while the block it is in stays on the screen
    crowd = 30 + draw(1, 64) + 1e-4 * draw(6000, 64, seed=1)
    keys = torch.cat([rows(1500, 64), crowd])
    queries = torch.cat([rows(150, 64, seed=1), crowd[:1]])
    expected = reference.knn(queries, keys, K, False)
    assert_found(_native.SearchIndex(keys), queries, expected)
    directions = torch.linalg.qr(draw(64, 12)).Q.T.contiguous()
    assert_found(_native.SearchIndex(keys, directions=directions), queries, expected)


@pytest.mark.parametrize("n_queries", [1, 2, 13, 15, 29, 300])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_queries_and_threads(n_queries, threads):
    keys = rows(3000, 48)
    queries = rows(300, 48, seed=1)[:n_queries]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        index = SearchIndex(keys)
        found = index.knn(queries, 7)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.index, knn(queries, keys, 7, backend="reference").index)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("order", ["as drawn", "nearest last"])
def test_slices_of_the_keys_that_share_their_thresholds_lose_nothing(kernels, threads, order):
    # from 2 x 8192 keys on, few queries are shared among threads by slices of the keys
    keys, queries, k = rows(40_000, 32), rows(30, 32, seed=1), 9
    keys[39_990:] = keys[5]  # ties between the first slice and the last
    queries[0] = keys[5]
    if order == "nearest last":
        keys = keys[(keys - queries[1]).square().sum(1).argsort(descending=True)].contiguous()
    directions = torch.linalg.qr(draw(32, 8)).Q.T.contiguous()
    expected = reference.knn(queries, keys, k, False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for index in (_native.SearchIndex(keys), _native.SearchIndex(keys, directions=directions)):
            index.pack()
            for _ in range(3):
                assert_found(index, queries, expected)
    finally:
        torch.set_num_threads(before)


def test_directions_hold_most_of_clustered_rows_and_nothing_of_the_sphere():
    assert _directions.leading_directions(draw(5000, 256)) is None
    low = draw(5000, 24) @ draw(24, 256, seed=1) + 0.01 * draw(5000, 256, seed=2)
    directions = _directions.leading_directions(low)
    assert directions is not None
    assert len(directions) < 64
    assert torch.allclose(directions @ directions.T, torch.eye(len(directions)), atol=1e-5)
    found = SearchIndex(low).knn(low[:40], 6)
    assert torch.equal(found.index, knn(low[:40], low, 6, backend="reference").index)


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1.0, 1e300])
def test_directions_of_any_scale_are_orthonormal_or_none(scale):
    keys = (draw(4096, 12) @ draw(12, 128, seed=1)).double() * scale
    directions = _directions.leading_directions(keys)
    if directions is not None:
        assert torch.allclose(directions @ directions.T, torch.eye(len(directions)), atol=1e-5)
    assert _directions.leading_directions(torch.zeros(4096, 128)) is None


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(150, 900),
    n_queries=st.integers(16, 80),
    dim=st.integers(1, 70),
    k=st.integers(1, 9),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    step=st.sampled_from([0.0, 0.25, 1.0]),
    shift=st.sampled_from([0.0, 3.0, 1e4]),
    level=st.sampled_from(["portable", "avx2", "avx512", "native"]),
    double=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_screens_find_what_float64_finds_in_anything(
    n, n_queries, dim, k, spread, step, shift, level, double, seed
):
    both = draw(n + n_queries, dim, seed=seed) * (spread * draw(n + n_queries, 1, seed=1)).exp()
    both = (both / step).round() * step + shift if step else both + shift
    queries, keys = both[n:], both[:n].double() if double else both[:n]
    count = min(dim, 1 + seed % 20)
    directions = torch.linalg.qr(draw(dim, count, seed=seed)).Q.T.contiguous()
    expected = reference.knn(queries, keys, k, False)
    try:
        _native.library().limit_isa(level)
        assert_found(_native.SearchIndex(keys), queries, expected)
        assert_found(_native.SearchIndex(keys, directions=directions), queries, expected)
    finally:
        _native.library().limit_isa("native")
