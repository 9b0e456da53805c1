"""compat.torchmetrics gives the numbers of torchmetrics on random, tied and edge inputs."""

import pytest
import torch

theirs = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

import vlcal  # noqa: E402
from vlcal.compat import torchmetrics as ours  # noqa: E402
from vlcal.metrics import CONVENTIONS, convention  # noqa: E402
from vlcal.types import NoSamplesError  # noqa: E402

N, C = 400, 5
functional = theirs.functional.classification


def edge_probs(n_bins):
    """Two classes; the confidences are float32 and float64 edges of the bins, and 1."""
    edges = torch.cat([torch.linspace(0.5, 1, n_bins + 1), torch.linspace(0, 1, n_bins + 1)])
    top = edges[edges >= 0.5].repeat(3)
    top = torch.cat([top, torch.nextafter(top, torch.zeros(())).clamp(min=0.5)])
    return torch.stack([top, 1 - top], -1)


def probs_of(kind):
    logits = torch.randn(N, C) * 3
    if kind == "logits":
        return logits
    if kind == "probs":
        return logits.softmax(-1)
    if kind == "tied":
        return logits.round().softmax(-1)
    if kind == "certain":
        return torch.eye(C)[torch.randint(C, (N,))]
    if kind == "saturated logits":
        return logits * 100
    if kind == "uniform":
        return torch.full((N, C), 1 / C)
    if kind == "half":
        return logits.half().softmax(-1)
    if kind == "double":
        return logits.double()
    if kind == "infinite":
        return torch.where(logits < logits.mean(-1, keepdim=True), -torch.inf, logits)
    raise AssertionError(kind)


KINDS = (
    "logits",
    "probs",
    "tied",
    "certain",
    "saturated logits",
    "uniform",
    "half",
    "double",
    "infinite",
)
every_norm = pytest.mark.parametrize("norm", ["l1", "l2", "max"])


def equal(found, expected):
    torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=2e-6)


@every_norm
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_multiclass_function(kind, norm, n_bins):
    preds, target = probs_of(kind), torch.randint(C, (N,))
    found = ours.multiclass_calibration_error(preds, target, C, n_bins, norm)
    equal(found, functional.multiclass_calibration_error(preds, target, C, n_bins, norm))


@every_norm
@pytest.mark.parametrize("n_bins", [7, 10, 15, 20, 100])
def test_confidences_on_the_edges(norm, n_bins):
    preds = edge_probs(n_bins)
    target = torch.randint(2, (len(preds),))
    found = ours.multiclass_calibration_error(preds, target, 2, n_bins, norm)
    equal(found, functional.multiclass_calibration_error(preds, target, 2, n_bins, norm))


@every_norm
def test_ignored_labels_and_more_dimensions(norm):
    preds, target = torch.randn(6, C, 4, 3), torch.randint(-1, C, (6, 4, 3))
    options = {"n_bins": 10, "norm": norm, "ignore_index": -1}
    found = ours.multiclass_calibration_error(preds, target, C, **options)
    equal(found, functional.multiclass_calibration_error(preds, target, C, **options))


@every_norm
@pytest.mark.parametrize("kind", ["probs", "logits", "edges", "double", "ignored"])
def test_binary_function(kind, norm):
    target = torch.randint(2, (600,))
    preds = {
        "probs": torch.rand(600),
        "logits": torch.randn(600) * 4,
        "edges": torch.linspace(0, 1, 11).repeat(60)[:600],
        "double": torch.linspace(0, 1, 601, dtype=torch.float64)[:600],
        "ignored": torch.rand(600),
    }[kind]
    ignored = 1 if kind == "ignored" else None
    found = ours.binary_calibration_error(preds, target, 10, norm, ignored)
    equal(found, functional.binary_calibration_error(preds, target, 10, norm, ignored))


@every_norm
def test_objects_over_batches_one_of_which_looks_like_probabilities(norm):
    logits, target = torch.randn(N, C) * 3, torch.randint(C, (N,))
    logits[:3] = torch.rand(3, C)  # the guess is made for every batch anew, as theirs
    first = ours.MulticlassCalibrationError(C, n_bins=10, norm=norm)
    second = theirs.classification.MulticlassCalibrationError(C, n_bins=10, norm=norm)
    sizes = [3, N - 3]
    for part in zip(logits.split(sizes), target.split(sizes), strict=True):
        equal(first(*part), second(*part))
    equal(first.compute(), second.compute())
    assert first.table.shape == (3, 11)


@every_norm
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_objects_of_a_task(task, norm):
    preds, target = torch.rand(N), torch.randint(2, (N,))
    for make in ("binary", "multiclass"):
        given = (
            (torch.stack([1 - preds, preds], -1), target)
            if make == "multiclass"
            else (preds, target)
        )
        first = ours.CalibrationError(make, n_bins=8, norm=norm, num_classes=2)
        second = theirs.CalibrationError(make, n_bins=8, norm=norm, num_classes=2)
        assert type(first).__name__ == type(second).__name__
        first.update(*given)
        second.update(*given)
        equal(first.compute(), second.compute())
        expected = theirs.functional.calibration_error(*given, make, 8, norm, 2)
        equal(ours.calibration_error(*given, make, 8, norm, 2), expected)


def test_every_split_gives_the_same_bits():
    preds, target = torch.randn(N, C) * 3, torch.randint(C, (N,))
    whole = ours.MulticlassCalibrationError(C)
    whole.update(preds, target)
    merged, other = ours.MulticlassCalibrationError(C), ours.MulticlassCalibrationError(C)
    merged.update(preds[300:], target[300:])
    other.update(preds[:300], target[:300])
    merged.merge_state(other)
    assert torch.equal(merged.compute(), whole.compute())
    collection = theirs.MetricCollection(
        {norm: ours.MulticlassCalibrationError(C, norm=norm) for norm in ("l1", "l2", "max")}
    )
    collection.update(preds, target)
    assert len(collection.compute_groups) == 1
    assert torch.equal(collection.compute()["l1"], whole.compute())


def test_counts_do_not_stop_at_two_to_the_24():
    metric = ours.MulticlassCalibrationError(2, n_bins=10)
    metric.update(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    for _ in range(25):
        metric.merge_state(metric.clone())
    metric.update(torch.tensor([[0.05, 0.95]]), torch.tensor([1]))
    assert metric.table[0].tolist()[7:] == [2**25, 0, 1, 0]


def test_our_default_differs_and_our_convention_does_not():
    preds = torch.tensor([[1.0, 0.0], [0.95, 0.05]])
    target = torch.tensor([1, 0])
    assert convention("torchmetrics") in CONVENTIONS
    found = ours.multiclass_calibration_error(preds, target, 2, 15)
    default = vlcal.evaluate(probs=preds, labels=target).metrics["ece"]
    named = vlcal.evaluate(probs=preds, labels=target, convention="torchmetrics").metrics["ece"]
    # apart the gaps are 1 and 0.05; together 0.475, because they point the same way but for 0.05
    assert float(found) == pytest.approx((1 + 0.05) / 2)
    assert default == pytest.approx((1 - 0.05) / 2)
    assert named == pytest.approx(float(found))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: ours.MulticlassCalibrationError(1), ValueError, "num_classes must be an integer"),
        (lambda: ours.MulticlassCalibrationError(3, n_bins=0), ValueError, "n_bins must be"),
        (lambda: ours.MulticlassCalibrationError(3, norm="l3"), ValueError, "norm must be one of"),
        (lambda: ours.BinaryCalibrationError(ignore_index=0.5), ValueError, "ignore_index must be"),
        (lambda: ours.CalibrationError("multilabel"), ValueError, "task must be 'binary' or"),
        (lambda: ours.CalibrationError("multiclass"), ValueError, "num_classes must be an integer"),
        (lambda: call([[0.5, 0.5]], [2]), RuntimeError, r"target must be in 0..1, got 2 \(1 such"),
        (lambda: call([[1, 2]], [1]), ValueError, "preds must be floating point"),
        (lambda: call([[0.5, 0.2, 0.3]], [1]), ValueError, r"with C = 2 and the other sizes"),
        (lambda: call([[0.5, 0.5]], [1.0]), ValueError, "target must be integers"),
        (lambda: call([[torch.nan, 0.5]], [1]), ValueError, "got NaN in row 0 of those that count"),
        (lambda: call([[0.5, 0.5]], [-1], ignore_index=-1), NoSamplesError, "at least one sample"),
    ],
)
def test_refusals(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def call(preds, target, **options):
    preds, target = torch.tensor(preds), torch.tensor(target)
    return ours.multiclass_calibration_error(preds, target, 2, **options)


def test_labels_that_are_not_validated_count_as_wrong():
    given = torch.tensor([[0.9, 0.1]]), torch.tensor([7])
    found = ours.multiclass_calibration_error(*given, 2, validate_args=False)
    expected = functional.multiclass_calibration_error(*given, 2, validate_args=False)
    equal(found, expected)
