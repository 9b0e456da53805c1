"""Seeded k-shot sampling and the base/new halves of the classes, draw for draw as in CoOp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from vlcal._files import sha256_of, write_atomic
from vlcal.data.items import Dataset, Item, Split

FORMAT = 1


def few_shot(items: Sequence[Item], k: int, rng: Random) -> Split:
    """At most k items of every class, without replacement; classes in order of first appearance.

    A class with fewer than k items gives all of them and draws nothing from the stream.
    """
    return [items[i] for i in few_shot_indices(items, k, rng)]


def few_shot_indices(items: Sequence[Item], k: int, rng: Random) -> list[int]:
    """The positions in `items` that `few_shot` picks, in its order."""
    if k < 1:
        raise ValueError(f"few_shot: k must be at least 1, got {k}")
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.label, []).append(index)
    chosen: list[int] = []
    for members in groups.values():
        chosen += rng.sample(members, k) if len(members) >= k else members
    return chosen


def few_shot_dataset(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """The dataset with `shots` train and min(shots, 4) val items a class; test stays whole.

    Train is drawn first and val second from one `random.Random(seed)`, on ALL classes: take halves
    afterwards. A dataset that calibrates on its test list (ImageNet) keeps that list.
    """
    train, val = _draw(dataset, shots, seed)
    return _select(dataset, train, val)


def save_few_shot(path: str | Path, dataset: Dataset, shots: int, seed: int) -> None:
    """Write the drawn positions as JSON with the hash of the lists they were drawn from."""
    train, val = _draw(dataset, shots, seed)
    content = {
        "format": FORMAT,
        "dataset": dataset.name,
        "shots": shots,
        "seed": seed,
        "split_sha256": split_hash(dataset),
        "train": train,
        "val": val,
    }
    write_atomic(path, json.dumps(content) + "\n")


def load_few_shot(path: str | Path, dataset: Dataset) -> Dataset:
    """The few-shot dataset that `save_few_shot` described.

    Raises:
        ValueError: the file is damaged, or was drawn from other lists.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"load_few_shot: {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"load_few_shot: {path} is not a few-shot list of format {FORMAT}")
    if content.get("split_sha256") != split_hash(dataset):
        raise ValueError(
            f"load_few_shot: {path} was drawn from another split of {content.get('dataset')!r} "
            f"than {dataset.name!r} has here; draw again with few_shot_dataset"
        )
    rows = []
    for name, items in (("train", dataset.train), ("val", dataset.val)):
        chosen = content.get(name)
        if not isinstance(chosen, list) or not all(type(i) is int for i in chosen):
            raise ValueError(f"load_few_shot: {path}: {name} must be a list of positions")
        if not all(0 <= i < len(items) for i in chosen) or len(set(chosen)) != len(chosen):
            raise ValueError(
                f"load_few_shot: {path}: {name} must hold distinct positions in 0..{len(items) - 1}"
            )
        rows.append(chosen)
    return _select(dataset, *rows)


def split_hash(dataset: Dataset) -> str:
    """SHA-256 over the train, val and test lists: paths, labels, class names, order."""
    return sha256_of(*([list(item) for item in part] for part in _lists(dataset)))


def base_new(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The datasets of the base classes (the first half, rounded up) and of the new classes.

    The classes are the labels of train (of the first list with items), sorted; items of other
    classes are dropped, labels are numbered from 0 in each half.

    Raises:
        ValueError: fewer than two classes.
    """
    first = next((part for part in _lists(dataset) if part), [])
    labels = sorted({item.label for item in first})
    if len(labels) < 2:
        raise ValueError(f"base_new: {dataset.name} must have two classes, got {len(labels)}")
    middle = (len(labels) + 1) // 2
    return _half(dataset, labels[:middle]), _half(dataset, labels[middle:])


def _draw(dataset: Dataset, shots: int, seed: int) -> tuple[list[int], list[int]]:
    rng = Random(seed)
    train = few_shot_indices(dataset.train, shots, rng)
    if dataset.val == dataset.test:
        return train, list(range(len(dataset.val)))
    return train, few_shot_indices(dataset.val, min(shots, 4), rng)


def _select(dataset: Dataset, train: list[int], val: list[int]) -> Dataset:
    return replace(
        dataset,
        train=[dataset.train[i] for i in train],
        val=[dataset.val[i] for i in val],
    )


def _half(dataset: Dataset, labels: list[int]) -> Dataset:
    number = {label: new for new, label in enumerate(labels)}
    train, val, test = (
        [item._replace(label=number[item.label]) for item in part if item.label in number]
        for part in _lists(dataset)
    )
    return replace(dataset, classes=dataset.classes.subset(labels), train=train, val=val, test=test)


def _lists(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.val, dataset.test
