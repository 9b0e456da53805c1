"""Forcing an instruction set for the length of one test."""

import pytest

from vlcal import _native


@pytest.fixture
def limit_isa():
    yield lambda level: _native.library().limit_isa(level)
    if _native.missing() is None:
        _native.library().limit_isa("native")
