"""The table of all prompt tuners on the bundled icons, base to new, with and without DOR.

    python -m benchmarks.base_to_new OUT            # tune, predict, calibrate, measure; resumes
    python -m benchmarks.base_to_new OUT --write    # then the table and its rows into results/

Every tuner has its own `upstream` setting (ProDA, which has none, `dac2024`), with what a model of
8 M parameters and two CPU cores ask for in `METHODS`: the phrase the model was pretrained with,
three text and six image blocks, fewer epochs. Nothing is augmented, because flips and crops turn
one icon into another.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.findings import write
from vlcal.clip import load
from vlcal.data.icons import icons
from vlcal.experiment import RESULTS, Method, run
from vlcal.protocols import base_to_new
from vlcal.reports import read_rows
from vlcal.tuners import by_name

PHRASE = "an icon of a"
DEPTH = {"prompt_depth": 3, "prompt_depth_vision": 6}
PLAIN = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
CALIBRATORS = ("ts", "dac")
# words stay where the model's own phrase puts them: "a photo of a" means nothing to it
DOR = {"template": PHRASE + " {}."}

# options and recipe where they differ from the setting
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "coop": ({"ctx_init": PHRASE}, {"epochs": 50}),
    "cocoop": ({"ctx_init": PHRASE}, {"epochs": 5, "batch_size": 4}),
    "proda": ({"n_ctx": 4}, {"epochs": 10, "batch_size": 32}),
    "vpt": ({"template": PHRASE + " {}.", "prompt_depth_vision": 6}, {}),
    "kgcoop": ({"ctx_init": PHRASE}, {}),
    "ivlp": ({"ctx_init": PHRASE, **DEPTH}, {}),
    "maple": ({"ctx_init": PHRASE, "prompt_depth": 3}, {}),
    "prograd": ({"n_ctx": 4}, {"epochs": 50}),
    # the weights of the average over epochs keep their place: epoch 15 of 20 is 7.5 of 10
    "promptsrc": (
        {"ctx_init": PHRASE, "templates": [PHRASE + " {}."], **DEPTH, "mean": 7.5, "std": 0.5},
        {"epochs": 10},
    ),
}


def method(tuner: str, dor: bool) -> Method:
    """What is tuned in one line of the table."""
    settings = by_name(tuner).settings
    setting = settings.get("upstream", settings.get("dac2024"))
    assert setting is not None
    options, recipe = METHODS[tuner]
    return Method(
        tuner=tuner,
        options={**setting.arguments, **options},
        recipe=replace(setting.recipe, **recipe),
        views=1,
        augmentation=PLAIN,
        regularizers={"dor": DOR} if dor else {},
    )


def lines(tuners: Sequence[str]) -> Iterator[Method]:
    """Every tuner alone and with DOR; VPT learns no text, so DOR has nothing to act on."""
    for tuner in tuners:
        yield method(tuner, dor=False)
        if tuner != "vpt":
            yield method(tuner, dor=True)


def main() -> None:
    """Run the lines that are asked for; what is finished in OUT is found again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tuners", default=",".join(METHODS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--write", action="store_true", help="write the table into results/")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clip, dataset = load(), icons()
    for seed in map(int, given.seeds.split(",")):
        task = base_to_new(dataset, 16, seed)
        for each in lines(given.tuners.split(",")):
            run(task, clip, each, folder=given.out, calibrators=CALIBRATORS)
            print(f"seed {seed}: {each.label}", flush=True)
    if given.write:
        rows, _ = read_rows(given.out / RESULTS)
        write(rows, METHODS)


if __name__ == "__main__":
    main()
