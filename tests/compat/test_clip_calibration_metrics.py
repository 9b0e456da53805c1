"""The published code's metrics: recorded values of it, and its formulas again in plain NumPy."""

import inspect
import warnings

import numpy as np
import pytest

from tests.compat.inputs import CASES, samples
from vlcal.compat import clip_calibration as compat
from vlcal.types import NoSamplesError

GOLDEN = {
    "spread": [0.089942337505, 0.022908489422, 0.082279752919, 0.182711322864, 0.148961786904],
    "ties": [0.061500000000, 0.016500000000, 0.048500000000, 0.124500000000, 0.135500000000],
    "ones": [0.095491664214, 0.017736913269, 0.047836413067, 0.136052844359, 0.103113732867],
    "above": [0.081073710701, 0.017736913269, 0.047836412808, 0.136052844223, 0.103113732881],
    "float32": [0.090087185641, 0.022908490300, 0.082279751301, 0.182711325954, 0.148961793249],
    "constant": [0.065000000000, 0.065000000000, 0.065000000000, 0.065000000000, 0.065000000000],
    "edges": [0.062500000000, 0.025000000000, 0.069500000000, 0.157500000000, 0.165500000000],
}


def gap_sum(cells, conf, right, reduce=sum):
    """Sum or maximum over cells of share x |accuracy - confidence|."""
    parts = [cells == cell for cell in np.unique(cells)]
    return reduce(part.mean() * abs(right[part].mean() - conf[part].mean()) for part in parts)


def ece_by_hand(conf, right, n_bins):
    edges = np.linspace(0, 1, n_bins + 1)
    total = 0.0
    for b in range(n_bins):
        inside = (edges[b] <= conf) & (conf < edges[b + 1])
        last = (conf == 1) if b == n_bins - 1 else np.zeros(len(conf), bool)
        if inside.any():
            share = (inside | last).mean()
            total += share * abs(right[inside].mean() - conf[inside].mean())
    return total


def discretized(values, n_bins, strategy="quantile"):
    """scikit-learn's bins with the quantile rule of the code's time."""
    from sklearn.preprocessing import KBinsDiscretizer

    options = {"encode": "ordinal", "strategy": strategy, "subsample": None}
    if "quantile_method" in inspect.signature(KBinsDiscretizer).parameters:
        options["quantile_method"] = "linear"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # merged bins and constant features are announced
        return KBinsDiscretizer(n_bins, **options).fit_transform(values[:, None])[:, 0]


def interior(conf, n_bins):
    return np.digitize(conf, np.linspace(0, 1, n_bins + 1)[1:-1])


def tolerance(case):
    """Sums are in units of 2^-30; the original adds float32 confidences in float32."""
    return 1e-7 if case == "float32" else 2e-9


@pytest.mark.parametrize("case", CASES)
def test_equals_the_recorded_values_of_the_original(case):
    conf, near, pred, gt = samples(case)
    seen = [
        compat.ECE(conf, pred, gt),
        compat.MCE(conf, pred, gt),
        compat.AdaptiveECE(conf, pred, gt),
        compat.PIECE(conf, near, pred, gt),
        compat.PIECE(conf, near, pred, gt, 5, 15, "uniform"),
    ]
    assert seen == pytest.approx(GOLDEN[case], abs=tolerance(case))
    assert {type(value) for value in seen} == {np.float64}


@pytest.mark.parametrize("n_bins", [1, 3, 10, 15])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formulas(case, n_bins):
    conf, near, pred, gt = samples(case, n=333)
    right, close = pred == gt, {"abs": tolerance(case)}
    q = conf.astype(np.float64)
    args = (conf, pred, gt, n_bins)
    assert compat.ECE(*args) == pytest.approx(ece_by_hand(q, right, n_bins), **close)
    bins = interior(q, n_bins)
    assert compat.MCE(*args) == pytest.approx(gap_sum(bins, q, right, max), **close)
    expected = gap_sum(discretized(conf, max(n_bins, 2)), q, right)
    assert compat.AdaptiveECE(conf, pred, gt, max(n_bins, 2)) == pytest.approx(expected, **close)
    for strategy in ("quantile", "uniform"):
        pairs = discretized(near, 4, strategy) * n_bins + bins
        seen = compat.PIECE(conf, near, pred, gt, 4, n_bins, strategy)
        assert seen == pytest.approx(gap_sum(pairs, q, right), **close)


def test_confidences_of_exactly_one_lose_their_gap_in_ece_alone():
    conf, pred, gt = np.ones(10), np.zeros(10, int), np.arange(10) % 2
    assert compat.ECE(conf, pred, gt) == 0.0
    assert compat.MCE(conf, pred, gt) == compat.AdaptiveECE(conf, pred, gt) == 0.5


def test_accuracy_and_confidence_of_an_interval():
    conf, pred, gt = np.array([0.2, 0.4, 0.6]), np.array([1, 1, 1]), np.array([1, 0, 1])
    assert compat.compute_acc_bin(0.2, 0.6, conf, pred, gt) == (0.5, 0.5, 2)
    assert compat.compute_acc_bin(0.7, 0.8, conf, pred, gt) == (0, 0, 0)


@pytest.mark.parametrize("name", ["ECE", "MCE", "AdaptiveECE"])
def test_bad_samples_are_refused(name):
    metric = getattr(compat, name)
    with pytest.raises(ValueError, match=r"not NaN, got nan in row 1 \(1 such rows\)"):
        metric(np.array([0.5, np.nan]), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"got 1\.5 in row 0"):
        metric(np.array([1.5]), np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match=rf"{name}: conf, pred and gt must be \[N\] each"):
        metric(np.ones(3), np.zeros(3), np.zeros(2))
    with pytest.raises(NoSamplesError, match=name):
        metric(np.ones(0), np.zeros(0), np.zeros(0))


def test_piece_refuses_unknown_bins_and_distances_that_are_not_finite():
    conf, near, pred, gt = samples("spread", 10)
    with pytest.raises(ValueError, match="'quantile' or 'uniform', got 'kmeans'"):
        compat.PIECE(conf, near, pred, gt, knn_strategy="kmeans")
    near[3] = np.inf
    with pytest.raises(ValueError, match=r"knndist must be finite .* 1 that are not"):
        compat.PIECE(conf, near, pred, gt)
