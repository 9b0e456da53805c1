"""Histogram binning: a toy by hand, streams and merges, new classes, netcal's numbers."""

import numpy as np
import pytest
import torch

from vlcal.calibrators import HistogramBinning, NewClasses, NotFitted
from vlcal.types import NoSamplesError, Predictions, VlcalWarning


def of(probs, labels=None, **rest):
    """Predictions whose softmax is these probabilities, up to float64 rounding."""
    probs = torch.as_tensor(probs, dtype=torch.float64)
    labels = None if labels is None else torch.as_tensor(labels)
    return Predictions(logits=probs.clamp(min=1e-300).log(), labels=labels, **rest)


def random_predictions(n, classes, seed, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=dtype) * scale
    labels = (logits / 2).softmax(-1).multinomial(1, generator=generator)[:, 0]
    return Predictions(logits=logits, labels=labels)


TOY = of([[0.9, 0.1], [0.8, 0.2], [0.75, 0.25], [0.3, 0.7]], [0, 1, 0, 1])


def test_toy_one_versus_rest():
    # two bins; class 0: (0, .5] holds 0.3 (wrong), (.5, 1] holds three, two of them right
    fitted = HistogramBinning(n_bins=2).fit(TOY)
    assert fitted.table_.tolist() == [[[1, 3], [3, 1]], [[0, 2], [1, 1]]]
    # class 0: 2/3 and class 1: 1/3, which sum to one; class 0: 0 and class 1: 1
    got = fitted.predict_proba(of([[0.6, 0.4], [0.1, 0.9]]))
    torch.testing.assert_close(got, torch.tensor([[2 / 3, 1 / 3], [0.0, 1.0]]).double())


def test_toy_top_label():
    fitted = HistogramBinning(n_bins=2, mode="top_label").fit(TOY)
    assert fitted.table_.tolist() == [[[0, 4]], [[0, 3]]]
    # 3 of 4 are right, the rest is shared as before: 3 to 1
    got = fitted.predict_proba(of([[0.6, 0.3, 0.1], [0.1, 0.9, 0.0]]))
    wanted = [[0.75, 0.1875, 0.0625], [0.25, 0.75, 0.0]]
    torch.testing.assert_close(got, torch.tensor(wanted).double())


def test_others_without_any_probability_share_the_rest_evenly():
    fitted = HistogramBinning(n_bins=2, mode="top_label").fit(TOY)
    sure = Predictions(logits=torch.tensor([[2000.0, 0.0, 0.0]]))
    assert fitted.predict_proba(sure).tolist() == [[0.75, 0.125, 0.125]]
    assert fitted.predict_proba(Predictions(logits=torch.zeros(1, 1))).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("options", "value"), [({}, 0.15), ({"empty": "keep"}, 0.12), ({"n_bins": 5}, 0.0)]
)
def test_empty_bins_give_their_midpoint_or_keep_the_probability(options, value):
    fitted = HistogramBinning(**({"n_bins": 10} | options)).fit(
        of([[0.9, 0.1], [0.02, 0.98]], [0, 1])
    )
    # class 1 was seen with 0.88 in no bin of ten: 0.85, kept 0.88, in one of five: 1
    got = fitted.predict_proba(of([[0.12, 0.88]]))[0, 0]
    other = {0.15: 0.85, 0.12: 0.88, 0.0: 1.0}[value]
    assert float(got) == pytest.approx(value / (value + other))


def test_absent_classes_give_zero_or_keep_the_probability():
    val = of([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], [0, 1])
    test = of([[0.5, 0.3, 0.2]])
    assert HistogramBinning().fit(val).predict_proba(test)[0, 2] == 0
    kept = HistogramBinning(absent="keep").fit(val).predict_proba(test)
    assert kept[0].tolist() == pytest.approx([1 / 1.2, 0, 0.2 / 1.2])


def test_rows_without_any_probability_stay_and_are_counted():
    # class 0 is never right in the low bin, nor class 1 and 2 in theirs
    val = of([[0.4, 0.35, 0.25], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05]], [2, 0, 1])
    fitted = HistogramBinning(n_bins=2).fit(val)
    test = of([[0.4, 0.3, 0.3], [0.1, 0.8, 0.1]])
    assert fitted.predict_proba(test)[0].tolist() == pytest.approx([0, 0, 1])
    fitted.table_[1, 2] = 0
    with pytest.warns(VlcalWarning, match="hb: 1 of 2 rows had probability 0 in every class"):
        got = fitted.predict_proba(test)
    assert got[0].tolist() == pytest.approx([0.4, 0.3, 0.3])


@pytest.mark.parametrize("mode", ["one_versus_rest", "top_label"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_softmax_of_the_logits_is_the_calibrated_belief(mode, dtype):
    val, test = (random_predictions(500, 5, seed, dtype) for seed in (0, 1))
    fitted = HistogramBinning(mode=mode).fit(val)
    probs, after = fitted.predict_proba(test), fitted.transform(test).logits
    assert after.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(probs.sum(-1), torch.ones(500).to(probs))
    torch.testing.assert_close(after.softmax(-1), probs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["one_versus_rest", "top_label"])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_batches_and_shards_give_the_same_bits(mode, parts):
    whole = random_predictions(700, 6, 0)
    pieces = [whole.select(rows) for rows in torch.randperm(700).chunk(parts)]
    once = HistogramBinning(mode=mode).fit(whole)
    streamed, merged = HistogramBinning(mode=mode), HistogramBinning(mode=mode).fit(pieces[0])
    for piece in pieces:
        streamed.partial_fit(piece)
    for piece in pieces[1:]:
        merged.merge(HistogramBinning(mode=mode).fit(piece))
    assert torch.equal(streamed.table_, once.table_)
    assert torch.equal(merged.table_, once.table_)
    assert len(streamed.fitted_on_) == len(merged.fitted_on_) == parts


def test_fit_forgets_what_was_counted_before():
    again = HistogramBinning().fit(random_predictions(50, 2, 1)).fit(TOY)
    assert torch.equal(again.table_, HistogramBinning().fit(TOY).table_)


def test_only_the_same_bins_merge():
    fitted = HistogramBinning().fit(TOY)
    with pytest.raises(ValueError, match="only histograms over the same bins"):
        fitted.merge(HistogramBinning(n_bins=4).fit(TOY))
    with pytest.raises(NotFitted, match="fit comes before merge"):
        fitted.merge(HistogramBinning())


def test_one_versus_rest_refuses_new_classes_and_top_label_takes_them():
    val, new = random_predictions(50, 4, 0), random_predictions(50, 6, 1)
    with pytest.raises(NewClasses, match="hb: learned a map for each of the 4 classes"):
        HistogramBinning().fit(val).transform(new)
    with pytest.raises(NewClasses, match="these predictions have 6"):
        HistogramBinning().fit(val).partial_fit(new)
    top = HistogramBinning(mode="top_label").fit(val)
    assert top.handles_new_classes
    assert top.partial_fit(new).transform(new.select(torch.arange(9))).n_classes == 6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_bins": 0}, "hb: n_bins must be an integer >= 1, got 0"),
        ({"mode": "all"}, "hb: mode must be one of one_versus_rest, top_label, got 'all'"),
        ({"closed": "both"}, "hb: closed must be"),
        ({"empty": "zero"}, "hb: empty must be one of midpoint, keep"),
        ({"compat": "sklearn"}, "hb: compat must be one of None, netcal"),
    ],
)
def test_refuses_unknown_options(options, match):
    with pytest.raises(ValueError, match=match):
        HistogramBinning(**options)


def test_refuses_no_samples():
    empty = Predictions(logits=torch.zeros(0, 3), labels=torch.zeros(0).long())
    with pytest.raises(NoSamplesError, match="hb: fit needs at least one sample"):
        HistogramBinning().fit(empty)
    assert HistogramBinning().fit(TOY).predict_proba(
        empty.with_logits(torch.zeros(0, 2))
    ).shape == (
        0,
        2,
    )


def edges_and_ties(dtype):
    """Probabilities on bin edges, ties, a class without samples; the same on every release."""
    random = np.random.RandomState(3)
    logits = torch.from_numpy(random.randn(400, 7)).to(dtype) * 2
    labels = torch.from_numpy(np.where(random.rand(400) < 0.5, logits.argmax(1), 0))
    labels[::7] = torch.from_numpy(random.randint(0, 7, len(labels[::7])))
    on_edges = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0], dtype=dtype)
    logits[::5] = on_edges.log().clamp(min=-200)
    labels[labels == 3] = 0
    return Predictions(logits=logits, labels=labels)


# made by netcal 1.4.0: HistogramBinning(bins=10).fit(P, y).transform(P), first row and column sums
GOLDEN = {
    torch.float32: (
        [0.6718981, 0.0656418, 0.146048, 0.0, 0.0203566, 0.0687234, 0.0273321],
        [248.3294, 27.12717, 31.58295, 0.0, 29.26741, 38.42732, 25.26576],
    ),
    torch.float64: (
        [0.7059645, 0.0572404, 0.1144807, 0.0, 0.0213887, 0.0722078, 0.0287179],
        [249.2157, 26.0737, 31.78516, 0.0, 29.24503, 38.47202, 25.20839],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_netcal_compat_is_the_recorded_result(dtype):
    predictions = edges_and_ties(dtype)
    got = HistogramBinning(compat="netcal").fit(predictions).predict_proba(unlabeled(predictions))
    row, sums = (torch.tensor(values).double() for values in GOLDEN[dtype])
    torch.testing.assert_close(got[0].double(), row, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.double().sum(0), sums, rtol=0, atol=1e-4)


def unlabeled(predictions):
    return Predictions(logits=predictions.logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_bins", [2, 10, 15])
@pytest.mark.filterwarnings("ignore")
def test_netcal_compat_is_netcal(dtype, n_bins):
    binning = pytest.importorskip("netcal.binning", reason="netcal is no dependency of the tests")
    predictions = edges_and_ties(dtype)
    probs = predictions.logits.softmax(-1)
    theirs = binning.HistogramBinning(bins=n_bins).fit(probs.numpy(), predictions.labels.numpy())
    wanted = torch.from_numpy(theirs.transform(probs.numpy()))
    fitted = HistogramBinning(n_bins=n_bins, compat="netcal").fit(predictions)
    got = fitted.predict_proba(unlabeled(predictions))
    wanted = wanted.where(~wanted.isnan(), probs)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-15)


def test_the_default_rule_differs_from_netcal_on_edges_only():
    predictions = edges_and_ties(torch.float64)
    off = random_predictions(300, 7, 5, torch.float64)
    ours, compat = (HistogramBinning(compat=c).fit(predictions) for c in (None, "netcal"))
    assert not torch.equal(ours.table_, compat.table_)
    ours, compat = (HistogramBinning(compat=c).fit(off) for c in (None, "netcal"))
    assert torch.equal(ours.table_, compat.table_)
