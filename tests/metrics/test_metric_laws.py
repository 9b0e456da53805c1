"""What must hold for every metric and every convention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlcal.metrics import (
    CONVENTIONS,
    METRICS,
    MissingInput,
    ace,
    ace_mean,
    aurc,
    average_ce,
    binned,
    bins,
    convention,
    ece,
    mce,
    mce_weighted,
    overconfidence,
    piece,
    rmsce,
    rmsce_debiased,
    signed_gap,
    underconfidence,
)
from vlcal.metrics.cells import equal_width, quantiles, whole_ties
from vlcal.ops import bin_statistics
from vlcal.types import NoSamplesError, Outcomes

OVER_BINS = (
    ece,
    mce,
    mce_weighted,
    signed_gap,
    overconfidence,
    underconfidence,
    average_ce,
    rmsce,
    rmsce_debiased,
)
BINNED = (*OVER_BINS, ace, ace_mean, piece)
every_convention = pytest.mark.parametrize("rule", CONVENTIONS, ids=lambda rule: rule.name)
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)


def sample(n=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.rand(n, generator=generator, dtype=torch.float64) ** 0.3
    q[::7] = q[::7].mul(10).round().div(10)  # ties, edges and ones
    near = torch.rand(n, generator=generator)
    right = torch.rand(n, generator=generator) < q * near
    terms = torch.rand(2, n, generator=generator, dtype=torch.float64)
    return Outcomes(q, right, log_likelihood=-terms[0], brier=terms[1], proximity=near)


def defined(metric, rule):
    """Whether the convention has a rule for the metric."""
    if metric is piece:
        return rule.piece_proximity_bins is not None
    return metric not in (ace, ace_mean) or rule.equal_mass is not None


def cases(metrics, conventions=CONVENTIONS):
    pairs = [(metric, rule) for metric in metrics for rule in conventions if defined(metric, rule)]
    return pytest.mark.parametrize(
        ("metric", "rule"), pairs, ids=[f"{m.__name__}-{r.name}" for m, r in pairs]
    )


POOLED = [rule for rule in CONVENTIONS if rule.batch_size is None]


def rows(outcomes, index):
    return Outcomes(*(None if field is None else field[index] for field in outcomes))


@cases(METRICS, POOLED)
def test_the_order_of_samples_changes_nothing(metric, rule):
    seen = sample()
    shuffled = rows(seen, torch.randperm(600, generator=torch.Generator().manual_seed(1)))
    assert metric(shuffled, rule) == pytest.approx(metric(seen, rule), abs=1e-15)


# these two depend on the number of samples
PER_SAMPLE = [each for each in METRICS if each not in (rmsce_debiased, aurc)]


@cases(PER_SAMPLE, [convention("standard")])
def test_duplicating_the_sample_changes_nothing(metric, rule):
    seen = sample()
    twice = rows(seen, torch.arange(1200) % 600)
    assert metric(twice, rule) == pytest.approx(metric(seen, rule), abs=1e-15)


@cases([each for each in OVER_BINS if each is not rmsce_debiased], POOLED)
def test_duplicating_the_sample_changes_no_bin(metric, rule):
    seen = sample()
    twice = rows(seen, torch.arange(1200) % 600)
    assert metric(twice, rule) == pytest.approx(metric(seen, rule), abs=1e-15)


@cases(BINNED)
def test_perfect_calibration_gives_zero(metric, rule):
    # four samples at every k/4, k of them right, all at the same proximity
    q = torch.arange(1, 4).repeat_interleave(4).double() / 4
    seen = Outcomes(q, torch.arange(12) % 4 < 4 * q, proximity=torch.full((12,), 0.5))
    assert metric(seen, rule) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000), st.sampled_from(CONVENTIONS))
def test_inequalities_between_the_metrics(n, seed, rule):
    seen = sample(n, seed)
    pooled = bins(seen, rule).ece()  # every sample binned
    assert mce_weighted(seen, rule) <= pooled + 1e-12
    assert pooled <= rule.n_bins * mce_weighted(seen, rule) + 1e-12
    assert pooled <= mce(seen, rule) + 1e-12
    if defined(piece, rule) and rule.piece_confidence_bins == rule.n_bins:
        assert piece(seen, rule) >= pooled - 1e-12
    halves = [rows(seen, slice(None, n // 2)), rows(seen, slice(n // 2, None))]
    by_batch = sum(len(half.confidence) * bins(half, rule).ece() for half in halves[n < 2 :]) / n
    assert pooled <= by_batch + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=50), st.integers(1, 12))
def test_whole_ties_are_ordered_and_never_split(values, n_bins):
    tensor = torch.tensor(values).double()
    cell = whole_ties(tensor, n_bins)
    assert 0 <= int(cell.min()) <= int(cell.max()) < n_bins
    assert all(
        (a < b) <= (x <= y) and (a == b) <= (x == y)
        for a, x in zip(values, cell.tolist(), strict=True)
        for b, y in zip(values, cell.tolist(), strict=True)
    )


def test_a_run_of_ties_goes_where_its_middle_lies():
    # the run occupies ranks 0, 1, 2 of 4 samples in 4 bins: its middle is rank 1
    assert whole_ties(torch.tensor([0.9, 0.5, 0.5, 0.5]), 4).tolist() == [3, 1, 1, 1]


@pytest.mark.parametrize("n", [7, 15, 100, 601])
def test_equal_mass_counts_differ_by_at_most_one_without_ties(n):
    count = whole_ties(torch.randperm(n).double(), 7).bincount(minlength=7)
    assert count.sum() == n
    assert count.max() - count.min() <= 1


@cases([ace, ace_mean])
def test_constant_confidence_is_one_equal_mass_bin(metric, rule):
    seen = Outcomes(torch.full((8,), 0.7), torch.arange(8) < 2)
    # the smallest confidence is in no bin of clipcalib
    expected = 0.0 if rule.name == "clipcalib" else 0.45
    assert metric(seen, rule) == pytest.approx(expected, abs=1e-7)


@every_convention
@pytest.mark.parametrize("metric", [ace, piece], ids=lambda metric: metric.__name__)
def test_what_a_convention_lacks_is_said(metric, rule):
    if not defined(metric, rule):
        with pytest.raises(MissingInput, match=f"{metric.__name__}: convention {rule.name} has no"):
            metric(sample(), rule)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000), st.sampled_from(POOLED))
def test_over_and_under_confidence_make_up_ece_and_the_signed_gap(n, seed, rule):
    seen = sample(n, seed)
    over, under = overconfidence(seen, rule), underconfidence(seen, rule)
    assert over + under == pytest.approx(ece(seen, rule), abs=1e-12)
    assert over - under == pytest.approx(signed_gap(seen, rule), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10_000), st.sampled_from(CONVENTIONS))
def test_bins_of_any_split_add_up_to_those_of_the_whole(n, seed, rule):
    seen = sample(n, seed)
    parts = binned(rows(seen, slice(None, n // 3 + 1)), rule)
    if n // 3 + 1 < n:
        parts = parts + binned(rows(seen, slice(n // 3 + 1, None)), rule)
    whole = binned(seen, rule)
    assert parts.n == n
    for metric in OVER_BINS:
        assert metric.formula(parts) == metric.formula(whole)


def test_bins_of_two_conventions_are_not_added():
    first, second = (binned(sample(), convention(name)) for name in ("standard", "ctpt20"))
    with pytest.raises(ValueError, match=r"only bins of the same .* standard and ctpt20"):
        first + second


def test_batches_are_never_better_calibrated_than_all_rows():
    rule, q = convention("carot"), torch.rand(2000)
    seen = Outcomes(q, torch.rand(2000) < q)
    assert ece(seen, rule) > ece.formula(binned(seen, rule)) + 0.01


@pytest.mark.parametrize("cells", [whole_ties, quantiles])
def test_one_sample_has_a_bin(cells):
    assert 0 <= int(cells(torch.tensor([0.3]), 10)) < 10


@pytest.mark.parametrize("closed", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_width_cells_are_those_of_the_op(closed, dtype):
    q = torch.cat([torch.arange(101, dtype=dtype) / 100, torch.rand(500, dtype=dtype)])
    cell = equal_width(q, 10, closed)
    count = bin_statistics(q, torch.zeros(len(q), dtype=torch.bool), 10, closed=closed).count
    assert torch.equal(cell.bincount(minlength=10), count)


def test_literal_tenths_fall_on_their_float64_side():
    # linspace's edges next to 0.3, 0.6 and 0.7 are larger than these literals
    tenths = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    assert equal_width(tenths, 10, "left").tolist() == [1, 2, 2, 4, 5, 5, 6, 8, 9, 9]


@every_metric
def test_zero_samples_are_refused(metric):
    empty = Outcomes(
        torch.zeros(0),
        torch.zeros(0, dtype=torch.bool),
        log_likelihood=torch.zeros(0),
        brier=torch.zeros(0),
        proximity=torch.zeros(0),
    )
    with pytest.raises(NoSamplesError, match=f"{metric.__name__}: needs at least one sample"):
        metric(empty, convention("standard"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("piece", "piece: needs the proximity of every sample"),
        ("nll", "nll: needs labels and probabilities"),
        ("brier", "brier: needs labels and probabilities"),
    ],
)
def test_says_what_is_missing(name, sentence):
    metric = next(each for each in METRICS if each.__name__ == name)
    with pytest.raises(MissingInput, match=sentence):
        metric(Outcomes(torch.ones(2), torch.ones(2).bool()), convention("standard"))


def test_names_of_metrics_and_conventions_are_distinct():
    assert len({metric.__name__ for metric in METRICS}) == len(METRICS)
    assert len({rule.name for rule in CONVENTIONS}) == len(CONVENTIONS)


def test_unknown_convention_lists_the_known():
    with pytest.raises(ValueError, match="unknown name 'ece'; known: standard, dac2024"):
        convention("ece")
