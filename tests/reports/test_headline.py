import pytest

from tests.reports.result_rows import row
from vlcal.reports import headline
from vlcal.reports.headline import chance


def pair(before, after, **changes):
    accuracy, confidence, ece = before
    return [
        row(accuracy=accuracy, mean_confidence=confidence, ece=ece),
        row(calibrator="dac", **{"accuracy": accuracy, "ece": after, **changes}),
    ]


def test_the_example_of_the_specification():
    assert headline(pair((0.700, 0.731, 0.037), 0.034)) == (
        "CoOp is over-confident on new classes by 3.1 points; "
        "DAC lowers the error (ECE) from 3.7 to 3.4 %, accuracy unchanged."
    )


@pytest.mark.parametrize(
    ("confidence", "words"),
    [
        (0.731, "over-confident on new classes by 3.1 points"),
        (0.669, "under-confident on new classes by 3.1 points"),
        (0.7002, "on average neither over- nor under-confident on new classes"),
    ],
)
def test_confidence_in_every_direction(confidence, words):
    assert words in headline(pair((0.7, confidence, 0.04), 0.03))


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (0.01, "DAC lowers the error (ECE) from 4.0 to 1.0 %"),
        (0.09, "DAC raises the error (ECE) from 4.0 to 9.0 %"),
        (0.0401, "DAC leaves the error (ECE) unchanged at 4.0 %"),
    ],
)
def test_error_in_every_direction(after, words):
    assert words in headline(pair((0.7, 0.74, 0.04), after))


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (0.7, "accuracy unchanged"),
        (0.65, "accuracy falls from 70.0 to 65.0 %"),
        (0.72, "accuracy rises from 70.0 to 72.0 %"),
        (0.7001, "accuracy changed by less than 0.1 points"),
    ],
)
def test_accuracy_in_every_direction(accuracy, words):
    assert words in headline(pair((0.7, 0.74, 0.04), 0.03, accuracy=accuracy))


def test_several_calibrators_are_each_told():
    rows = [*pair((0.7, 0.74, 0.04), 0.03), row(calibrator="ts", accuracy=0.6, ece=0.05)]
    assert headline(rows).endswith(
        "DAC lowers the error (ECE) from 4.0 to 3.0 %, TS raises it to 5.0 %, "
        "accuracy with TS falls from 70.0 to 60.0 %."
    )


def test_both_halves_are_reported_new_first():
    text = headline([row(split="base", mean_confidence=0.69), row(split="new")])
    assert text == (
        "CoOp is over-confident on new classes by 5.0 points (ECE 6.0 %). "
        "CoOp is under-confident on base classes by 1.0 points (ECE 6.0 %)."
    )


def test_seeds_are_averaged():
    rows = [row(seed=1, mean_confidence=0.8), row(seed=2, mean_confidence=0.72)]
    assert "by 6.0 points" in headline(rows)


def test_a_row_set_without_uncalibrated_rows_says_so():
    assert headline([row(calibrator="dac")]).startswith("CoOp with DAC is over-confident")


def test_unknown_tuner_lists_the_known():
    with pytest.raises(ValueError, match="tuner must be one of coop, got 'maple'"):
        headline([row()], "maple")


def test_chance_is_the_binomial_width_of_the_smallest_split():
    # 1.96 / (1 + 3.84 / 100) * sqrt(0.5 * 0.5 / 100 + 3.84 / 40000) = 9.6 points
    rows = [row(), row(split="base", n=100, accuracy=0.5)]
    assert chance(rows) == (
        "With 100 images, chance alone moves an accuracy, and so a gap, "
        "by about 9.6 points either way (95 %)."
    )


def test_chance_is_that_of_the_accuracy_it_moves_most():
    rows = [row(n=100, accuracy=accuracy) for accuracy in (0.0, 0.5, 1.0)]
    assert "by about 9.6 points" in chance(rows)


def test_four_right_answers_of_four_are_no_certainty():
    # Wilson's interval of 4 of 4 is 0.51..1
    assert "With 4 images, chance alone moves an accuracy, and so a gap, by about 24.5 points" in (
        chance([row(n=4, accuracy=1.0), row(split="base", n=1000, accuracy=0.5)])
    )


def test_what_differs_between_lines_is_in_parentheses():
    rows = [row(), row("coop", "dac", calibrator_options={"dac": {"k": 3}}), row("coop", "dac")]
    assert "DAC (k 3) leaves the error (ECE) unchanged" in headline(rows)


def test_of_many_calibrators_the_best_and_the_worst_are_named():
    eces = {"none": 0.1, "ts": 0.02, "dac": 0.05, "hb": 0.03, "cac": 0.12}
    rows = [
        row("given", name, "test", ece=ece, accuracy=0.7 - 0.02 * (name == "hb"))
        for name, ece in eces.items()
    ]
    assert headline(rows) == (
        "The model is over-confident on the test data by 5.0 points; of 4 calibrators, TS gives "
        "the lowest error (ECE), 2.0 % after 10.0 %, and CAC the highest, 12.0 %; accuracy changes "
        "with HB only, by \N{MINUS SIGN}2.0 points."
    )
