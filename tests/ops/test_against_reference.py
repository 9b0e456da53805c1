"""One test for every op, backend and case."""

import pytest
import torch

from tests.ops.cases import CASES
from tests.oracle import assert_as_good_as_reference, device_of, moved, run
from vlcal import ops


def every_op_backend_case():
    for op, (function, cases, exact) in CASES.items():
        for backend in ops.OPS[op]:
            if backend.name != "reference":
                for case in cases:
                    yield pytest.param(
                        function, backend, case, exact, id=f"{op}-{backend.name}-{case}"
                    )


@pytest.mark.parametrize(("function", "backend", "case", "exact"), list(every_op_backend_case()))
def test_as_good_as_reference(function, backend, case, exact):
    if why := backend.missing():
        pytest.skip(why)
    args, kwargs = moved(case.make(), device_of(backend.name))
    try:
        assert_as_good_as_reference(function, args, kwargs, backend.name, exact)
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))


def one_case_of_every_op_and_backend():
    for op, (function, cases, _) in CASES.items():
        for backend in ops.OPS[op]:
            yield pytest.param(function, backend, cases[1], id=f"{op}-{backend.name}")


@pytest.mark.parametrize(("function", "backend", "case"), list(one_case_of_every_op_and_backend()))
def test_autocast_changes_no_bit(function, backend, case):
    if why := backend.missing():
        pytest.skip(why)
    device = device_of(backend.name)
    args, kwargs = moved(case.make(), device)
    plain = run(function, args, kwargs, backend.name)
    with torch.autocast(device, torch.bfloat16):
        cast = run(function, args, kwargs, backend.name)
    for got, other in zip((*plain[0], *plain[1]), (*cast[0], *cast[1]), strict=True):
        assert got.dtype == other.dtype
        assert torch.equal(got, other)


def test_every_op_has_cases():
    assert set(CASES) == set(ops.OPS)
