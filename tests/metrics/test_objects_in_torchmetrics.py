"""Metric objects as members of torchmetrics: base class, collections, compute groups."""

import pytest
import torch

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from tests.metrics.test_objects import OBJECTS, C, batch, filled  # noqa: E402
from vlcal.metrics.objects import (  # noqa: E402
    Accuracy,
    BrierScore,
    CalibrationError,
    ConfidenceAUROC,
    NegativeLogLikelihood,
)


def collection(**options):
    return torchmetrics.MetricCollection(
        {
            "ece": CalibrationError("logits"),
            "mce": CalibrationError("logits", "mce"),
            "dac": CalibrationError("logits", convention="dac2024"),
            "nll": NegativeLogLikelihood("logits"),
            "brier": BrierScore("logits"),
            "auroc": ConfidenceAUROC("logits"),
            "theirs": torchmetrics.classification.MulticlassAccuracy(C, average="micro"),
            "ours": Accuracy("logits"),
        },
        **options,
    )


def test_objects_are_torchmetrics_metrics():
    for make in OBJECTS.values():
        assert isinstance(make(), torchmetrics.Metric)


def test_a_collection_gives_what_its_members_give_alone():
    metrics = collection()
    for seed in range(3):
        metrics.update(*batch(seed=seed))
    found = metrics.compute()
    for name, metric in collection().items():
        for seed in range(3):
            metric.update(*batch(seed=seed))
        assert torch.equal(found[name], metric.compute()), name
    assert float(found["ours"]) == pytest.approx(float(found["theirs"]), abs=1e-6)


def test_compute_groups_hold_members_that_count_the_same_and_no_others():
    metrics = collection()
    metrics.update(*batch())
    groups = {frozenset(group) for group in metrics.compute_groups.values()}
    assert {"ece", "mce"} in groups
    assert {"nll", "brier", "ours"} in groups
    assert len(groups) == 5


def test_members_with_other_rules_never_share_a_state_that_is_equal_by_chance():
    # no confidence lies on an edge, so both count the same in the first batch
    first = torch.tensor([[5.0, 1.0], [2.0, 4.0]]), torch.tensor([0, 0])
    second = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    pair = {
        "right": CalibrationError("logits", validate=False, convention="standard"),
        "left": CalibrationError("logits", validate=False, convention="procal"),
        "drops": CalibrationError("logits", validate=False, nan="drop"),
    }
    metrics = torchmetrics.MetricCollection(pair)
    metrics.update(*first)
    assert torch.equal(metrics["right"].table, metrics["left"].table)
    metrics.update(*second)
    metrics.update(torch.full((1, 2), torch.nan), torch.tensor([0]), mask=torch.tensor([False]))
    assert len(metrics.compute_groups) == 3


def test_collections_forward_reset_clone_and_pass_the_mask():
    metrics, (logits, labels) = collection(), batch()
    keep = torch.rand(len(labels)) < 0.5
    found = metrics(logits, labels, mask=keep)
    assert torch.equal(found["ece"], filled(OBJECTS["ece"], logits[keep], labels[keep]).compute())
    metrics.reset()
    metrics.update(logits, labels, mask=keep)
    copy = metrics.clone(prefix="val_")
    assert torch.equal(copy.compute()["val_ece"], found["ece"])
    metrics.update(logits, labels, mask=keep)
    assert torch.equal(copy.compute()["val_ece"], found["ece"])


def test_torchmetrics_options_reach_the_base():
    assert CalibrationError("logits", sync_on_compute=False).sync_on_compute is False
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `nbins`"):
        CalibrationError("logits", nbins=3)
    stepwise = CalibrationError("logits", dist_sync_on_step=True)
    assert torch.equal(stepwise(*batch()), filled(OBJECTS["ece"]).compute())
