"""One experiment: tune, predict, calibrate, measure; every stage is kept under its content key."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlcal import regularizers as terms
from vlcal._files import append_line, sha256_of
from vlcal.calibrators import Chosen, choose, fit_all, refuse_early
from vlcal.calibrators import calibrator as calibrator_named
from vlcal.clip import CLIP
from vlcal.data.cache import cached_features, feature_key, file_list_hash
from vlcal.data.items import Dataset, Split, loader
from vlcal.data.transforms import evaluation, training
from vlcal.evaluation import Evaluation, evaluate
from vlcal.info import versions
from vlcal.metrics import Convention, image_proximity
from vlcal.metrics import convention as convention_named
from vlcal.prediction import predict
from vlcal.protocols import Task
from vlcal.regularizers import Regularizer
from vlcal.reports import cells
from vlcal.reports.rows import CELLS, read_rows
from vlcal.training import fit, setup_of
from vlcal.tuners import (
    FeatureBatches,
    Recipe,
    Tuner,
    ZeroShot,
    by_name,
    check_options,
    encode_views,
    load_tuner,
    save_tuner,
)
from vlcal.types import ClassSet, Predictions

Progress = Callable[[str, int, int], None]

FORMAT = 1
RESULTS = "results.jsonl"
OF_TUNING = ("options", "recipe", "views", "augmentation", "regularizers")  # fields of a row


@dataclass(frozen=True)
class Method:
    """What is tuned and how.

    Args:
        tuner: a name of `vlcal.tuners.TUNERS`.
        options: arguments of its constructor.
        recipe: how long and how fast.
        views: augmented passes whose image features are stored and trained on; 0 encodes a new
            augmentation in every epoch.
        augmentation: options of `vlcal.data.transforms.training`.
        regularizers: names of `vlcal.regularizers.REGULARIZERS`, each with arguments of its
            constructor; what is not given is what its paper uses with this tuner.
    """

    tuner: str = "coop"
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=Recipe)
    views: int = 0
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    regularizers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.cls, self.options)
        for name, options in self.regularizers.items():
            terms.check_options(name, options)

    @property
    def cls(self) -> type[Tuner]:
        """The tuner's class."""
        return by_name(self.tuner)

    @property
    def label(self) -> str:
        """The tuner and its regularizers, as in "coop+dor"."""
        return "+".join([self.tuner, *(terms.regularizer(name).name for name in self.regularizers)])

    def make_regularizers(self, task: Task) -> list[Regularizer]:
        """The regularizers, not yet prepared; they may ask for the names of the new classes."""
        own = task.tuning.classes.names
        tested = [name for part in task.tests.values() for name in part.classes.names]
        new = [name for name in dict.fromkeys(tested) if name not in own]
        return [
            terms.make(name, options, tuner=self.cls.name, new_names=new)
            for name, options in self.regularizers.items()
        ]

    def make(self, clip: CLIP, task: Task) -> Tuner:
        """The untrained tuner; where its constructor draws, the task's seed decides."""
        options = dict(self.options)
        if "seed" in inspect.signature(self.cls).parameters:
            options.setdefault("seed", task.seed)
        return self.cls(clip, task.tuning.classes, **options)


class Measured(NamedTuple):
    """One row of results with what it was computed from."""

    row: dict[str, Any]
    evaluation: Evaluation
    predictions: Predictions


@dataclass(frozen=True)
class Result:
    """What `run` found.

    Args:
        task: what was tuned and measured on.
        folder: holds the tuner and the predictions of this run.
        measured: one entry per tuner, calibrator and split, in that order.
    """

    task: Task
    folder: Path
    measured: list[Measured]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows, as written to results.jsonl."""
        return [each.row for each in self.measured]

    def find(self, tuner: str, calibrator: str, split: str) -> Measured:
        """The entry of that name; KeyError if it was not measured."""
        for each in self.measured:
            names = each.row["tuner"], each.row["calibrator"], each.row["split"]
            if names == (tuner, calibrator, split):
                return each
        raise KeyError((tuner, calibrator, split))


def run(
    task: Task,
    clip: CLIP,
    method: Method,
    *,
    folder: str | Path,
    calibrators: Sequence[str] = ("ts", "dac"),
    calibrator_options: Mapping[str, Mapping[str, Any]] | None = None,
    convention: str = "standard",
    progress: Progress | None = None,
) -> Result:
    """Tune on the task, calibrate on its validation images, measure on its test splits.

    The tuner and the predictions of every split are kept in a folder named by the hash of all that
    they depend on, so a second call finds them and an interrupted one goes on where it stopped.
    Rows are appended to `results.jsonl`, each once, and what the pictures of a report need beside
    them to `cells.jsonl`.

    Args:
        task: from `vlcal.protocols`.
        clip: the model.
        method: what to tune.
        folder: where everything is written.
        calibrators: names of `vlcal.calibrators.CALIBRATORS`, or chains of them as in "ts+dac",
            each applied to the tuned model.
        calibrator_options: arguments of their constructors, by name.
        convention: of the metrics.
        progress: called with stage, steps done and steps in all.

    Returns:
        The zero-shot model, the tuned model, and the tuned model with each calibrator, on each
        split; but for calibrators that do not handle new classes, on the splits that have some.

    Raises:
        ValueError: a name or an option is not known; or a calibrator cannot be fitted. One that
            reads no labels refuses its base classes before anything is tuned, any other after.
    """
    report = progress or (lambda stage, done, total: None)
    chosen = choose(calibrator_named, calibrators, calibrator_options or {})
    convention = convention_named(convention).name
    regularizers = method.make_regularizers(task)
    facts = _facts(method, regularizers)
    setting = {"format": FORMAT, "shots": task.shots, "seed": task.seed, **facts}
    key = sha256_of(task.content(), clip.fingerprint(), setting)
    name = f"{task.dataset}-{method.label}-{task.shots}shots-seed{task.seed}-{key[:12]}"
    home = Path(folder) / "runs" / name
    tuner = _tuned(task, clip, method, regularizers, chosen, home, report)
    val = _predicted(home / "val.safetensors", tuner, task.tuning, task.tuning.val, report)
    tests = {
        split: _predicted(home / f"{split}.safetensors", tuner, part, part.test, report)
        for split, part in task.tests.items()
    }
    about = {
        "dataset": task.dataset,
        "protocol": task.protocol,
        "shots": task.shots,
        "seed": task.seed,
        "clip": clip.name,
        "template": task.tuning.classes.template,
        **{name: value for name, value in facts.items() if name != "tuner"},
        "convention": convention,
        "versions": versions(),
    }
    measured = list(_measure(method.label, key, about, val, tests, chosen))
    _append(Path(folder), measured)
    return Result(task, home, measured)


def _untuned(clip: CLIP, classes: ClassSet) -> Predictions:
    """The classes as CLIP sees them before anything is learned; their texts stand for images."""
    text = ZeroShot(clip, classes).encode_text(classes.names)
    twin = Predictions(
        image_features=text,
        text_features=text,
        logit_scale=clip.logit_scale,
        class_names=classes.names,
    )
    return replace(twin, zero_shot=twin)


def _facts(method: Method, regularizers: Sequence[Regularizer]) -> dict[str, Any]:
    facts = {
        "tuner": method.tuner,
        "options": {
            name: value
            for name, value in method.options.items()
            if name not in method.cls.unrecorded
        },
        "recipe": asdict(method.recipe),
        "views": method.views,
        "augmentation": dict(method.augmentation),
    }
    # absent without any, so that runs from before there were regularizers are found again
    named = {"regularizers": [each.identity() for each in regularizers]}
    return facts | (named if regularizers else {})


def _tuned(
    task: Task,
    clip: CLIP,
    method: Method,
    regularizers: Sequence[Regularizer],
    calibrators: Sequence[Chosen],
    home: Path,
    report: Progress,
) -> Tuner:
    if (home / "config.json").is_file():
        return load_tuner(home, clip)
    tuner = method.make(clip, task)
    for each in regularizers:
        each.check(setup_of(tuner))
        each.progress = partial(report, f"prepare {each.name}")
    refuse_early(calibrators, _untuned(clip, task.tuning.classes))
    if any(parameter.requires_grad for parameter in tuner.parameters()):
        batches = _batches(task, clip, method, home.parent.parent, report)
        epochs = method.recipe.epochs

        def step(epoch: int, step: int, losses: dict[str, float]) -> None:
            report("tune", epoch * len(batches) + step + 1, epochs * len(batches))

        checkpoint = home / "unfinished.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        fit(
            tuner,
            batches,
            method.recipe,
            regularizers,
            seed=task.seed,
            progress=step,
            checkpoint=checkpoint,
        )
        save_tuner(tuner, home)
        checkpoint.unlink(missing_ok=True)
    elif regularizers:
        raise ValueError(
            f"{method.label}: {method.tuner} learns nothing, so no regularizer can act"
        )
    else:
        save_tuner(tuner, home)
    return tuner


def _batches(task: Task, clip: CLIP, method: Method, folder: Path, report: Progress) -> Any:
    transform = training(clip.preprocess, **method.augmentation)
    generator = torch.Generator().manual_seed(task.seed)
    dataset, size = task.tuning, method.recipe.batch_size
    if method.views == 0 or method.cls.learns_images:
        return loader(
            dataset.train,
            dataset,
            transform,
            batch_size=size,
            shuffle=True,
            generator=generator,
            drop_last=True,
        )
    labels = torch.tensor([item.label for item in dataset.train])
    features = _views(task, clip, method, folder, report)
    return FeatureBatches(features, labels, size, drop_last=True)


def _views(task: Task, clip: CLIP, method: Method, folder: Path, report: Progress) -> Tensor:
    """Unit features [views, N, D] of augmented train images, cached view by view."""
    dataset, transform = task.tuning, training(clip.preprocess, **method.augmentation)
    n = len(dataset.train)

    def encode(rows: slice) -> Tensor:
        view = rows.start // n
        generator = torch.Generator().manual_seed(1000 * task.seed + view)
        images = loader(dataset.train, dataset, transform, batch_size=256, generator=generator)
        return encode_views(clip, images)[0][0]

    key = {
        **feature_key(clip.fingerprint(), {}, files=file_list_hash(dataset.train, dataset)),
        "augmentation": dict(method.augmentation),
        "seed": task.seed,
        "views": method.views,
    }
    features = cached_features(
        folder / "features",
        key,
        method.views * n,
        clip.embed_dim,
        encode,
        shard_rows=n,
        progress=lambda done, total: report("encode", done // n, total // n),
    )
    return features.view(method.views, n, clip.embed_dim)


def _predicted(
    path: Path, tuner: Tuner, dataset: Dataset, items: Split, report: Progress
) -> Predictions:
    if path.is_file():
        return Predictions.load(path)
    report("predict " + path.stem, 0, 1)
    tuner.set_classes(dataset.classes)
    images = loader(items, dataset, evaluation(tuner.clip.preprocess), batch_size=100)
    predictions = predict(tuner, images, ZeroShot(tuner.clip, dataset.classes))
    predictions.save(path)
    report("predict " + path.stem, 1, 1)
    return predictions


def _measure(
    tuner: str,
    key: str,
    about: dict[str, Any],
    val: Predictions,
    tests: Mapping[str, Predictions],
    calibrators: Sequence[Chosen],
) -> Iterator[Measured]:
    fitted = fit_all(calibrators, val)
    options = {each.name: each.options for each in calibrators if each.options}
    rule = convention_named(about["convention"])
    for split, test in tests.items():
        assert test.zero_shot is not None and val.zero_shot is not None
        near = {tuner: _proximity(test, val, rule)}
        made = [(tuner, "none", test)]
        if tuner != ZeroShot.name:
            made.insert(0, (ZeroShot.name, "none", test.zero_shot))
            near[ZeroShot.name] = _proximity(test.zero_shot, val.zero_shot, rule)
        # one that learned a map for each class has nothing to say about new ones, and no row
        same = test.class_names == val.class_names
        applied = {n: each for n, each in fitted.items() if same or each.handles_new_classes}
        made += [(tuner, name, each.transform(test)) for name, each in applied.items()]
        for method, name, predictions in made:
            start = time.perf_counter()
            found = evaluate(predictions=predictions, proximity=near[method], convention=rule)
            facts = found.to_dict()
            own = {"calibrator_options": options[name]} if name in options else {}
            row = {
                "key": sha256_of(key, method, name, about["convention"], split, *own.values()),
                # zero-shot CLIP has no recipe, so it is one line beside many tuners
                **{n: v for n, v in about.items() if method != ZeroShot.name or n not in OF_TUNING},
                "tuner": method,
                "calibrator": name,
                **own,
                "split": split,
                **{field: facts[field] for field in ("n", "metrics", "bins")},
                "seconds": round(time.perf_counter() - start, 4),
            }
            yield Measured(row, found, predictions)


def _proximity(test: Predictions, val: Predictions, rule: Convention) -> Tensor:
    """Proximity [N] of test images to validation images, both as the same model sees them."""
    assert test.image_features is not None and val.image_features is not None
    k = min(rule.neighbors, len(val))
    return image_proximity(test.image_features, val.image_features, rule, k=k)


def _append(folder: Path, measured: Sequence[Measured]) -> None:
    """Append the rows that are not there yet, and beside them their cells, for the pictures."""
    path = folder / RESULTS
    started = path.is_file() and path.stat().st_size > 0
    known = {row.get("key") for row in read_rows(path)[0]} if started else set()
    for each in measured:
        key = each.row["key"]
        if key not in known:
            # cells first, so that a killed run leaves no row without them
            fine = cells.of_row(each.evaluation.outcomes, each.evaluation.bins.closed)
            append_line(folder / CELLS, json.dumps({"key": key, "cells": fine}))
            append_line(path, json.dumps(each.row))
