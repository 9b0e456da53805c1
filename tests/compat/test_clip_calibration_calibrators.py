"""The published code's calibrators: recorded values of it, and their definitions in loops."""

import numpy as np
import pytest

from tests.compat import oracles
from tests.compat.inputs import fractions, golden, logits
from vlcal.calibrators import NotFitted
from vlcal.compat import clip_calibration as compat
from vlcal.types import NoSamplesError, VlcalWarning

METHODS = {
    "histogram_binning": compat.HistogramBinning,
    "isotonic_regression": compat.IsotonicRegression,
    "multi_isotonic_regression": compat.MultiIsotonicRegression,
}


def halves(case, n=120, n_classes=4):
    """Probabilities, proximities and labels to fit on, then those to calibrate."""
    z, labels = logits(n, n_classes)
    probs, near = oracles.softmax(z), 0.2 + 0.8 * fractions(n, 3571)
    if case == "ties":
        probs, near = np.round(probs, 1), np.round(near, 1)
    elif case == "ones":
        sure = np.arange(n) % 3 == 0
        probs[sure] = np.eye(n_classes)[probs[sure].argmax(1)]
    elif case == "float32":
        probs, near = probs.astype(np.float32), near.astype(np.float32)
    half = n // 2
    return [each[part] for part in (slice(half), slice(half, n)) for each in (probs, near, labels)]


def digits(case):
    return {"abs": 1e-6 if case == "float32" else 1e-12, "nan_ok": True}


def calibrated(name, case):
    """What each calibrator makes of the second half after seeing the first."""
    probs, near, labels, at, at_near, _ = halves(case)
    if name == "density":
        den = compat.DensityRatioCalibration()
        assert den.fit(probs, probs.argmax(1), labels, near) is None
        return den.predict(at, at_near)
    if name == "multi_isotonic":
        mir = compat.MultiIsotonicRegression()
        mir.fit_transform(probs, labels)
        return mir.transform(at)
    shift = compat.BinMeanShift(name, METHODS[name], proximity_bin=3)
    shift.fit_transform(probs, near, labels)
    return shift.transform(at, at_near)


NAMES = ("density", "multi_isotonic", *METHODS)
CASES = ("spread", "ties", "ones", "float32")


@pytest.mark.filterwarnings("ignore::vlcal.types.VlcalWarning")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_recorded_values_of_the_original(name, case):
    seen = calibrated(name, case)[[0, 7, 31]].ravel()
    close = {"abs": 2e-6, "nan_ok": True} if name == "density" else digits(case)
    assert seen == pytest.approx(golden("clip_calibration", f"{name}: {case}"), **close)


@pytest.mark.parametrize("case", CASES)
def test_multi_isotonic_is_one_isotonic_fit_of_every_softmax(case):
    probs, _, labels, at, _, _ = halves(case, n=60)
    mir = compat.MultiIsotonicRegression()
    fitted = mir.fit_transform(probs, labels)
    p, q = oracles.softmax(probs), oracles.softmax(at)
    one_hot, ties = np.eye(4)[labels].ravel(), np.finfo(p.dtype).resolution
    for given, seen in ((p, fitted), (q, mir.transform(at))):
        expected = oracles.isotonic_map(p.ravel(), one_hot, given.ravel(), ties)
        assert seen.dtype == probs.dtype
        assert seen == pytest.approx(expected.reshape(given.shape) + 1e-9 * given, **digits(case))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multi_isotonic_merges_small_probabilities_as_scikit_learn(dtype):
    from sklearn.isotonic import IsotonicRegression

    # most probabilities below 1e-6, many below 1e-15: points that scikit-learn makes one
    z, labels = logits(300, 5, scale=90.0)
    labels = np.where(np.arange(300) % 3 == 0, np.arange(300) % 5, labels)
    mir = compat.MultiIsotonicRegression()
    seen = mir.fit_transform(z.astype(dtype), labels)
    p = oracles.softmax(z.astype(dtype))
    peer = IsotonicRegression(out_of_bounds="clip").fit(p.ravel(), np.eye(5)[labels].ravel())
    expected = peer.predict(p.ravel()).reshape(p.shape) + 1e-9 * p
    np.testing.assert_allclose(seen, expected, rtol=0, atol=4 * np.finfo(dtype).eps)


def test_multi_isotonic_takes_one_hot_labels_and_keeps_its_input():
    probs, _, labels, *_ = halves("spread")
    before = probs.copy()
    by_index = compat.MultiIsotonicRegression().fit_transform(probs, labels)
    by_row = compat.MultiIsotonicRegression().fit_transform(probs, np.eye(4, dtype=int)[labels])
    np.testing.assert_array_equal(by_index, by_row)
    np.testing.assert_array_equal(probs, before)
    assert (by_index.argmax(1) == probs.argmax(1)).all()


@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
@pytest.mark.parametrize("name", METHODS)
def test_bin_mean_shift_is_one_calibrator_per_bin_of_proximity(name, strategy):
    probs, near, labels, at, at_near, _ = halves("spread")
    shift = compat.BinMeanShift(name, METHODS[name], strategy, proximity_bin=3)
    fitted = shift.fit_transform(probs, near, labels)
    inner = {
        "quantile": np.percentile(near, [100 / 3, 200 / 3]),
        "uniform": near.min() + np.ptp(near) * np.array([1 / 3, 2 / 3]),
    }[strategy]
    seen = shift.transform(at, at_near)
    twice = name != "multi_isotonic_regression"  # which takes its own softmax
    for b in range(3):
        part, there = (np.digitize(each, inner) == b for each in (near, at_near))
        one = METHODS[name]()
        given, later = ((oracles.softmax(p) if twice else p) for p in (probs[part], at[there]))
        expected = one.fit_transform(given, labels[part])
        np.testing.assert_allclose(fitted[part], expected, atol=1e-12)
        np.testing.assert_allclose(seen[there], one.transform(later), atol=1e-12)


def test_bin_mean_shift_normalizes_what_it_was_fitted_on_alone():
    probs, near, labels, at, at_near, _ = halves("spread")
    method = compat.MultiIsotonicRegression
    shift = compat.BinMeanShift("multi", method, normalize_conf=True, proximity_bin=2)
    np.testing.assert_allclose(shift.fit_transform(probs, near, labels).sum(1), 1)
    assert abs(shift.transform(at, at_near).sum(1) - 1).max() > 0.01


def test_bin_mean_shift_skips_a_bin_without_rows():
    probs, near, labels, at, at_near, _ = halves("spread")
    shift = compat.BinMeanShift("multi", compat.MultiIsotonicRegression, proximity_bin=3)
    shift.fit_transform(probs, near, labels)
    low = at_near < np.percentile(near, 30)
    expected = shift.transform(at, at_near)[low]
    np.testing.assert_array_equal(shift.transform(at[low], at_near[low]), expected)


@pytest.mark.parametrize("case", ["spread", "ties", "float32"])
@pytest.mark.filterwarnings("ignore::vlcal.types.VlcalWarning")
def test_density_ratio_is_its_definition(case):
    probs, near, labels, at, at_near, _ = halves(case)
    right = probs.argmax(1) == labels
    points, queries = (
        np.stack([p.max(1), d], 1).astype(float) for p, d in ((probs, near), (at, at_near))
    )
    p1, p0 = oracles.density(points[right], queries), oracles.density(points[~right], queries)
    ratio = (~right).sum() / right.sum()
    top = p1 / np.maximum(p1 + ratio * p0, 1e-10)
    expected = np.where(np.eye(4)[at.argmax(1)] > 0, 0, at)
    with np.errstate(all="ignore"):
        expected = expected * ((1 - top) / expected.sum(1))[:, None]
    expected[np.arange(len(at)), at.argmax(1)] = top
    seen = calibrated("density", case)
    assert seen.dtype == np.float64
    assert seen == pytest.approx(expected, abs=2e-6, nan_ok=True)


def test_density_ratio_loses_rows_of_confidence_one_and_says_so():
    probs, near, labels, *_ = halves("spread")
    den = compat.DensityRatioCalibration()
    den.fit(probs, probs.argmax(1), labels, near)
    with pytest.warns(VlcalWarning, match="1 of 2 rows have a confidence of exactly 1"):
        seen = den.predict(np.array([[0, 1.0, 0, 0], [0.1, 0.2, 0.3, 0.4]]), near[:2])
    assert np.isnan(seen[0, [0, 2, 3]]).all()
    assert 0 <= seen[0, 1] <= 1
    assert seen[1].sum() == pytest.approx(1)


def test_density_ratio_takes_two_bandwidths():
    probs, near, labels, at, at_near, _ = halves("spread")
    den = compat.DensityRatioCalibration()
    den.fit(probs, probs.argmax(1), labels, near, bandwidth=[100.0, 100.0])
    share = (probs.argmax(1) == labels).mean()
    # so wide that density says nothing, up to its floor
    top = den.predict(at, at_near)[np.arange(len(at)), at.argmax(1)]
    assert top == pytest.approx(share, abs=1e-3)


def test_what_cannot_be_calibrated_is_refused():
    probs, near, labels, *_ = halves("spread")
    den, mir = compat.DensityRatioCalibration(), compat.MultiIsotonicRegression()
    shift = compat.BinMeanShift("multi", compat.MultiIsotonicRegression)
    for call in (
        lambda: den.predict(probs, near),
        lambda: mir.transform(probs),
        lambda: shift.transform(probs, near),
    ):
        with pytest.raises(NotFitted, match="comes before"):
            call()
    with pytest.raises(ValueError, match="at least 3 correct and 3 wrong"):
        den.fit(probs, labels, labels, near)
    with pytest.raises(ValueError, match="'normal_reference' or two numbers, got 'cv_ml'"):
        den.fit(probs, probs.argmax(1), labels, near, bandwidth="cv_ml")
    with pytest.raises(ValueError, match=r"probs must be in 0\.\.1 and not NaN"):
        den.fit(probs * 2, probs.argmax(1), labels, near)
    with pytest.raises(ValueError, match="overflow exp"):
        mir.fit_transform(probs * 1e4, labels)
    with pytest.raises(ValueError, match="finite"):
        mir.fit_transform(probs * np.nan, labels)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3"):
        mir.fit_transform(probs, labels + 1)
    with pytest.raises(NoSamplesError, match="MultiIsotonicRegression"):
        mir.fit_transform(probs[:0], labels[:0])
    with pytest.raises(ValueError, match="'quantile' or 'uniform', got 'kmeans'"):
        compat.BinMeanShift("multi", compat.MultiIsotonicRegression, "kmeans")
    with pytest.raises(ValueError, match=r"proximity must be finite \[N\] = \[60\]"):
        shift.fit_transform(probs, near[1:], labels)
