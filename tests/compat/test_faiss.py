"""compat.faiss finds what faiss finds; where faiss leaves the order open, the lowest index."""

import numpy as np
import pytest

from vlcal import _native
from vlcal.compat import faiss as ours

KINDS = {"IndexFlatL2": ours.METRIC_L2, "IndexFlatIP": ours.METRIC_INNER_PRODUCT}
both = pytest.mark.parametrize("name", KINDS)
LARGEST = np.float32(3.4028235e38)


def rows(n, d=24, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype("float32")


def oracle(name, queries, vectors, k):
    q, v = queries.astype("float64"), vectors.astype("float64")
    score = ((q[:, None] - v) ** 2).sum(-1) if name == "IndexFlatL2" else -(q @ v.T)
    order = np.argsort(score, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(score, order, 1)
    return (best if name == "IndexFlatL2" else -best), order


def test_toy_whose_answer_is_known():
    index = ours.IndexFlatL2(1)
    index.add(np.array([[0.0], [3.0]], dtype="float32"))
    index.add(np.array([[1.0]], dtype="float32"))
    distance, number = index.search(np.array([[1.0]], dtype="float32"), 2)
    assert (distance.tolist(), number.tolist()) == ([[0.0, 1.0]], [[2, 0]])
    assert (distance.dtype, number.dtype) == (np.float32, np.int64)
    assert (index.ntotal, index.d, index.is_trained) == (3, 1, True)


@both
@pytest.mark.parametrize("k", [1, 10, 700, 703])
def test_equals_faiss(name, k):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    vectors, queries = rows(700), rows(40, seed=1)
    index, other = getattr(ours, name)(24), getattr(faiss, name)(24)
    for part in (vectors[:1], vectors[1:300], vectors[300:]):
        index.add(part)
        other.add(part)
    found, expected = index.search(queries, k), other.search(queries, k)
    np.testing.assert_array_equal(found[1][:, :700], oracle(name, queries, vectors, k)[1])
    assert (found[1][:, 700:] == -1).all()
    same_but_for_rounding(name, queries, vectors, found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=2e-5)
    assert index.metric_type == other.metric_type
    assert (found[0].dtype, found[1].dtype) == (expected[0].dtype, expected[1].dtype)
    np.testing.assert_array_equal(index.reconstruct(5), other.reconstruct(5))
    np.testing.assert_array_equal(index.reconstruct_n(7, 9), other.reconstruct_n(7, 9))
    metric = KINDS[name]
    for mine, theirs in zip(ours.knn(queries, vectors, k, metric=metric), found, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    expected = faiss.knn(queries, vectors, k, metric=metric)
    same_but_for_rounding(name, queries, vectors, found[1], expected[1])


def same_but_for_rounding(name, queries, vectors, found, expected):
    """faiss compares sums of float32: it may exchange scores that are equal to their rounding."""
    k = min(found.shape[1], len(vectors))
    score, order = oracle(name, queries, vectors, len(vectors))
    of_vector = np.empty_like(score)
    np.put_along_axis(of_vector, order, score, 1)
    first, second = (np.take_along_axis(of_vector, each[:, :k], 1) for each in (found, expected))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert (found != expected).mean() < 1e-3
    np.testing.assert_array_equal(found[:, :10], expected[:, :10])


@both
def test_constants_are_those_of_faiss(name):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    assert (ours.METRIC_L2, ours.METRIC_INNER_PRODUCT) == (
        faiss.METRIC_L2,
        faiss.METRIC_INNER_PRODUCT,
    )
    index, other = getattr(ours, name)(3), getattr(faiss, name)(3)
    query = np.zeros((2, 3), dtype="float32")
    for found, expected in zip(index.search(query, 2), other.search(query, 2), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(params=["native", "plain"])
def backend(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(_native, "missing", lambda: "the extension is hidden")


@both
@pytest.mark.parametrize("tied", [False, True])
def test_order_is_that_of_float64_with_ties_by_lowest_index(name, tied, backend):
    generator = np.random.default_rng(3)
    vectors = rows(200, 8)
    if tied:
        vectors = generator.integers(-1, 2, size=(200, 8)).astype("float32")
    queries = vectors[generator.permutation(200)[:30]]
    index = getattr(ours, name)(8)
    index.add(vectors)
    value, number = index.search(queries, 50)
    expected, order = oracle(name, queries, vectors, 50)
    np.testing.assert_array_equal(number, order)
    np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-7)
    if tied:
        np.testing.assert_array_equal(value, expected)


@both
def test_nearly_equal_scores_are_told_apart(name):
    # in float32 arithmetic both scores are the same
    vectors = np.array([[4096.0, 1.0], [4096.0, 1.0 + 2**-20]], dtype="float32")
    index = getattr(ours, name)(2)
    index.add(vectors)
    query = np.array([[4096.0, 1.0 + 2**-20]], dtype="float32")
    assert index.search(query, 2)[1].tolist() == [[1, 0]]


@both
def test_more_than_there_are_get_minus_one(name):
    index = getattr(ours, name)(3)
    empty = index.search(np.zeros((2, 3), dtype="float32"), 2)
    worst = LARGEST if name == "IndexFlatL2" else -LARGEST
    assert empty[0].tolist() == [[worst] * 2] * 2 and (empty[1] == -1).all()
    index.add(np.eye(3, dtype="float32")[:1])
    value, number = index.search(np.zeros((0, 3), dtype="float32"), 2)
    assert value.shape == number.shape == (0, 2)
    assert index.search(np.eye(3, dtype="float32"), 3)[1].tolist() == [[0, -1, -1]] * 3


@both
def test_vectors_are_copied_and_reset_forgets_them(name):
    index, vectors = getattr(ours, name)(4), rows(5, 4)
    index.add(vectors)
    vectors[:] = 0
    np.testing.assert_array_equal(index.reconstruct_n(), rows(5, 4))
    index.add(rows(2, 4, seed=5))
    assert index.ntotal == 7
    index.reset()
    assert index.ntotal == 0 and (index.search(vectors, 1)[1] == -1).all()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda i: ours.IndexFlatL2(0), ValueError, "IndexFlatL2: d must be an integer >= 1"),
        (lambda i: ours.IndexFlat(3, 2), ValueError, "metric must be METRIC_L2"),
        (lambda i: i.add(rows(2, 5)), ValueError, r"add: x must be floating point \[n, 4\], got"),
        (lambda i: i.add(rows(2, 4).astype(int)), ValueError, "add: x must be floating point"),
        (lambda i: i.search(rows(2, 4)[0], 1), ValueError, "search: x must be floating point"),
        (lambda i: i.search(rows(2, 4), 0), ValueError, "search: k must be an integer >= 1, got 0"),
        (lambda i: i.search(rows(2, 4) * np.nan, 1), ValueError, r"NaN or infinity in row 0 \(2"),
        (lambda i: i.add(rows(2, 4).astype("d") * 1e300), ValueError, "must be finite in float32"),
        (lambda i: i.reconstruct(3), RuntimeError, r"key must be in 0..2, got 3"),
        (lambda i: i.reconstruct_n(2, 2), RuntimeError, r"within 0..3, got 2..4"),
        (lambda i: ours.knn(rows(2, 4), rows(2, 3), 1), ValueError, r"\[n, 3\], got"),
        (lambda i: ours.knn(rows(2, 4), rows(2, 4), 1, metric=3), ValueError, "metric must be"),
    ],
)
def test_refusals(call, error, sentence):
    index = ours.IndexFlatL2(4)
    index.add(rows(3, 4))
    with pytest.raises(error, match=sentence):
        call(index)
