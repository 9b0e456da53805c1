"""Traps of the Triton kernel of stored logits; the cases run in test_against_reference."""

import math

import pytest
import torch

from tests.ops.cases import stored_logits
from vlcal.ops import _triton, softmax_statistics

pytest.importorskip("triton")
device = "cpu" if _triton.interpreted() else "cuda"


@pytest.fixture(autouse=True)
def runnable():
    if why := _triton.missing():
        pytest.skip(why)


def stored(*args, **kwargs):
    return tuple(values.to(device) for values in stored_logits(*args, **kwargs))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("classes", [3, 64, 4096, 4097, 9001])
def test_meets_float64_when_the_maximum_moves_from_block_to_block(classes, descending):
    logits, labels = stored(5, classes)
    logits = logits.sort(-1, descending=descending).values
    logits[0] = 7.0  # ties over all blocks
    logits[1, : classes - 1] = -math.inf
    logits[2] *= 1e30
    labels[1] = classes - 1
    got = softmax_statistics(logits, labels, backend="triton")
    truth = softmax_statistics(logits.double(), labels, backend="reference")
    assert torch.equal(got.predicted, truth.predicted)
    for ours, true in zip(got[1:], truth[1:], strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6)


def test_rows_do_not_depend_on_the_batch():
    logits, labels = stored(40, 37)
    whole = softmax_statistics(logits, labels, backend="triton")
    parts = [softmax_statistics(logits[i::3], labels[i::3], backend="triton") for i in range(3)]
    for field, value in enumerate(whole):
        assert all(torch.equal(parts[i][field], value[i::3]) for i in range(3))


def test_strides_are_followed_and_what_lies_between_is_not_read():
    logits, labels = stored(30, 20)
    wide = torch.full((30, 2, 20, 3), torch.nan, device=device)
    wide[:, 1, :, 2] = logits
    got = softmax_statistics(wide[:, 1, :, 2], labels, backend="triton")
    for ours, same in zip(got, softmax_statistics(logits, labels, backend="triton"), strict=True):
        assert torch.equal(ours, same)
