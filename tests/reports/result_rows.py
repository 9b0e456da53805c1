"""Result rows and classes with known answers, shared by the tests of this folder."""

import torch

from vlcal.ops import bin_statistics
from vlcal.reports import ClassRow, cells
from vlcal.types import Outcomes

HOSTILE = "<script>alert(1)</script>"


def row(tuner="coop", calibrator="none", split="new", seed=1, **fields):
    metrics = {
        name: fields.pop(name)
        for name in ("accuracy", "mean_confidence", "ece", "nll", "piece")
        if name in fields
    }
    return {
        "key": f"{tuner}-{calibrator}-{split}-{seed}",
        "dataset": "toy",
        "protocol": "base_to_new",
        "tuner": tuner,
        "recipe": "paper",
        "shots": 16,
        "seed": seed,
        "split": split,
        "calibrator": calibrator,
        "convention": "standard",
        "n": 1000,
        "metrics": {"accuracy": 0.7, "mean_confidence": 0.75, "ece": 0.06, **metrics},
        "versions": {"vlcal": "0.1.0"},
        "seconds": 1.5,
        **fields,
    }


def outcomes(seed=0, n=1000, over=0.1):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator, dtype=torch.float64).sqrt()
    correct = torch.rand(n, generator=generator, dtype=torch.float64) < confidence - over
    return Outcomes(confidence, correct)


def statistics(seed=0, n=1000, over=0.1, n_bins=15):
    seen = outcomes(seed, n, over)
    return bin_statistics(seen.confidence, seen.correct, n_bins)


def stored(bins):
    return {
        "count": bins.count.tolist(),
        "confidence": bins.confidence.tolist(),
        "correct": bins.correct.tolist(),
        "closed": bins.closed,
    }


def measured(tuner, calibrator, split, over, seed=1):
    bins = statistics(seed, over=over)
    return row(
        tuner,
        calibrator,
        split,
        seed,
        accuracy=int(bins.correct.sum()) / bins.n,
        mean_confidence=float(bins.confidence.sum()) / bins.n,
        ece=bins.ece(),
        bins=stored(bins),
        cells=cells.stored(cells.cells_of(outcomes(seed, over=over))),
    )


def grid():
    return [
        measured(tuner, calibrator, split, over * (split == "new") / (1 + (calibrator == "dac")))
        for tuner, over in (("zero_shot", 0.05), ("coop", 0.2))
        for split in ("base", "new")
        for calibrator in ("none", "dac")
    ]


def classes():
    names = [HOSTILE, "a & b", 'quote " and \u2603', "\x00control\ud800", "$x^2$", "=1+1"]
    return [
        ClassRow(name, i % 2 == 0, 10 + i, 0.5, 0.3 + 0.1 * i, 0.4, 0.5 + 0.05 * i, HOSTILE)
        for i, name in enumerate(names)
    ]
