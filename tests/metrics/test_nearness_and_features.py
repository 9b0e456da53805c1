"""Proximity of images in both forms, calibration by proximity, and what tuning did to texts."""

import math

import numpy as np
import pytest
import torch

from vlcal.metrics import (
    MissingInput,
    convention,
    feature_report,
    image_proximity,
    piece,
    proximity_table,
)
from vlcal.types import Outcomes, Predictions

PROCAL = convention("procal")


def unit(n, d, generator):
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=-1)


def test_two_forms_by_hand():
    # squared distances to the axes: 0, 2, 2
    images, holdout = torch.eye(3)[:1], torch.eye(3)
    root = math.sqrt(2)
    assert image_proximity(images, holdout, k=2).item() == pytest.approx(math.exp(-root / 2))
    near = image_proximity(images, holdout, PROCAL, k=3).item()
    assert near == pytest.approx((1 + 2 * math.exp(-2)) / 3)
    alone = image_proximity(holdout, holdout, PROCAL, k=2, exclude_self=True)
    assert alone.tolist() == pytest.approx([math.exp(-2)] * 3)


def test_the_form_of_procal_is_that_of_a_flat_index(generator):
    faiss = pytest.importorskip("faiss")
    images, holdout = unit(40, 16, generator), unit(200, 16, generator)
    index = faiss.IndexFlatL2(16)
    index.add(holdout.numpy())
    squared, _ = index.search(images.numpy(), 10)
    expected = np.exp(-squared).mean(1)
    assert image_proximity(images, holdout, "procal").tolist() == pytest.approx(expected, abs=1e-5)
    squared, _ = index.search(holdout.numpy(), 11)
    expected = np.exp(-squared[:, 1:]).mean(1)
    near = image_proximity(holdout, holdout, "procal", exclude_self=True)
    assert near.tolist() == pytest.approx(expected, abs=1e-5)


def test_proximity_table_by_hand():
    seen = Outcomes(
        torch.tensor([0.9, 0.7, 0.6, 0.8]),
        torch.tensor([True, False, True, True]),
        proximity=torch.tensor([0.2, 0.9, 0.3, 0.8]),
    )
    table = proximity_table(seen, n_bins=2)
    assert table.count.tolist() == [2, 2]
    assert table.proximity.tolist() == pytest.approx([0.25, 0.85])
    assert table.confidence.tolist() == pytest.approx([0.75, 0.75])
    assert table.accuracy.tolist() == [1.0, 0.5]
    assert table.gap.tolist() == pytest.approx([-0.25, 0.25])


def test_ties_leave_bins_empty_and_their_means_nan():
    seen = Outcomes(torch.full((3,), 0.5), torch.ones(3).bool(), proximity=torch.full((3,), 0.4))
    table = proximity_table(seen)
    assert table.count.sum() == table.count.max() == 3
    assert table.gap.isnan().sum() == table.proximity.isnan().sum() == 9


def test_gaps_by_proximity_are_never_more_than_piece():
    q, near = torch.rand(500), torch.rand(500)
    seen = Outcomes(q, torch.rand(500) < q * near, proximity=near)
    table = proximity_table(seen)
    assert float((table.count * table.gap.abs()).sum() / 500) <= piece(seen, convention("standard"))


def test_what_a_table_needs():
    with pytest.raises(MissingInput, match="proximity_table: needs the proximity"):
        proximity_table(Outcomes(torch.ones(1), torch.ones(1).bool()))
    seen = Outcomes(torch.ones(1), torch.ones(1).bool(), proximity=torch.ones(1))
    with pytest.raises(MissingInput, match="convention netcal has no bins of proximity"):
        proximity_table(seen, "netcal")


def texts(tuned, frozen):
    common = {"image_features": torch.ones(1, tuned.shape[1]), "logit_scale": 1.0}
    twin = Predictions(text_features=frozen, **common)
    return Predictions(text_features=tuned, zero_shot=twin, **common)


def test_features_by_hand():
    frozen = torch.eye(3)
    tuned = frozen[[0, 2, 1]]
    report = feature_report(texts(tuned, frozen), texts(tuned[:1], frozen[:1]))
    root = math.sqrt(2)
    assert report.moved.tolist() == pytest.approx([0, root, root])
    assert report.divergence.tolist() == pytest.approx([root] * 3)
    assert report.proximity.tolist() == pytest.approx([1, math.exp(-root), math.exp(-root)])
    assert report.ratio.tolist() == pytest.approx([1, 1, 1])
    assert report.spread == pytest.approx(math.sqrt(2 / 3)) == report.zero_shot_spread


def test_classes_that_moved_apart_have_less_proximity(generator):
    frozen = torch.nn.functional.normalize(unit(30, 16, generator) + 1.0, dim=-1)
    tuned = torch.nn.functional.normalize(frozen - 0.2, dim=-1)
    report = feature_report(texts(tuned[15:], frozen[15:]), texts(tuned[:15], frozen[:15]))
    assert (report.ratio < 1).all()
    assert report.spread > report.zero_shot_spread
    assert (report.divergence > report.zero_shot_divergence).all()


def test_a_report_without_base_classes_and_what_it_refuses():
    frozen = torch.eye(3)
    report = feature_report(texts(frozen, frozen))
    assert report.proximity is None and report.ratio is None and not report.moved.any()
    with pytest.raises(ValueError, match="tested needs text_features, and a zero_shot"):
        feature_report(Predictions(logits=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="base needs text_features"):
        feature_report(texts(frozen, frozen), Predictions(logits=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="at least two classes and k >= 1, got 1"):
        feature_report(texts(frozen[:1], frozen[:1]))
