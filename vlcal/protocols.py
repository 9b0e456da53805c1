"""Protocols: functions that turn a dataset into a task, what to tune on and what to measure on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlcal._files import sha256_of
from vlcal.data.fewshot import base_new, few_shot_dataset, split_hash
from vlcal.data.items import Dataset


@dataclass(frozen=True)
class Task:
    """One tuning run and what it is measured on.

    Args:
        protocol: name of the function that made it.
        dataset: name of the dataset.
        shots: train images a class.
        seed: of the draw; tuners derive theirs from it.
        tuning: its `train` is tuned on, its `val` calibrated on.
        tests: split name -> dataset whose `test` is measured on, with that dataset's classes.
    """

    protocol: str
    dataset: str
    shots: int
    seed: int
    tuning: Dataset
    tests: Mapping[str, Dataset]

    def content(self) -> str:
        """SHA-256 over everything that is read: items, classes and templates of every list."""
        parts = [self.tuning, *self.tests.values()]
        return sha256_of(
            self.protocol,
            *(split_hash(part) for part in parts),
            *([*part.classes.names, part.classes.template] for part in parts),
        )


def base_to_new(dataset: Dataset, shots: int = 16, seed: int = 1) -> Task:
    """Tune on the base half of the classes, measure on the test images of both halves.

    Few-shot lists are drawn on all classes with `seed`, then the classes are halved (the first
    half, rounded up, is base). Logits on each half are over the classes of that half alone, as in
    Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022.

    Args:
        dataset: with train, val and test lists.
        shots: train images a class; validation takes min(shots, 4).
        seed: the papers use 1, 2 and 3.

    Raises:
        ValueError: fewer than two classes, fewer than one shot, or an empty list.
    """
    for name in ("train", "val", "test"):
        if not getattr(dataset, name):
            raise ValueError(f"base_to_new: {dataset.name} needs {name} images, it lists none")
    base, new = base_new(few_shot_dataset(dataset, shots, seed))
    return Task("base_to_new", dataset.name, shots, seed, base, {"base": base, "new": new})
