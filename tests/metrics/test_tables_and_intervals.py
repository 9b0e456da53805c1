import pytest
import torch

from vlcal.metrics import (
    MissingInput,
    accuracy,
    average_ce,
    binned,
    class_table,
    convention,
    difference_interval,
    ece,
    ece_interval,
    interval,
    mce,
    rmsce,
    signed_gap,
    wilson_interval,
)
from vlcal.ops import bin_statistics
from vlcal.types import NoSamplesError, Outcomes


def test_class_table_by_hand():
    seen = Outcomes(
        confidence=torch.tensor([0.9, 0.7, 0.5]),
        correct=torch.tensor([True, False, True]),
        predicted=torch.tensor([2, 2, 0]),
    )
    table = class_table(seen, 3)
    assert table.count.tolist() == [1, 0, 2]
    assert table.confidence.tolist() == pytest.approx([0.5, float("nan"), 0.8], nan_ok=True)
    assert table.accuracy.tolist() == pytest.approx([1, float("nan"), 0.5], nan_ok=True)
    assert table.gap.tolist() == pytest.approx([-0.5, float("nan"), 0.3], nan_ok=True)


def test_class_table_needs_predicted_classes():
    with pytest.raises(MissingInput, match="class_table: needs the predicted class"):
        class_table(Outcomes(torch.ones(1), torch.ones(1).bool()), 2)


def drawn(n, seed, slope=1.0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.rand(n, generator=generator)
    return bin_statistics(q, torch.rand(n, generator=generator) < q * slope)


def test_the_interval_holds_the_ece_and_shrinks_with_n():
    widths = []
    for n in (1_000, 16_000):
        bins = drawn(n, seed=0, slope=0.8)
        low, high = ece_interval(bins, torch.Generator().manual_seed(1))
        assert low < bins.ece() < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_the_interval_is_that_of_resampled_samples():
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(400, generator=generator)
    right = torch.rand(400, generator=generator) < q * 0.7
    again = torch.randint(400, (1000, 400), generator=generator)
    errors = torch.tensor([bin_statistics(q[row], right[row]).ece() for row in again])
    expected = errors.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert ece_interval(bin_statistics(q, right), generator) == pytest.approx(expected, abs=0.01)


def outcomes_of(n, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.rand(n, generator=generator)
    q[::9], q[1::11] = 1.0, 0.0
    return Outcomes(q, torch.rand(n, generator=generator) < q * 0.7 + 0.1)


@pytest.mark.parametrize("rule", ["standard", "dac2024", "torchmetrics", "ctpt20"])
@pytest.mark.parametrize("metric", [ece, mce, signed_gap, accuracy, rmsce, average_ce])
def test_an_interval_of_any_metric_is_that_of_resampled_samples(metric, rule):
    seen, generator = outcomes_of(400, 0), torch.Generator().manual_seed(1)
    bins = binned(seen, convention(rule))
    again = torch.randint(400, (500, 400), generator=generator)
    values = [
        metric(Outcomes(seen.confidence[row], seen.correct[row]), convention(rule)) for row in again
    ]
    expected = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    width = expected[1] - expected[0]
    assert interval(bins, metric, generator) == pytest.approx(expected, abs=0.2 * width)


def test_resampled_bins_hold_as_many_samples_and_the_means_of_their_bins():
    from vlcal.metrics.intervals import _resampled

    seen = outcomes_of(300, 2)
    bins = binned(seen, convention("torchmetrics"))
    for each in _resampled(bins, 20, torch.Generator().manual_seed(0)):
        assert each.n == 300
        assert (each.every.correct <= each.every.count).all()
        for cell in each.cells():
            assert 0 <= cell.correct <= cell.count and 0 <= cell.confidence <= cell.count


def test_the_ece_interval_is_the_one_of_ece():
    seen = outcomes_of(900, 3)
    bins = binned(seen, convention("standard"))
    first = ece_interval(bins.every, torch.Generator().manual_seed(0))
    second = interval(bins, ece, torch.Generator().manual_seed(0))
    assert first == pytest.approx(second, abs=0.003)


def test_a_difference_of_two_sets_holds_their_difference():
    rule, generator = convention("standard"), torch.Generator().manual_seed(0)
    many, few = (binned(outcomes_of(n, 4), rule) for n in (8000, 500))
    low, high = difference_interval(few, many, accuracy, generator)
    assert low < accuracy.formula(few) - accuracy.formula(many) < high
    # variances add up
    alone = interval(few, accuracy, generator)
    assert high - low == pytest.approx(alone[1] - alone[0], rel=0.2)
    low, high = difference_interval(many, many, ece, generator)
    assert low < 0 < high


def test_the_same_generator_state_gives_the_same_interval():
    bins = drawn(500, seed=2)
    first, second = (ece_interval(bins, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == second


def test_resampled_counts_sum_to_n():
    from vlcal.metrics.intervals import _multinomial

    count = torch.tensor([3.0, 1.0, 96.0], dtype=torch.float64)
    drawn = _multinomial(count, 200, torch.Generator().manual_seed(0))
    assert (drawn.sum(-1) == 100).all()
    torch.testing.assert_close(drawn.mean(0), count, rtol=0, atol=0.5)


def test_intervals_refuse():
    with pytest.raises(NoSamplesError, match="ece_interval"):
        ece_interval(drawn(0, 0), torch.Generator())
    with pytest.raises(ValueError, match="level must be in"):
        ece_interval(drawn(9, 0), torch.Generator(), level=95)
    bins = binned(outcomes_of(9, 0), convention("standard"))
    empty = binned(outcomes_of(0, 0), convention("standard"))
    with pytest.raises(NoSamplesError, match="interval: needs at least one sample"):
        interval(empty, ece, torch.Generator())
    with pytest.raises(NoSamplesError, match="difference_interval: needs at least one sample"):
        difference_interval(bins, empty, ece, torch.Generator())
    with pytest.raises(ValueError, match=r"interval: level must be in \(0, 1\), got 0"):
        interval(bins, ece, torch.Generator(), level=0)


def test_wilson_is_the_published_example():
    # 8 of 10 at 95 %: 0.490 to 0.943 (Newcombe 1998); none of none: everything
    low, high = wilson_interval(torch.tensor([8, 0]), torch.tensor([10, 0]))
    assert low.tolist() == pytest.approx([0.4902, 0], abs=1e-4)
    assert high.tolist() == pytest.approx([0.9433, 1], abs=1e-4)
