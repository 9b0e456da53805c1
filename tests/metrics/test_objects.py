"""Laws of metric objects that hold with torchmetrics as their base and without it."""

import io
import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import vlcal
from vlcal.metrics import CONVENTIONS, outcomes
from vlcal.metrics.classwise_bins import classwise_ece, classwise_ece_thresholded
from vlcal.metrics.objects import (
    Accuracy,
    BrierScore,
    CalibrationError,
    ClasswiseCalibrationError,
    ConfidenceAUROC,
    MeanConfidence,
    NegativeLogLikelihood,
)
from vlcal.types import NoSamplesError, Predictions

N, C = 203, 7
OBJECTS = {
    "ece": lambda **kw: CalibrationError("logits", **kw),
    "rmsce": lambda **kw: CalibrationError("logits", "rmsce", convention="dac2024", **kw),
    "mce": lambda **kw: CalibrationError("logits", "mce", convention="torchmetrics", **kw),
    "classwise": lambda **kw: ClasswiseCalibrationError("logits", C, **kw),
    "accuracy": lambda **kw: Accuracy("logits", **kw),
    "mean_confidence": lambda **kw: MeanConfidence("logits", **kw),
    "nll": lambda **kw: NegativeLogLikelihood("logits", **kw),
    "brier": lambda **kw: BrierScore("logits", **kw),
    "auroc": lambda **kw: ConfidenceAUROC("logits", **kw),
}
every_object = pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)


def batch(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, C, generator=generator) * 3
    logits[: n // 10] = logits[0]  # ties
    logits[-n // 10 :, 0] = 300  # confidence exactly 1
    return logits, torch.randint(C, (n,), generator=generator)


def filled(make, *given, **options):
    metric = make(**options)
    metric.update(*(given or batch()))
    return metric


def test_toy_whose_answer_is_known():
    ece = CalibrationError("probs")
    ece.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
    ece.update(torch.tensor([[0.2, 0.8]]), torch.tensor([0]))
    assert float(ece.compute()) == pytest.approx(0.45)
    found = ece.result()
    assert (found.n, found.n_dropped, found.convention.name) == (2, 0, "standard")
    assert found.value == float(ece.compute())
    assert found.bins.count.sum() == 2


@every_object
@pytest.mark.parametrize("split", ["ones", "uneven", "empty batches", "shuffled", "halves merged"])
def test_every_split_gives_the_same_bits(make, split):
    logits, labels = batch()
    metric = make()
    if split == "ones":
        parts = list(zip(logits.split(1), labels.split(1), strict=True))
    elif split == "shuffled":
        order = torch.randperm(N)
        parts = list(zip(logits[order].split(64), labels[order].split(64), strict=True))
    else:
        sizes = [0, 1, 100, 0, 2, N - 103]
        parts = list(zip(logits.split(sizes), labels.split(sizes), strict=True))
    if split == "halves merged":
        for part in parts[:3]:
            metric.update(*part)
        other = make()
        for part in parts[3:]:
            other.update(*part)
        metric.merge_state(other)
    else:
        for part in parts:
            metric.update(*part)
    whole = filled(make)
    assert all(torch.equal(v, whole.metric_state[k]) for k, v in metric.metric_state.items())
    assert torch.equal(metric.compute(), whole.compute())
    assert torch.isfinite(metric.compute())


@every_object
def test_masked_samples_do_not_count_and_are_not_looked_at(make):
    logits, labels = batch()
    keep = torch.rand(N) < 0.5
    poisoned = torch.where(keep[:, None], logits, torch.nan)
    metric = filled(lambda: make())
    metric.reset()
    metric.update(poisoned, torch.where(keep, labels, -100), mask=keep)
    kept = filled(make, logits[keep], labels[keep])
    assert torch.equal(metric.compute(), kept.compute())
    assert metric.result().n == int(keep.sum())


@every_object
def test_merge_state_takes_objects_and_state_dicts(make):
    first, second = filled(make, *batch(seed=1)), filled(make, *batch(200, seed=2))
    pooled = filled(make, *batch(seed=1))
    pooled.update(*batch(200, seed=2))
    by_dict, by_state = first.clone(), first.clone()
    first.compute()  # a value remembered before merging must not survive it
    first.merge_state(second)
    by_dict.merge_state(second.state_dict())
    by_state.merge_state(second.metric_state)
    for merged in (first, by_dict, by_state):
        assert torch.equal(merged.compute(), pooled.compute())
    fresh = make()
    fresh.merge_state(second)
    assert torch.equal(fresh.compute(), second.compute())


def test_merge_refuses_what_was_counted_otherwise():
    metric = filled(OBJECTS["ece"])
    for other in (
        filled(lambda: CalibrationError("logits", convention="procal")),
        filled(lambda: CalibrationError("logits", nan="drop")),
        filled(lambda: CalibrationError("probs", validate=False), *probabilities()),
    ):
        with pytest.raises(ValueError, match="CalibrationError: the state was counted by other"):
            metric.merge_state(other)
    with pytest.raises(ValueError, match="state must hold rule, dropped"):
        metric.merge_state({"table": metric.table})
    with pytest.raises(ValueError, match=r"state table must be torch.int64 \(3, 15\)"):
        metric.merge_state(metric.state_dict() | {"table": metric.table.float()})
    with pytest.raises(ValueError, match="can merge a metric object or a dict"):
        metric.merge_state([1])
    assert torch.equal(metric.compute(), filled(OBJECTS["ece"]).compute())


def probabilities():
    logits, labels = batch()
    return logits.softmax(-1), labels


@every_object
def test_forward_gives_the_batch_and_adds_it(make):
    metric, first, second = make(), batch(seed=1), batch(300, seed=2)
    assert torch.equal(metric(*first), filled(make, *first).compute())
    assert torch.equal(metric(*second), filled(make, *second).compute())
    pooled = filled(make, *first)
    pooled.update(*second)
    assert torch.equal(metric.compute(), pooled.compute())
    nothing = metric(*second, mask=torch.zeros(300, dtype=torch.bool))
    assert torch.isnan(nothing)
    assert torch.equal(metric.compute(), pooled.compute())


@every_object
def test_a_refused_batch_adds_nothing(make):
    metric = filled(make)
    before = metric.compute()
    logits, labels = batch()
    logits[17, 3] = torch.nan
    for call in (metric.update, metric):
        with pytest.raises(ValueError, match=r"must be finite, got 1 NaN .* first in row 17"):
            call(logits, labels)
    with pytest.raises(ValueError, match=r"labels must be in 0..6, got 7 in row 2"):
        metric.update(*replaced_label(2, 7))
    metric.update(*(part[:0] for part in batch()))
    assert torch.equal(metric.compute(), before)


def replaced_label(row, label):
    logits, labels = batch()
    labels[row] = label
    return logits, labels


@every_object
def test_dropped_samples_are_counted_apart(make):
    logits, labels = batch()
    logits[::5, 2] = torch.inf
    metric = filled(lambda: make(nan="drop"), logits, labels)
    good = torch.isfinite(logits).all(-1)
    kept = filled(make, logits[good], labels[good])
    assert torch.equal(metric.compute(), kept.compute())
    assert metric.result().n_dropped == 41
    assert metric.result().n == N - 41


@every_object
def test_propagated_nan_makes_the_value_nan_also_after_merging(make):
    metric = filled(lambda: make(nan="propagate"))
    assert torch.isfinite(metric.compute())
    other = make(nan="propagate")
    other.update(torch.full((1, C), torch.nan), torch.zeros(1, dtype=torch.int64))
    assert torch.isnan(other.compute())
    metric.merge_state(other)
    assert torch.isnan(metric.compute())
    assert metric.result().n_dropped == 1


@every_object
def test_saved_and_copied_objects_go_on_where_they_were(make):
    metric, more = filled(make), batch(50, seed=9)
    metric.set_dtype(torch.float16)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    loaded = make()
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    copies = [loaded, metric.clone(), pickle.loads(pickle.dumps(metric)), metric.half().to("cpu")]
    expected = filled(make)
    expected.update(*more)
    for copy in copies:
        copy.update(*more)
        assert torch.equal(copy.compute(), expected.compute())
    copies[0].reset()
    with pytest.raises(NoSamplesError, match="needs at least one sample, got none"):
        empty(copies[0]).compute()


def empty(metric):
    metric.update(torch.empty(0, C), torch.empty(0, dtype=torch.int64))
    return metric


def test_a_loaded_state_must_fit():
    ece = OBJECTS["ece"]()
    with pytest.raises(RuntimeError, match="counted by other rules"):
        ece.load_state_dict(filled(lambda: CalibrationError("logits", nan="drop")).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        ece.load_state_dict({})
    ece.persistent(False)
    assert list(ece.state_dict()) == []
    ece.load_state_dict({})


def test_states_are_integers_and_do_not_grow():
    for name, make in OBJECTS.items():
        metric = filled(make)
        sizes = {k: v.shape for k, v in metric.metric_state.items()}
        metric.update(*batch(2000))
        assert sizes == {k: v.shape for k, v in metric.metric_state.items()}, name
        assert {v.dtype for v in metric.metric_state.values()} == {torch.int64}


@pytest.mark.parametrize("rule", [c.name for c in CONVENTIONS if c.batch_size is None])
@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_numbers_are_those_of_evaluate(rule, kind):
    logits, labels = batch()
    preds = logits if kind == "logits" else logits.softmax(-1)
    found = vlcal.evaluate(**{kind: preds}, labels=labels, convention=rule).metrics
    names = ["ece", "mce", "mce_weighted", "rmsce", "rmsce_debiased", "average_ce", "signed_gap"]
    for name in [*names, "overconfidence"]:
        metric = CalibrationError(kind, name, convention=rule)
        for part in zip(preds.split(100), labels.split(100), strict=True):
            metric.update(*part)
        assert float(metric.compute()) == found[name], name
    for make, name in (
        (Accuracy, "accuracy"),
        (MeanConfidence, "mean_confidence"),
        (NegativeLogLikelihood, "nll"),
        (BrierScore, "brier"),
    ):
        metric = filled(lambda: make(kind), preds, labels)  # noqa: B023
        assert float(metric.compute()) == pytest.approx(found[name], abs=2e-8), name


@pytest.mark.parametrize("rule", [c.name for c in CONVENTIONS])
@pytest.mark.parametrize("measure", [classwise_ece, classwise_ece_thresholded])
def test_classwise_numbers_are_those_of_the_function(rule, measure):
    probs, labels = probabilities()
    labels[labels == C - 1] = 0  # one convention ends at the largest label
    metric = ClasswiseCalibrationError("probs", C, measure.__name__, convention=rule)
    for part in zip(probs.split(50), labels.split(50), strict=True):
        metric.update(*part)
    assert float(metric.compute()) == measure(probs, labels, rule)
    from_logits = ClasswiseCalibrationError("logits", C, measure.__name__, convention=rule)
    assert float(from_logits(batch()[0], labels)) == pytest.approx(float(metric.compute()))


@pytest.mark.parametrize("scale", [0.3, 3, 30])
def test_auroc_bounds_hold_the_exact_value(scale):
    logits, labels = batch(3000)
    seen = outcomes(Predictions(logits=logits * scale, labels=labels))
    metric = filled(OBJECTS["auroc"], logits * scale, labels)
    exact = roc_auc_score(seen.correct, seen.confidence)
    low, high = metric.bounds()
    assert low <= exact + 1e-12 and exact - 1e-12 <= high
    assert low <= float(metric.compute()) <= high
    assert float(metric.compute()) == pytest.approx(exact, abs=1e-3)


def test_auroc_without_wrong_samples_is_undefined():
    metric = filled(OBJECTS["auroc"], torch.eye(C) * 9, torch.arange(C))
    assert torch.isnan(metric.compute())


def test_numpy_and_half_precision_are_taken():
    logits, labels = batch()
    array = filled(OBJECTS["ece"], logits.numpy(), labels.numpy().astype(np.int32))
    assert torch.equal(array.compute(), filled(OBJECTS["ece"]).compute())
    half = filled(OBJECTS["ece"], logits.bfloat16(), labels)
    as_float = filled(OBJECTS["ece"], logits.bfloat16().float(), labels)
    assert torch.equal(half.compute(), as_float.compute())


def test_cosines_given_as_logits_are_refused_but_a_batch_of_small_logits_is_not():
    metric = CalibrationError("logits")
    metric.update(torch.rand(5, C), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"all logits lie in -1\.\.1, like cosine"):
        metric.compute()
    metric.update(*batch())
    assert torch.isfinite(metric.compute())
    trusted = CalibrationError("logits", validate=False)
    trusted.update(torch.rand(5, C), torch.zeros(5, dtype=torch.int64))
    assert torch.isfinite(trusted.compute())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: CalibrationError("scores"), "input must be 'logits' or 'probs', got 'scores'"),
        (lambda: CalibrationError("logits", nan="raise"), "nan must be 'error', 'drop' or"),
        (lambda: CalibrationError("logits", "ace"), "metric must be one of ece, mce,"),
        (lambda: CalibrationError("logits", convention="carot"), "carot averages batches of"),
        (lambda: CalibrationError("logits", convention="x"), "convention: unknown name 'x'"),
        (lambda: ClasswiseCalibrationError("logits", 0), "n_classes must be an integer >= 1"),
        (lambda: filled(OBJECTS["classwise"], torch.ones(2, 3), torch.ones(2).long()), "7 classes"),
        (lambda: filled(OBJECTS["ece"], torch.ones(2), torch.ones(2)), r"floating point \[N, C\]"),
        (lambda: filled(OBJECTS["ece"], batch()[0], batch()[1][:5]), r"labels must be \[N\]"),
        (lambda: filled(OBJECTS["ece"], torch.eye(3), torch.eye(3).long()), "one row per sample"),
        (
            lambda: filled(lambda: CalibrationError("probs"), *batch()),
            "probs must be in 0..1, got",
        ),
        (
            lambda: OBJECTS["ece"]().update(*batch(), mask=torch.ones(N)),
            r"mask must be bool \[N\] = \[203\], got torch.float32",
        ),
        (
            lambda: filled(OBJECTS["nll"], torch.tensor([[-3e6, 3e6]]), torch.tensor([0])),
            "must be at most 1048576 nats, got 6e",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_empty_objects_have_no_value():
    for make in OBJECTS.values():
        with pytest.raises(NoSamplesError, match="needs at least one sample, got none"):
            empty(make()).compute()
    dropped = CalibrationError("logits", nan="drop")
    dropped.update(torch.full((3, C), torch.nan), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(NoSamplesError, match="none of the 3 samples is finite"):
        dropped.compute()


def test_plots_give_a_figure_and_axes():
    metric = filled(OBJECTS["ece"])
    figure, ax = metric.plot()
    figure.canvas.draw()
    assert figure is ax.figure
    assert len(ax.patches) == int((metric.result().bins.count > 0).sum())
    assert ax.get_title().endswith("convention standard")
    again, same = metric.plot([metric.compute(), metric.compute()], ax)
    assert (again, same) == (figure, ax)
    figure, ax = filled(OBJECTS["nll"]).plot()
    assert len(ax.lines) == 1
