"""Triton kernels hold where products are added up as tensor cores do, and not as an interpreter.

They cut the terms of 16 products and of the sum so far off below the largest one and round toward
zero (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021); NumPy rounds to nearest.
"""

import numpy as np
import pytest

from tests.ops.cases import CASES
from tests.oracle import assert_as_good_as_reference
from vlcal.ops import _triton

pytestmark = pytest.mark.skipif(
    _triton.missing() is not None or not _triton.interpreted(), reason="Triton is not interpreted"
)
STEP = 16  # products that are added up at once
FRACTION = 24  # bits that the largest term keeps

CHOSEN = {
    "calibrated_softmax": ("plain", "everything", "3 dimensions", "huge logits", "bfloat16"),
    "cosine_cross_entropy": ("mean", "chunks", "strided", "bfloat16"),
    "logit_statistics": ("with another", "transposed"),
}


def toward_zero(exact):
    rounded = exact.astype(np.float32)
    beyond = np.abs(rounded.astype(np.float64)) > np.abs(exact)
    return np.where(beyond, np.nextafter(rounded, np.float32(0)), rounded).astype(np.float32)


def added_up(a, b, total):
    """total + a b, [M, K] x [K, N], in float32."""
    for k in range(0, a.shape[1], STEP):
        terms = a[:, k : k + STEP, None] * b[None, k : k + STEP, :]
        largest = np.maximum(np.abs(terms).max(1), np.abs(total))
        unit = 2.0 ** (np.floor(np.log2(np.where(largest > 0, largest, 1))) - FRACTION)
        kept = np.trunc(terms / unit[:, None, :]).sum(1) + np.trunc(total / unit)
        total = toward_zero(kept * unit)
    return total


@pytest.fixture
def tensor_cores(monkeypatch):
    """How often a product was added up so."""
    from triton.runtime import interpreter

    plain, seen = interpreter.InterpreterBuilder.create_dot, []

    def values(handle):
        if "bf16" in str(handle.dtype):
            return (handle.data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return handle.data.astype(np.float64)

    def create_dot(self, a, b, total, *options):
        if a.data.ndim != 2 or a.data.dtype.itemsize != 2 or total.data.dtype != np.float32:
            return plain(self, a, b, total, *options)
        seen.append(a.data.shape)
        return interpreter.TensorHandle(
            added_up(values(a), values(b), total.data), total.dtype.scalar
        )

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    return seen


def test_small_terms_are_cut_and_sums_rounded_toward_zero():
    row, column = np.ones((1, 16)), np.full((16, 1), 2.0**-25)
    column[0] = 1.0
    zero = np.zeros((1, 1), np.float32)
    assert added_up(row, column, zero) == 1.0
    assert (row @ column).astype(np.float32) > 1.0
    assert added_up(-row, column, zero) == -1.0


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in CHOSEN for name in CHOSEN[op]])
def test_as_good_as_reference(op, name, tensor_cores):
    function, cases, exact = CASES[op]
    (case,) = (case for case in cases if str(case) == name)
    args, kwargs = case.make()
    assert_as_good_as_reference(function, args, kwargs, "triton", exact)
    assert tensor_cores
