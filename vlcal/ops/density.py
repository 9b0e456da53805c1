"""Density of points in two dimensions, estimated with Gaussian kernels, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlcal import _native
from vlcal.ops import _triton, reference
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._inputs import capturing, check_tensors
from vlcal.ops._triton import density
from vlcal.types import check_finite

WHO = "kernel_density"


def kernel_density(
    queries: Tensor,
    points: Tensor,
    bandwidth: Tensor | Sequence[float],
    *,
    backend: str | None = None,
) -> Tensor:
    """Density of each query under a product Gaussian kernel on every point.

    p(x) = 1/M sum_j prod_d N(x_d; p_jd, h_d), with h_d the standard deviation of the kernel along
    dimension d (Parzen, "On Estimation of a Probability Density Function and Mode", 1962). Every
    pair is evaluated, without a matrix of them: memory is O(N + M).

    Args:
        queries: [N, 2] floating point; N may be 0.
        points: [M, 2] floating point, M >= 1, on the same device.
        bandwidth: [2] positive, h in units of the coordinates.
        backend: "native", "triton" or "reference"; by default the fastest that accepts the call.

    Returns:
        [N] float32, or float64 if queries or points are. The terms of one density are added in the
        order of the points, so it is the same bits for every batch split of the queries and every
        thread count; backends and instruction sets differ in the last bits.

    Raises:
        ValueError: shapes or dtypes break the contract, a value is NaN or infinite, or a bandwidth
            is not positive.
        NotImplementedError: the named backend refuses these inputs; the message says why.

    The relative error of float32 results is below 1e-6 (1 + log 1/s), s = the mean of
    exp(-distance^2 / 2) over the points, distance in bandwidths: below 4e-6 for densities down to a
    twentieth of a single kernel's peak. A term with s < 2^-125, a point beyond 13 bandwidths, may
    count as 0: so far away a density is 0 (float64 goes to 38 bandwidths), and where one is needed
    in the denominator the caller bounds it. Not differentiable. On a GPU the call waits for the
    device to look for NaN; while a CUDA graph is captured it does not, and what NaN gives is
    undefined.

        >>> kernel_density(torch.zeros(1, 2), torch.zeros(3, 2), [1.0, 2.0])  # 1 / (2 pi 1 2)
        tensor([0.0796])
    """
    check_tensors(WHO, queries=queries, points=points)
    for name, value in (("queries", queries), ("points", points)):
        if value.ndim != 2 or value.shape[1] != 2 or not value.is_floating_point():
            raise ValueError(
                f"{WHO}: {name} must be floating point [rows, 2], "
                f"got {value.dtype} {tuple(value.shape)}"
            )
    if queries.device != points.device or not len(points):
        raise ValueError(
            f"{WHO}: points must be at least one row on the device of the queries, "
            f"got {len(points)} rows on {points.device} and queries on {queries.device}"
        )
    # numbers stay on the CPU, where they can be read without waiting
    width = torch.as_tensor(bandwidth, dtype=torch.float64).detach()
    if width.shape != (2,):
        raise ValueError(f"{WHO}: bandwidth must be [2], got shape {tuple(width.shape)}")
    return _kernel_density(queries.detach(), points.detach(), width, backend or "")


# values are looked at inside the op, where torch.compile does not look
def _check(queries: Tensor, points: Tensor, bandwidth: Tensor) -> None:
    if capturing(queries):
        return
    check_finite(f"{WHO}: queries", queries)
    check_finite(f"{WHO}: points", points)
    if not bool((torch.isfinite(bandwidth) & (bandwidth > 0)).all()):
        raise ValueError(
            f"{WHO}: bandwidth must be positive and finite, got {bandwidth.tolist()}; "
            "coordinates that are all equal have none"
        )


def _beside(queries: Tensor, bandwidth: Tensor) -> Tensor:
    """The bandwidth on the device of the queries; from the CPU without a copy, which would wait."""
    if bandwidth.is_cuda or not queries.is_cuda:
        return bandwidth.to(queries.device)
    parts = [queries.new_full((), value, dtype=torch.float64) for value in bandwidth.tolist()]
    return torch.stack(parts)


def _run_reference(queries: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    _check(queries, points, bandwidth)
    return reference.kernel_density(queries, points, _beside(queries, bandwidth))


def _run_native(queries: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    queries, points = _native.real_rows(queries), _native.real_rows(points)
    _check(queries, points, bandwidth)
    return _native.kernel_density(queries, points, _beside(queries, bandwidth).contiguous())


def _run_triton(queries: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    _check(queries, points, bandwidth)
    return density.kernel_density(queries, points, _beside(queries, bandwidth))


def _refuse_double(queries: Tensor, points: Tensor) -> str | None:
    if torch.float64 in (queries.dtype, points.dtype):
        return "float64 coordinates are computed by the reference alone"
    return None


def _refuse(queries: Tensor, points: Tensor, bandwidth: Tensor) -> str | None:
    return _refuse_double(queries, points) or _native.refuse_device(queries)


def _refuse_triton(queries: Tensor, points: Tensor, bandwidth: Tensor) -> str | None:
    return _refuse_double(queries, points) or _triton.refuse_device(queries)


BACKENDS = (
    Backend("native", _run_native, _native.missing, _refuse),
    Backend("triton", _run_triton, _triton.missing, _refuse_triton),
    Backend("reference", _run_reference),
)


@custom_op("vlcal::kernel_density")
def _kernel_density(queries: Tensor, points: Tensor, bandwidth: Tensor, backend: str) -> Tensor:
    return dispatch(WHO, BACKENDS, (queries, points, bandwidth), backend or None)


@_kernel_density.register_fake
def _(queries: Tensor, points: Tensor, bandwidth: Tensor, backend: str) -> Tensor:
    return queries.new_empty(len(queries), dtype=reference.density_dtype(queries, points))
