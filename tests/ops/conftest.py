"""Forcing an instruction set for the length of one test."""

import pytest

from vlcal import _native


@pytest.fixture
def limit_isa():
    yield lambda level: _native.library().limit_isa(level)
    if _native.missing() is None:
        _native.library().limit_isa("native")


@pytest.fixture(params=["portable", "avx2", "avx512", "native"])
def kernels(request, limit_isa):
    """The kernels of each instruction set that this CPU has."""
    if why := _native.missing():
        pytest.skip(why)
    if request.param in ("avx2", "avx512") and request.param not in _native.instruction_sets():
        pytest.skip(f"this CPU has no {request.param}")
    limit_isa(request.param)
    return request.param
