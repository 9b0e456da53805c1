"""No further from the float64 truth than twice the reference in the tested precision."""

import pytest
import torch
from torch import Tensor

from vlcal.ops import _triton


def flatten(result) -> list[Tensor]:
    """The tensors an op returned: a tensor, a tuple (None: not asked), or a `table`."""
    if isinstance(result, Tensor):
        return [result]
    if hasattr(result, "table"):
        return [result.table]
    return [value for value in result if value is not None]


def to_double(value):
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        return tuple(to_double(item) for item in value)
    return value


def device_of(backend):
    """Where the tests run a backend: the GPU backends on a GPU if there is one."""
    return "cuda" if backend in ("triton", "cuda") and torch.cuda.is_available() else "cpu"


def cpu_backends():
    """Backends that take CPU tensors, to parametrize by: Triton where it is interpreted, too."""
    refusal = _triton.missing() or (None if _triton.interpreted() else "takes CUDA tensors")
    skip = pytest.mark.skipif(refusal is not None, reason=f"triton: {refusal}")
    return ["native", "reference", pytest.param("triton", marks=skip)]


def moved(value, device):
    """The same arguments on a device; leaves stay leaves."""
    if isinstance(value, Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    if isinstance(value, (tuple, list)):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    return value


def run(op, args, kwargs, backend):
    """Outputs, and gradients of `.sum()` (sent back with stride 0) for inputs that want one."""
    outputs = flatten(op(*args, **kwargs, backend=backend))
    wanted = [
        arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor) and arg.requires_grad
    ]
    if not wanted:
        return outputs, []
    total = sum(out.sum() for out in outputs if out.requires_grad)
    return [out.detach() for out in outputs], list(torch.autograd.grad(total, wanted))


def assert_as_good_as_reference(op, args, kwargs, backend, exact=False):
    """Integer outputs equal the truth; floats and gradients stay within the error budget.

    `exact` asks for 1e-6 relative agreement of floating outputs, whatever the reference loses in
    the tested precision.
    """
    doubles = (
        [to_double(arg) for arg in args],
        {name: to_double(value) for name, value in kwargs.items()},
    )
    truth = run(op, *doubles, backend="reference")
    rival = run(op, args, kwargs, backend="reference")
    tested = run(op, args, kwargs, backend=backend)
    for kind in range(2):
        assert len(tested[kind]) == len(truth[kind])
        for got, other, true in zip(tested[kind], rival[kind], truth[kind], strict=True):
            assert got.shape == true.shape
            if not got.is_floating_point():
                assert torch.equal(got, true), f"{backend} differs from the float64 answer"
                continue
            assert torch.isfinite(got).all()
            scale = max(1.0, float(true.abs().max())) if true.numel() else 1.0
            budget = 1e-6 * scale
            if not exact and true.numel():
                budget += 2 * float((other.double() - true).abs().max())
            error = float((got.double() - true).abs().max()) if true.numel() else 0.0
            assert error <= budget, f"{backend}: error {error:.3g} above the budget {budget:.3g}"
