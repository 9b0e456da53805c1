"""Isotonic regression: toys by hand, scikit-learn's predictions, netcal's and published numbers."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn import isotonic

from vlcal.calibrators import IsotonicRegression, MultiIsotonic, NewClasses
from vlcal.calibrators.knots import Knots, fit_knots, interpolate, lines_of
from vlcal.types import NoSamplesError, Predictions, VlcalWarning

SKLEARN_TIES = 1e-15


def of(probs, labels=None):
    """Predictions whose softmax is these probabilities, up to float64 rounding."""
    probs = torch.as_tensor(probs, dtype=torch.float64)
    labels = None if labels is None else torch.as_tensor(labels)
    return Predictions(logits=probs.clamp(min=1e-300).log(), labels=labels)


def random_pair(n, classes, scale=2.0, dtype=torch.float64, ties=False, seed=0):
    """Validation and unlabeled test predictions, the same on every release."""
    random = np.random.RandomState(seed)
    made = []
    for rows, spread in ((n, scale), (n + 3, 1.3 * scale)):
        logits = torch.from_numpy(random.randn(rows, classes)).to(dtype) * spread
        made.append(logits.round() if ties else logits)
    noise = torch.from_numpy(random.gumbel(size=(n, classes)))
    labels = (made[0].double() / 2 + noise).argmax(-1)
    return Predictions(logits=made[0], labels=labels), Predictions(logits=made[1])


def column(x, answers):
    """Blocks of one column, whose answer is given."""
    x = torch.as_tensor(x, dtype=torch.float64)[:, None]
    answers = torch.as_tensor(answers).long() - 1
    return lambda: iter([(x.clone(), answers)])


def theirs(x, y, test):
    fitted = isotonic.IsotonicRegression(y_min=0, y_max=1, increasing=True, out_of_bounds="clip")
    return fitted.fit(x, y).predict(test)


def test_toy():
    # violators: (.3 right, .4 wrong, .5 wrong) pool to 1/3; .2 is wrong, .6 and .7 are right
    x, answers = [0.5, 0.2, 0.3, 0.4, 0.7, 0.6], [0, 0, 1, 0, 1, 1]
    knots = fit_knots(column(x, answers), 1)
    assert knots.x.tolist() == [0.2, 0.3, 0.5, 0.6, 0.7]
    assert knots.y.tolist() == [0, 1 / 3, 1 / 3, 1, 1]
    at = torch.tensor([0.0, 0.2, 0.25, 0.4, 0.55, 0.6, 0.9], dtype=torch.float64)
    wanted = [0, 0, 1 / 6, 1 / 3, 2 / 3, 1, 1]
    assert interpolate(lines_of(knots, at.device), at, None).tolist() == pytest.approx(wanted)


def test_equal_probabilities_are_one_point():
    knots = fit_knots(column([0.5, 0.5, 0.5, 0.1], [1, 0, 0, 0]), 1)
    assert knots.x.tolist() == [0.1, 0.5]
    assert knots.y.tolist() == [0, 1 / 3]


EDGES = {
    "one sample, right": ([0.4], [1]),
    "all right": ([0.1, 0.4, 0.9], [1, 1, 1]),
    "all equal": ([0.3, 0.3, 0.3], [1, 0, 1]),
    "decreasing": ([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0]),
    "zero and one": ([0.0, 1.0, 0.0, 1.0], [0, 1, 1, 0]),
    "equal means apart": ([0.1, 0.2, 0.3, 0.4], [1, 0, 1, 0]),
    "closer than the ties": ([1e-17, 5e-16, 9e-16, 1.2e-15, 0.5], [0, 1, 0, 0, 1]),
    "a chain of close ones": (
        (np.arange(40) * 4e-16 + 0.1).tolist(),
        [i % 3 == 0 for i in range(40)],
    ),
}


@pytest.mark.parametrize(("x", "answers"), EDGES.values(), ids=EDGES.keys())
def test_edge_inputs_as_scikit_learn(x, answers):
    knots = fit_knots(column(x, answers), 1, ties=SKLEARN_TIES)
    test = np.concatenate([x, np.linspace(0, 1, 41), np.array(x) + 3e-16])
    got = interpolate(lines_of(knots, torch.device("cpu")), torch.from_numpy(test), None)
    np.testing.assert_allclose(
        got.numpy(), theirs(x, np.float64(answers), test), rtol=0, atol=1e-15
    )


SIZES = [(300, 5, 1.0), (50, 7, 4.0), (1, 3, 1.0), (1500, 20, 5.0), (400, 2, 0.3)]


@pytest.mark.parametrize(("n", "classes", "scale"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_one_versus_rest_is_scikit_learn_per_class(n, classes, scale, dtype, tied):
    val, test = random_pair(n, classes, scale, dtype, tied)
    x, at = (each.logits.softmax(-1).double().numpy() for each in (val, test))
    y = np.eye(classes)[val.labels.numpy()]
    wanted = np.stack([theirs(x[:, c], y[:, c], at[:, c]) for c in range(classes)], 1)
    total = wanted.sum(1, keepdims=True)
    wanted = np.where(total > 0, wanted / np.where(total > 0, total, 1), at)
    fitted = IsotonicRegression(ties=SKLEARN_TIES).fit(val)
    with_warning = pytest.warns(VlcalWarning) if (total == 0).any() else nullcontext()
    with with_warning:
        got = fitted.predict_proba(test)
    assert got.dtype == dtype
    atol = 1e-14 if dtype == torch.float64 else 3e-7
    np.testing.assert_allclose(got.double().numpy(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize(("n", "classes", "scale"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_close_values_ties_change_nothing(n, classes, scale, dtype):
    val, _ = random_pair(n, classes, scale, dtype)
    x = val.logits.softmax(-1).double().sort(0).values.diff(dim=0)
    assert not len(x) or x.min() > SKLEARN_TIES
    exact, close = (IsotonicRegression(ties=ties).fit(val) for ties in (0.0, SKLEARN_TIES))
    for name in ("x_", "y_", "offsets_"):
        assert torch.equal(getattr(exact, name), getattr(close, name))


def published_multi_isotonic(x, labels, test):
    """Flatten, fit, apply, add 1e-9 of the input: as the code of the DAC and ProCal papers."""
    y = np.eye(x.shape[1])[labels.numpy()]
    fitted = isotonic.IsotonicRegression(out_of_bounds="clip").fit(x.ravel(), y.ravel())
    return fitted.predict(test.ravel()).reshape(test.shape) + 1e-9 * test


@pytest.mark.parametrize(("n", "classes", "scale"), SIZES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("softmax", ["single", "double"])
def test_multi_isotonic_is_the_published_code(n, classes, scale, tied, softmax):
    val, test = random_pair(n, classes, scale, ties=tied)
    x, at = val.logits.softmax(-1), test.logits.softmax(-1)
    if softmax == "double":
        x, at = x.softmax(-1), at.softmax(-1)
    wanted = published_multi_isotonic(x.numpy(), val.labels, at.numpy())
    got = MultiIsotonic(softmax=softmax, ties=SKLEARN_TIES).fit(val).predict_proba(test)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-14)


def test_a_double_softmax_differs_and_is_bounded():
    val, test = random_pair(200, 26)
    single, double = (MultiIsotonic(softmax=s).fit(val) for s in ("single", "double"))
    # no entry of softmax(probabilities) exceeds e / (C - 1 + e), 0.0981 for 26 classes
    assert float(single.x_.max()) > 0.5
    assert float(double.x_.max()) < 0.0981
    assert float((single.predict_proba(test) - double.predict_proba(test)).abs().max()) > 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_multi_isotonic_keeps_the_order_of_every_row(dtype, tied):
    val, test = random_pair(60, 9, 3.0, torch.float64, tied)
    test = test.with_logits(test.logits.to(dtype))
    fitted = MultiIsotonic().fit(val)
    order = test.logits.argsort(dim=-1, stable=True)
    got = fitted.predict_proba(test)
    assert (got.gather(1, order).diff(dim=-1) >= 0).all()
    assert got.sum(-1).sub(1).abs().max() > 0.01  # rows are not divided by their sums
    after = fitted.transform(test).logits
    assert (after.gather(1, order).diff(dim=-1) >= 0).all()
    assert torch.equal(after.argmax(-1), test.logits.argmax(-1))
    torch.testing.assert_close(
        after.double().softmax(-1), got / got.sum(-1, keepdim=True), rtol=1e-5, atol=1e-12
    )


def test_neighbors_in_float32_keep_the_predicted_class():
    val, _ = random_pair(60, 3, 3.0)
    base = torch.tensor([0.3, 0.3, -1.0])
    up = torch.nextafter(base, torch.full_like(base, 9.0))
    logits = torch.stack([torch.stack([base[0], up[1], base[2]]), base])
    after = MultiIsotonic().fit(val).transform(Predictions(logits=logits)).logits
    assert after.argmax(-1).tolist() == [1, 0]


def test_multi_isotonic_takes_new_classes_and_one_versus_rest_refuses_them():
    (val, _), (_, new) = random_pair(50, 4), random_pair(50, 6)
    assert MultiIsotonic().fit(val).transform(new).n_classes == 6
    assert IsotonicRegression(mode="top_label").fit(val).transform(new).n_classes == 6
    with pytest.raises(NewClasses, match="ir: learned a map for each of the 4 classes"):
        IsotonicRegression().fit(val).transform(new)


def test_top_label_is_the_fit_of_the_confidence():
    val, test = random_pair(300, 6, 1.0)
    x, at = (each.logits.softmax(-1) for each in (val, test))
    correct = (x.argmax(-1) == val.labels).double()
    wanted = theirs(x.amax(-1).numpy(), correct.numpy(), at.amax(-1).numpy())
    got = IsotonicRegression(mode="top_label").fit(val).predict_proba(test)
    predicted = at.argmax(-1, keepdim=True)
    np.testing.assert_allclose(got.gather(1, predicted)[:, 0].numpy(), wanted, atol=1e-15)
    torch.testing.assert_close(got.sum(-1), torch.ones(len(got)).double())
    others = got.scatter(1, predicted, 0)
    before = at.scatter(1, predicted, 0)
    rest = (1 - torch.from_numpy(wanted)) / before.sum(-1)
    torch.testing.assert_close(others, before * rest[:, None])


def test_top_label_of_a_model_that_is_never_right():
    fitted = IsotonicRegression(mode="top_label").fit(of([[0.7, 0.3], [0.4, 0.6]], [1, 0]))
    assert fitted.predict_proba(of([[0.8, 0.2]]))[0].tolist() == pytest.approx([0, 1])


def test_absent_classes_give_zero_or_keep_the_probability():
    val, test = of([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], [0, 1]), of([[0.6, 0.3, 0.1]])
    assert IsotonicRegression().fit(val).predict_proba(test)[0].tolist() == [1, 0, 0]
    kept = IsotonicRegression(absent="keep").fit(val).predict_proba(test)
    assert kept[0].tolist() == pytest.approx([1 / 1.1, 0, 0.1 / 1.1])


def test_rows_without_any_probability_stay_and_are_counted():
    fitted = IsotonicRegression().fit(of([[0.9, 0.1], [0.1, 0.9]], [0, 1]))
    fitted.y_[:] = 0
    with pytest.warns(VlcalWarning, match="ir: 2 of 2 rows had probability 0 in every class"):
        got = fitted.predict_proba(of([[0.7, 0.3], [0.2, 0.8]]))
    assert got[0].tolist() == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize("cls", [IsotonicRegression, MultiIsotonic])
def test_blocks_of_rows_change_nothing(cls, monkeypatch):
    val, test = random_pair(80, 5, dtype=torch.float32)
    whole = cls().fit(val)
    wanted = whole.transform(test).logits
    original = Predictions.blocks
    monkeypatch.setattr(Predictions, "blocks", lambda self, _=0: original(self, 7 * 4 * 5))
    again = cls().fit(val)
    assert torch.equal(again.x_, whole.x_) and torch.equal(again.y_, whole.y_)
    assert torch.equal(again.transform(test).logits, wanted)


@pytest.mark.parametrize("cls", [IsotonicRegression, MultiIsotonic])
def test_refuses_what_it_cannot_fit(cls):
    empty = Predictions(logits=torch.zeros(0, 3), labels=torch.zeros(0).long())
    with pytest.raises(NoSamplesError, match=f"{cls.name}: fit needs at least one sample"):
        cls().fit(empty)
    with pytest.raises(ValueError, match=f"{cls.name}: ties must be in 0..1, got -1"):
        cls(ties=-1)
    with pytest.raises(ValueError, match=f"{cls.name}: "):
        cls(**{"mode" if cls is IsotonicRegression else "softmax": "triple"})


def test_groups_without_knots_between_others():
    knots = Knots(
        torch.tensor([0.1, 0.5]).double(),
        torch.tensor([0.0, 1.0]).double(),
        torch.tensor([0, 0, 2, 2]),
    )
    lines = lines_of(knots, torch.device("cpu"))
    x = torch.tensor([0.05, 0.3, 0.9]).double()
    assert interpolate(lines, x, torch.ones(3).long()).tolist() == pytest.approx([0, 0.5, 1])


# made by netcal 1.4.0: IsotonicRegression().fit(P, y).transform(P), first row and column sums
GOLDEN = (
    [0.2260615, 0.1171614, 0.1144987, 0.2623928, 0.2798856],
    [68.02684, 91.17963, 82.04634, 77.13768, 81.60951],
)


def test_one_versus_rest_is_the_recorded_netcal_result():
    val, _ = random_pair(400, 5, 2.0, ties=True)
    got = (
        IsotonicRegression(ties=SKLEARN_TIES).fit(val).predict_proba(Predictions(logits=val.logits))
    )
    row, sums = (torch.tensor(values).double() for values in GOLDEN)
    torch.testing.assert_close(got[0], row, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.sum(0), sums, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_versus_rest_is_netcal(dtype, tied):
    binning = pytest.importorskip("netcal.binning", reason="netcal is no dependency of the tests")
    val, test = random_pair(500, 8, 3.0, dtype, tied)
    x, at = (each.logits.softmax(-1) for each in (val, test))
    wanted = binning.IsotonicRegression().fit(x.numpy(), val.labels.numpy()).transform(at.numpy())
    wanted = torch.from_numpy(wanted).to(at)
    got = IsotonicRegression(ties=SKLEARN_TIES).fit(val).predict_proba(test)
    assert not torch.equal(got, at)
    atol = 3e-7 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(got, wanted.where(~wanted.isnan(), at), rtol=0, atol=atol)
