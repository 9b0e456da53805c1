"""The public door: every accepted input gives the same numbers, every wrong one a sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlcal.evaluation import evaluate
from vlcal.metrics import METRICS, classwise_ece, convention
from vlcal.types import NoSamplesError, Predictions, VlcalWarning

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(60, 5)).astype(np.float32) * 4
LABELS = RNG.integers(5, size=60)
PROBS = np.exp(LOGITS.astype(np.float64))
PROBS /= PROBS.sum(-1, keepdims=True)


def test_five_rows_by_hand():
    # bins (0.4, 0.4667], (0.5333, 0.6], (0.8667, 0.9333]: gaps of 0.45, 0.6 and -0.1 + 0.5 * ...
    seen = evaluate(
        confidence=np.array([0.45, 0.6, 0.9, 0.92, 0.94]), correct=[False, False, True, True, False]
    )
    # bins 7: gap 0.45; 9: gap 0.6; 14: gap 0.91 - 1; 15: gap 0.94
    assert seen.n == 5
    assert seen.metrics["accuracy"] == 0.4
    assert seen.metrics["mean_confidence"] == pytest.approx(0.762)
    assert seen.metrics["ece"] == pytest.approx((0.45 + 0.6 + 2 * 0.09 + 0.94) / 5)
    assert seen.metrics["mce"] == pytest.approx(0.94)
    assert seen.metrics["mce_weighted"] == pytest.approx(0.94 / 5)
    assert seen.bins.count[[6, 8, 13, 14]].tolist() == [1, 1, 2, 1]
    assert seen.metrics["signed_gap"] == pytest.approx(0.762 - 0.4)
    assert seen.metrics["overconfidence"] == pytest.approx((0.45 + 0.6 + 0.94) / 5)
    assert seen.metrics["underconfidence"] == pytest.approx(2 * 0.09 / 5)
    assert seen.metrics["average_ce"] == pytest.approx((0.45 + 0.6 + 0.09 + 0.94) / 4)
    squares = 0.45**2 + 0.6**2 + 2 * 0.09**2 + 0.94**2
    assert seen.metrics["rmsce"] == pytest.approx((squares / 5) ** 0.5)
    # three bins hold one sample, the other two that are both right, so that nothing is subtracted
    assert seen.metrics["rmsce_debiased"] == pytest.approx((2 * 0.09**2 / 5) ** 0.5)
    # without ties every sample has a bin of its own
    assert seen.metrics["ace"] == seen.metrics["ace_mean"]
    assert seen.metrics["ace"] == pytest.approx((0.45 + 0.6 + 0.1 + 0.08 + 0.94) / 5)
    assert seen.metrics["auroc"] == pytest.approx(4 / 6)
    assert seen.metrics["aurc"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 2 / 4 + 3 / 5) / 5)


def test_brier_and_nll_by_hand():
    seen = evaluate(probs=[[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], labels=[1, 2])
    assert seen.metrics["nll"] == pytest.approx(np.log(4) / 2)
    assert seen.metrics["brier"] == pytest.approx((0.25 + 0.5625 + 0.0625) / 2)


def test_every_metric_is_measured_or_skipped_with_its_sentence():
    names = [metric.__name__ for metric in METRICS]
    full = evaluate(logits=LOGITS, labels=LABELS, proximity=np.linspace(0.2, 0.9, 60))
    assert list(full.metrics) == names and not full.skipped
    bare = evaluate(confidence=PROBS.max(-1), correct=PROBS.argmax(-1) == LABELS)
    assert list(bare.skipped) == ["piece", "nll", "brier"]
    assert bare.skipped["piece"] == "piece: needs the proximity of every sample"
    assert bare.metrics["ece"] == pytest.approx(full.metrics["ece"], abs=1e-6)


def test_logits_probabilities_predictions_and_confidences_agree():
    expected = evaluate(logits=LOGITS, labels=LABELS)
    predictions = Predictions(logits=torch.from_numpy(LOGITS), labels=torch.from_numpy(LABELS))
    for other in (evaluate(probs=PROBS, labels=LABELS), evaluate(predictions=predictions)):
        assert other.metrics == pytest.approx(expected.metrics, abs=1e-6)
        assert other.n_classes == 5


def memory_mapped(values, folder):
    path = folder / f"{values.ndim}.npy"
    np.save(path, values)
    return np.load(path, mmap_mode="r")


def read_only(values, folder):
    values = values.copy()
    values.flags.writeable = False
    return values


FORMS = {
    "big-endian": lambda values, _: values.astype(values.dtype.newbyteorder(">")),
    "read-only": read_only,
    "memory-mapped": memory_mapped,
    "negative strides": lambda values, _: np.ascontiguousarray(values[::-1])[::-1],
    "transposed": lambda values, _: np.asfortranarray(values),
    "torch": lambda values, _: torch.tensor(values),
    "requires grad": lambda values, _: torch.tensor(values).requires_grad_(
        values.dtype.kind == "f"
    ),
    "torch strided": lambda values, _: torch.tensor(values).repeat_interleave(2, 0)[::2],
    "unsigned": lambda values, _: values.astype(np.uint64) if values.dtype.kind == "i" else values,
    "uint8": lambda values, _: values.astype(np.uint8) if values.dtype.kind == "i" else values,
}


def test_lists_are_taken_as_float64():
    expected = evaluate(logits=LOGITS.astype(np.float64), labels=LABELS)
    seen = evaluate(logits=LOGITS.tolist(), labels=LABELS.tolist())
    assert seen.to_dict() == expected.to_dict()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_any_array_of_the_same_numbers_gives_the_same_bits(form, tmp_path):
    expected = evaluate(logits=LOGITS, labels=LABELS)
    logits = form(LOGITS, tmp_path)
    seen = evaluate(logits=logits, labels=form(LABELS, tmp_path))
    assert seen.to_dict() == expected.to_dict()


def test_inputs_are_not_changed():
    logits, labels = LOGITS.copy(), LABELS.copy()
    evaluate(logits=logits, labels=labels)
    assert (logits == LOGITS).all() and (labels == LABELS).all()


def changed(values, row, column, value):
    values = np.array(values)
    values[row, column] = value
    return values


def with_label(value):
    labels = LABELS.copy()
    labels[7] = value
    return labels


BAD = [
    ({}, "give exactly one of logits, probs, confidence, predictions, got none"),
    ({"logits": LOGITS, "probs": PROBS, "labels": LABELS}, "got logits, probs"),
    ({"logits": LOGITS}, r"needs labels \[N\], got none"),
    (
        {"logits": LOGITS[:, 0], "labels": LABELS},
        r"\[N, C\] with C >= 1, got torch.float32 \(60,\)",
    ),
    ({"logits": LOGITS[:, :0], "labels": LABELS}, "with C >= 1"),
    ({"logits": LOGITS.astype(int), "labels": LABELS}, "logits: must be floating point .*int64"),
    (
        {"logits": LOGITS.astype(complex), "labels": LABELS},
        "an array of numbers, got dtype complex",
    ),
    ({"logits": LOGITS.astype(np.longdouble), "labels": LABELS}, "got dtype (float128|longdouble)"),
    ({"logits": [["a", "b"]], "labels": [0]}, "an array of numbers, got dtype <U1"),
    ({"logits": [[1.0, 2.0], [3.0]], "labels": [0, 1]}, "logits: must be an array of numbers"),
    ({"logits": torch.tensor(LOGITS).to_sparse(), "labels": LABELS}, "dense real tensor"),
    ({"logits": torch.empty(60, 5, device="meta"), "labels": LABELS}, "dense real .* on meta"),
    ({"logits": torch.tensor(LOGITS).cfloat(), "labels": LABELS}, "dense real tensor"),
    (
        {"logits": changed(LOGITS, (3, 9), 1, np.nan), "labels": LABELS},
        "logits must be finite, got 2 NaN or infinite values in 2 rows, the first in row 3",
    ),
    ({"logits": torch.tensor(LOGITS * 1e5).half(), "labels": LABELS}, "overflow of float16"),
    (
        {"logits": LOGITS / 40, "labels": LABELS},
        r"like cosine similarities .* logit scale \(about 100 for CLIP\).*probs=.*validate=False",
    ),
    ({"logits": PROBS, "labels": LABELS}, "give probabilities as probs="),
    ({"probs": LOGITS, "labels": LABELS}, r"probs must be in 0\.\.1, got -?[\d.]+ in row 0 \(60"),
    ({"probs": changed(PROBS, 4, 2, -1e-3), "labels": LABELS}, r"got -0\.001 in row 4 \(1 such"),
    ({"probs": changed(PROBS, 4, 2, np.nan), "labels": LABELS}, r"0\.\.1, got nan in row 4"),
    ({"probs": PROBS * 0.9, "labels": LABELS}, r"sum to 1 .*got 0\.9 in row 0 \(60 such rows\)"),
    ({"probs": np.log(PROBS), "labels": LABELS}, r"probs must be in 0\.\.1"),
    (
        {"logits": LOGITS, "labels": LABELS.astype(float)},
        "labels must be integers, got torch.float64",
    ),
    ({"logits": LOGITS, "labels": LABELS > 2}, "labels must be integers, got torch.bool"),
    ({"logits": LOGITS, "labels": np.eye(5, dtype=int)[LABELS]}, r"labels.argmax\(-1\)"),
    ({"logits": LOGITS, "labels": LABELS[:9]}, r"labels must be \[N\] = \[60\]"),
    ({"logits": LOGITS, "labels": with_label(5)}, r"in 0\.\.4, got 5 in row 7 \(1 in all\)"),
    ({"logits": LOGITS, "labels": with_label(-1)}, "got -1 in row 7"),
    (
        {"logits": LOGITS, "labels": np.full(60, -100)},
        r"got -100 in row 0 \(60 in all\); bad='drop' leaves such rows out",
    ),
    (
        {"logits": LOGITS, "labels": with_label(2).astype(str)},
        "labels: must be an array of numbers",
    ),
    (
        {"logits": LOGITS, "labels": np.full(60, 2**63, np.uint64)},
        "labels: integers must fit into int64",
    ),
    ({"logits": LOGITS, "labels": LABELS, "correct": LABELS == 0}, "go together"),
    ({"confidence": [0.5]}, "confidence and correct go together"),
    ({"confidence": [0.5], "correct": [True], "labels": [0]}, "labels go with logits"),
    ({"confidence": [0.5, 87.0], "correct": [True, False]}, r"0\.\.1, got 87 in row 1"),
    ({"confidence": [0.5, np.nan], "correct": [True, False]}, "got nan in row 1"),
    ({"confidence": [0.5], "correct": [2]}, "correct must be bool, or integers 0 and 1"),
    ({"confidence": [0.5], "correct": [1.0]}, "correct must be bool"),
    ({"confidence": [0.5], "correct": [True, False]}, r"got torch.float64 \(1,\) and \(2,\)"),
    ({"predictions": LOGITS}, "must be a Predictions, got ndarray; arrays go in as logits="),
    ({"predictions": Predictions(logits=torch.zeros(2, 2))}, "needs predictions with labels"),
    (
        {
            "predictions": Predictions(logits=torch.zeros(1, 2), labels=torch.tensor([0])),
            "labels": [0],
        },
        "predictions carry their labels",
    ),
    (
        {"logits": LOGITS, "labels": LABELS, "proximity": np.full(60, 1.5)},
        r"exp\(-mean distance\), must be in 0\.\.1, got 1\.5",
    ),
    ({"logits": LOGITS, "labels": LABELS, "proximity": np.ones(3)}, r"\[N\] = \[60\]"),
    ({"logits": LOGITS, "labels": LABELS, "convention": "guo"}, "unknown name 'guo'; known"),
]


@pytest.mark.parametrize(("inputs", "match"), BAD)
def test_says_what_is_wrong(inputs, match):
    with pytest.raises(ValueError, match=match):
        evaluate(**inputs)


@pytest.mark.parametrize(
    "inputs",
    [
        {"logits": LOGITS[:0], "labels": LABELS[:0]},
        {"probs": PROBS[:0], "labels": LABELS[:0]},
        {"confidence": np.zeros(0), "correct": np.zeros(0, bool)},
        {"predictions": Predictions(logits=torch.zeros(0, 2), labels=torch.zeros(0).long())},
    ],
    ids=lambda inputs: next(iter(inputs)),
)
def test_zero_samples_are_an_error_and_never_a_zero(inputs):
    with pytest.raises(NoSamplesError, match="evaluate: needs at least one sample, got none"):
        evaluate(**inputs)


def test_one_class_and_classes_without_samples():
    assert evaluate(logits=np.full((3, 1), 7.0), labels=[0, 0, 0]).metrics["ece"] == 0
    seen = evaluate(logits=LOGITS, labels=np.zeros(60, int))
    assert seen.per_class().count.sum() == 60


def test_small_logits_pass_when_the_caller_vouches():
    seen = evaluate(logits=LOGITS / 40, labels=LABELS, validate=False)
    assert seen.metrics["accuracy"] == evaluate(logits=LOGITS, labels=LABELS).metrics["accuracy"]


def test_half_precision_probabilities_may_sum_less_exactly():
    assert evaluate(probs=PROBS.astype(np.float16), labels=LABELS).n == 60


def test_a_changed_convention_is_used():
    ten = replace(convention("standard"), name="ten", n_bins=10)
    seen = evaluate(logits=LOGITS, labels=LABELS, convention=ten)
    assert seen.bins.n_bins == 10
    assert seen.convention.name == "ten"


def test_to_dict_is_json_and_str_is_a_table():
    seen = evaluate(logits=LOGITS, labels=LABELS, convention="dac2024")
    again = json.loads(json.dumps(seen.to_dict(), allow_nan=False))
    assert again["convention"] == "dac2024"
    assert len(again["bins"]["count"]) == 10
    shown = str(seen)
    assert shown.splitlines()[0] == "60 samples, convention dac2024 (10 bins closed on the left)"
    assert f"ece{100 * seen.metrics['ece']:23.2f} %" in shown
    assert "skipped piece: needs the proximity of every sample" in shown


def test_per_class_needs_classes():
    seen = evaluate(confidence=[0.5], correct=[True])
    with pytest.raises(ValueError, match="per_class: needs logits, probs or predictions"):
        seen.per_class()


def test_plot_draws_into_the_given_axes():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    evaluate(logits=LOGITS, labels=LABELS).plot(ax=ax)
    assert ax.patches
    assert ax.get_title(loc="left") + ax.get_title() == "convention standard"


NAN_ROWS = changed(LOGITS, (3, 9), 1, np.nan)
GOOD = np.delete(np.arange(60), [3, 9])
BAD_ROWS = {
    "logits": {"logits": NAN_ROWS, "labels": LABELS},
    "infinite logits": {"logits": changed(LOGITS, (3, 9), 0, -np.inf), "labels": LABELS},
    "labels": {
        "logits": LOGITS,
        "labels": np.where(np.isin(np.arange(60), GOOD), LABELS, -100),
    },
    "probs": {"probs": changed(PROBS, (3, 9), 2, np.nan), "labels": LABELS},
    "sums": {"probs": changed(PROBS, (3, 9), 2, 0.999), "labels": LABELS},
    "confidence": {
        "confidence": changed(PROBS.max(-1)[:, None], (3, 9), 0, 1.5)[:, 0],
        "correct": PROBS.argmax(-1) == LABELS,
    },
    "proximity": {
        "logits": LOGITS,
        "labels": LABELS,
        "proximity": changed(np.full((60, 1), 0.5), (3, 9), 0, np.nan)[:, 0],
    },
    "proximity of predictions": {
        "predictions": Predictions(
            logits=torch.from_numpy(LOGITS), labels=torch.from_numpy(LABELS)
        ),
        "proximity": changed(np.full((60, 1), 0.5), (3, 9), 0, np.nan)[:, 0],
    },
}
bad_rows = pytest.mark.parametrize("inputs", BAD_ROWS.values(), ids=BAD_ROWS.keys())


def taken(inputs, rows):
    def take(value):
        return value.select(torch.from_numpy(rows)) if hasattr(value, "select") else value[rows]

    return {
        name: take(np.asarray(value) if isinstance(value, np.ndarray) else value)
        for name, value in inputs.items()
    }


@bad_rows
def test_bad_rows_are_an_error_by_default(inputs):
    with pytest.raises(ValueError, match="row 3"):
        evaluate(**inputs)


@bad_rows
def test_dropped_rows_are_counted_and_nothing_else_changes(inputs):
    seen, expected = evaluate(**inputs, bad="drop"), evaluate(**taken(inputs, GOOD))
    assert seen.metrics == expected.metrics
    assert (seen.n, seen.n_dropped, seen.to_dict()["n_dropped"]) == (58, 2, 2)
    assert int(seen.bins.count.sum()) == len(seen.outcomes.correct) == 58
    assert str(seen).startswith("58 samples, 2 dropped, convention standard")
    assert seen.notes == ("2 bad rows, the first is row 3: dropped",)


@bad_rows
def test_propagated_rows_make_what_sees_them_nan(inputs):
    seen = evaluate(**inputs, bad="propagate")
    only_near = "proximity" in inputs
    assert seen.metrics
    for name, value in seen.metrics.items():
        assert np.isnan(value) == (name == "piece" or not only_near), name
    assert (seen.n, seen.n_dropped) == (60, 0)
    again = json.loads(json.dumps(seen.to_dict(), allow_nan=False))
    assert again["metrics"]["piece" if only_near else "ece"] is None
    assert "2 bad rows, the first is row 3" in again["notes"][0]


@pytest.mark.parametrize("policy", ["drop", "propagate"])
@pytest.mark.parametrize("kind", ["logits", "probs", "confidence"])
def test_policies_change_nothing_where_all_rows_are_good(kind, policy):
    inputs = {"logits": LOGITS, "probs": PROBS, "confidence": PROBS.max(-1)}
    second = {"correct": PROBS.argmax(-1) == LABELS} if kind == "confidence" else {"labels": LABELS}
    expected = evaluate(**{kind: inputs[kind]}, **second)
    seen = evaluate(**{kind: inputs[kind]}, **second, bad=policy)
    assert seen.to_dict() == expected.to_dict()


def test_nothing_but_bad_rows():
    nothing = np.full_like(LOGITS, np.nan)
    with pytest.raises(NoSamplesError, match="all 60 rows are bad"):
        evaluate(logits=nothing, labels=LABELS, bad="drop")
    for inputs in ({"logits": nothing}, {"probs": nothing}):
        seen = evaluate(**inputs, labels=LABELS, bad="propagate", classwise=True)
        assert np.isnan(seen.metrics["ece"]) and seen.bins.n == 0 and seen.n == 60
        assert "ece" in str(seen)


def test_policies_are_no_way_around_the_kind_of_input():
    for policy in ("drop", "propagate"):
        with pytest.raises(ValueError, match="like cosine similarities"):
            evaluate(logits=LOGITS / 40, labels=LABELS, bad=policy)
        with pytest.raises(ValueError, match=r"labels must be \[N\] = \[60\]"):
            evaluate(logits=LOGITS, labels=LABELS[:9], bad=policy)
    with pytest.raises(ValueError, match="bad must be error, drop or propagate, got 'ignore'"):
        evaluate(logits=LOGITS, labels=LABELS, bad="ignore")
    with pytest.raises(ValueError, match="bad='drop' looks at the values, so validate must be"):
        evaluate(logits=LOGITS, labels=LABELS, bad="drop", validate=False)


def test_class_wise_error_is_measured_on_request():
    seen = evaluate(logits=LOGITS, labels=LABELS, classwise=True)
    again = evaluate(probs=PROBS, labels=LABELS, classwise=True)
    names = ["classwise_ece", "classwise_ece_thresholded"]
    assert list(seen.metrics)[-2:] == names
    assert seen.metrics["classwise_ece"] == pytest.approx(classwise_ece(PROBS, LABELS), abs=1e-6)
    assert seen.metrics == pytest.approx(again.metrics, abs=1e-6)
    kept = evaluate(logits=NAN_ROWS, labels=LABELS, classwise=True, bad="drop")
    assert (
        kept.metrics == evaluate(logits=LOGITS[GOOD], labels=LABELS[GOOD], classwise=True).metrics
    )
    with pytest.raises(ValueError, match="classwise needs logits, probs or predictions"):
        evaluate(confidence=[0.5], correct=[True], classwise=True)


def test_what_a_convention_lacks_is_skipped_with_its_sentence():
    seen = evaluate(logits=LOGITS, labels=LABELS, convention="torchmetrics")
    assert seen.skipped["ace"] == "ace: convention torchmetrics has no bins of equal count"
    assert "ace" not in seen.metrics and "rmsce" in seen.metrics


def test_a_mean_over_batches_says_what_all_rows_give():
    rule = replace(convention("carot"), batch_size=7)
    with pytest.warns(VlcalWarning, match=r"batches of 7 in the order of the rows: ECE .* at once"):
        seen = evaluate(logits=LOGITS, labels=LABELS, convention=rule)
    pooled = evaluate(logits=LOGITS, labels=LABELS, convention=replace(rule, batch_size=None))
    assert seen.metrics["ece"] > pooled.metrics["ece"]
    assert f"over all rows at once it is {100 * pooled.metrics['ece']:.2f} %" in seen.notes[0]
    assert f"note: {seen.notes[0]}" in str(seen)
    assert torch.equal(seen.bins.count, pooled.bins.count)


def test_shared_work_gives_the_metrics_themselves():
    seen = evaluate(logits=LOGITS, labels=LABELS, proximity=np.linspace(0.2, 0.9, 60))
    alone = {metric.__name__: metric(seen.outcomes, seen.convention) for metric in METRICS}
    assert seen.metrics == alone


def test_intervals_are_those_of_the_bins():
    seen = evaluate(logits=LOGITS, labels=LABELS)
    low, high = seen.interval("accuracy")
    assert low < seen.metrics["accuracy"] < high
    assert seen.interval() == seen.interval("ece", seed=0) != seen.interval("ece", seed=1)
    with pytest.raises(ValueError, match="interval: unknown metric 'nll'; known: accuracy, ece"):
        seen.interval("nll")
    rule = replace(convention("carot"), batch_size=7)
    with pytest.warns(VlcalWarning):
        seen = evaluate(logits=LOGITS, labels=LABELS, convention=rule)
    with pytest.raises(ValueError, match="convention carot averages batches"):
        seen.interval()
