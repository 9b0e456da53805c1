"""The bundled icon dataset: 5,026 grey icons of 139 concepts, drawn by 60 families."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from vlcal.assets import asset
from vlcal.data.items import Dataset, Item, Split
from vlcal.types import ClassSet

_FILE = "icons139.npz"
TEMPLATE = "an icon of a {}."


def icons() -> Dataset:
    """The icon dataset, split by family: 2,666 train, 938 val and 1,422 test images.

    Every family draws a class at most once. Families are ordered by the SHA-256 of their names; in
    this order each class fills its test list, then val, then train. A class of n images has
    min(round(0.3 n), n - 20) of them in test, round(0.2 n) but at most what leaves 16 for train in
    val, and never fewer than 4 in either. So 86 % of the test images come from 17 families that no
    train image comes from. Some families copy each other: images of a class with equal pixels
    always share a list.

    Items are named "icons139.npz#<row>"; their pixels are uint8 [32, 32], dark on white.
    """
    pack = _pack()
    names = [str(name) for name in pack["class_names"]]
    parts: tuple[Split, Split, Split] = ([], [], [])
    for label, name in enumerate(names):
        rows = np.flatnonzero(pack["labels"] == label)
        for part, chosen in zip(parts, _split(rows, pack), strict=True):
            part += [Item(f"{_FILE}#{row}", label, name) for row in sorted(chosen)]
    test, val, train = parts
    return Dataset("icons", ClassSet(tuple(names), TEMPLATE), train, val, test, None, read_icon)


def read_icon(item: Item) -> np.ndarray:
    """The pixels of a bundled icon, uint8 [32, 32]."""
    file, _, row = item.path.partition("#")
    if file != _FILE or not row.isdecimal() or int(row) >= len(_pack()["images"]):
        raise ValueError(f"read_icon: paths are '{_FILE}#<row>', got {item.path!r}")
    return _pack()["images"][int(row)]


@lru_cache(maxsize=1)
def _pack() -> dict[str, np.ndarray]:
    with np.load(asset(_FILE), allow_pickle=False) as file:
        pack = {name: file[name] for name in file.files}
    pack["images"].flags.writeable = False
    return pack


def _split(rows: np.ndarray, pack: dict[str, np.ndarray]) -> tuple[list, list, list]:
    """The rows of one class as (test, val, train); equal pixels go where the first of them fits."""
    n = len(rows)
    n_test = max(4, min(round(0.3 * n), n - 20))
    n_val = max(4, min(round(0.2 * n), n - 16 - n_test))
    groups: dict[bytes, list[int]] = {}
    for row in sorted(rows.tolist(), key=lambda row: _rank(str(pack["families"][row]))):
        groups.setdefault(pack["images"][row].tobytes(), []).append(row)
    parts: tuple[list, list, list] = ([], [], [])
    for group in groups.values():
        for part, room in zip(parts, (n_test, n_val, n), strict=True):
            if len(part) + len(group) <= room:
                part += group
                break
    return parts


def _rank(family: str) -> str:
    return hashlib.sha256(family.encode()).hexdigest()
