"""The exact part of faiss under its names: flat indexes for L2 and inner product, and `knn`.

NumPy float32 in and out as in faiss. What is reproduced: squared distances, inner products in
descending order, and for k beyond the number of vectors the index -1 with the largest float32 (the
lowest for inner products).

What differs: the order is that of float64 arithmetic on the values given, and of equal ones the
lowest index comes first, so that the result is defined and the same for every batch and thread
count (faiss adds up in float32 and leaves ties open); NaN and infinities are refused; wrong shapes
raise a ValueError with a sentence instead of an AssertionError.

`vlcal.ops.knn` and `vlcal.ops.SearchIndex` differ by default: plain distances, torch tensors on any
device, and never an index of -1: a k beyond the number of keys is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlcal import _native
from vlcal._arrays import as_tensor
from vlcal.ops import SearchIndex
from vlcal.ops import knn as nearest
from vlcal.ops.reference import folded_sum

__all__ = [
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "IndexFlat",
    "IndexFlatIP",
    "IndexFlatL2",
    "knn",
]

METRIC_INNER_PRODUCT = 0
METRIC_L2 = 1

BLOCK_VALUES = 1 << 22


class IndexFlat:
    """Vectors of dimension d, searched exactly; the number of a vector is its place of addition.

    Args:
        d: dimension, >= 1.
        metric: METRIC_L2 or METRIC_INNER_PRODUCT.

    Raises:
        ValueError: d or metric is none of those.
    """

    is_trained = True

    def __init__(self, d: int, metric: int = METRIC_L2) -> None:
        who = type(self).__name__
        if isinstance(d, bool) or not isinstance(d, (int, np.integer)) or d < 1:
            raise ValueError(f"{who}: d must be an integer >= 1, got {d!r}")
        if metric not in (METRIC_L2, METRIC_INNER_PRODUCT):
            raise ValueError(
                f"{who}: metric must be METRIC_L2 (1) or METRIC_INNER_PRODUCT (0), got {metric!r}"
            )
        self.d, self.metric_type = int(d), int(metric)
        self._vectors = torch.empty(0, self.d)
        self._added: list[Tensor] = []
        self._index: SearchIndex | _native.SearchIndex | None = None

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return len(self._vectors) + sum(map(len, self._added))

    def add(self, x: Any) -> None:
        """Add the rows of x [n, d], in float32."""
        rows = _rows(f"{type(self).__name__}.add", x, self.d)
        self._added.append(rows.clone())
        self._index = None

    def reset(self) -> None:
        """Forget all vectors."""
        self._vectors, self._added, self._index = torch.empty(0, self.d), [], None

    def reconstruct(self, key: int) -> np.ndarray:
        """The vector [d] with that number.

        Raises:
            RuntimeError: there is none.
        """
        if not 0 <= key < self.ntotal:
            raise RuntimeError(
                f"{type(self).__name__}.reconstruct: key must be in 0..{self.ntotal - 1}, got {key}"
            )
        return self._all()[key].numpy().copy()

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> np.ndarray:
        """The vectors n0..n0+ni-1, [ni, d]; all from n0 on for ni = -1.

        Raises:
            RuntimeError: there are not so many.
        """
        end = self.ntotal if ni == -1 else n0 + ni
        if not 0 <= n0 <= end <= self.ntotal:
            raise RuntimeError(
                f"{type(self).__name__}.reconstruct_n: the range must be within "
                f"0..{self.ntotal}, got {n0}..{end}"
            )
        return self._all()[n0:end].numpy().copy()

    def search(self, x: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best vectors of each row of x [n, d], best first.

        Returns:
            Squared distances or inner products [n, k] float32, and numbers [n, k] int64. What k
            asks for beyond the number of vectors has number -1.

        Raises:
            ValueError: x is not [n, d], not finite, or k is no integer >= 1.
        """
        who = f"{type(self).__name__}.search"
        queries = _rows(who, x, self.d)
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"{who}: k must be an integer >= 1, got {k!r}")
        found = min(int(k), self.ntotal)
        largest = np.finfo(np.float32).max
        worst = largest if self.metric_type == METRIC_L2 else -largest
        values = np.full((len(queries), int(k)), worst, dtype=np.float32)
        numbers = np.full((len(queries), int(k)), -1, dtype=np.int64)
        if found and len(queries):
            best = self._nearest if self.metric_type == METRIC_L2 else self._most_alike
            value, number = best(queries, found)
            values[:, :found], numbers[:, :found] = value.numpy(), number.numpy()
        return values, numbers

    def _all(self) -> Tensor:
        if self._added:
            self._vectors, self._added = torch.cat([self._vectors, *self._added]), []
        return self._vectors

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        vectors = self._all()
        if _native.missing() is not None:
            number = nearest(queries, vectors, k).index
            return _squared_distances(queries, vectors, number), number
        if self._index is None:
            self._index = SearchIndex(vectors)
        assert isinstance(self._index, SearchIndex)
        number = self._index.knn(queries, k).index
        return _squared_distances(queries, vectors, number), number

    def _most_alike(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        vectors = self._all()
        if _native.missing() is not None:
            return _products(queries, vectors, k)
        if self._index is None:
            self._index = _native.SearchIndex(vectors, dot=True)
        assert isinstance(self._index, _native.SearchIndex)
        negated, number = self._index.search(queries, k, False)
        return negated.neg().float(), number


class IndexFlatL2(IndexFlat):
    """`faiss.IndexFlatL2`: squared Euclidean distances, nearest first."""

    def __init__(self, d: int) -> None:
        super().__init__(d, METRIC_L2)


class IndexFlatIP(IndexFlat):
    """`faiss.IndexFlatIP`: inner products, largest first."""

    def __init__(self, d: int) -> None:
        super().__init__(d, METRIC_INNER_PRODUCT)


def knn(
    xq: Any, xb: Any, k: int, metric: int = METRIC_L2, metric_arg: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """`faiss.knn`: the k best rows of xb [m, d] for each row of xq [n, d].

    Returns:
        As `IndexFlat.search`.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or the metric is another one.
    """
    rows = as_tensor("knn: xb", xb)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"knn: xb must be [m, d] with d >= 1, got {tuple(rows.shape)}")
    index = IndexFlat(rows.shape[1], metric)
    index.add(rows)
    return index.search(xq, k)


def _rows(who: str, x: Any, d: int) -> Tensor:
    rows = as_tensor(who, x)
    if rows.ndim != 2 or rows.shape[1] != d or not rows.is_floating_point():
        raise ValueError(
            f"{who}: x must be floating point [n, {d}], got {rows.dtype} {tuple(rows.shape)}"
        )
    rows = rows.cpu().float().contiguous()
    if not _native.all_finite(rows):
        bad = ~torch.isfinite(rows).all(1)
        raise ValueError(
            f"{who}: x must be finite in float32, got NaN or infinity in row "
            f"{int(bad.int().argmax())} ({int(bad.sum())} such rows)"
        )
    return rows


def _squared_distances(queries: Tensor, vectors: Tensor, number: Tensor) -> Tensor:
    """Squared distances of the chosen vectors [n, k]: float64, rounded once."""
    size = max(1, BLOCK_VALUES // (number.shape[1] * queries.shape[1]))
    out = torch.empty(number.shape)
    for start in range(0, len(queries), size):
        rows = slice(start, start + size)
        difference = queries[rows, None].double() - vectors[number[rows]].double()
        out[rows] = folded_sum(difference * difference).float()
    return out


def _products(queries: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products and their vectors, in plain torch."""
    values, numbers = [], []
    block = max(1, BLOCK_VALUES // len(vectors))
    for rows in queries.split(block):
        products = torch.stack([folded_sum(vectors.double() * row) for row in rows.double()])
        value, number = products.sort(dim=1, descending=True, stable=True)
        values.append(value[:, :k].float())
        numbers.append(number[:, :k])
    return torch.cat(values), torch.cat(numbers)
