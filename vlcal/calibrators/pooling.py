"""Pooling of adjacent violators over many groups of entries at once, exact in integers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Columns = tuple[np.ndarray, ...]


class Blocks(NamedTuple):
    """Constant pieces of the fits, by group and ascending: [B] arrays.

    Args:
        group: whose fit it is.
        low: smallest probability of the piece.
        high: largest probability of the piece.
        mean: its fit, the share of answers.
    """

    group: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray


class Entries(NamedTuple):
    """Entries by group, then by probability, and the positions of what matters among them.

    Args:
        columns: the sorted entries, packed or not.
        answer: [A] positions of answers.
        point: [A] first position of the entries that count as equal to each answer.
        begin: first position of every group that has entries.
    """

    columns: Columns
    answer: np.ndarray
    point: np.ndarray
    begin: np.ndarray


def packed(group: np.ndarray, x: np.ndarray, y: np.ndarray, ties: float) -> Columns:
    """One integer for a float32 entry, which sorts as group, x and y do; else the three arrays."""
    if x.dtype != np.float32 or ties:
        return group, x, y
    # the bits of a float32 in 0..1 ascend with it
    return (group.astype(np.int64) << 31 | x.view(np.int32).astype(np.int64) << 1 | y,)


def pooled_blocks(columns: Columns, groups: int, ties: float) -> Blocks:
    """The isotonic fit of every group that has entries; `columns` are sorted in place or copied."""
    entries = _sorted_keys(columns[0], groups) if len(columns) == 1 else _sorted(columns, ties)
    # entries that are no answer join the ones before: a fit never rises between them
    start = np.union1d(entries.point, entries.begin)
    size = len(entries.columns[0])
    answers = np.bincount(np.searchsorted(start, entries.point), minlength=len(start))
    count = np.diff(np.append(start, size))
    group, low = _unpacked(entries.columns, start)
    _, high = _unpacked(entries.columns, start + count - 1)
    first = np.array(_pool(answers.tolist(), count.tolist(), group.tolist()), dtype=np.int64)
    if not len(first):
        return Blocks(group, low, high, np.zeros(0))
    mean = np.add.reduceat(answers, first) / np.add.reduceat(count, first)
    last = np.append(first[1:], len(start)) - 1
    return Blocks(group[first], low[first], high[last], mean)


def _unpacked(columns: Columns, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group and probability (float64) of the entries at these positions."""
    if len(columns) == 3:
        return columns[0][at], columns[1][at].astype(np.float64)
    keys = columns[0][at]
    bits = (keys >> 1 & 0x3FFFFFFF).astype(np.int32)
    return keys >> 31, bits.view(np.float32).astype(np.float64)


def _sorted_keys(keys: np.ndarray, groups: int) -> Entries:
    keys.sort()
    answer = np.flatnonzero(keys & 1)
    begin = np.unique(np.searchsorted(keys, np.arange(groups, dtype=np.int64) << 31))
    # the answers of a point come after its other entries
    point = np.searchsorted(keys, keys[answer] & ~1)
    return Entries((keys,), answer, point, begin[begin < len(keys)])


def _sorted(columns: Columns, ties: float) -> Entries:
    group, x, y = columns
    order = np.lexsort((x, group))
    group, x, answer = group[order], x[order], np.flatnonzero(y[order])
    points = np.flatnonzero(_new_points(group, x, ties))
    x = np.repeat(x[points], np.diff(np.append(points, len(x))))
    point = points[np.searchsorted(points, answer, side="right") - 1]
    begin = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
    return Entries((group, x, answer), answer, point, begin)


def _new_points(group: np.ndarray, x: np.ndarray, ties: float) -> np.ndarray:
    """Which of the sorted entries begin a point."""
    new = np.ones(len(x), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (x[1:] != x[:-1])
    if ties:
        near = ~new
        near[1:] |= (group[1:] == group[:-1]) & (x[1:] - x[:-1] < ties)
        begin = 0.0
        # every entry is compared with the first of its point, so the order matters
        for at in np.flatnonzero(near | np.append(near[1:], False)).tolist():
            if not near[at] or x[at] - begin >= ties:
                begin, new[at] = x[at], True
            else:
                new[at] = False
    return new


def _pool(answers: list[int], count: list[int], group: list[int]) -> list[int]:
    """First position of each block of equal fit: neighbors that do not ascend are one block."""
    starts: list[int] = []
    sums: list[tuple[int, int]] = []
    current, floor = None, 0
    for position, (a, n, g) in enumerate(zip(answers, count, group, strict=True)):
        if g != current:
            current, floor = g, len(starts)
        start = position
        while len(starts) > floor and sums[-1][0] * n >= a * sums[-1][1]:
            more, weight = sums.pop()
            a, n, start = a + more, n + weight, starts.pop()
        starts.append(start)
        sums.append((a, n))
    return starts
