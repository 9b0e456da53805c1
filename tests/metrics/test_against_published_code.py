"""The metrics against NumPy literals of the published formulas, scikit-learn and torchmetrics."""

import inspect
import warnings

import numpy as np
import pytest
import torch

from vlcal.metrics import METRICS, ace, convention, ece, mce, mce_weighted, piece
from vlcal.types import Outcomes

DAC = convention("dac2024")
STANDARD = convention("standard")


def dac_ece(confidence, correct, n_bins=10):
    edges = np.linspace(0, 1, n_bins + 1)
    index = (edges[None] <= confidence[:, None]).sum(-1) - 1
    weight = np.histogram(confidence, edges)[0] / len(confidence)
    total = 0.0
    for b in range(n_bins):
        inside = index == b
        if inside.any():
            total += weight[b] * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def grouped(labels, confidence, correct):
    gaps = []
    for group in np.unique(labels, axis=0):
        inside = (labels == group).all(-1)
        share = inside.mean()
        gaps.append(share * abs(correct[inside].mean() - confidence[inside].mean()))
    return gaps


def interior(confidence, n_bins=10):
    return np.digitize(confidence, np.linspace(0, 1, n_bins + 1)[1:-1])[:, None]


def discretized(values, n_bins=10):
    """scikit-learn's quantile bins with the quantile rule of 2024."""
    from sklearn.preprocessing import KBinsDiscretizer

    options = {"encode": "ordinal", "strategy": "quantile", "subsample": None}
    if "quantile_method" in inspect.signature(KBinsDiscretizer).parameters:
        options["quantile_method"] = "linear"  # the only rule of older releases
    bins = KBinsDiscretizer(n_bins, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # merged bins and constant features are announced
        return bins.fit_transform(values[:, None])


ORACLES = {
    "ece": lambda q, right, near: dac_ece(q, right),
    "mce_weighted": lambda q, right, near: max(grouped(interior(q), q, right)),
    "ace": lambda q, right, near: sum(grouped(discretized(q), q, right)),
    "piece": lambda q, right, near: sum(
        grouped(np.hstack([discretized(near), interior(q)]), q, right)
    ),
}
FUNCTIONS = {metric.__name__: metric for metric in METRICS}


def draw(case, n=700):
    rng = np.random.default_rng(3)
    q, near = rng.beta(4, 1, n), rng.beta(5, 2, n)
    if case == "ties":
        q, near = np.round(q, 1), np.round(near, 1)
    elif case == "ones":
        q[: n // 3] = 1.0
    elif case == "float32":
        q = q.astype(np.float32).astype(np.float64)
    elif case == "close":  # percentiles nearer than 1e-8
        q[: n // 2] = 0.7 + 1e-10 * np.arange(n // 2)
    elif case == "constant":
        q, near = np.full(n, 0.25), np.full(n, 0.5)
    return q, rng.random(n) < q, near  # gaps of both signs, so that merged bins show


@pytest.mark.parametrize("case", ["spread", "ties", "ones", "float32", "close", "constant"])
@pytest.mark.parametrize("name", ORACLES)
def test_dac2024_is_the_published_code(name, case):
    q, right, near = draw(case)
    seen = Outcomes(torch.tensor(q), torch.tensor(right), proximity=torch.tensor(near))
    # the sums are in units of 2^-30
    assert FUNCTIONS[name](seen, DAC) == pytest.approx(ORACLES[name](q, right, near), abs=2e-9)


def test_all_ones_and_half_wrong():
    seen = Outcomes(torch.ones(10), torch.arange(10) % 2 == 0)
    assert ece(seen, DAC) == 0.0  # the published code loses them
    assert ece(seen, STANDARD) == 0.5
    assert [mce_weighted(seen, each) for each in (DAC, STANDARD)] == [0.5, 0.5]


def test_torchmetrics_agrees_below_one_and_differs_at_exactly_one():
    from torchmetrics.functional.classification import binary_calibration_error

    def peer(q, right, norm="l1"):
        # its binary form bins the given number and compares it with the given 0 or 1
        return float(binary_calibration_error(q, right.long(), n_bins=15, norm=norm))

    q, right, _ = (torch.tensor(each) for each in draw("spread"))
    q = q.float()
    seen = Outcomes(q, right)
    assert ece(seen, STANDARD) == pytest.approx(peer(q, right), abs=1e-6)
    assert mce(seen, STANDARD) == pytest.approx(peer(q, right, "max"), abs=1e-6)
    q, right = torch.tensor([0.95, 1.0]), torch.tensor([True, False])
    assert ece(Outcomes(q, right), STANDARD) == pytest.approx(0.475)
    assert peer(q, right) == pytest.approx(0.525)


def test_ece_is_that_of_scikit_learn_calibration_curve():
    from sklearn.calibration import calibration_curve

    q, right, _ = draw("spread")
    share, mean = calibration_curve(right, q, n_bins=15)
    count = np.histogram(q, np.linspace(0, 1, 16))[0]
    expected = (count[count > 0] * np.abs(share - mean)).sum() / len(q)
    seen = Outcomes(torch.tensor(q), torch.tensor(right))
    assert ece(seen, STANDARD) == pytest.approx(expected, abs=2e-9)


def test_equal_mass_without_ties_is_the_plain_sorted_split():
    q, right, _ = draw("spread", n=750)
    order = np.argsort(q)
    parts = [abs(right[part].mean() - q[part].mean()) for part in np.split(order, 15)]
    seen = Outcomes(torch.tensor(q), torch.tensor(right))
    assert ace(seen, STANDARD) == pytest.approx(np.mean(parts), abs=2e-9)


def test_piece_counts_pairs_of_bins():
    # proximity 0.1 and 0.9 at the same confidence: the gaps +0.5 and -0.5 cancel in ECE only
    seen = Outcomes(
        torch.full((4,), 0.5, dtype=torch.float64),
        torch.tensor([True, True, False, False]),
        proximity=torch.tensor([0.9, 0.9, 0.1, 0.1]),
    )
    assert ece(seen, STANDARD) == 0
    assert piece(seen, STANDARD) == 0.5
