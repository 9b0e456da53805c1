"""AUROC, risk-coverage and AURC: by hand, against pairs and orders, and against scikit-learn."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcal.metrics import MissingInput, aurc, auroc, convention, risk_coverage
from vlcal.types import NoSamplesError, Outcomes

RULE = convention("standard")
FIVE = Outcomes(
    torch.tensor([0.9, 0.5, 0.7, 0.7, 0.6]), torch.tensor([True, False, True, False, True])
)


def test_five_rows_by_hand():
    curve = risk_coverage(FIVE)
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5])
    assert curve.answered.tolist() == [1, 3, 4, 5]
    assert curve.wrong.tolist() == [0, 1, 1, 2]
    assert curve.coverage.tolist() == [0.2, 0.6, 0.8, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 1 / 4, 2 / 5])
    # of the six pairs five are in order and one is tied, but 0.6 is below a wrong 0.7
    assert auroc(FIVE, RULE) == pytest.approx((2 + 1.5 + 1) / 6)
    # the tied pair: half a mistake after the first of them
    assert aurc(FIVE, RULE) == pytest.approx((0 + 0.5 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


def test_risk_at_a_coverage_and_coverage_at_a_risk():
    curve = risk_coverage(FIVE)
    assert curve.risk_at(0.2) == 0
    assert curve.risk_at(0.4) == pytest.approx(0.5 / 2)
    assert curve.risk_at(1) == pytest.approx(0.4)
    assert curve.at_risk(0.3) == pytest.approx((0.6, 0.8))
    assert curve.at_risk(0.0) == pytest.approx((0.9, 0.2))
    wrong = risk_coverage(Outcomes(torch.tensor([0.5]), torch.tensor([False])))
    assert wrong.at_risk(0.5) == (math.inf, 0.0)
    with pytest.raises(ValueError, match=r"coverage must be in \(0, 1\], got 0"):
        curve.risk_at(0)


samples = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=6)


def drawn(pairs, dtype=torch.float64):
    q, right = zip(*pairs, strict=True)
    return Outcomes(torch.tensor(q, dtype=dtype) / 4, torch.tensor(right))


@settings(max_examples=60, deadline=None)
@given(samples, st.sampled_from([torch.float64, torch.float32, torch.float16]))
def test_auroc_is_the_share_of_pairs_in_order(pairs, dtype):
    right, wrong = ([q for q, good in pairs if good is kind] for kind in (True, False))
    if right and wrong:
        share = [(a > b) + (a == b) / 2 for a in right for b in wrong]
        assert auroc(drawn(pairs, dtype), RULE) == pytest.approx(sum(share) / len(share))


@settings(max_examples=25, deadline=None)
@given(samples)
def test_aurc_is_the_mean_over_the_orders_of_ties(pairs):
    orders = [o for o in itertools.permutations(pairs) if list(o) == sorted(o, key=lambda p: -p[0])]
    areas = [
        sum(sum(not good for _, good in order[:k]) / k for k in range(1, len(order) + 1))
        for order in orders
    ]
    expected = sum(areas) / len(areas) / len(pairs)
    assert aurc(drawn(pairs), RULE) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_auroc_is_that_of_scikit_learn(dtype):
    from sklearn.metrics import roc_auc_score

    q = torch.rand(5000, dtype=dtype)
    q[::3] = q[::3].mul(20).round().div(20)
    right = torch.rand(5000) < q
    assert auroc(Outcomes(q, right), RULE) == pytest.approx(roc_auc_score(right, q), abs=1e-12)


def test_neighboring_floats_are_two_thresholds_and_both_zeros_are_one():
    one = torch.tensor(1.0)
    q = torch.stack([one, torch.nextafter(one, -one), one * 0, -one * 0])
    curve = risk_coverage(Outcomes(q, torch.tensor([True, False, True, False])))
    assert curve.answered.tolist() == [1, 2, 4]
    assert curve.threshold.tolist() == [1, float(q[1]), 0]


def test_refusals():
    right = Outcomes(torch.rand(3), torch.ones(3).bool())
    with pytest.raises(MissingInput, match=r"auroc: needs correct and wrong .* 3 correct and 0 wr"):
        auroc(right, RULE)
    with pytest.raises(NoSamplesError, match="risk_coverage: needs at least one"):
        risk_coverage(Outcomes(torch.zeros(0), torch.zeros(0).bool()))
    for value in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"must be in 0\.\.1 and not NaN"):
            risk_coverage(Outcomes(torch.tensor([0.5, value]), torch.ones(2).bool()))
