"""Products on tensor cores, which truncate where the interpreter rounds: what precision is left."""

import numpy as np
import pytest
import torch

from tests.ops.test_triton_logits import logits64, sharp
from vlcal.ops import _triton, calibrated_softmax, cosine_cross_entropy

pytestmark = pytest.mark.skipif(
    not _triton.interpreted() or _triton.missing() is not None,
    reason="the adders are those of the interpreter",
)


def truncated(a, b, total):
    """A step of tensor cores: 16 products and the sum so far, cut to 24 bits below the largest."""
    for start in range(0, a.shape[1], 16):
        products = a[:, None, start : start + 16] * b[start : start + 16].T[None]
        largest = np.maximum(np.abs(products).max(-1), np.abs(total))
        last = np.ldexp(1.0, np.frexp(largest)[1] - 24)
        total = np.trunc(total / last) + np.trunc(products / last[..., None]).sum(-1)
        total = total * last
        last = np.ldexp(1.0, np.frexp(total)[1] - 24)
        total = np.trunc(total / last) * last
    return total


@pytest.fixture
def tensor_cores(monkeypatch):
    from triton.runtime import interpreter

    def dot(self, a, b, total, *_):
        parts = (part.data.astype(np.float64) for part in (a, b, total))
        result = truncated(*parts).astype(np.float32)
        return interpreter.TensorHandle(result, total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def test_truncated_sums_are_truncated():
    a, b = np.full((1, 16), 1.0), np.full((16, 1), 1.0)
    assert truncated(a, b, np.array([[2.0**23]])) == 2.0**23 + 16
    assert truncated(a, b, np.array([[2.0**24]])) == 2.0**24
    assert truncated(-a, b, np.array([[2.0**24 + 4]])) == 2.0**24 + 4


# float32 on the same features is off by 2e-6 and 8e-6, sums in tensor cores alone by 4e-5 and 6e-5
def test_logits_are_as_near_as_those_of_float32(tensor_cores):
    image, text, labels = sharp(40, 100, 1024)
    out = calibrated_softmax(image, text, 100.0, labels=labels, k=3, backend="triton")
    log_probs = logits64(image, text, 100.0).log_softmax(1)
    assert (out.confidence - log_probs.exp().amax(1)).abs().max() < 5e-6
    own = log_probs.gather(1, labels[:, None])[:, 0]
    assert (out.log_likelihood - own).abs().max() < 1e-5
    assert torch.equal(out.topk_index, log_probs.topk(3).indices)


def test_gradients_are_as_near_as_those_of_float32(tensor_cores):
    image, text, labels = sharp(40, 100, 1024)

    def gradients(image, text, **options):
        leaves = [value.clone().requires_grad_() for value in (image, text)]
        return torch.autograd.grad(cosine_cross_entropy(*leaves, labels, 100.0, **options), leaves)

    got = gradients(image, text, backend="triton")
    true = gradients(image.double(), text.double(), backend="reference")
    for ours, exact in zip(got, true, strict=True):
        assert (ours - exact).abs().max() < 8e-6 * exact.abs().max()
