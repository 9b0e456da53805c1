"""One test for every op, backend and case."""

import pytest

from tests.ops.cases import CASES
from tests.oracle import assert_as_good_as_reference, device_of, moved
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


def test_every_op_has_cases():
    assert set(CASES) == set(ops.OPS)
