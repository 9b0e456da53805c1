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


def float32_and_half_of_every_op_and_backend():
    for op, (function, cases, _) in CASES.items():
        for backend in ops.OPS[op]:
            halves = [case for case in cases if str(case).endswith("float16")]
            for case in (cases[1], *halves):
                yield pytest.param(function, backend, case, id=f"{op}-{backend.name}-{case}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("function", "backend", "case"), list(float32_and_half_of_every_op_and_backend())
)
def test_autocast_changes_no_bit(function, backend, case, dtype):
    if why := backend.missing():
        pytest.skip(why)
    device = device_of(backend.name)
    args, kwargs = moved(case.make(), device)
    try:
        plain = run(function, args, kwargs, backend.name)
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))
    with torch.autocast(device, dtype):
        cast = run(function, args, kwargs, backend.name)
    for got, other in zip((*plain[0], *plain[1]), (*cast[0], *cast[1]), strict=True):
        assert got.dtype == other.dtype
        assert torch.equal(got, other)


@pytest.mark.parametrize("op", CASES)
def test_arrays_of_other_libraries_are_refused(op):
    function, cases, _ = CASES[op]
    args, kwargs = cases[0].make()
    first = args[0].detach().numpy()
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got numpy\.ndarray; torch\.as_"):
        function(first, *args[1:], **kwargs)


def test_every_op_has_cases():
    assert set(CASES) == set(ops.OPS)
