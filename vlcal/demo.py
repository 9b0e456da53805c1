"""The main job on bundled data: tune a prompt, see what it does to calibration, repair it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from vlcal.clip import load
from vlcal.data.icons import icons
from vlcal.experiment import Method, Progress, Result, run
from vlcal.protocols import base_to_new
from vlcal.reports import Report, write_report
from vlcal.tuners import Recipe
from vlcal.writeup import write_up

ABOUT = (
    "Real data, small scale: a CLIP of 8 M parameters, pretrained on 158,000 named vector icons, "
    "classifies 139 icon concepts drawn by 60 design families it never saw. CoOp learns four "
    "context tokens from 16 images of each of the 70 base classes; the other 69 classes are new."
)

# flips and crops turn one icon into another, so there is no augmentation; the recipe is CoOp's with
# four tokens ("upstream"), in fewer epochs at a higher rate
METHOD = Method(
    tuner="coop",
    options={"ctx_init": "an icon of a"},
    recipe=Recipe(epochs=30, lr=0.005, batch_size=32),
    views=1,
    augmentation={"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0},
)
SEEDS = (1, 2, 3)


class Demo(NamedTuple):
    """What the demo made: the results by seed, the report, and the page it wrote."""

    results: list[Result]
    report: Report
    page: Path


def demo(
    folder: str | Path,
    *,
    seeds: Sequence[int] = SEEDS,
    shots: int = 16,
    method: Method = METHOD,
    progress: Progress | None = None,
) -> Demo:
    """Tune, calibrate and measure on the bundled icons, and write the report.

    Everything lands in `folder`; a second call finds the finished stages there and gives the same
    numbers.

    Args:
        folder: for `report.html`, `report.json`, `results.jsonl` and the runs.
        seeds: of the few-shot draw and the training order; the pictures are of the first.
        shots: train images a class.
        method: what is tuned.
        progress: called with stage, steps done and steps in all.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"demo: seeds must be distinct and at least one, got {list(seeds)}")
    start = time.perf_counter()
    clip, dataset = load(), icons()
    with _one_thread():
        results = [
            run(base_to_new(dataset, shots, seed), clip, method, folder=folder, progress=progress)
            for seed in seeds
        ]
    recipe = method.recipe
    facts = {
        "command": f"vlcal demo --seeds {','.join(map(str, seeds))} --shots {shots}",
        "recipe": f"{method.tuner}, {recipe.epochs} epochs, rate {recipe.lr}, batch "
        f"{recipe.batch_size}",
        "model": f"{clip.name}, SHA-256 {clip.fingerprint()[:16]}",
        "wall seconds": round(time.perf_counter() - start, 1),
    }
    report = write_up(results, title="vlcal demo", about=ABOUT, facts=facts)
    return Demo(results, report, write_report(folder, report))


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a model gains nothing from threads, and the numbers do not depend on their count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
