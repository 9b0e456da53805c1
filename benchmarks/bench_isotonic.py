"""Isotonic regression and histogram binning, from logits to calibrated test probabilities."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

from benchmarks import peers, workloads
from benchmarks.measure import Provider
from vlcal.calibrators import HistogramBinning, IsotonicRegression, MultiIsotonic
from vlcal.types import Predictions


def sets(workload):
    """Validation logits and labels, and test logits of the same sizes."""
    logits, labels = workloads.logits(workload.n, workload.classes)
    return logits, labels, workloads.logits(workload.n, workload.classes, seed=1)[0]


def ours(calibrator, logits, labels, test):
    fitted = calibrator.fit(Predictions(logits=logits, labels=labels))
    return fitted.predict_proba(Predictions(logits=test))


def netcal(name, logits, labels, test):
    """The library's own steps; it prints about classes without samples."""
    from netcal import binning

    fitted = getattr(binning, name)()
    with redirect_stdout(io.StringIO()), np.errstate(invalid="ignore"):
        fitted.fit(logits.softmax(-1).numpy(), labels.numpy())
        return torch.from_numpy(fitted.transform(test.softmax(-1).numpy()))


def class_by_class(logits, labels, test):
    """A loop over scikit-learn, which the libraries wrap."""
    from sklearn import isotonic

    x, at = (each.softmax(-1).T.double().contiguous().numpy() for each in (logits, test))
    y, made = labels.numpy(), np.zeros(test.shape[::-1])
    for c in range(len(x)):
        if (y == c).any():
            fitted = isotonic.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
            made[c] = fitted.fit(x[c], y == c).predict(at[c])
    total = made.sum(0)
    return torch.from_numpy(made / np.where(total > 0, total, 1)).T


def all_classes(logits, labels, test):
    """The published multi-isotonic regression, one softmax."""
    from sklearn import isotonic

    x, at = (each.softmax(-1).double().numpy() for each in (logits, test))
    y = np.eye(x.shape[1])[labels.numpy()].ravel()
    fitted = isotonic.IsotonicRegression(out_of_bounds="clip").fit(x.ravel(), y)
    return torch.from_numpy(fitted.predict(at.ravel()).reshape(at.shape) + 1e-9 * at)


def few(arrays, rows=1000, classes=30):
    """A part of the data that the gate compares; labels folded into its classes."""
    logits, labels, test = arrays
    return logits[:rows, :classes], labels[:rows] % classes, test[:rows, :classes]


@pytest.mark.parametrize("workload", workloads.LOGITS[:1], ids=str)
def bench_isotonic(bench, workload):
    arrays = sets(workload)
    part = few(arrays)
    truth = class_by_class(*part)
    some = truth.sum(-1) > 0
    got = ours(IsotonicRegression(ties=1e-15), *part)
    bench.check_value("isotonic_regression", got[some], truth[some], 1e-5)
    bench.compare(
        "isotonic_regression",
        workload,
        [
            Provider("vlcal", lambda: ours(IsotonicRegression(), *arrays)),
            Provider(
                "netcal",
                lambda: netcal("IsotonicRegression", *arrays),
                10,
                missing=peers.missing("netcal.binning"),
            ),
            Provider("scikit-learn, class by class", lambda: class_by_class(*arrays)),
        ],
    )


@pytest.mark.parametrize("workload", workloads.LOGITS[:1], ids=str)
def bench_multi_isotonic(bench, workload):
    arrays = sets(workload)
    part = few(arrays)
    got = ours(MultiIsotonic(ties=1e-15), *part)
    bench.check_value("multi_isotonic", got, all_classes(*part), 1e-5)
    bench.compare(
        "multi_isotonic",
        workload,
        [
            Provider("vlcal", lambda: ours(MultiIsotonic(), *arrays)),
            Provider("scikit-learn, flattened", lambda: all_classes(*arrays)),
        ],
        rounds=3,
    )


@pytest.mark.parametrize("workload", workloads.LOGITS, ids=str)
def bench_histogram_binning(bench, workload):
    arrays = sets(workload)
    missing = peers.missing("netcal.binning")
    if missing is None:
        part = few(arrays)
        truth = netcal("HistogramBinning", *part)
        some = ~truth.isnan().any(-1)
        got = ours(HistogramBinning(compat="netcal"), *part)
        bench.check_value("histogram_binning", got[some], truth[some], 1e-5)
    else:
        whole = ours(HistogramBinning(), *few(arrays))
        bench.check_value("histogram_binning", whole.sum(-1), torch.ones(len(whole)), 1e-5)
    bench.compare(
        "histogram_binning",
        workload,
        [
            Provider("vlcal", lambda: ours(HistogramBinning(), *arrays)),
            Provider("netcal", lambda: netcal("HistogramBinning", *arrays), missing=missing),
        ],
        rounds=2 if workload.full else 5,
    )
