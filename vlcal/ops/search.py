"""Exact nearest neighbors: k-NN, proximity, the ranking of a vocabulary, and the reusable index."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vlcal import _native
from vlcal.ops import _cuda_search, _triton, reference
from vlcal.ops._directions import leading_directions
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._inputs import check_tensors
from vlcal.ops._triton import search as gpu
from vlcal.ops._triton.search_screen import SCREENS
from vlcal.ops.binning import any_bad

# queries that pay for looking for directions in keys that are searched once
MANY = 8192


class Neighbors(NamedTuple):
    """The k nearest keys of each query, nearest first: Euclidean distance and key, both [Q, k]."""

    distance: Tensor
    index: Tensor


class Ranking(NamedTuple):
    """The k best candidates, best first: score [k] float32 and row [k] int64."""

    score: Tensor
    index: Tensor


def knn(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    exclude_self: bool = False,
    backend: str | None = None,
) -> Neighbors:
    """The k nearest keys of each query by Euclidean distance, exactly.

    Keys are ordered by their float64 squared distance sum_d (q_d - v_d)^2, evaluated directly on
    the values given (never as |q|^2 + |v|^2 - 2 q.v) and added up in one fixed order (see
    `reference.squared_distances`); of equal ones the lowest index comes first. What low precision
    does inside a backend can change the speed, never the answer.

    Args:
        queries: [Q, D] floating point; Q may be 0.
        keys: [M, D] floating point, on the same device.
        k: 1 <= k <= M, or <= M - 1 with `exclude_self`.
        exclude_self: the queries are the keys, and row i does not count itself as its neighbor.
        backend: "native", "triton", "cuda" or "reference"; by default the fastest that accepts the
            call.

    Returns:
        Neighbors, distances in float32; bit-identical for every batch split of the queries, thread
        count and backend. A distance beyond the range of float32 is infinite.

    Raises:
        ValueError: shapes, dtypes or k break the contract, or a row holds NaN or infinity.

    Not differentiable. On a GPU the call waits for the device once a matrix, to look for NaN;
    while a CUDA graph is captured it does not, and what rows with NaN find is undefined. Capture
    after a first call with these shapes, which compiles the kernels.

        >>> distance, index = knn(torch.tensor([[0.0], [6.0]]), torch.tensor([[4.0], [1.0]]), 2)
        >>> distance.tolist(), index.tolist()
        ([[1.0, 4.0], [2.0, 5.0]], [[1, 0], [0, 1]])
    """
    check_matrices("knn", queries=queries, keys=keys)
    check_k("knn", k, len(queries), len(keys), exclude_self)
    return Neighbors(*_knn(queries.detach(), keys.detach(), k, exclude_self, backend or ""))


def proximity(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    exclude_self: bool = False,
    backend: str | None = None,
) -> Tensor:
    """How close each query is to the keys: exp(-mean distance to its k nearest keys), in 0..1.

    Xiong et al., "Proximity-Informed Calibration for Deep Neural Networks", NeurIPS 2023; for text
    features Wang et al., "Open-Vocabulary Calibration for Fine-tuned CLIP", ICML 2024.

    Args:
        queries: [Q, D] floating point; Q may be 0.
        keys: [M, D] floating point, on the same device.
        k: 1 <= k <= M, or <= M - 1 with `exclude_self`.
        exclude_self: the queries are the keys, and row i does not count itself as its neighbor.
        backend: as for `knn`.

    Returns:
        [Q] float32; a query that equals k keys has proximity 1.

    Raises:
        ValueError: as `knn`.

    Not differentiable.
    """
    check_matrices("proximity", queries=queries, keys=keys)
    check_k("proximity", k, len(queries), len(keys), exclude_self)
    distance, _ = _knn(queries.detach(), keys.detach(), k, exclude_self, backend or "")
    return _proximity(distance)


def rank_vocabulary(
    candidates: Tensor,
    anchors: Tensor,
    k: int,
    *,
    reduce: Literal["mean", "max"] = "mean",
    backend: str | None = None,
) -> Ranking:
    """The k candidates most similar to a set of anchors, by their mean or largest dot product.

    On unit rows the dot product is the cosine similarity. The mean over anchors is the dot product
    with the mean anchor, so it costs one matrix-vector product. Scores are evaluated and compared
    in float64.

    Args:
        candidates: [V, D] floating point, the vocabulary.
        anchors: [C, D] floating point, C >= 1, on the same device.
        k: 1 <= k <= V.
        reduce: "mean" or "max" over the anchors.
        backend: as for `knn`.

    Returns:
        Ranking, highest score first, of equal scores the lowest index first; bit-identical for
        every thread count and backend.

    Raises:
        ValueError: shapes, dtypes, k or `reduce` break the contract, or a row holds NaN or
            infinity.

    Not differentiable. On a GPU it waits for the device as `knn` does.
    """
    check_matrices("rank_vocabulary", candidates=candidates, anchors=anchors)
    if reduce not in ("mean", "max"):
        raise ValueError(f"rank_vocabulary: reduce must be 'mean' or 'max', got {reduce!r}")
    _check_range("rank_vocabulary", k, len(candidates), "the number of candidates")
    args = (candidates.detach(), anchors.detach(), k, reduce == "max", backend or "")
    return Ranking(*_rank_vocabulary(*args))


class SearchIndex:
    """Keys prepared once for many searches; answers are those of `knn`, bit for bit.

    Preparing costs about as much as comparing some hundred queries with all keys. Its memory beside
    the keys is M (D + 24) bytes on a CPU with AVX512-VNNI, 2 M (D + 12) with AVX512-BF16 alone and
    M (4 D + 24) elsewhere; where d < D directions hold most of the keys' variance, M (d + D + 104),
    M (2 d + D + 104) or M (4 d + D + 104), D rounded up to a multiple of 64, and queries unlike the
    keys can add the first formula. Looking for directions takes some 100 MB more for a while.
    On a GPU it is M (2 D + 24), D rounded up to a multiple of 64.

    Args:
        keys: [M, D] floating point, M >= 1. On the CPU kept without a copy if it is contiguous
            float32 or float64, on a GPU always; a search refuses keys changed in place since.
        backend: "native", "triton" or "cuda"; by default the fastest that accepts the keys.

    Raises:
        ValueError: shape or dtype break the contract, or a row holds NaN or infinity.
        NotImplementedError: no backend can prepare these keys, or one cannot find so many
            neighbors; knn has others.

    Searching on a GPU waits for the device once, at the end, to look for NaN in the queries; while
    a CUDA graph is captured it does not.
    """

    def __init__(self, keys: Tensor, *, backend: str | None = None) -> None:
        check_matrices("SearchIndex", keys=keys)
        _refuse_rows("SearchIndex", keys=keys)
        self._index = dispatch("SearchIndex", INDEX_BACKENDS, (keys.detach(),), backend)
        self.keys: Tensor = self._index.keys
        self._version = self.keys._version

    def __len__(self) -> int:
        return len(self.keys)

    def knn(self, queries: Tensor, k: int, *, exclude_self: bool = False) -> Neighbors:
        """As `knn(queries, keys, k)`."""
        who = "SearchIndex.knn"
        self._check(who, queries, k, exclude_self)
        if isinstance(self._index, gpu.Index):
            squared, index, bad = self._index.search(queries.detach(), k, exclude_self)
            found = Neighbors(_roots(squared), index)
            # the only time that the CPU waits, when everything has been queued
            if any_bad(bad):
                _refuse_rows(who, queries=queries)
            return found
        _refuse_rows(who, queries=queries)
        squared, index = self._index.search(queries.detach(), k, exclude_self)
        return Neighbors(_roots(squared), index)

    def proximity(self, queries: Tensor, k: int, *, exclude_self: bool = False) -> Tensor:
        """As `proximity(queries, keys, k)`."""
        return _proximity(self.knn(queries, k, exclude_self=exclude_self).distance)

    def _check(self, who: str, queries: Tensor, k: int, exclude_self: bool) -> None:
        check_matrices(who, queries=queries, keys=self.keys)
        check_k(who, k, len(queries), len(self), exclude_self)
        if self.keys._version != self._version:
            raise RuntimeError(f"{who}: the keys were changed in place; build a new SearchIndex")


def check_matrices(who: str, **matrices: Tensor) -> None:
    """Every one [rows, D] floating point with the same D >= 1 and device; rows may be 0."""
    check_tensors(who, **matrices)
    for name, matrix in matrices.items():
        if matrix.ndim != 2 or not matrix.is_floating_point() or matrix.shape[1] == 0:
            raise ValueError(
                f"{who}: {name} must be floating point [rows, D] with D >= 1, "
                f"got {matrix.dtype} {tuple(matrix.shape)}"
            )
    (name, first), *others = matrices.items()
    for other, matrix in others:
        if matrix.shape[1] != first.shape[1] or matrix.device != first.device:
            raise ValueError(
                f"{who}: {name} and {other} must have the same D and device, "
                f"got {tuple(first.shape)} on {first.device} "
                f"and {tuple(matrix.shape)} on {matrix.device}"
            )
        if len(matrix) == 0:
            raise ValueError(f"{who}: {other} must have at least one row, got 0")


def check_k(who: str, k: int, n_queries: int, n_keys: int, exclude_self: bool) -> None:
    """1 <= k <= number of keys that can be found."""
    if not exclude_self:
        _check_range(who, k, n_keys, "the number of keys")
        return
    if n_queries != n_keys:
        raise ValueError(
            f"{who}: exclude_self needs the keys as queries, got {n_queries} queries and "
            f"{n_keys} keys"
        )
    _check_range(who, k, n_keys - 1, "the number of keys other than the row itself")


def _check_range(who: str, k: int, most: int, what: str) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(f"{who}: k must be an integer, got {k!r}")
    if not 1 <= k <= most:
        raise ValueError(f"{who}: k must be in 1..{most} ({what}), got {k}")


def _refuse_rows(who: str, **matrices: Tensor) -> None:
    for name, matrix in matrices.items():
        if matrix.is_cuda and torch.cuda.is_current_stream_capturing():
            continue
        if not _native.all_finite(matrix):
            bad = ~torch.isfinite(matrix).all(1)
            raise ValueError(
                f"{who}: {name} must be finite, got NaN or infinity in row "
                f"{int(bad.int().argmax())} ({int(bad.sum())} such rows in all)"
            )


def _proximity(distance: Tensor) -> Tensor:
    return distance.double().mean(-1).neg().exp().float()


def _roots(squared: Tensor) -> Tensor:
    return squared.sqrt().float() if squared.is_cuda else _native.roots(squared)


def _best(scores: Tensor, k: int) -> Ranking:
    """The k largest of [V] scores, of equal ones the lowest index first."""
    if scores.is_cuda:
        # a GPU sorts sooner than it tells how many it kept
        index = scores.sort(descending=True, stable=True).indices[:k]
        return Ranking(scores[index].float(), index)
    kept = (scores >= scores.topk(k).values[-1]).nonzero().squeeze(1)
    order = scores[kept].sort(descending=True, stable=True).indices[:k]
    index = kept[order]
    return Ranking(scores[index].float(), index)


def _run_native(queries: Tensor, keys: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    keys = _native.real_rows(keys)
    directions = leading_directions(keys) if len(queries) >= MANY else None
    index = _native.SearchIndex(keys, directions=directions)
    squared, found = index.search(queries, k, exclude_self)
    return _roots(squared), found


def _native_index(keys: Tensor) -> _native.SearchIndex:
    keys = _native.real_rows(keys)
    index = _native.SearchIndex(keys, directions=leading_directions(keys))
    index.pack()
    return index


def _triton_index(keys: Tensor) -> gpu.Index:
    return gpu.Index(keys, SCREENS)


def _score_native(candidates: Tensor, anchors: Tensor, k: int, largest: bool) -> Tensor:
    if not largest:
        return _native.dots(_native.real_rows(candidates), reference.mean_row(anchors))
    index = _native.SearchIndex(_native.real_rows(anchors), dot=True)
    scores = torch.full((len(candidates),), -torch.inf, dtype=torch.float64)
    kept = _contenders(candidates, anchors, k)
    negated, _ = index.search(candidates[kept], 1, False)
    scores[kept] = negated.squeeze(1).neg()
    return scores


def _contenders(candidates: Tensor, anchors: Tensor, k: int) -> Tensor:
    """Rows of all candidates that can be among the k best by their largest dot product.

    Float32 sums of D products, in any order, are within (D + 4) 2^-24 |x| |a| of the real number,
    and the rounding of half precisions to float32 is none.
    """
    if 4 * k > len(candidates) or torch.float64 in (candidates.dtype, anchors.dtype):
        return torch.arange(len(candidates))
    rows, others = candidates.float().contiguous(), anchors.float().contiguous()
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    reach = norms * (float(torch.linalg.vector_norm(others, dim=1).max()) * 1.001)
    (rough, *_), bad = _native.logit_statistics(rows, others, 1.0, None, None)
    if bad >= 0:
        return torch.arange(len(candidates))
    error = reach * ((candidates.shape[1] + 4) * 2.0**-23) + 1e-30
    least = (rough.double() - error).topk(k).values[-1]
    return (rough.double() + error >= least).nonzero().squeeze(1)


def _score_reference(candidates: Tensor, anchors: Tensor, k: int, largest: bool) -> Tensor:
    return reference.vocabulary_scores(candidates, anchors, largest)


def _run_triton(queries: Tensor, keys: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    return gpu.knn(queries, keys, k, exclude_self, screens=SCREENS)


def _score_triton(candidates: Tensor, anchors: Tensor, k: int, largest: bool) -> Tensor:
    return gpu.vocabulary_scores(candidates, anchors, largest, screens=SCREENS)


BACKENDS = (
    Backend("native", _run_native, _native.missing, _native.refuse_device),
    Backend("triton", _run_triton, _triton.missing, gpu.refuse_knn),
    Backend("cuda", _cuda_search.knn, _cuda_search.missing, _cuda_search.refuse_knn),
    Backend("reference", reference.knn),
)
INDEX_BACKENDS = (
    Backend("native", _native_index, _native.missing, _native.refuse_device),
    Backend("triton", _triton_index, _triton.missing, gpu.refuse),
    Backend("cuda", _cuda_search.index, _cuda_search.missing, _cuda_search.refuse),
)
RANK_BACKENDS = (
    Backend("native", _score_native, _native.missing, _native.refuse_device),
    Backend("triton", _score_triton, _triton.missing, gpu.refuse),
    Backend("cuda", _cuda_search.scores, _cuda_search.missing, _cuda_search.refuse),
    Backend("reference", _score_reference),
)


@custom_op("vlcal::knn")
def _knn(
    queries: Tensor, keys: Tensor, k: int, exclude_self: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _refuse_rows("knn", queries=queries, keys=keys)
    return dispatch("knn", BACKENDS, (queries, keys, k, exclude_self), backend or None)


@torch.library.register_fake("vlcal::knn")
def _(
    queries: Tensor, keys: Tensor, k: int, exclude_self: bool, backend: str
) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(
        shape, dtype=torch.int64
    )


@custom_op("vlcal::rank_vocabulary")
def _rank_vocabulary(
    candidates: Tensor, anchors: Tensor, k: int, largest: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _refuse_rows("rank_vocabulary", candidates=candidates, anchors=anchors)
    args = (candidates, anchors, k, largest)
    scores = dispatch("rank_vocabulary", RANK_BACKENDS, args, backend or None)
    score, index = _best(scores, k)
    return score, index


@torch.library.register_fake("vlcal::rank_vocabulary")
def _(
    candidates: Tensor, anchors: Tensor, k: int, largest: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return candidates.new_empty((k,), dtype=torch.float32), candidates.new_empty(
        (k,), dtype=torch.int64
    )
