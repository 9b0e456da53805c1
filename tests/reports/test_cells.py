"""Fine cells of confidence: exact bins, whole ties, and stored text that is checked."""

import json

import numpy as np
import pytest
import torch

from tests.reports.result_rows import row
from vlcal.ops import bin_statistics, equal_mass_statistics
from vlcal.reports import Report
from vlcal.reports.cells import BINS, cells_of, equal_mass, equal_width, row_cells, stored
from vlcal.types import Outcomes


def outcomes(n=3000, seed=0, sure=0.3):
    """Confidences with ties, exact edges of bins, 0 and 1, and many above 0.999."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    confidence[: n // 10] = (confidence[: n // 10] * 45).round() / 45
    confidence[n // 10 : n // 5] = 1 - 10 ** (-7 * confidence[n // 10 : n // 5])
    confidence[:2] = torch.tensor([0.0, 1.0])
    correct = torch.rand(n, generator=generator, dtype=torch.float64) < confidence - 0.1 * sure
    return Outcomes(confidence, correct)


@pytest.mark.parametrize("closed", ["right", "left"])
@pytest.mark.parametrize("n_bins", BINS)
def test_bins_of_equal_width_are_those_of_the_samples(n_bins, closed):
    seen = outcomes()
    found = equal_width(cells_of(seen, closed), n_bins)
    expected = bin_statistics(seen.confidence, seen.correct, n_bins, closed=closed)
    assert torch.equal(found.table, expected.table)
    assert torch.equal(found.edges, expected.edges)
    assert found.closed == closed


@pytest.mark.parametrize("n_bins", [5, 15, 50])
def test_bins_of_equal_mass_are_those_of_samples_that_share_a_value_per_cell(n_bins):
    cells = cells_of(outcomes())
    middle = (cells.edges[:-1] + cells.edges[1:]) / 2
    confidence = middle.repeat_interleave(cells.count)
    correct = torch.cat(
        [torch.arange(n) < k for n, k in zip(cells.count, cells.correct, strict=True)]
    )
    expected = equal_mass_statistics(confidence, correct, n_bins)
    found = equal_mass(cells, n_bins)
    assert torch.equal(found.count, expected.count)
    assert torch.equal(found.correct, expected.correct)


def test_the_error_over_equal_mass_is_near_that_of_the_samples():
    seen = outcomes(20_000)
    for n_bins in (5, 15, 50):
        expected = equal_mass_statistics(seen.confidence, seen.correct, n_bins).ece()
        assert equal_mass(cells_of(seen), n_bins).ece() == pytest.approx(expected, abs=5e-4)


def test_cells_add_up_and_come_back_from_text():
    a, b = cells_of(outcomes(500, 1)), cells_of(outcomes(700, 2))
    both = Outcomes(
        *(torch.cat(pair) for pair in zip(outcomes(500, 1)[:2], outcomes(700, 2)[:2], strict=True))
    )
    assert torch.equal((a + b).table, cells_of(both).table)
    back = row_cells({"cells": json.loads(json.dumps(stored(a)))})
    assert torch.equal(back.table, a.table)
    assert torch.equal(back.edges, a.edges)
    assert len(json.dumps(stored(cells_of(outcomes(100_000))))) < 60_000


def test_number_of_bins_outside_the_cells_is_refused():
    with pytest.raises(ValueError, match=r"n_bins must be in 5\.\.50, got 51"):
        equal_width(cells_of(outcomes()), 51)


def changed(**fields):
    return {**stored(cells_of(outcomes(5))), **fields}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (7, "must be of the grid"),
        (changed(grid="other"), "must be of the grid"),
        (changed(count=[1]), "equally long"),
        (changed(units=None), "must hold cell, count, correct, units"),
        (changed(closed="both"), "ascending cells below"),
        (changed(count=[0, 0, 0, 0, 0]), "0 <= correct <= count"),
        (changed(cell=[0, 1, 2, 2, 3]), "ascending cells below"),
        (changed(cell=[0, 1, 2, 3, 99999]), "ascending cells below"),
        (changed(cell=[0.5, 1, 2, 3, 4]), "must be integers"),
    ],
)
def test_hostile_cells_are_refused_with_a_reason(cells, message):
    with pytest.raises(ValueError, match=message):
        Report.from_rows([row(cells=cells)])


def test_every_edge_of_every_number_of_bins_is_an_edge_of_the_cells():
    edges = set(cells_of(outcomes()).edges.tolist())
    for n_bins in BINS:
        assert set(np.linspace(0, 1, n_bins + 1).tolist()) <= edges
