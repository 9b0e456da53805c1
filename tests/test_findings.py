"""The table of all tuners: every line can be made, and a finding is what the numbers say."""

import pytest

from benchmarks.base_to_new import METHODS, lines
from benchmarks.findings import as_csv, by_name, findings, gaps
from vlcal.tuners import TUNERS


def row(tuner, calibrator, split, seed, accuracy, confidence, ece):
    metrics = {"accuracy": accuracy, "mean_confidence": confidence, "ece": ece}
    names = {"tuner": tuner, "calibrator": calibrator, "split": split, "seed": seed, "n": 10}
    return names | {"metrics": metrics}


@pytest.fixture
def rows():
    found = []
    for seed, extra in ((1, 0.0), (2, 0.01)):
        found += [
            row("zero_shot", "none", "new", seed, 0.8, 0.8, 0.03),
            row("coop", "none", "new", seed, 0.7, 0.8 + extra, 0.1),
            row("coop", "dac", "new", seed, 0.7, 0.75, 0.06 + 6 * extra),
            row("coop+dor", "none", "new", seed, 0.7, 0.75, 0.05),
            row("coop+dor", "dac", "new", seed, 0.7, 0.75, 0.06),
            row("kgcoop", "none", "base", seed, 0.8, 0.85, 0.05),
            row("kgcoop", "none", "new", seed, 0.8, 0.75, 0.05),
            row("kgcoop", "dac", "new", seed, 0.8, 0.75, 0.04),
        ]
    return found


def test_a_finding_is_the_difference_of_every_seed(rows):
    said = {line[0]: line[1:] for line in findings(rows).rows}
    assert said["CoOp is over-confident on new classes"] == ("+10.00, +11.00", "+10.50", "yes")
    assert said["KgCoOp is under-confident on base classes"][2] == "no"
    assert said["DOR lowers the new-class ECE of coop"] == ("+5.00, +5.00", "+5.00", "yes")
    assert said["DAC lowers the new-class ECE of coop"][2] == "in 1 of 2"
    assert said["DAC lowers the new-class ECE of coop+dor"][2] == "no"


def test_rows_are_told_apart_by_tuner_calibrator_split_and_seed(rows):
    assert len(by_name(rows)) == len(rows)
    assert as_csv(rows).splitlines()[1] == "zero_shot,none,new,1,10,0.800000,0.800000,0.030000"


def test_gaps_have_a_sign(rows):
    only = [each for each in rows if each["tuner"] == "kgcoop"]
    minus = "\N{MINUS SIGN}"
    wanted = ("kgcoop", "+5.00 (+5.0, +5.0)", f"{minus}5.00 ({minus}5.0, {minus}5.0)")
    assert gaps(only).rows == (wanted,)


def test_every_tuner_that_learns_has_a_line():
    learned = {cls.name for cls in TUNERS} - {"zero_shot"}
    assert set(METHODS) == learned
    labels = [each.label for each in lines(list(METHODS))]
    assert set(labels) == learned | {f"{name}+dor" for name in learned - {"vpt"}}
