"""Traps of the Triton kernels of the binned metrics; the cases run in test_against_reference."""

import pytest
import torch

from tests.ops.cases import confidences, stored_probs, tied
from vlcal.ops import (
    _triton,
    bin_statistics,
    classwise_statistics,
    equal_mass_statistics,
    group_statistics,
)
from vlcal.ops._triton import binning, equal_mass

pytest.importorskip("triton")
device = "cpu" if _triton.interpreted() else "cuda"


@pytest.fixture(autouse=True)
def runnable():
    if why := _triton.missing():
        pytest.skip(why)


@pytest.mark.parametrize("n_bins", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 400])
@pytest.mark.parametrize("closed", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_integers_at_every_edge_and_beside_it(n_bins, closed, dtype):
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64).to(dtype)
    beside = [torch.nextafter(edges, torch.full_like(edges, to)) for to in (0.0, 1.0)]
    confidence = torch.cat([edges, *beside, -torch.zeros(1, dtype=dtype)]).to(device)
    correct = torch.arange(len(confidence), device=device) % 3 == 0
    got, want = (
        bin_statistics(confidence, correct, n_bins, closed=closed, backend=backend)
        for backend in ("triton", "reference")
    )
    assert torch.equal(got.table, want.table)


def test_units_round_half_to_even():
    # exactly between two units, below 2^-7 where a float32 has such digits
    halves = torch.arange(1, 2000, dtype=torch.float64) * 2**-31
    for values in (halves, halves.float()):
        values = values.to(device)
        correct = torch.ones(len(values), dtype=torch.bool, device=device)
        got, want = (
            bin_statistics(values, correct, 1, backend=backend).table
            for backend in ("triton", "reference")
        )
        assert torch.equal(got, want)


def test_words_do_not_overflow_when_every_sample_is_one(monkeypatch):
    # accumulators that get as many samples as they may
    monkeypatch.setattr(binning, "_tile", lambda: 1024)
    monkeypatch.setattr(binning, "_programs", lambda: 1)
    n = 16 * binning.WORD_SAMPLES
    confidence = torch.ones(n, device=device)
    correct = torch.ones(n, dtype=torch.bool, device=device)
    table = bin_statistics(confidence, correct, 64, backend="triton").table.cpu()
    assert table[:, -1].tolist() == [n, n, n << 30]
    assert not table[:, :-1].any()


@pytest.mark.parametrize("n_groups", [64, 65])
def test_kept_and_scattered_groups_agree(n_groups):
    confidence, correct = (values.to(device) for values in confidences(5000))
    group = torch.arange(5000, device=device) * 31 % 64
    tables = [
        group_statistics(group, confidence, correct, groups, backend="triton").table[:, :64]
        for groups in (64, n_groups)
    ]
    assert torch.equal(*tables)


@pytest.mark.parametrize("n_groups", [10, 100])
@pytest.mark.parametrize("wrong", [-1, 1 << 40])
def test_refuses_a_group_out_of_range(n_groups, wrong):
    confidence, correct = (values.to(device) for values in confidences(300))
    group = torch.zeros(300, dtype=torch.int64, device=device)
    group[7] = wrong
    with pytest.raises(ValueError, match=rf"group must be in 0..{n_groups - 1}, got"):
        group_statistics(group, confidence, correct, n_groups, backend="triton")


def test_strides_are_followed_and_what_lies_between_is_not_read():
    probs, labels = stored_probs(120, 9)
    wide = torch.full((120, 2, 9, 3), torch.nan, device=device)
    wide[:, 1, :, 2] = probs.to(device)
    strided = wide[:, 1, :, 2].T.flip(0).T
    labels = torch.stack([8 - labels, labels], 1).to(device)[:, 0]
    got, want = (
        classwise_statistics(strided, labels, backend=backend).table
        for backend in ("triton", "reference")
    )
    assert torch.equal(got, want)


def cells(confidence, correct):
    """What the first pass in CUDA C++ returns."""
    confidence = torch.where(confidence > 0, confidence.float(), 0.0)
    at = confidence.view(torch.int32).long() >> 16
    pairs = 1 + (correct.long() << 32)
    units = (confidence.double() * 2**30).round().long()
    sums = torch.zeros(2, equal_mass.CELLS, dtype=torch.int64, device=device)
    return sums.index_add_(1, at, torch.stack([pairs, units])), sums.new_zeros(1)


def values(confidence, correct, slot, slots):
    """What the second pass returns."""
    bits = torch.where(confidence > 0, confidence.float(), 0.0).view(torch.int32).long()
    row = slot[bits >> 16].long()
    at = (row * equal_mass.VALUES + (bits & 0xFFFF))[row > 0] - equal_mass.VALUES
    sums = torch.zeros(slots * equal_mass.VALUES, dtype=torch.int64, device=device)
    return sums.index_add_(0, at, (1 + (correct.long() << 32))[row > 0]).view(slots, -1)


@pytest.mark.parametrize("n_bins", [1, 2, 15, 63, 64])
@pytest.mark.parametrize("make", [confidences, tied])
def test_cells_and_sort_put_equal_confidences_into_the_same_bins(n_bins, make):
    confidence, correct = (values.to(device) for values in make(3001))
    confidence[:500] = -0.0
    by_cells, no = equal_mass.by_cells(confidence, correct, n_bins, cells, values)
    by_sort, none = equal_mass.by_sort(confidence, correct, n_bins, together=True)
    assert torch.equal(by_cells, by_sort)
    assert int(no) == int(none) == 0
    want = equal_mass_statistics(confidence, correct, n_bins, backend="reference").table
    assert torch.equal(by_cells, want)
