"""Laws of the bin statistics: edges, ties with edges, additivity, refusals."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from tests.ops.cases import confidences
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import BinStatistics, bin_statistics, group_statistics

needs_native = pytest.mark.skipif(_native.missing() is not None, reason=str(_native.missing()))


def test_toy_table():
    confidence = torch.tensor([0.95, 0.85, 0.9, 0.0, 1.0])
    correct = torch.tensor([True, False, True, False, True])
    bins = bin_statistics(confidence, correct, n_bins=10)
    assert bins.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 2, 2]
    assert bins.correct.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    # |1.75 - 1| + |1.95 - 2| over 5 samples
    assert bins.ece() == pytest.approx((0.75 + 0.05) / 5, abs=1e-7)
    assert bins.mce() == pytest.approx(0.375, abs=1e-7)


def test_all_ones_half_wrong_give_one_half():
    bins = bin_statistics(torch.ones(10), torch.arange(10) % 2 == 0)
    assert bins.ece() == 0.5
    assert bins.count[-1] == 10


@pytest.mark.parametrize("backend", cpu_backends())
@pytest.mark.parametrize("closed", ["right", "left"])
@pytest.mark.parametrize("n_bins", [1, 2, 3, 10, 15, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_are_compared_in_float64(backend, closed, n_bins, dtype):
    edges = np.linspace(0, 1, n_bins + 1)
    exact = torch.from_numpy(edges).to(dtype)
    near = [torch.nextafter(exact, torch.full_like(exact, side)) for side in (0.0, 1.0)]
    confidence = torch.cat([exact, *near, torch.arange(1, 10).to(dtype) / 10])
    bins = bin_statistics(
        confidence,
        torch.ones(len(confidence), dtype=torch.bool),
        n_bins,
        closed=closed,
        backend=backend,
    )
    index = np.searchsorted(
        edges[1:-1], confidence.double().numpy(), side="left" if closed == "right" else "right"
    )
    assert bins.count.tolist() == np.bincount(index, minlength=n_bins).tolist()


def test_left_closed_tenths_follow_float64_linspace():
    # 0.3, 0.6 and 0.7 lie just below their float64 edges, the other tenths do not
    tenths = torch.tensor([i / 10 for i in range(1, 10)], dtype=torch.float64)
    bins = [
        int(bin_statistics(t[None], torch.tensor([True]), 10, closed="left").count.argmax())
        for t in tenths
    ]
    assert bins == [1, 2, 2, 4, 5, 5, 6, 8, 9]


@pytest.mark.parametrize("backend", cpu_backends())
def test_same_bits_for_any_split_order_and_thread_count(backend, generator):
    confidence, correct = confidences(200_000)
    whole = bin_statistics(confidence, correct, backend=backend).table
    parts = torch.tensor_split(torch.randperm(len(confidence), generator=generator), 7)
    shuffled = [bin_statistics(confidence[part], correct[part], backend=backend) for part in parts]
    total = shuffled[0]
    for part in shuffled[1:]:
        total = total + part
    assert torch.equal(total.table, whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(bin_statistics(confidence, correct, backend=backend).table, whole)
    finally:
        torch.set_num_threads(threads)


def test_sums_stay_within_half_a_unit_per_sample():
    confidence, correct = confidences(10_000)
    bins = bin_statistics(confidence, correct, n_bins=1)
    assert abs(float(bins.confidence[0]) - float(confidence.double().sum())) <= 10_000 * 2.0**-31


def test_groups_equal_bins_when_the_groups_are_bins():
    confidence, correct = confidences(5000)
    bins = bin_statistics(confidence, correct, 10)
    index = torch.bucketize(confidence.double(), bins.edges[1:-1])
    assert torch.equal(group_statistics(index, confidence, correct, 10).table, bins.table)


def test_custom_edges_replace_equal_widths():
    bins = bin_statistics(
        torch.tensor([0.1, 0.2, 0.5]),
        torch.tensor([True, True, False]),
        edges=torch.tensor([0.0, 0.15, 1.0]),
    )
    assert bins.count.tolist() == [1, 2]


def test_only_equal_bins_are_added():
    confidence, correct = confidences(10)
    left = bin_statistics(confidence, correct, 10)
    with pytest.raises(ValueError, match="only statistics over the same bins"):
        left + bin_statistics(confidence, correct, 10, closed="left")
    with pytest.raises(ValueError, match="only statistics over the same bins"):
        left + bin_statistics(confidence, correct, 11)


@pytest.mark.parametrize("backend", cpu_backends())
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1.0000001])
def test_refuses_values_that_are_no_confidence(backend, bad):
    confidence, correct = confidences(100_000)
    confidence[70_001] = bad
    with pytest.raises(ValueError, match=r"in 0..1 and not NaN, got .* in row 70001 \(1 such rows"):
        bin_statistics(confidence, correct, backend=backend)


@pytest.mark.parametrize(
    ("confidence", "correct", "kwargs", "match"),
    [
        (torch.ones(3, 1), torch.ones(3, 1) > 0, {}, r"confidence must be floating point \[N\]"),
        (torch.ones(3).long(), torch.ones(3) > 0, {}, "confidence must be floating point"),
        (torch.ones(3), torch.ones(4) > 0, {}, "correct must have the shape"),
        (torch.ones(3), torch.ones(3), {}, "correct must be bool"),
        (torch.ones(3), torch.tensor([0, 1, 2]), {}, "correct must be bool"),
        (torch.ones(3), torch.ones(3) > 0, {"n_bins": 0}, "n_bins must be an integer >= 1, got 0"),
        (torch.ones(3), torch.ones(3) > 0, {"n_bins": 2.5}, "n_bins must be an integer"),
        (torch.ones(3), torch.ones(3) > 0, {"closed": "both"}, "closed must be 'right' or 'left'"),
        (torch.ones(3), torch.ones(3) > 0, {"backend": "fast"}, "backend must be one of"),
        (torch.ones(3), torch.ones(3) > 0, {"edges": torch.tensor([1.0, 0.0])}, "ascending"),
    ],
)
def test_refuses_what_breaks_the_contract(confidence, correct, kwargs, match):
    with pytest.raises(ValueError, match=match):
        bin_statistics(confidence, correct, **kwargs)


def test_counts_go_on_beyond_what_float32_can_count():
    # float32 counters stop at 2^24; confidence 0.97 and accuracy 0.95 make an error of 0.02
    n = (1 << 24) + 4_000_000
    confidence, correct = torch.tensor(0.97).expand(100), torch.arange(100) < 95
    hundred = bin_statistics(confidence, correct)
    total = BinStatistics(hundred.table * (n // 100), hundred.edges)
    assert (total + hundred).count[-1] == n // 100 * 100 + 100
    assert total.ece() == pytest.approx(0.02, abs=1e-7)
    one = bin_statistics(torch.ones(n), torch.ones(n, dtype=torch.bool))
    assert one.count[-1] == one.correct[-1] == one.confidence[-1] == n


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "native"])
@pytest.mark.parametrize("n_bins", [1, 7, 15, 16, 17, 32, 33, 700])
@pytest.mark.parametrize("closed", ["right", "left"])
def test_every_instruction_set_gives_the_same_bits(isa, n_bins, closed, limit_isa):
    edges = torch.from_numpy(np.linspace(0, 1, n_bins + 1)).float()
    sides = [torch.nextafter(edges, torch.full_like(edges, side)) for side in (0.0, 1.0)]
    confidence = torch.cat([edges, *sides, confidences(20_000)[0]])
    confidence[-1] = -0.0
    correct = torch.arange(len(confidence)) % 3 == 0
    limit_isa(isa)
    got = bin_statistics(confidence, correct, n_bins, closed=closed, backend="native").table
    wanted = bin_statistics(confidence, correct, n_bins, closed=closed, backend="reference").table
    assert torch.equal(got, wanted)


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_uneven_edges_are_exact_too(isa, limit_isa):
    confidence, correct = confidences(20_000)
    edges = torch.tensor([0.0, 0.01, 0.0101, 0.5, 0.999, 1.0], dtype=torch.float64)
    limit_isa(isa)
    native, wanted = (
        bin_statistics(confidence, correct, edges=edges, backend=backend).table
        for backend in ("native", "reference")
    )
    assert torch.equal(native, wanted)


@pytest.mark.parametrize("backend", cpu_backends())
def test_groups_refuse_what_is_out_of_range(backend):
    confidence, correct = confidences(100)
    group = torch.arange(100) % 5
    with pytest.raises(ValueError, match=r"group must be in 0..3, got 0..4"):
        group_statistics(group, confidence, correct, 4, backend=backend)
    confidence[70] = float("nan")
    with pytest.raises(ValueError, match=r"got nan in row 70 \(1 such rows"):
        group_statistics(group, confidence, correct, 5, backend=backend)


def test_empty_statistics_have_no_error():
    bins = bin_statistics(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one sample"):
        bins.ece()


def test_opcheck():
    confidence, correct = confidences(100)
    edges = torch.linspace(0, 1, 16, dtype=torch.float64)
    opcheck(torch.ops.vlcal.bin_statistics.default, (confidence, correct, edges, True, ""))
    group = torch.arange(100) % 7
    opcheck(torch.ops.vlcal.group_statistics.default, (group, confidence, correct, 7, ""))


def test_compiles_without_a_graph_break():
    confidence, correct = confidences(100)
    compiled = torch.compile(
        lambda c, k: bin_statistics(c, k).table, fullgraph=True, backend="eager"
    )
    assert torch.equal(compiled(confidence, correct), bin_statistics(confidence, correct).table)
