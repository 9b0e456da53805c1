"""Laws of equal-mass bins: equal counts, ties, order."""

import pytest
import torch
from torch.library import opcheck

from tests.ops.cases import confidences, tied
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import equal_mass_statistics

needs_native = pytest.mark.skipif(_native.missing() is not None, reason=str(_native.missing()))


def test_toy_with_a_tie_at_the_border():
    confidence = torch.tensor([0.9, 0.7, 0.6, 0.7])
    correct = torch.tensor([True, True, False, False])
    together = equal_mass_statistics(confidence, correct, 2)
    assert (together.count.tolist(), together.correct.tolist()) == ([1, 3], [0, 2])
    # of the two at 0.7 the earlier row has the lower rank
    order = equal_mass_statistics(confidence, correct, 2, ties="order")
    assert (order.count.tolist(), order.correct.tolist()) == ([2, 2], [1, 1])
    assert order.ece() == pytest.approx((0.3 + 0.6) / 4, abs=1e-7)


@pytest.mark.parametrize("n", [14, 15, 1000, 70_001])
def test_counts_differ_by_at_most_one(n):
    confidence, correct = tied(n)
    count = equal_mass_statistics(confidence, correct, ties="order").count
    assert count.max() - count.min() <= 1
    assert count.sum() == n


@pytest.mark.parametrize("n", [500, 70_000])
def test_without_ties_both_rules_agree(n, generator):
    confidence = (torch.randperm(n, generator=generator) + 1) / (n + 1)
    correct = torch.rand(n, generator=generator) < confidence
    together, order = (
        equal_mass_statistics(confidence, correct, 9, ties=ties).table
        for ties in ("together", "order")
    )
    assert torch.equal(together, order)


@pytest.mark.parametrize("n", [500, 70_000])
def test_order_of_rows_does_not_matter_when_ties_stay_together(n, generator):
    confidence, correct = tied(n)
    shuffle = torch.randperm(n, generator=generator)
    shuffled = equal_mass_statistics(confidence[shuffle], correct[shuffle]).table
    assert torch.equal(shuffled, equal_mass_statistics(confidence, correct).table)


def test_all_equal_are_one_bin_together_and_equal_bins_in_order():
    confidence, correct = torch.full((90_000,), 0.5), torch.arange(90_000) < 30_000
    assert equal_mass_statistics(confidence, correct, 3).count.tolist() == [0, 90_000, 0]
    order = equal_mass_statistics(confidence, correct, 3, ties="order")
    assert order.count.tolist() == [30_000] * 3
    assert order.correct.tolist() == [30_000, 0, 0]


@needs_native
@pytest.mark.parametrize("ties", ["together", "order"])
def test_same_bits_for_every_thread_count(ties):
    confidence, correct = tied(500_000)
    confidence[::3], _ = confidences(len(confidence[::3]))
    wanted = equal_mass_statistics(confidence, correct, ties=ties, backend="reference").table
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(equal_mass_statistics(confidence, correct, ties=ties).table, wanted)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", cpu_backends())
@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.0000001])
@pytest.mark.parametrize("n", [10_000, 100_000])
def test_refuses_values_that_are_no_confidence(backend, bad, n):
    confidence, correct = confidences(n)
    confidence[n - 5] = bad
    with pytest.raises(ValueError, match=rf"in 0..1 and not NaN, got .* in row {n - 5} "):
        equal_mass_statistics(confidence, correct, backend=backend)


def test_refuses_what_breaks_the_contract():
    with pytest.raises(ValueError, match="ties must be 'together' or 'order', got 'split'"):
        equal_mass_statistics(torch.ones(3), torch.ones(3) > 0, ties="split")
    with pytest.raises(ValueError, match="n_bins must be an integer >= 1, got 0"):
        equal_mass_statistics(torch.ones(3), torch.ones(3) > 0, 0)


@needs_native
def test_native_refuses_float64_with_a_reason():
    confidence, correct = confidences(10, torch.float64)
    with pytest.raises(NotImplementedError, match="float64 confidences are not supported"):
        equal_mass_statistics(confidence, correct, backend="native")
    assert equal_mass_statistics(confidence, correct).n == 10


def test_opcheck():
    confidence, correct = confidences(100)
    args = (confidence, correct, 15, True, "")
    opcheck(torch.ops.vlcal.equal_mass_statistics.default, args)
