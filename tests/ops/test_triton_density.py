"""Traps of the Triton kernel of the kernel density; the cases run in test_against_reference."""

import math

import pytest
import torch

from tests.ops.cases import plane
from vlcal.ops import _triton, kernel_density
from vlcal.ops._triton import density

pytest.importorskip("triton")
device = "cpu" if _triton.interpreted() else "cuda"


@pytest.fixture(autouse=True)
def runnable():
    if why := _triton.missing():
        pytest.skip(why)


def on_device(*args):
    return tuple(values.to(device) for values in plane(*args))


@pytest.mark.parametrize("m", [1, 63, 64, 65, 4096, 4097, 66_000])
def test_relative_error_stays_below_the_stated_bound(m):
    queries, points, bandwidth = on_device(130, m)
    queries = queries * 3 - 1
    got = kernel_density(queries, points, bandwidth, backend="triton").double()
    truth = kernel_density(queries.double(), points, bandwidth, backend="reference")
    mean = truth * 2 * math.pi * bandwidth.prod()
    held = mean > 1e-30
    assert bool(((got / truth - 1).abs()[held] < 1e-6 * (1 - mean[held].log())).all())


def test_a_density_does_not_depend_on_the_other_queries():
    queries, points, bandwidth = on_device(200, 9000)
    whole = kernel_density(queries, points, bandwidth, backend="triton")
    for step in (2, 7):
        part = kernel_density(queries[1::step], points, bandwidth, backend="triton")
        assert torch.equal(part, whole[1::step])


def test_strides_are_followed_and_what_lies_between_is_not_read():
    queries, points, bandwidth = on_device(30, 40)
    wide = [torch.full((len(v), 3, 2, 2), torch.nan, device=device) for v in (queries, points)]
    for holder, values in zip(wide, (queries, points), strict=True):
        holder[:, 1, :, 1] = values
    got = kernel_density(*(w[:, 1, :, 1] for w in wide), bandwidth, backend="triton")
    assert torch.equal(got, kernel_density(queries, points, bandwidth, backend="triton"))


def test_slices_are_whole_steps_and_few():
    for m in (1, 4096, 4097, 65_537, 1_000_001):
        size = density.slice_size(m)
        assert size % (density.POINTS * density.STEPS) == 0
        assert 1 <= -(-m // size) <= 16
