"""Laws of the statistics of stored logits."""

import math

import pytest
import torch
from torch.library import opcheck

from tests.ops.cases import stored_logits
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import softmax_statistics

needs_native = pytest.mark.skipif(_native.missing() is not None, reason=str(_native.missing()))
BACKENDS = cpu_backends()


@pytest.mark.parametrize("backend", BACKENDS)
def test_toy_row(backend):
    logits = torch.tensor([[0.0, math.log(2.0), 0.0]])
    out = softmax_statistics(logits, torch.tensor([2]), backend=backend)
    assert out.predicted.tolist() == [1]
    assert float(out.confidence) == pytest.approx(0.5)
    assert float(out.entropy) == pytest.approx(1.5 * math.log(2.0))
    assert float(out.log_likelihood) == pytest.approx(-math.log(4.0))
    assert float(out.sum_squares) == pytest.approx(0.25 + 2 / 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_of_equal_logits_is_predicted(backend):
    logits = torch.zeros(1, 100)
    logits[0, [37, 80]] = 5.0
    assert softmax_statistics(logits, backend=backend).predicted.tolist() == [37]


@pytest.mark.parametrize("backend", BACKENDS)
def test_confidence_stays_within_what_can_be_binned(backend):
    logits, _ = stored_logits(500, 30, scale=200.0)
    confidence = softmax_statistics(logits, backend=backend).confidence
    assert 1 / 30 <= float(confidence.min()) <= float(confidence.max()) <= 1


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("classes", [1, 7, 16, 1000, 9001])
def test_every_instruction_set_meets_float64(isa, classes, limit_isa):
    logits, labels = stored_logits(30, classes)
    limit_isa(isa)
    got = softmax_statistics(logits, labels, backend="native")
    truth = softmax_statistics(logits.double(), labels)
    assert torch.equal(got.predicted, truth.predicted)
    for ours, true in zip(got[1:], truth[1:], strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6)


@needs_native
def test_rows_do_not_depend_on_the_batch_or_the_threads():
    logits, labels = stored_logits(600, 1000)
    whole = softmax_statistics(logits, labels, backend="native")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        parts = [softmax_statistics(logits[i::7], labels[i::7], backend="native") for i in range(7)]
    finally:
        torch.set_num_threads(threads)
    for field, value in enumerate(whole):
        assert all(torch.equal(parts[i][field], value[i::7]) for i in range(7))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 20, 36])
@pytest.mark.parametrize("isa", ["portable", "avx2", "native"])
def test_refuses_rows_without_a_softmax(backend, bad, column, isa, limit_isa):
    if backend == "native":
        limit_isa(isa)
    logits, labels = stored_logits(50, 37)
    logits[13, column] = bad
    with pytest.raises(ValueError, match=r"no NaN or \+inf .* the maximum of row 13"):
        softmax_statistics(logits, labels, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_a_row_of_minus_infinity(backend):
    logits = torch.zeros(3, 5)
    logits[1] = -math.inf
    with pytest.raises(ValueError, match="got -inf as the maximum of row 1"):
        softmax_statistics(logits, backend=backend)


def test_refuses_what_breaks_the_contract():
    with pytest.raises(ValueError, match=r"logits must be floating point \[N, C\]"):
        softmax_statistics(torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels must be in 0..4, got 5 in row 2"):
        softmax_statistics(torch.zeros(3, 5), torch.tensor([0, 1, 5]))


@needs_native
def test_native_refuses_float64_with_a_reason():
    with pytest.raises(NotImplementedError, match="float64 logits are not supported"):
        softmax_statistics(torch.zeros(3, 5).double(), backend="native")


def test_opcheck():
    logits, labels = stored_logits(20, 10)
    opcheck(torch.ops.vlcal.softmax_statistics.default, (logits, labels, ""))
    opcheck(torch.ops.vlcal.softmax_statistics.default, (logits, None, ""))
