"""Proximity-binned calibration: a toy by hand, the published steps, degenerate and refused bins."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import isotonic
from torch.nn.functional import normalize

from vlcal.calibrators import (
    HistogramBinning,
    IsotonicRegression,
    MultiIsotonic,
    NewClasses,
    ProximityBinned,
    TemperatureScaling,
)
from vlcal.types import Predictions


def images(n, classes, seed, scale=3.0):
    """Images whose logits say more the closer they are to the others; the same on every release."""
    random = np.random.RandomState(seed)
    spread = random.rand(n, 1) * 2
    features = normalize(torch.from_numpy(1 + spread * random.randn(n, 8)).float(), dim=-1)
    logits = torch.from_numpy(random.randn(n, classes)) * scale
    noise = torch.from_numpy(random.gumbel(size=(n, classes)) * (0.5 + spread))
    labels = (logits / 2 + noise).argmax(-1)
    return Predictions(logits=logits, labels=labels, image_features=features)


def unlabeled(predictions):
    return replace(predictions, labels=None)


def proximities(queries, keys, k, exclude_self):
    """exp(-mean of the k smallest distances), by NumPy in float64."""
    distance = np.sqrt(((queries[:, None] - keys[None]) ** 2).sum(-1))
    nearest = np.sort(distance, 1)[:, int(exclude_self) : k + int(exclude_self)]
    return np.exp(-nearest.mean(1))


def published(val, test, apply, k=5, n_bins=5, double=False):
    """The steps of the published code: percentiles, one calibrator a bin, original order."""
    x, at = (each.logits.softmax(-1).numpy() for each in (val, test))
    if double:
        x, at = (np.exp(p) / np.exp(p).sum(1, keepdims=True) for p in (x, at))
    keys, queries = (each.image_features.double().numpy() for each in (val, test))
    near, far = proximities(keys, keys, k, True), proximities(queries, keys, k, False)
    edges = np.percentile(near, np.linspace(0, 100, n_bins + 1))
    bins, at_bins = (np.searchsorted(edges[1:-1], p, side="right") for p in (near, far))
    made = np.zeros_like(at)
    for each in range(n_bins):
        rows, there = bins == each, at_bins == each
        if there.any():
            made[there] = apply(x[rows], val.labels.numpy()[rows], at[there])
    return made


def multi_isotonic(x, labels, test):
    y = np.eye(x.shape[1])[labels]
    fitted = isotonic.IsotonicRegression(out_of_bounds="clip").fit(x.ravel(), y.ravel())
    return fitted.predict(test.ravel()).reshape(test.shape) + 1e-9 * test


def one_versus_rest(x, labels, test):
    made = np.zeros_like(test)
    for c in np.unique(labels):
        fitted = isotonic.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        made[:, c] = fitted.fit(x[:, c], np.float64(labels == c)).predict(test[:, c])
    return made / made.sum(1, keepdims=True)


def test_toy():
    # four images in a crowd, four alone: the same logits are right in the crowd only
    crowd, alone = torch.zeros(4, 2), torch.tensor([[9.0, 0], [0, 9.0], [-9.0, 0], [0, -9.0]])
    crowd[:, 0] = torch.arange(4) * 0.01
    probs = torch.tensor([0.8, 0.2]).repeat(8, 1)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    val = Predictions(logits=probs.log(), labels=labels, image_features=torch.cat([crowd, alone]))
    fitted = ProximityBinned(base=HistogramBinning(n_bins=2), n_bins=2, k=1).fit(val)
    near, far = torch.tensor([[0.005, 0.0]]), torch.tensor([[50.0, 50.0]])
    test = Predictions(logits=probs[:2].log(), image_features=torch.cat([near, far]))
    got = fitted.predict_proba(test)
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.0], [0.25, 0.75]]))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("n_bins", "k"), [(5, 5), (3, 10), (1, 1)])
def test_multi_isotonic_bins_are_the_published_steps(double, n_bins, k):
    val, test = images(200, 7, 0), unlabeled(images(90, 7, 1))
    wanted = published(val, test, multi_isotonic, k, n_bins, double)
    softmax = "double" if double else "single"
    fitted = ProximityBinned(MultiIsotonic(ties=1e-15), n_bins=n_bins, k=k, softmax=softmax).fit(
        val
    )
    np.testing.assert_allclose(fitted.predict_proba(test).numpy(), wanted, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:ir. .* rows had probability 0")
@pytest.mark.parametrize("double", [False, True])
def test_isotonic_bins_are_the_published_steps(double):
    val, test = images(300, 4, 0), unlabeled(images(90, 4, 1))
    with np.errstate(invalid="ignore"):
        wanted = published(val, test, one_versus_rest, double=double)
    base = IsotonicRegression(ties=1e-15)
    fitted = ProximityBinned(base, softmax="double" if double else "single").fit(val)
    got = fitted.predict_proba(test).numpy()
    rows = ~np.isnan(wanted).any(1)
    assert rows.sum() > 80
    np.testing.assert_allclose(got[rows], wanted[rows], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("classes", "distinct"), [(30, 1), (8, 2)])
def test_a_double_softmax_leaves_histograms_one_answer_a_bin(classes, distinct):
    # e / (C - 1 + e) is 0.086 for 30 classes: all in the first of ten bins; 0.28 for 8
    val, test = images(400, classes, 0), unlabeled(images(200, classes, 1))
    fitted = ProximityBinned("hb", softmax="double").fit(val)
    got = fitted.predict_proba(test)
    if distinct == 1:
        assert len(got.unique(dim=0)) == 5
    else:
        assert len(got.unique(dim=0)) > 5
    assert len(ProximityBinned("hb").fit(val).predict_proba(test).unique(dim=0)) > 20


@pytest.mark.filterwarnings("ignore")
def test_histogram_bins_are_netcal_in_the_published_steps():
    binning = pytest.importorskip("netcal.binning", reason="netcal is no dependency of the tests")
    val, test = images(400, 30, 0), unlabeled(images(90, 30, 1))

    def apply(x, labels, at):
        return binning.HistogramBinning(bins=10).fit(x, labels).transform(at)

    with np.errstate(invalid="ignore"):
        wanted = published(val, test, apply, double=True)
    fitted = ProximityBinned(HistogramBinning(compat="netcal"), softmax="double").fit(val)
    got = fitted.predict_proba(test).numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13)


def test_validation_images_are_left_out_of_their_own_neighbors():
    val = images(60, 3, 0)
    fitted = ProximityBinned(k=3).fit(val)
    features = val.image_features.double().numpy()
    for exclude_self in (True, False):
        fitted.exclude_self = exclude_self
        wanted = proximities(features, features, 3, exclude_self)
        np.testing.assert_allclose(fitted.proximity(unlabeled(val)).numpy(), wanted, atol=1e-6)


def test_edges_are_closed_on_the_left_and_images_outside_are_in_the_end_bins():
    fitted = ProximityBinned(n_bins=3)
    edges = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    near = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    assert fitted._bins(edges, near).tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_bins_without_test_images_are_no_trouble():
    val = images(100, 3, 0)
    fitted = ProximityBinned().fit(val)
    one = unlabeled(val.select(torch.arange(1)))
    assert fitted.predict_proba(one).shape == (1, 3)
    none = unlabeled(val.select(torch.arange(0)))
    assert fitted.transform(none).logits.shape == (0, 3)


def test_bins_that_are_too_small_are_explained():
    same = images(30, 3, 0)
    same = replace(same, image_features=torch.ones(30, 4))
    with pytest.raises(ValueError, match="got 0 of 30 in bin 0; fewer bins"):
        ProximityBinned().fit(same)
    with pytest.raises(ValueError, match="pb: k must be below the number of validation images"):
        ProximityBinned(k=30).fit(same)
    with pytest.raises(ValueError, match="each of the 5 proximity bins needs 50"):
        ProximityBinned(fewest=50).fit(images(100, 3, 0))


def test_declarations_are_those_of_the_base():
    val, new = images(100, 3, 0), unlabeled(images(50, 6, 1))
    assert ProximityBinned("mir").keeps_argmax
    assert not ProximityBinned("hb").handles_new_classes
    assert ProximityBinned(HistogramBinning(mode="top_label")).handles_new_classes
    assert ProximityBinned("mir").fit(val).transform(new).n_classes == 6
    with pytest.raises(NewClasses, match="hb: learned a map for each of the 3 classes"):
        ProximityBinned("hb").fit(val).transform(new)


def test_an_object_as_base_stays_unfitted():
    base = HistogramBinning(n_bins=4)
    fitted = ProximityBinned(base).fit(images(100, 3, 0))
    assert base.table_ is None
    assert [each.n_bins for each in fitted.calibrators_] == [4] * 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"base": "ts"}, "pb: base must be one of hb, ir, mir, got 'ts'"),
        ({"base": TemperatureScaling()}, "pb: base must be one of .* got TemperatureScaling"),
        ({"n_bins": 0}, "pb: n_bins must be an integer >= 1"),
        ({"k": 0}, "pb: k and fewest must be at least 1"),
        ({"softmax": "triple"}, "pb: softmax must be one of single, double"),
    ],
)
def test_refuses_unknown_options(options, match):
    with pytest.raises(ValueError, match=match):
        ProximityBinned(**options)


def test_features_are_needed_on_both_sides():
    val = images(50, 3, 0)
    with pytest.raises(ValueError, match="pb: needs predictions with image_features"):
        ProximityBinned().fit(replace(val, image_features=None))
    with pytest.raises(ValueError, match="pb: needs predictions with image_features"):
        ProximityBinned().fit(val).transform(replace(val, image_features=None, labels=None))
