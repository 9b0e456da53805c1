"""Laws of the kernel density; the cases run in test_against_reference."""

import math

import pytest
import torch
from torch.library import opcheck

from tests.ops.cases import plane
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import kernel_density

needs_native = pytest.mark.skipif(_native.missing() is not None, reason=str(_native.missing()))
every_backend = pytest.mark.parametrize("backend", cpu_backends())


@every_backend
def test_toy_of_two_points(backend):
    # one bandwidth away along the first axis, two along the second
    queries = torch.tensor([[0.0, 0.0]])
    points = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    wanted = (math.exp(-0.5) + math.exp(-2.0)) / 2 / (2 * math.pi * 3.0 * 0.5)
    got = kernel_density(queries, points, [3.0, 0.5], backend=backend)
    assert float(got) == pytest.approx(wanted, rel=1e-6)


@every_backend
def test_is_one_when_integrated(backend):
    _, points, _ = plane(0, 50)
    axis = torch.linspace(-3, 4, 141)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    density = kernel_density(grid, points, [0.3, 0.2], backend=backend)
    assert float(density.double().sum()) * 0.05**2 == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("m", [1, 15, 16, 1000, 20_000])
def test_relative_error_stays_below_the_stated_bound(kernels, m):
    queries, points, _ = plane(300, m)
    queries = queries * 3 - 1  # in and far outside of the points
    bandwidth = torch.tensor([0.05, 0.08], dtype=torch.float64)
    got = kernel_density(queries, points, bandwidth, backend="native").double()
    truth = kernel_density(queries.double(), points, bandwidth, backend="reference")
    mean = truth * 2 * math.pi * bandwidth.prod()
    held = mean > 1e-30
    assert int(held.sum()) > 1
    bound = 1e-6 * (1 - mean[held].log())
    assert bool(((got / truth - 1).abs()[held] < bound).all())


@every_backend
def test_fades_to_zero_beyond_thirteen_bandwidths(backend):
    queries = torch.tensor([[12.5, 0.0], [39.0, 0.0], [3e38, -3e38]])
    near, far, farthest = kernel_density(
        queries, torch.tensor([[0.0, 0.0]]), [1, 1], backend=backend
    )
    assert float(near) == pytest.approx(math.exp(-(12.5**2) / 2) / math.tau, rel=1e-4)
    assert float(far) == float(farthest) == 0


@needs_native
def test_a_density_does_not_depend_on_the_other_queries_or_the_threads():
    queries, points, bandwidth = plane(1003, 500)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = kernel_density(queries, points, bandwidth, backend="native")
        for many in (2, 3, 7):
            torch.set_num_threads(many)
            again = kernel_density(queries, points, bandwidth, backend="native")
            assert torch.equal(again, whole)
            part = kernel_density(queries[3::many], points, bandwidth, backend="native")
            assert torch.equal(part, whole[3::many])
    finally:
        torch.set_num_threads(threads)


@every_backend
def test_moving_everything_by_a_power_of_two_changes_nothing(backend):
    queries, points, bandwidth = plane(50, 60)
    queries, points = (queries * 1024).round(), (points * 1024).round()
    bandwidth = bandwidth * 1024
    there = kernel_density(queries, points, bandwidth, backend=backend)
    moved = kernel_density(queries + 4096, points + 4096, bandwidth, backend=backend)
    assert torch.equal(there, moved)


@every_backend
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_bandwidth_that_is_none(backend, bad):
    queries, points, _ = plane(5, 6)
    with pytest.raises(ValueError, match="bandwidth must be positive and finite, got"):
        kernel_density(queries, points, [0.1, bad], backend=backend)


@every_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["queries", "points"])
def test_refuses_what_is_not_finite(backend, bad, which):
    values = dict(zip(("queries", "points", "bandwidth"), plane(50, 60), strict=True))
    values[which][13, 1] = bad
    with pytest.raises(ValueError, match=f"{which} must be finite, .* the first in row 13"):
        kernel_density(**values, backend=backend)


def test_refuses_what_breaks_the_contract():
    queries, points, bandwidth = plane(5, 6)
    with pytest.raises(ValueError, match=r"queries must be floating point \[rows, 2\]"):
        kernel_density(queries[:, 0], points, bandwidth)
    with pytest.raises(ValueError, match=r"points must be floating point \[rows, 2\]"):
        kernel_density(queries, points.long(), bandwidth)
    with pytest.raises(ValueError, match="points must be at least one row"):
        kernel_density(queries, points[:0], bandwidth)
    with pytest.raises(ValueError, match=r"bandwidth must be \[2\], got shape \(3,\)"):
        kernel_density(queries, points, [1, 2, 3])


def test_float64_of_either_gives_float64():
    queries, points, bandwidth = plane(20, 30)
    wide = kernel_density(queries.double(), points.double(), bandwidth)
    assert wide.dtype == torch.float64
    assert torch.equal(kernel_density(queries, points.double(), bandwidth), wide)
    narrow = kernel_density(queries, points, bandwidth)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=4e-6, atol=0)


@needs_native
def test_native_refuses_float64_with_a_reason():
    queries, points, bandwidth = plane(5, 6, torch.float64)
    with pytest.raises(NotImplementedError, match="float64 coordinates are computed by"):
        kernel_density(queries, points, bandwidth, backend="native")


def test_opcheck():
    opcheck(torch.ops.vlcal.kernel_density.default, (*plane(20, 10), ""))
    opcheck(torch.ops.vlcal.kernel_density.default, (*plane(20, 10, torch.float64), ""))


def test_compiles_as_one_graph():
    compiled = torch.compile(kernel_density, fullgraph=True, backend="eager")
    args = plane(20, 30)
    assert torch.equal(compiled(*args), kernel_density(*args))
