"""netcal's names: recorded values of netcal 1.4, netcal itself where installed, the definitions."""

import contextlib
import io
import warnings

import numpy as np
import pytest

from tests.compat import oracles
from tests.compat.inputs import GOLDEN, golden, logits
from vlcal.calibrators import NotFitted
from vlcal.compat import netcal as compat
from vlcal.types import NoSamplesError, VlcalWarning

METRICS = ("ECE", "ACE", "MCE")
MAPS = ("HistogramBinning", "IsotonicRegression")
CASES = (
    "spread",
    "ties",
    "ties32",
    "ones",
    "float32",
    "float16",
    "one-hot",
    "absent",
    "binary",
    "two columns",
    "binary ties",
)


def draw(case, n=160):
    """Probabilities and labels in the shapes and precisions that netcal takes."""
    z, labels = logits(n, 4)
    probs = oracles.softmax(z)
    if case.startswith("ties"):
        probs = np.round(probs, 1)
    elif case == "ones":
        sure = np.arange(n) % 3 == 0
        probs[sure] = np.eye(4)[probs[sure].argmax(1)]
    elif case == "one-hot":
        labels = np.eye(4, dtype=int)[labels]
    elif case == "absent":
        labels = np.where(labels == 2, 0, labels)
    elif "binary" in case or case == "two columns":
        labels, probs = (labels == 0).astype(int), probs[:, 0]
        if case == "binary ties":
            probs = np.round(probs, 1)
        elif case == "two columns":
            probs = np.stack([1 - probs, probs], 1)
    if case in ("ties32", "float32"):
        probs = probs.astype(np.float32)
    return (probs.astype(np.float16) if case == "float16" else probs), labels


@contextlib.contextmanager
def quiet():
    """netcal prints and warns while it works."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def original():
    with quiet():
        pytest.importorskip("netcal", reason="netcal is not installed; recorded values are checked")
        import netcal.binning
        import netcal.metrics
        import netcal.scaling
    return {
        name: getattr(room, name)
        for room, names in (
            (netcal.metrics, METRICS),
            (netcal.binning, MAPS),
            (netcal.scaling, ("TemperatureScaling",)),
        )
        for name in names
    }


def measured(library, case):
    """Every metric with its options; NaN where quantiles coincide."""
    probs, labels = draw(case)
    values = []
    for name in METRICS:
        for args in ((10,), (7, True, False, 12), (5, False)):
            try:
                values.append(library[name](*args).measure(probs, labels))
            except ValueError:
                values.append(np.nan)
    return values


def mapped(library, name, case, **options):
    """The second half calibrated after seeing the first."""
    probs, labels = draw(case)
    half = len(probs) // 2
    return library[name](**options).fit(probs[:half], labels[:half]).transform(probs[half:])


OURS = {name: getattr(compat, name) for name in (*METRICS, *MAPS, "TemperatureScaling")}
allow_nan_rows = pytest.mark.filterwarnings("ignore::vlcal.types.VlcalWarning")


def same(seen, expected, tolerance):
    assert seen == pytest.approx(np.asarray(expected), abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_metrics_equal_the_recorded_ones(case):
    same(measured(OURS, case), golden("netcal metrics", case), 2e-9)


@pytest.mark.parametrize("case", CASES)
def test_metrics_equal_netcal(original, case):
    with quiet():
        expected = measured(original, case)
    same(measured(OURS, case), expected, 2e-9)


@allow_nan_rows
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MAPS)
def test_maps_equal_the_recorded_ones(name, case):
    seen = mapped(OURS, name, case)[[0, 9, 33]].ravel()
    expected = golden("netcal maps", f"{name}: {case}")
    close = 2e-3 if case == "float16" else 1e-6 if case.endswith("32") else 1e-12
    assert seen == pytest.approx(expected, abs=close, nan_ok=True)


@allow_nan_rows
@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MAPS)
def test_maps_equal_netcal(original, name, case, independent):
    with quiet():
        expected = mapped(original, name, case, independent_probabilities=independent)
    seen = mapped(OURS, name, case, independent_probabilities=independent)
    assert (seen.dtype, seen.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", GOLDEN["netcal factors"])
def test_temperatures_equal_the_recorded_ones(case):
    probs, labels = draw(case)
    seen = compat.TemperatureScaling().fit(probs, labels)
    assert seen.temperature == pytest.approx(golden("netcal factors", case).item(), rel=1e-4)


@pytest.mark.parametrize("case", ["spread", "ones", "absent", "binary", "two columns"])
def test_temperature_scaling_equals_netcal(original, case):
    probs, labels = draw(case)
    with quiet():
        peer = original["TemperatureScaling"]()
        expected = peer.fit(probs, labels, tensorboard=False).transform(probs)
    ours = compat.TemperatureScaling()
    seen = ours.fit_transform(probs, labels)
    assert (seen.dtype, seen.shape) == (expected.dtype, expected.shape)
    assert ours.temperature == pytest.approx(peer.temperature, rel=1e-4)
    np.testing.assert_allclose(seen, expected, atol=1e-4)
    # no worse than what netcal's optimizer stopped at
    assert nll(ours.weights[0], probs, labels) <= nll(peer.weights[0], probs, labels) + 1e-12


def test_float32_is_calibrated_where_netcal_stays_at_one(original):
    probs, labels = draw("float32")
    with quiet():
        peer = original["TemperatureScaling"]().fit(probs, labels, tensorboard=False)
    assert peer.temperature == 1
    wide, _ = draw("spread")
    exact = compat.TemperatureScaling().fit(wide, labels).temperature
    assert compat.TemperatureScaling().fit(probs, labels).temperature == pytest.approx(exact)
    assert compat.TemperatureScaling().fit(probs, labels).transform(probs).dtype == np.float32


def nll(factor, probs, labels):
    if probs.ndim == 2 and probs.shape[1] == 2:
        probs = probs[:, 1]
    if probs.ndim == 1:
        probs = np.stack([1 - probs, probs], 1)
    scaled = oracles.softmax(np.log(probs.clip(2e-16, 1 - 2e-16)) * factor)
    return -np.log(scaled[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("case", ["spread", "ties", "absent"])
@pytest.mark.parametrize("name", MAPS)
@allow_nan_rows
def test_maps_are_their_definitions(name, case):
    probs, labels = draw(case)
    fit = {
        "HistogramBinning": lambda x, y, at: oracles.histogram_map(x, y, at, 10),
        "IsotonicRegression": oracles.isotonic_map,
    }[name]
    expected = oracles.one_versus_rest(fit, probs[:80], labels[:80], probs[80:])
    np.testing.assert_allclose(mapped(OURS, name, case), expected, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
def test_a_class_without_samples_gets_nothing(name):
    probs, labels = draw("absent")
    one = OURS[name]().fit(probs.clip(max=0.5), labels)
    # 0.95 is in a bin that saw nothing
    seen = one.transform(np.vstack([probs, [[0.02, 0.02, 0.95, 0.01]]]))
    assert (seen[:, 2] == 0).all()


@pytest.mark.parametrize("name", ["ECE", *MAPS, "TemperatureScaling"])
def test_two_columns_of_labels_mean_the_second(name):
    probs, labels = draw("two columns")
    # rows of 0 and 0, of 0 and 1, but also of 1 and 1
    columns = np.stack([np.ones_like(labels), labels], 1)
    if name == "ECE":
        seen, expected = (compat.ECE().measure(probs, y) for y in (columns, labels))
    else:
        seen, expected = (OURS[name]().fit_transform(probs, y) for y in (columns, labels))
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("name", MAPS)
def test_rows_without_probability_become_nan_and_are_counted(name):
    probs = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.05, 0.05, 0.9]])
    one = OURS[name]().fit(probs, np.array([0, 1, 2]))
    with pytest.warns(VlcalWarning, match="1 of 2 rows have probability 0 in every class"):
        seen = one.transform(np.array([[0.05, 0.05, 0.0], [0.9, 0.1, 0]]))
    assert np.isnan(seen[0]).all()
    assert seen[1].sum() == pytest.approx(1)


def test_metrics_by_hand():
    # the bins of 0.25 and 0.55 and 0.95: gaps 0.25, 0.05, 0.05
    probs = np.array([0.25, 0.55, 0.55, 0.95, 0.95])
    labels = np.array([0, 1, 0, 1, 1])
    assert compat.ECE(10).measure(probs, labels) == pytest.approx((0.25 + 4 * 0.05) / 5)
    assert compat.ACE(10).measure(probs, labels) == pytest.approx(0.35 / 3)
    assert compat.MCE(10).measure(probs, labels) == pytest.approx(0.25)
    threshold = compat.MCE(10, sample_threshold=2)
    assert threshold.measure(probs, labels) == pytest.approx(0.05)
    both = compat.ECE(10).measure([probs, probs[:1]], [labels, labels[:1]], batched=True)
    assert both == pytest.approx((0.09 + 0.25) / 2)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: compat.ECE(detection=True), "ECE: detection=True"),
        (lambda: compat.HistogramBinning(detection=True), "detection=True"),
        (lambda: compat.HistogramBinning(equal_intervals=False), "equal_intervals=False"),
        (lambda: compat.IsotonicRegression(True), "detection=True"),
        (lambda: compat.TemperatureScaling("mcmc"), "method='mcmc'"),
        (lambda: compat.TemperatureScaling(detection=True), "detection=True"),
        (
            lambda: compat.TemperatureScaling(independent_probabilities=True),
            "independent_probabilities=True",
        ),
        (lambda: compat.TemperatureScaling(use_cuda="cuda:0"), "use_cuda='cuda:0'"),
        (lambda: compat.MCE().measure(*draw("spread"), return_map=True), "return_map=True"),
        (lambda: compat.ACE().measure(*draw("spread"), uncertainty="mean"), "uncertainty='mean'"),
        (lambda: compat.ECE().measure(np.ones((2, 3, 4)) / 4, np.zeros(3)), "X.ndim=3"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(make, option):
    with pytest.raises(NotImplementedError, match=f"{option} is not supported, "):
        make()


@pytest.mark.parametrize("name", [*METRICS, *MAPS, "TemperatureScaling"])
def test_bad_arrays_are_refused(name):
    made = OURS[name]()
    run = made.measure if name in METRICS else made.fit
    probs, labels = draw("spread")
    for bad, what in (
        (np.where(np.arange(160)[:, None] == 3, np.nan, probs), "row 3 is not"),
        (probs * 3, r"probabilities in 0\.\.1"),
        (probs.astype(int), "floating point"),
    ):
        with pytest.raises(ValueError, match=f"netcal {name}: .*{what}"):
            run(bad, labels)
    with pytest.raises(ValueError, match=r"y must be \[N\] = \[160\]"):
        run(probs, labels[1:])
    with pytest.raises(ValueError, match="class indices"):
        run(probs, labels - 1)
    with pytest.raises(NoSamplesError, match=name):
        run(probs[:0], labels[:0])


def test_rules_of_single_calls():
    probs, labels = draw("spread")
    with pytest.raises(ValueError, match="needs 10 different quantiles"):
        compat.ECE(10, False).measure(*draw("ties"))
    with pytest.raises(ValueError, match="two different labels or fewer"):
        compat.ECE().measure(probs, labels % 2)
    with pytest.raises(ValueError, match=r"two labels must be 0 and 1, got \[0, 3\]"):
        compat.ECE().measure(probs[:, 0], labels // 2 * 3 // 3 * 3)
    with pytest.raises(ValueError, match="n_bins must be an integer >= 1, got 0"):
        compat.ECE(0)
    for name in (*MAPS, "TemperatureScaling"):
        with pytest.raises(NotFitted, match="fit comes before"):
            OURS[name]().transform(probs)
        with pytest.raises(ValueError, match=r"y must be in 0\.\.3 .*got 4"):
            OURS[name]().fit(probs, labels + 1)
        with pytest.raises(ValueError, match=r"fitted on 4 classes, got X \(160, 3\)"):
            OURS[name]().fit(probs, labels).transform(probs[:, :3])
