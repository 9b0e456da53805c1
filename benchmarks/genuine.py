"""Every calibrator on genuine CLIP features: a table, and whether published claims are seen.

    python -m benchmarks.genuine --features FOLDER            # prints the page
    python -m benchmarks.genuine --features FOLDER --write    # and writes results/genuine.md

FOLDER holds clip_vitb32_{caltech60,dtd,ucf101}.npz, which are not part of the project.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import vlcal
from benchmarks.claims import RULE, Key, Table, claims
from vlcal._files import write_atomic
from vlcal.calibrators import CALIBRATORS, ContrastAware, TemperatureScaling
from vlcal.data.features import read_arrays
from vlcal.ops import cosine_cross_entropy, proximity
from vlcal.types import Predictions, VlcalWarning

RESULT = Path(__file__).parent / "results" / "genuine.md"
DATASETS = ("caltech60", "dtd", "ucf101")
METRICS = {"accuracy": "acc", "ece": "ECE", "ace": "ACE", "mce": "MCE", "piece": "PIECE"}
CONVENTIONS = {"standard": "mce", "dac2024": "mce_weighted"}
SHOTS, HOLD_OUT = 16, 4
# weight of the squared distance from the classes before tuning: KgCoOp's is 8
TUNED = {"free": 0.0, "held": 8.0}
LINES: dict[str, Callable[[], Any]] = {cls.name: cls for cls in CALIBRATORS}
LINES["cac, centered"] = lambda: ContrastAware(centered=True)


@dataclass(frozen=True)
class Images:
    """Image features [N, D], unit norm, and labels [N]."""

    features: Tensor
    labels: Tensor

    def of(self, classes: range) -> Images:
        """Those of a range of classes, labels counted from its start."""
        rows = (self.labels >= classes.start) & (self.labels < classes.stop)
        return Images(self.features[rows], self.labels[rows] - classes.start)

    def split(self, k: int, generator: torch.Generator) -> tuple[Images, Images]:
        """`k` random images of every class, and the rest."""
        order = torch.randperm(len(self.labels), generator=generator)
        labels = self.labels[order]
        place = torch.stack([(labels[:i] == label).sum() for i, label in enumerate(labels)])
        few, rest = order[place < k], order[place >= k]
        return tuple(Images(self.features[i], self.labels[i]) for i in (few, rest))  # type: ignore[return-value]


@dataclass(frozen=True)
class Source:
    """One data set: the class matrix before tuning, and its images."""

    classes: Tensor
    train: Images
    val: Images
    test: Images
    prototypes: bool


def source(folder: Path, name: str, generator: torch.Generator) -> Source:
    """Texts as classes where there are any, else one image of each class."""
    arrays = read_arrays(folder / f"clip_vitb32_{name}.npz")

    def images(part: str) -> Images:
        features, labels = (torch.from_numpy(arrays[f"{part}_{x}"]) for x in "xy")
        return Images(normalize(features.float(), dim=-1), labels.long())

    val, test = images("val"), images("test")
    if "text_x" in arrays:
        texts = normalize(torch.from_numpy(arrays["text_x"]).float(), dim=-1)
        return Source(texts, images("train"), val, test, False)
    one = images("train1")
    classes = one.features[one.labels.argsort()]
    if "train16_x" in arrays:
        return Source(classes, images("train16"), val, test, True)
    train, val = val.split(SHOTS, generator)
    return Source(classes, train, val, test, True)


def adapt(
    classes: Tensor, train: Images, scale: float, weight: float, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """A linear map of class features, learned as CoOp learns its context: 50 epochs of SGD.

    It starts as the identity, is shared by all classes, and so moves classes it never saw.
    """
    matrix = torch.zeros(classes.shape[1], classes.shape[1], requires_grad=True)
    shift = torch.zeros(classes.shape[1], requires_grad=True)

    def moved(features: Tensor) -> Tensor:
        return normalize(features + features @ matrix + shift, dim=-1)

    optimizer = torch.optim.SGD([matrix, shift], lr=0.002, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for _ in range(50):
        for rows in torch.randperm(len(train.labels), generator=generator).split(32):
            after = moved(classes)
            loss = cosine_cross_entropy(train.features[rows], after, train.labels[rows], scale)
            loss = loss.mean() + weight * (after - classes).square().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return lambda features: moved(features).detach()


def predictions(
    images: Images, before: Tensor, after: Tensor, scale: float, names: tuple[str, ...]
) -> Predictions:
    """Of the tuned model, with the untuned one as its zero-shot twin."""
    twin = Predictions(
        image_features=images.features,
        labels=images.labels,
        text_features=before,
        logit_scale=scale,
        class_names=names,
    )
    return replace(twin, text_features=after, zero_shot=twin)


def halves(
    given: Source, weight: float, generator: torch.Generator
) -> tuple[Predictions, Predictions, Predictions]:
    """Predictions of a model tuned on the base half: hold-out of it, tests of it and of the new."""
    n = len(given.classes)
    base, new = range((n + 1) // 2), range((n + 1) // 2, n)
    hold_out, _ = given.val.of(base).split(HOLD_OUT, generator)
    names = tuple(f"class {i}" for i in range(n))
    classes = {half: given.classes[half.start : half.stop] for half in (base, new)}
    scale = 100.0
    if given.prototypes:
        untuned = predictions(hold_out, classes[base], classes[base], scale, names[: base.stop])
        scale /= TemperatureScaling().fit(untuned).temperature_ or 1.0
    move = adapt(classes[base], given.train.of(base), scale, weight, generator)
    parts = ((hold_out, base), (given.test.of(base), base), (given.test.of(new), new))
    made = [
        predictions(
            images, classes[half], move(classes[half]), scale, names[half.start : half.stop]
        )
        for images, half in parts
    ]
    return made[0], made[1], made[2]


def measure(test: Predictions, near: Tensor) -> dict[tuple[str, str], float]:
    """Values in percent by convention and metric."""
    values = {}
    for convention, mce in CONVENTIONS.items():
        found = vlcal.evaluate(predictions=test, proximity=near, convention=convention).metrics
        for name in METRICS:
            values[convention, name] = 100 * found[mce if name == "mce" else name]
    return values


def one_seed(given: Source, weight: float, seed: int) -> tuple[dict[Key, float], list[str]]:
    """Values by calibrator, half, convention and metric; what calibrators warned of or refused."""
    generator = torch.Generator().manual_seed(seed)
    val, base, new = halves(given, weight, generator)
    assert val.image_features is not None
    table: dict[Key, float] = {}
    accuracy = vlcal.evaluate(predictions=val).metrics["accuracy"]
    notes = [f"accuracy of the {len(val)} hold-out images: {100 * accuracy:.1f}"]
    for half, test in (("base", base), ("new", new)):
        assert test.image_features is not None and test.zero_shot is not None
        near = proximity(test.image_features, val.image_features, 5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VlcalWarning)
            lines = {"untuned": test.zero_shot, "none": test}
            for name, make in LINES.items():
                if half == "new" and not make().handles_new_classes:
                    continue
                try:
                    lines[name] = make().fit(val).transform(test)
                except ValueError as refusal:
                    notes.append(f"{half}, {refusal}")
        for name, calibrated in lines.items():
            measured = measure(calibrated, near)
            table |= {(name, half, *key): value for key, value in measured.items()}
        notes += [f"{half}, {each.message}" for each in caught]
    return table, notes


def run(folder: Path, seeds: range) -> tuple[Table, dict[str, list[str]]]:
    """Values of every seed by data set and tuning, and what was noted of each."""
    tables: Table = {}
    notes: dict[str, list[str]] = {}
    for name in DATASETS:
        for tuned, weight in TUNED.items():
            label, taken = f"{name}, {tuned}", []
            for seed in seeds:
                given = source(folder, name, torch.Generator().manual_seed(seed))
                values, said = one_seed(given, weight, seed)
                taken.append(values)
                notes.setdefault(label, []).extend(f"seed {seed}: {text}" for text in said)
            # a mean is over all seeds or not at all
            everywhere = [key for key in taken[0] if all(key in each for each in taken)]
            tables[label] = {key: [each[key] for each in taken] for key in everywhere}
    return tables, notes


def rows_of(table: dict[Key, list[float]]) -> str:
    """Markdown: one line a calibrator, base and new side by side, the lowest ECE of a half bold."""
    columns = [(half, metric) for half in ("base", "new") for metric in METRICS]
    head = " | ".join(f"{half} {METRICS[metric]}" for half, metric in columns)
    lines = [f"| calibrator | {head} |", "|---" * (1 + len(columns)) + "|"]
    mean = {key: statistics.mean(values) for key, values in table.items()}
    lowest = {
        half: min(value for key, value in mean.items() if key[1:] == (half, RULE, "ece"))
        for half in ("base", "new")
    }
    for name in dict.fromkeys(key[0] for key in table):
        cells = []
        for half, metric in columns:
            value = mean.get((name, half, RULE, metric))
            text = "-" if value is None else f"{value:.1f}"
            cells.append(f"**{text}**" if metric == "ece" and value == lowest[half] else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def errors(tables: Table, convention: str) -> str:
    """Markdown: ECE alone under another convention, base / new, a column for every table."""
    lines = [f"| calibrator | {' | '.join(tables)} |", "|---" * (1 + len(tables)) + "|"]
    for name in ("untuned", "none", *LINES):
        cells = []
        for table in tables.values():
            keys = [(name, half, convention, "ece") for half in ("base", "new")]
            found = [f"{statistics.mean(table[key]):.1f}" if key in table else "-" for key in keys]
            cells.append(" / ".join(found))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(tables: Table, notes: dict[str, list[str]], seeds: range) -> str:
    """How it was done, the tables, the claims, the notes."""
    parts = [HEAD.format(seeds=len(seeds), shots=SHOTS, hold_out=HOLD_OUT)]
    parts += [f"## {label}\n\n{rows_of(table)}\n" for label, table in tables.items()]
    for convention in CONVENTIONS:
        if convention != RULE:
            parts.append(
                f"## ECE under `{convention}`, base / new\n\n{errors(tables, convention)}\n"
            )
    parts.append(f"## Published claims\n\n{claims(tables)}\n")
    parts.append("## Hold-outs, warnings and refusals\n")
    parts += [f"- {label}, {text}" for label, lines in notes.items() for text in lines]
    return "\n".join(parts) + "\n"


HEAD = """# Calibrators on genuine CLIP features

`python -m benchmarks.genuine --features FOLDER --write`, means over {seeds} seeds, percent,
convention `standard`. The features are those of OpenAI's CLIP ViT-B/32, encoded elsewhere. What is
calibrated stands in for a tuned prompt, because the encoders are not at hand: a linear map of the
class features that starts as the identity, is learned on {shots} images of each base class (SGD,
rate 0.002, 50 epochs, cosine) and moves new classes too. *free* has cross-entropy alone; *held*
adds 8 times the squared distance from the classes before, as KgCoOp does. *untuned* is the model
before.

- caltech60: 60 classes of Caltech-101; classes are the features of their names, logit scale 100.
- dtd, ucf101: there are no texts, so one training image stands for each class, and the logit scale
  is the one that fits the untuned model to the hold-out. This is not zero-shot CLIP: such classes
  are noisier than names, and cosines between images are larger than between images and texts, which
  the constants of CAC are for. dtd trains on images of its validation set, the hold-out excluded.

Classes are halved in label order. Calibrators with default options are fitted on {hold_out} images
a base class from the validation set, as in the papers; `-` is one that cannot be applied to new
classes or that refused for a seed. PIECE uses the distance to the 5 nearest hold-out images. The
lowest ECE of a half is bold, whatever the accuracy. Where the hold-out is easier than the test
images (accuracies at the end) whatever is fitted on it stays too sure.
"""


def main() -> None:
    """Print the page, write it if asked."""
    parser = argparse.ArgumentParser(description="Every calibrator on genuine CLIP features.")
    parser.add_argument("--features", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/genuine.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(1, given.seeds + 1)
    text = page(*run(given.features, seeds), seeds)
    print(text)
    if given.write:
        write_atomic(RESULT, text)


if __name__ == "__main__":
    main()
