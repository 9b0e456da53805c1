"""Laws of the exact search: order, ties, exclusion, invariance, refusals."""

import gc
import weakref

import pytest
import torch
from torch.library import opcheck

from tests.ops.cases import rows, search
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import SearchIndex, knn, proximity, rank_vocabulary, reference
from vlcal.ops._directions import leading_directions

BACKENDS = cpu_backends()


def truth(queries, keys, k):
    """An oracle of its own: float64 distances by direct difference, ties by index."""
    squared = (queries.double()[:, None] - keys.double()).square().sum(-1)
    return squared.sort(dim=1, stable=True).indices[:, :k]


@pytest.mark.parametrize("backend", BACKENDS)
def test_toy_points_on_a_line(backend):
    keys = torch.tensor([[4.0], [1.0], [9.0], [1.0]])
    distance, index = knn(torch.tensor([[0.0], [5.0], [9.0]]), keys, 3, backend=backend)
    assert index.tolist() == [[1, 3, 0], [0, 1, 2], [2, 0, 1]]
    assert distance.tolist() == [[1, 1, 4], [1, 4, 4], [0, 5, 8]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_toy_proximity(backend):
    keys = torch.tensor([[0.0], [1.0], [5.0]])
    close = proximity(torch.tensor([[0.0], [5.0]]), keys, 2, backend=backend)
    assert torch.allclose(close, torch.tensor([-0.5, -2.0]).exp(), rtol=1e-6)
    alone = proximity(keys, keys, 1, exclude_self=True, backend=backend)
    assert torch.allclose(alone, torch.tensor([-1.0, -1.0, -4.0]).exp(), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_toy_ranking(backend):
    words = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.6], [1.0, 0.0]])
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mean = rank_vocabulary(words, anchors, 3, backend=backend)
    assert mean.index.tolist() == [2, 0, 1]
    assert torch.allclose(mean.score, torch.tensor([0.6, 0.5, 0.5]))
    largest = rank_vocabulary(words, anchors, 4, reduce="max", backend=backend)
    assert largest.index.tolist() == [0, 1, 3, 2]


def test_near_twins_are_told_apart(kernels):
    # |q|^2 + |v|^2 - 2 q.v in float32 sees no difference between these distances
    base = torch.full((1, 8), 1000.0)
    keys = base + torch.tensor([3e-4, 1e-4, 2e-4])[:, None]
    distance, index = knn(base, keys, 3)
    assert index.tolist() == [[1, 2, 0]]
    assert torch.equal(
        distance[0].double(), (keys[[1, 2, 0]] - base).double().norm(dim=1).float().double()
    )


@pytest.mark.parametrize("dim", [1, 3, 7, 33, 512, 513])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_neighbors_are_those_of_float64(kernels, dim, k):
    queries, keys, _ = search(30, 300, dim, k)
    assert torch.equal(knn(queries, keys, k).index, truth(queries, keys, k))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_distances_come_by_index(backend):
    keys = rows(1, 16).repeat(500, 1)
    index = knn(rows(3, 16, seed=1), keys, 70, backend=backend).index
    assert torch.equal(index, torch.arange(70).expand(3, 70))


@pytest.mark.parametrize("backend", BACKENDS)
def test_excluding_itself_is_dropping_the_first(backend):
    # no duplicates, so the first of k + 1 neighbors is the row itself
    keys = rows(60, 24)
    without = knn(keys, keys, 5, exclude_self=True, backend=backend)
    distance, index = knn(keys, keys, 6, backend=backend)
    assert torch.equal(index[:, 0], torch.arange(60))
    assert torch.equal(without.index, index[:, 1:])
    assert torch.equal(without.distance, distance[:, 1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_twin_is_not_itself(backend):
    keys = rows(20, 8).repeat(2, 1)
    distance, index = knn(keys, keys, 1, exclude_self=True, backend=backend)
    assert torch.equal(index[:, 0], (torch.arange(40) + 20) % 40)
    assert not distance.any()


def test_same_bits_for_any_split_of_the_queries_and_thread_count(kernels):
    queries, keys, k = search(300, 900, 40, 12)
    whole = knn(queries, keys, k)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            parts = [knn(part, keys, k) for part in queries.split(77)]
            assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
            assert torch.equal(torch.cat([part.distance for part in parts]), whole.distance)
    finally:
        torch.set_num_threads(threads)


def test_index_answers_as_knn(kernels):
    queries, keys, k = search(50, 700, 96, 9)
    index = SearchIndex(keys)
    for wanted in (queries, queries[:1], queries[:0], queries.double(), queries.half()):
        found, expected = index.knn(wanted, k), knn(wanted, keys, k)
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.distance, expected.distance)
        assert torch.equal(index.proximity(wanted, k), proximity(wanted, keys, k))
    found = SearchIndex(keys).knn(keys, k, exclude_self=True)
    assert torch.equal(found.index, knn(keys, keys, k, exclude_self=True).index)


def test_index_frees_its_memory():
    if why := _native.missing():
        pytest.skip(why)
    index = SearchIndex(rows(50, 8))
    handle = weakref.ref(index._index)
    del index
    gc.collect()
    assert handle() is None


def test_index_refuses_keys_changed_behind_its_back():
    if why := _native.missing():
        pytest.skip(why)
    keys = rows(50, 8)
    index = SearchIndex(keys)
    keys[3] = 0
    with pytest.raises(RuntimeError, match="the keys were changed in place"):
        index.knn(rows(2, 8), 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_ranking_equals_brute_force(backend):
    words, anchors, _ = search(400, 15, 48, 0)
    scores = (words.double() @ anchors.double().T).mean(1)
    expected = scores.sort(descending=True, stable=True)
    ranking = rank_vocabulary(words, anchors, 90, backend=backend)
    assert torch.equal(ranking.index, expected.indices[:90])
    assert torch.allclose(ranking.score.double(), expected.values[:90], rtol=1e-6)


def test_max_ranking_equals_brute_force(kernels):
    words, anchors, _ = search(400, 15, 48, 0)
    expected = (words.double() @ anchors.double().T).amax(1).sort(descending=True, stable=True)
    ranking = rank_vocabulary(words, anchors, 90, reduce="max")
    assert torch.equal(ranking.index, expected.indices[:90])
    assert torch.allclose(ranking.score.double(), expected.values[:90], rtol=1e-6)


@pytest.mark.parametrize("op", [knn, proximity, rank_vocabulary])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_refuses_rows_that_are_not_finite(op, value, which):
    matrices = [rows(30, 6), rows(40, 6)]
    matrices[which][17, 2] = value
    matrices[which][21] = value
    with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity in row 17 \(2 such"):
        op(*matrices, 3)


def test_index_refuses_rows_that_are_not_finite():
    if why := _native.missing():
        pytest.skip(why)
    bad = rows(30, 6)
    bad[4, 0] = float("nan")
    with pytest.raises(ValueError, match="keys must be finite, got NaN or infinity in row 4"):
        SearchIndex(bad)
    with pytest.raises(ValueError, match="queries must be finite, got NaN or infinity in row 4"):
        SearchIndex(rows(30, 6)).knn(bad, 2)


@pytest.mark.parametrize(
    ("queries", "keys", "k", "kwargs", "match"),
    [
        (rows(3, 4), rows(50, 4), 64, {}, r"k must be in 1..50 \(the number of keys\), got 64"),
        (rows(3, 4), rows(50, 4), 0, {}, "k must be in 1..50"),
        (rows(3, 4), rows(50, 4), 1.0, {}, "k must be an integer, got 1.0"),
        (rows(3, 4), rows(0, 4), 1, {}, "keys must have at least one row"),
        (rows(3, 4), rows(5, 3), 1, {}, "queries and keys must have the same D and device"),
        (rows(3, 4)[0], rows(5, 4), 1, {}, r"queries must be floating point \[rows, D\]"),
        (rows(3, 4), rows(5, 4).long(), 1, {}, "keys must be floating point"),
        (torch.zeros(3, 0), torch.zeros(5, 0), 1, {}, "with D >= 1"),
        (rows(3, 4), rows(5, 4), 1, {"exclude_self": True}, "exclude_self needs the keys as"),
        (rows(5, 4), rows(5, 4), 5, {"exclude_self": True}, r"k must be in 1..4 \(the number of k"),
        (rows(3, 4), rows(5, 4), 1, {"backend": "fast"}, "backend must be one of"),
    ],
)
def test_refuses_what_breaks_the_contract(queries, keys, k, kwargs, match):
    for op in (knn, proximity):
        with pytest.raises(ValueError, match=match):
            op(queries, keys, k, **kwargs)


@pytest.mark.parametrize(
    ("k", "kwargs", "match"),
    [
        (41, {}, r"k must be in 1..40 \(the number of candidates\), got 41"),
        (4, {"reduce": "sum"}, "reduce must be 'mean' or 'max', got 'sum'"),
    ],
)
def test_ranking_refuses_what_breaks_the_contract(k, kwargs, match):
    with pytest.raises(ValueError, match=match):
        rank_vocabulary(rows(40, 6), rows(3, 6), k, **kwargs)


def test_opcheck():
    opcheck(torch.ops.vlcal.knn.default, (rows(4, 6), rows(30, 6), 3, False, ""))
    opcheck(torch.ops.vlcal.rank_vocabulary.default, (rows(30, 6), rows(4, 6), 3, True, ""))


def test_compiles_without_a_graph_break():
    queries, keys, k = search(6, 60, 12, 4)

    def run(queries, keys):
        best = rank_vocabulary(keys, queries, k).score
        return (*knn(queries, keys, k), proximity(queries, keys, k), best)

    for got, expected in zip(
        torch.compile(run, fullgraph=True, backend="eager")(queries, keys),
        run(queries, keys),
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_one_bad_value_anywhere_is_seen(bad, dtype):
    values = torch.full((3, 100_003), 1e4, dtype=dtype)
    assert _native.all_finite(values) and _native.all_finite(values[:0])
    for row, column in ((0, 0), (1, 62_143), (2, 100_002)):  # chunks, and behind the last 16
        spoiled = values.clone()
        spoiled[row, column] = bad
        assert not _native.all_finite(spoiled)
        assert not _native.all_finite(spoiled.T)


@pytest.mark.parametrize("scale", [1.0, 1e-23, 1e-20, 1e19, 1e-3])
@pytest.mark.parametrize("dim", [1, 7, 40, 77])
def test_few_queries_find_the_exact_neighbors_at_every_scale(kernels, dim, scale):
    # below the number of queries that pays for packing: float distances, then exact ones
    center = rows(1, dim, seed=3)
    keys = torch.cat([center + 1e-6 * rows(300, dim), rows(100, dim, seed=1), center]) * scale
    queries = torch.cat([center, center + 1e-6 * rows(2, dim, seed=2), rows(2, dim)]) * scale
    found = _native.SearchIndex(keys).search(queries, 7, False)
    assert torch.equal(found[1], reference.knn(queries, keys, 7, False)[1])
    itself = _native.SearchIndex(keys[:60]).search(keys[:60], 7, True)
    assert torch.equal(itself[1], reference.knn(keys[:60], keys[:60], 7, True)[1])


@pytest.mark.parametrize("dim", [40, 512])
@pytest.mark.parametrize("size", [3000, 20000])
def test_an_index_takes_the_stated_memory(kernels, size, dim):
    names = _native.instruction_sets()
    value = 1 if kernels == "native" and "vnni" in names else 4
    if kernels == "native" and "vnni" not in names and "bf16" in names:
        value = 2
    keys = draw_spectrum(size, dim)
    packed = _native.SearchIndex(keys)
    packed.pack()
    padded = -(-size // 32) * 32
    assert 0 < packed.nbytes <= padded * (value * dim + 24)
    index = SearchIndex(keys)
    taken = index._index.nbytes
    directions = leading_directions(keys)
    if directions is None:
        assert taken <= padded * (value * dim + 24)
    else:
        wide = -(-dim // 64) * 64
        assert taken <= padded * (value * len(directions) + wide + 104)


def draw_spectrum(size, dim):
    """Rows with few strong directions, as text features have."""
    spectrum = torch.arange(1, dim + 1, dtype=torch.float32) ** -1.0
    return torch.randn(size, dim) * spectrum
