"""One line of an agreement table: a compat function, its original, and our default."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import vlcal
from benchmarks.agreement_arrays import Data, Half
from vlcal import calibrators
from vlcal.compat import clip_calibration, faiss, netcal, torchmetrics
from vlcal.types import Predictions

NEIGHBORS = 5


@dataclass(frozen=True)
class Line:
    """One comparison: numbers, or the largest difference of arrays."""

    what: str
    original: str
    ours: str
    difference: str
    default: str


Compare = Callable[[Data, Any], Iterator[Line]]


def number(what: str, theirs: Callable[[], float], ours: float, default: str) -> Line:
    """A line of one number each; a failure of the original is reported by its type."""
    try:
        with quiet():
            value = float(theirs())
    except Exception as error:
        return Line(what, f"fails ({type(error).__name__})", f"{ours:.6f}", "", default)
    return Line(what, f"{value:.6f}", f"{ours:.6f}", f"{abs(value - ours):.1e}", default)


def arrays(what: str, theirs: Callable[[], Any], ours: Any, default: str, shown: Any) -> Line:
    """A line of what `shown` makes of each array, and of their largest difference."""
    try:
        with quiet():
            value = np.asarray(theirs())
    except Exception as error:
        return Line(what, f"fails ({type(error).__name__})", shown(ours), "", default)
    if np.array_equal(np.isnan(value), np.isnan(ours)):
        gap = f"{np.nanmax(np.abs(value.astype(float) - ours)):.1e}"
    else:
        gap = "other rows are NaN"
    return Line(what, shown(value), shown(ours), gap, default)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Others print and warn while they work."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def ece_of(labels: np.ndarray) -> Callable[[Any], str]:
    """ECE under `standard` of probabilities, rows divided by their sums, those of NaN left out."""

    def shown(probs: Any) -> str:
        rows = np.asarray(probs, dtype=np.float64)
        good = ~np.isnan(rows).any(1) & (rows.sum(1) > 0)
        rows = rows[good] / rows[good].sum(1, keepdims=True)
        return f"ECE {vlcal.evaluate(probs=rows, labels=labels[good]).metrics['ece']:.6f}"

    return shown


def default_ece(name: str, val: Half, test: Half, **options: Any) -> str:
    """The same of our calibrator, with its defaults but for what the original chose."""
    given = [
        Predictions(
            logits=torch.from_numpy(half.logits),
            labels=torch.from_numpy(half.labels),
            image_features=None if half.images is None else torch.from_numpy(half.images).float(),
        )
        for half in (val, test)
    ]
    with quiet():
        one = calibrators.calibrator(name)(**options)
        made = one.fit(given[0]).transform(given[1])
        return f"`{name}` ECE {vlcal.evaluate(predictions=made).metrics['ece']:.6f}"


def torchmetrics_lines(data: Data, peer: Any) -> Iterator[Line]:
    """Calibration errors of the test half."""
    probs, labels = (torch.from_numpy(each) for each in (data.test.probs, data.test.labels))
    default = vlcal.evaluate(probs=probs, labels=labels).metrics
    functional = importlib.import_module("torchmetrics.functional.classification")
    n_classes = probs.shape[1]
    for norm, name in (("l1", "ece"), ("l2", "rmsce"), ("max", "mce")):
        ours = torchmetrics.multiclass_calibration_error(probs, labels, n_classes, 15, norm)
        yield number(
            f"multiclass_calibration_error, 15 bins, norm {norm}",
            lambda norm=norm: functional.multiclass_calibration_error(
                probs, labels, n_classes, 15, norm
            ),
            float(ours),
            f"`{name}` {default[name]:.6f}",
        )


def netcal_lines(data: Data, peer: Any) -> Iterator[Line]:
    """Metrics of the test half, then calibrators fitted on the validation half."""
    val, test = data.val, data.test
    default = vlcal.evaluate(probs=test.probs, labels=test.labels).metrics
    theirs = importlib.import_module("netcal.metrics")
    for name, metric in (("ECE", "ece"), ("ACE", "average_ce"), ("MCE", "mce")):
        yield number(
            f"{name}(10).measure",
            lambda name=name: getattr(theirs, name)(10).measure(test.probs, test.labels),
            getattr(netcal, name)(10).measure(test.probs, test.labels),
            f"`{metric}` {default[metric]:.6f}",
        )
    rooms = {"HistogramBinning": "binning", "IsotonicRegression": "binning"}
    rooms["TemperatureScaling"] = "scaling"
    shown = ece_of(test.labels)
    for name, short in zip(rooms, ("hb", "ir", "ts"), strict=True):
        original = getattr(importlib.import_module(f"netcal.{rooms[name]}"), name)
        options = {"tensorboard": False} if short == "ts" else {}
        with quiet():
            ours = getattr(netcal, name)().fit(val.probs, val.labels).transform(test.probs)
        yield arrays(
            f"{name}().fit.transform",
            lambda original=original, options=options: (
                original().fit(val.probs, val.labels, **options).transform(test.probs)
            ),
            ours,
            default_ece(short, val, test),
            shown,
        )


def faiss_lines(data: Data, peer: Any) -> Iterator[Line]:
    """Flat searches of test images among validation images."""
    if data.val.images is None or data.test.images is None:
        return
    keys, queries = (half.images.astype(np.float32) for half in (data.val, data.test))
    exact = vlcal.ops.knn(torch.from_numpy(queries), torch.from_numpy(keys), NEIGHBORS)
    for name in ("IndexFlatL2", "IndexFlatIP"):
        index, original = getattr(faiss, name)(keys.shape[1]), getattr(peer, name)(keys.shape[1])
        for each in (index, original):
            each.add(keys)
        ours, found = index.search(queries, NEIGHBORS)
        theirs, their_found = original.search(queries, NEIGHBORS)
        score = [
            np.einsum("qd,qkd->qk", queries, keys[each], dtype=np.float64)
            for each in (found, their_found)
        ]
        same = f"{(found == their_found).mean():.2%} of the indices equal"
        tied = (found != their_found) & (abs(score[0] - score[1]) < 1e-6)
        if tied.any():
            same += f", {tied.mean():.2%} ties or closer than 1e-6"
        own = "" if name == "IndexFlatIP" else f"`knn` mean distance {exact.distance.mean():.6f}"
        line = arrays(
            f"{name}.search, k {NEIGHBORS}",
            lambda theirs=theirs: theirs,
            ours,
            own,
            lambda x: f"mean {x.mean():.6f}",
        )
        yield Line(f"{line.what}; {same}", *list(vars(line).values())[1:])


def dac_lines(data: Data, peer: Any) -> Iterator[Line]:
    """Everything the published code of DAC does, on the test half."""
    yield from _dac_metrics(data, peer)
    yield from _dac_calibrators(data, peer)
    if data.texts is not None:
        yield _dac_itself(data, peer)


def _near(data: Data, library: Any) -> list[np.ndarray]:
    """Proximity of validation images to each other, and of test images to them."""
    val, test = data.val.images, data.test.images
    if val is None or test is None:
        rng = np.random.default_rng(0)
        return [rng.beta(5, 2, size=len(half.labels)) for half in (data.val, data.test)]
    own = library.get_val_image_knn_dists(val, NEIGHBORS)
    other = library.get_knn_dists(val, test, NEIGHBORS)
    return [np.exp(-each.mean(-1)) for each in (own, other)]


def _dac_metrics(data: Data, peer: Any) -> Iterator[Line]:
    test, near = data.test, _near(data, clip_calibration)[1]
    args = test.probs.max(1).astype(np.float64), test.probs.argmax(1), test.labels
    given = {"probs": test.probs, "labels": test.labels, "proximity": near}
    default = vlcal.evaluate(**given).metrics
    for name, metric in (
        ("ECE", "ece"),
        ("MCE", "mce"),
        ("AdaptiveECE", "ace"),
        ("PIECE", "piece"),
    ):
        call = (args[0], near, *args[1:]) if name == "PIECE" else args
        own = f"`{metric}` {default[metric]:.6f}"
        if name == "MCE":
            own += f", `mce_weighted` {default['mce_weighted']:.6f}"
        yield number(
            f"{name}, 10 bins",
            lambda name=name, call=call: getattr(peer, name)(*call),
            getattr(clip_calibration, name)(*call),
            own,
        )
    if test.images is not None:
        for k, what in enumerate(("get_val_image_knn_dists", "get_knn_dists")):
            yield arrays(
                f"exp(-mean) of {what}, k {NEIGHBORS}",
                lambda k=k: _near(data, peer)[k],
                _near(data, clip_calibration)[k],
                "`proximity`: the same",
                lambda x: f"mean {x.mean():.6f}",
            )


def _dac_calibrators(data: Data, peer: Any) -> Iterator[Line]:
    val, test = data.val, data.test
    near = _near(data, clip_calibration)
    shown = ece_of(test.labels)

    def density(library: Any) -> Any:
        one = library.DensityRatioCalibration()
        one.fit(val.probs, val.probs.argmax(1), val.labels, near[0])
        return one.predict(test.probs, near[1])

    def isotonic(library: Any) -> Any:
        one = library.MultiIsotonicRegression()
        one.fit_transform(val.probs, val.labels)
        return one.transform(test.probs)

    def shift(library: Any, name: str, method: str) -> Any:
        made = library.BinMeanShift(name, getattr(library, method), proximity_bin=5)
        made.fit_transform(val.probs, near[0], val.labels)
        return made.transform(test.probs, near[1])

    runs: dict[str, tuple[Callable[[Any], Any], str, dict[str, str]]] = {
        "MultiIsotonicRegression (of probabilities)": (isotonic, "mir", {}),
        "DensityRatioCalibration": (density, "den", {}),
    }
    for base, name, method in (
        ("hb", "histogram_binning", "HistogramBinning"),
        ("ir", "isotonic_regression", "IsotonicRegression"),
        ("mir", "multi_isotonic_regression", "MultiIsotonicRegression"),
    ):
        run = partial(shift, name=name, method=method)
        runs[f"BinMeanShift of {method}"] = run, "pb", {"base": base}
    for what, (run, short, options) in runs.items():
        if short != "mir" and test.images is None:
            continue
        with quiet():
            ours = run(clip_calibration)
        own = default_ece(short, val, test, **options)
        yield arrays(what, partial(run, peer), ours, own, shown)


def _dac_itself(data: Data, peer: Any) -> Line:
    assert data.texts is not None
    base, current, base_tuned, current_tuned = data.texts

    def factors_of(library: Any) -> np.ndarray:
        one = library.DistanseAwareCalibration()
        one.fit(base, current, base_tuned, current_tuned, NEIGHBORS)
        return one.class_confidence

    names = tuple(str(i) for i in range(len(base) + len(current)))
    ours = calibrators.DistanceAware(NEIGHBORS)

    def side(features: np.ndarray, names: tuple[str, ...], twin: Any = None) -> Predictions:
        text = torch.from_numpy(features).float()
        none = torch.zeros(1, text.shape[1])
        return Predictions(
            image_features=none,
            text_features=text,
            logit_scale=1.0,
            class_names=names,
            zero_shot=twin,
        )

    for rows, zero_shot, tuned in (
        (names[: len(base)], base, base_tuned),
        (names[len(base) :], current, current_tuned),
    ):
        given = side(tuned, rows, side(zero_shot, rows))
        factors = ours.fit(given) if zero_shot is base else ours.scale(given)[1]
    assert isinstance(factors, torch.Tensor)
    return arrays(
        f"DistanseAwareCalibration factors, k {NEIGHBORS}, {base.dtype}",
        partial(factors_of, peer),
        factors_of(clip_calibration),
        f"`dac` mean {factors.mean():.6f} (float32)",
        lambda x: f"mean {np.mean(x, dtype=np.float64):.6f}",
    )
