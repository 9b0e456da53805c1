"""Risk against coverage and the error at every number of bins: the numbers behind the pictures."""

import numpy as np
import pytest
import torch

from tests.reports.result_rows import outcomes
from vlcal.ops import bin_statistics
from vlcal.reports import risk_coverage, sensitivity
from vlcal.reports.cells import BINS, cells_of
from vlcal.reports.lines import looks
from vlcal.reports.risk_coverage import operating_point, precision_asked, selective
from vlcal.reports.sensitivity import best_sentence, curve
from vlcal.types import Outcomes


def seen(confidence, correct):
    values = torch.tensor(confidence, dtype=torch.float64)
    return cells_of(Outcomes(values, torch.tensor(correct, dtype=torch.bool)))


def test_risk_and_coverage_by_hand():
    threshold, coverage, risk = selective(seen([0.9, 0.9, 0.7, 0.2], [1, 0, 1, 0]))
    assert coverage.tolist() == [0.5, 0.75, 1.0]
    assert risk.tolist() == [0.5, pytest.approx(1 / 3), 0.5]
    # samples of one cell are answered together, those at the threshold are not
    assert [t < c <= t + 0.001 for t, c in zip(threshold, (0.9, 0.7, 0.2), strict=True)]


@pytest.mark.parametrize("closed", ["right", "left"])
def test_the_operating_point_is_what_its_threshold_keeps(closed):
    wide = outcomes(3, n=4000)
    point = operating_point(cells_of(wide, closed), 0.8)
    sure = wide.confidence
    kept = sure > point.threshold if closed == "right" else sure >= point.threshold
    assert point.coverage == pytest.approx(kept.double().mean())
    assert point.precision == pytest.approx(wide.correct[kept].double().mean())
    assert point.precision >= 0.8


def test_no_lower_threshold_of_the_cells_reaches_the_precision():
    cells = cells_of(outcomes(4, n=4000))
    point = operating_point(cells, 0.8)
    _, coverage, risk = selective(cells)
    assert (1 - risk[coverage > point.coverage] < 0.8).all()


def test_a_precision_out_of_reach_has_no_threshold():
    assert operating_point(seen([0.9] * 40, [0] * 40), 0.95) is None
    # three lucky answers are not a threshold
    lucky = seen([0.99] * 3 + [0.5] * 60, [1] * 3 + [0] * 60)
    assert operating_point(lucky, 0.95) is None


@pytest.mark.parametrize(("right", "expected"), [(50, 0.95), (95, 0.99), (99, 0.999), (100, 0.999)])
def test_a_precision_is_asked_that_not_all_answers_have(right, expected):
    assert precision_asked(seen([0.5] * 100, [1] * right + [0] * (100 - right))) == expected


def test_the_picture_says_threshold_and_share_of_every_method():
    cells = [seen([0.9] * 60 + [0.4] * 40, [1] * 60 + [0] * 40), seen([0.9] * 100, [0] * 100)]
    _, ax = risk_coverage(cells, ["good", "bad"])
    texts = [text.get_text() for text in ax.texts]
    row = texts.index("good")
    assert texts[row : row + 3] == ["good", "89.9", "60.0"]
    assert texts[texts.index("bad") + 1 :][:2] == ["\N{EN DASH}"] * 2


def test_lines_keep_their_place_when_the_ranking_of_images_is_kept():
    base = outcomes(5, n=500)
    cooler = Outcomes(base.confidence * 0.5, base.correct)
    _, ax = risk_coverage([cells_of(base), cells_of(cooler)], ["a", "b"])
    first, second = (line for line in ax.lines if len(line.get_xdata()) > 10)
    # cells of the second are half as fine for the same images
    fine, coarse = (dict(zip(*line.get_data(), strict=True)) for line in (first, second))
    shared = fine.keys() & coarse.keys()
    assert len(shared) > 100
    assert [fine[x] for x in shared] == [coarse[x] for x in shared]


def test_error_at_every_number_of_bins_is_that_of_the_samples():
    wide = outcomes(6, n=700)
    values = curve(cells_of(wide), "equal width")
    expected = [bin_statistics(wide.confidence, wide.correct, n).ece() for n in BINS]
    assert values == expected


def test_both_panels_draw_every_method_and_mark_the_bins_of_the_convention():
    cells = [cells_of(outcomes(i)) for i in range(3)]
    _, axes = sensitivity(cells, ["a", "b", "c"], 15)
    for ax, rule in zip(axes, ("equal width", "equal mass"), strict=True):
        drawn = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == len(BINS)]
        assert np.allclose(drawn, [curve(each, rule) for each in cells])
        assert [15, 15] in [list(line.get_xdata()) for line in ax.lines]
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_the_sentence_tells_whether_the_ranking_depends_on_the_bins():
    good = outcomes(7, n=5000, over=0.0)
    bad = outcomes(7, n=5000, over=0.3)
    said = best_sentence([cells_of(bad), cells_of(good)], ["none", "TS"])
    assert said == "The lowest error at every number of either kind of bins: TS."
    twins = [cells_of(outcomes(8)), cells_of(outcomes(9))]
    said = best_sentence(twins, ["one", "other"])
    assert "With bins of equal width" in said and "of 46 numbers" in said
    assert best_sentence(twins[:1], ["one"]) == ""


def test_methods_that_are_the_same_are_named_together_and_both_are_seen():
    bad, good = cells_of(outcomes(7, n=5000, over=0.3)), cells_of(outcomes(7, n=5000, over=0.0))
    said = best_sentence([good, bad, good], ["none", "TS", "DAC"])
    assert said == "The lowest error at every number of either kind of bins: none and DAC."
    # the dashes of the later line are drawn over the solid first one
    assert looks(0)["zorder"] < looks(1)["zorder"] < looks(2)["zorder"]


@pytest.mark.parametrize("draw", [risk_coverage, sensitivity])
@pytest.mark.parametrize(
    ("cells", "titles", "message"),
    [
        ([], [], "at least one method, got 0 methods and 0 titles"),
        ([cells_of(outcomes())], ["a", "b"], "got 1 methods and 2 titles"),
        ([seen([], [])], ["a"], "at least one sample"),
    ],
)
def test_methods_without_samples_or_titles_are_refused(draw, cells, titles, message):
    with pytest.raises(ValueError, match=message):
        draw(cells, titles)
