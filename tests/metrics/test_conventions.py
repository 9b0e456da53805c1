"""Each convention is the number of its source: recorded values, the installed, plain loops."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from vlcal import metrics
from vlcal.metrics import CONVENTIONS, convention, ece, mce
from vlcal.types import Outcomes

# made by running the published code and torchmetrics 1.9, netcal 1.4 on `draw`; some of it sums in
# float32, netcal was given float64 arrays, clipcalib10 confidences of at least 0.001
RECORDED = {
    "spread": {
        "dac2024": {
            "ECE": 0.0823875,
            "MCE": 0.020732,
            "AdaptiveECE": 0.0729858,
            "PIECE": 0.1738195,
        },
        "procal": {
            "MCE": 0.0179698,
            "AdaptiveECE": 0.0972433,
            "PIECE": 0.2142432,
            "ECE": 0.0821098,
            "auc": 0.7715049,
        },
        "clipcalib": {"ECELoss": 0.0821098, "AdaptiveECELoss": 0.0892472},
        "clipcalib10": {
            "expected_calibration_error": 0.0823908,
            "maximum_calibration_error": 0.1884731,
            "average_calibration_error": 0.0833072,
        },
        "ctpt20": {"ECE_Loss": 0.1373389},
        "torchmetrics": {"norm='l1'": 0.0821098, "norm='max'": 0.3171147, "norm='l2'": 0.107013},
        "carot": {"ece": 0.0823875},
        "netcal": {"ECE": 0.0823875, "MCE": 0.1884731, "ACE": 0.0832822},
    },
    "edges": {
        "dac2024": {"ECE": 0.04525, "MCE": 0.0173333, "AdaptiveECE": 0.041, "PIECE": 0.1493333},
        "procal": {
            "MCE": 0.013,
            "AdaptiveECE": 0.0501111,
            "PIECE": 0.1978889,
            "ECE": 0.0445556,
            "auc": 0.8415479,
        },
        "clipcalib": {"ECELoss": 0.0434445, "AdaptiveECELoss": 0.0567778},
        "clipcalib10": {
            "expected_calibration_error": 0.0457333,
            "maximum_calibration_error": 0.1599999,
            "average_calibration_error": 0.0496127,
        },
        "ctpt20": {"ECE_Loss": 0.0543333},
        "torchmetrics": {"norm='l1'": 0.0561111, "norm='max'": 0.205263, "norm='l2'": 0.0771208},
        "carot": {"ece": 0.0436666},
        "netcal": {"ECE": 0.0436667, "MCE": 0.1181818, "ACE": 0.0408773},
    },
    "ends": {
        "dac2024": {
            "ECE": 0.0590915,
            "MCE": 0.0271229,
            "AdaptiveECE": 0.076911,
            "PIECE": 0.1396884,
        },
        "procal": {
            "MCE": 0.0239911,
            "AdaptiveECE": 0.076911,
            "PIECE": 0.1812332,
            "ECE": 0.0812482,
            "auc": 0.8622171,
        },
        "clipcalib": {"ECELoss": 0.0812482, "AdaptiveECELoss": 0.0688767},
        "clipcalib10": {
            "expected_calibration_error": 0.0696752,
            "maximum_calibration_error": 0.1614183,
            "average_calibration_error": 0.0737962,
        },
        "ctpt20": {"ECE_Loss": 0.0990577},
        "torchmetrics": {"norm='l1'": 0.0812482, "norm='max'": 0.3396842, "norm='l2'": 0.1109358},
        "carot": {"ece": 0.0695319},
        "netcal": {"ECE": 0.0695319, "MCE": 0.1614183, "ACE": 0.0737006},
    },
    "ties": {
        "dac2024": {"ECE": 0.056, "MCE": 0.0303333, "AdaptiveECE": 0.0686667, "PIECE": 0.1433333},
        "procal": {
            "MCE": 0.018,
            "AdaptiveECE": 0.0686667,
            "PIECE": 0.1753333,
            "ECE": 0.0686667,
            "auc": 0.7579507,
        },
        "clipcalib": {"ECELoss": 0.0686667, "AdaptiveECELoss": 0.0646667},
        "clipcalib10": {
            "expected_calibration_error": 0.06867,
            "maximum_calibration_error": 0.2,
            "average_calibration_error": 0.0746591,
        },
        "ctpt20": {"ECE_Loss": 0.0686667},
        "torchmetrics": {"norm='l1'": 0.0686667, "norm='max'": 0.2, "norm='l2'": 0.0809385},
        "carot": {"ece": 0.0686667},
        "netcal": {"ECE": 0.066, "MCE": 0.2, "ACE": 0.0695454},
    },
}
TOLERANCE = 2e-7
BY_CLASS = ("classwise_ece", "classwise_ece_thresholded")  # in test_classwise.py


def draw(case):
    """Confidences made by correctly rounded operations only, so that every machine has the same."""
    i = np.arange(300)
    q = np.sqrt((i * 37) % 301 / 301)
    if case == "edges":  # literals, torch's float32 edges and NumPy's float64 edges
        literals = [np.full(2, k / n) for n in (10, 15, 20) for k in range(n + 1)]
        single = [torch.linspace(0, 1, n + 1).double().numpy() for n in (10, 15, 20)]
        double = [np.linspace(0, 1, n + 1) for n in (10, 15, 20)]
        q = np.resize(np.concatenate(literals + single + double), 300)
    elif case == "ends":
        q[::5], q[1::7] = 1.0, 0.0
    elif case == "ties":
        q = np.round(q, 1)
    q = q.astype(np.float32)
    right = (i * 53) % 101 / 101 < q * 0.9
    return Outcomes(*map(torch.from_numpy, (q, right)), proximity=torch.tensor(i * 91 % 307 / 307))


PAIRS = [
    (case, rule.name, theirs, ours)
    for case in RECORDED
    for rule in CONVENTIONS
    for theirs, ours in rule.theirs
    if ours not in BY_CLASS
]


@pytest.mark.parametrize(("case", "rule", "theirs", "ours"), PAIRS)
def test_is_the_recorded_number_of_its_source(case, rule, theirs, ours):
    seen = draw(case)
    if rule == "clipcalib10":
        seen = seen._replace(confidence=seen.confidence.clamp(min=0.001))
    value = getattr(metrics, ours)(seen, convention(rule))
    assert value == pytest.approx(RECORDED[case][rule][theirs], abs=TOLERANCE)


def test_every_recorded_number_has_a_name_here():
    assert {(rule, theirs) for _, rule, theirs, _ in PAIRS} == {
        (rule, theirs) for rule in RECORDED["ties"] for theirs in RECORDED["ties"][rule]
    }


def test_batches_are_those_of_the_published_loop():
    from dataclasses import replace

    seen = draw("spread")
    rule = replace(convention("carot"), batch_size=40)
    assert ece(seen, rule) == pytest.approx(0.1449330, abs=TOLERANCE)


def random_draw(seed, dtype):
    rng = np.random.default_rng(seed)
    q = rng.beta(4, 1, 2000)
    q[::4] = np.round(q[::4] * 60) / 60  # on edges, some at 1
    q = q.astype(dtype)
    right = rng.random(2000) < q
    return q, right, Outcomes(torch.from_numpy(q), torch.from_numpy(right))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_itself(seed, dtype):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    _, _, seen = random_draw(seed, dtype)
    # class 0 has the confidence and nothing else wins
    probs = torch.zeros(2000, 400, dtype=seen.confidence.dtype)
    probs[:, 0] = seen.confidence
    for norm, name in (("l1", "ece"), ("max", "mce"), ("l2", "rmsce")):
        peer = functional.multiclass_calibration_error(
            probs, 1 - seen.correct.long(), 400, 15, norm
        )
        value = getattr(metrics, name)(seen, convention("torchmetrics"))
        assert value == pytest.approx(float(peer), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_debiased_error_is_that_of_torchmetrics(seed):
    calibration = pytest.importorskip("torchmetrics.functional.classification.calibration_error")
    _, _, seen = random_draw(seed, np.float32)
    few = Outcomes(seen.confidence[:60], seen.correct[:60])
    for case in (seen, few):
        peer = calibration._ce_compute(case.confidence, case.correct.float(), 15, "l2", True)
        value = metrics.rmsce_debiased(case, convention("torchmetrics"))
        assert value == pytest.approx(float(peer), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_netcal_itself(seed):
    confidence = pytest.importorskip("netcal.metrics", reason="netcal is not a test dependency")
    q, right, seen = random_draw(seed, np.float64)
    for theirs, ours in convention("netcal").theirs:
        peer = getattr(confidence, theirs)(10).measure(q, right.astype(int))
        value = getattr(metrics, ours)(seen, convention("netcal"))
        assert value == pytest.approx(peer, abs=1e-8)


def looped(q, right, edges):
    """Gaps of the bins (lo, hi] between the edges, and their shares."""
    gaps = []
    for low, high in pairwise(edges):
        inside = (q > low) & (q <= high)
        if inside.any():
            gaps.append((q[inside].mean() - right[inside].mean(), inside.mean()))
    return np.array(gaps).T


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "n_bins"), [("clipcalib", 15), ("ctpt20", 20)])
def test_float32_edges_and_dropped_zeros_as_a_loop(name, n_bins, seed):
    q, right, seen = random_draw(seed, np.float32)
    q[5:9] = 0.0
    gaps, shares = looped(q.astype(float), right, torch.linspace(0, 1, n_bins + 1).tolist())
    assert ece(seen, convention(name)) == pytest.approx(abs(gaps) @ shares, abs=2e-9)
    assert mce(seen, convention(name)) == pytest.approx(abs(gaps).max(), abs=2e-9)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_interpolated_as_in_the_published_class(seed):
    q, right, seen = random_draw(seed, np.float32)
    ranks = np.interp(np.linspace(0, 2000, 16), np.arange(2000), np.sort(q))
    gaps, shares = looped(q.astype(float), right, ranks.astype(np.float32))
    assert metrics.ace(seen, convention("clipcalib")) == pytest.approx(abs(gaps) @ shares, abs=2e-9)


@pytest.mark.parametrize("name", [rule.name for rule in CONVENTIONS])
def test_all_ones_and_half_wrong(name):
    seen = Outcomes(torch.ones(10), torch.arange(10) % 2 == 0)
    # the published code of DAC leaves them out of its means
    expected = 0.0 if name == "dac2024" else 0.5
    assert ece(seen, convention(name)) == pytest.approx(expected, abs=1e-9)
    assert mce(seen, convention(name)) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("name", [rule.name for rule in CONVENTIONS])
def test_all_zeros_are_in_the_first_bin_or_in_none(name):
    seen = Outcomes(torch.zeros(4), torch.tensor([True, False, False, False]))
    expected = 0.0 if name in ("clipcalib", "ctpt20") else 0.25
    assert ece(seen, convention(name)) == pytest.approx(expected, abs=1e-6)
    assert metrics.bins(seen, convention(name)).count[0] == 4
