"""The Triton kernels of the cross-entropy: what the cases shared by all backends do not reach."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from tests.ops.cases import features
from tests.oracle import device_of, moved
from vlcal.ops import _triton, cosine_cross_entropy

pytestmark = pytest.mark.skipif(_triton.missing() is not None, reason=str(_triton.missing()))
DEVICE = device_of("triton")
REDUCTIONS = ["mean", "sum", "none"]


def leaves(n, c, dim, dtype=torch.float32, scale=30.0):
    image, text, labels = moved(features(n, c, dim, dtype), DEVICE)
    factor = torch.tensor(scale, device=DEVICE, requires_grad=True)
    return image.requires_grad_(), text.requires_grad_(), labels, factor


def evaluate(args, grad=None, **options):
    loss = cosine_cross_entropy(*args, **options, backend="triton")
    return [loss.detach(), *torch.autograd.grad(loss, [args[0], args[1], args[3]], grad)]


def truth(args, reduction, grad=None):
    doubles = [arg.detach().double().requires_grad_() for arg in (args[0], args[1], args[3])]
    loss = F.cross_entropy(doubles[0] @ doubles[1].T * doubles[2], args[2], reduction=reduction)
    return [loss.detach(), *torch.autograd.grad(loss, doubles, grad)]


def errors(got, true):
    """Largest errors, relative to the largest element."""
    return [
        float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, true, strict=True)
    ]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("n", "c", "dim"), [(60, 1040, 40), (129, 40, 130)])
def test_equals_torch_in_value_and_gradients(n, c, dim, reduction):
    args = leaves(n, c, dim)
    grad = None
    if reduction == "none":
        grad = torch.linspace(-1e-3, 2e4, n, device=DEVICE)
    got = evaluate(args, grad, reduction=reduction)
    true = truth(args, reduction, None if grad is None else grad.double())
    assert max(errors(got, true)) < 3e-6


def test_fast_is_as_near_as_it_says():
    args = leaves(60, 200, 512, scale=100.0)
    true = truth(args, "none", torch.ones(60, device=DEVICE).double())
    got = evaluate(args, torch.ones(60, device=DEVICE), reduction="none", precision="fast")
    assert 1e-5 < (got[0] - true[0]).abs().max() < 3e-3
    assert 1e-5 < max(errors(got[1:], true[1:])) < 2e-3
    accurate = evaluate(args, torch.ones(60, device=DEVICE), reduction="none")
    assert max(errors(accurate[1:], true[1:])) < 3e-6


@pytest.mark.parametrize("precision", ["accurate", "fast"])
def test_waves_change_rounding_only_and_runs_nothing(monkeypatch, precision):
    args = leaves(300, 130, 40)
    grad = torch.linspace(-1, 2, 300, device=DEVICE)
    options = {"reduction": "none", "precision": precision}
    whole = evaluate(args, grad, **options)
    for a, b in zip(whole, evaluate(args, grad, **options), strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(import_module("vlcal.ops._triton.logits"), "WORKSPACE", 1)
    waves = evaluate(args, grad, **options)
    assert torch.equal(whole[0], waves[0])
    assert max(errors(waves, [value.double() for value in whole])) < 2e-6


def test_a_certain_label_costs_exactly_nothing():
    eye = torch.eye(40, 64, device=DEVICE, requires_grad=True)
    text = torch.eye(40, 64, device=DEVICE, requires_grad=True)
    scale = torch.tensor(1e4, device=DEVICE, requires_grad=True)
    args = (eye, text, torch.arange(40, device=DEVICE), scale)
    assert all((value == 0).all() for value in evaluate(args, reduction="sum"))


def test_a_label_far_in_the_tail():
    text = torch.eye(3, device=DEVICE)
    image = torch.tensor([[1.0, 0.5, -1.0]], device=DEVICE)
    for label, expected in ((1, 5_000.0), (2, 20_000.0)):
        labels = torch.tensor([label], device=DEVICE)
        loss = cosine_cross_entropy(image, text, labels, 1e4, backend="triton")
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_weight_of_zero_gives_no_gradient():
    args = leaves(20, 30, 16)
    assert all(
        (value == 0).all()
        for value in evaluate(args, torch.zeros(20, device=DEVICE), reduction="none")[1:]
    )
