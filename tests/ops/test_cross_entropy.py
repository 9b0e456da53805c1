"""Laws of the fused cross-entropy and of its gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tests.ops.cases import features
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import cosine_cross_entropy, use_backend

BACKENDS = cpu_backends()
REDUCTIONS = ["mean", "sum", "none"]


def leaves(n, c, dim, dtype=torch.float32, scale=30.0):
    image, text, labels = features(n, c, dim, dtype)
    factor = torch.tensor(scale, dtype=dtype, requires_grad=True)
    return image.requires_grad_(), text.requires_grad_(), labels, factor


def gradients(loss, args, grad=None):
    return torch.autograd.grad(loss, [args[0], args[1], args[3]], grad)


def truth(args, reduction, grad=None):
    doubles = [arg.detach().double().requires_grad_() for arg in (args[0], args[1], args[3])]
    logits = doubles[0] @ doubles[1].T * doubles[2]
    loss = F.cross_entropy(logits, args[2], reduction=reduction)
    return loss, torch.autograd.grad(loss, doubles, grad)


def close(got, true, tolerance):
    error = (got.detach().double() - true).abs().max()
    return float(error) <= tolerance * max(1.0, float(true.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_toy(backend):
    # logits [ln 3, 0], label 0: loss -ln 3/4; d loss / d logits = [-1/4, 1/4]
    image = torch.tensor([[1.0, 0.0]], requires_grad=True)
    scale = torch.tensor(math.log(3), requires_grad=True)
    loss = cosine_cross_entropy(image, torch.eye(2), torch.tensor([0]), scale, backend=backend)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-math.log(0.75), abs=1e-6)
    expected = [-math.log(3) / 4, math.log(3) / 4]
    assert image.grad[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert float(scale.grad) == pytest.approx(-0.25, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_torch_in_value_and_gradients(backend, reduction):
    args = leaves(90, 520, 24)
    loss = cosine_cross_entropy(*args, reduction=reduction, backend=backend)
    grad = torch.linspace(-1, 2, 90) if reduction == "none" else torch.tensor(0.7)
    true_loss, true_gradients = truth(args, reduction, grad.double())
    assert loss.shape == true_loss.shape
    assert close(loss, true_loss.detach(), 2e-6)
    for got, true in zip(gradients(loss, args, grad), true_gradients, strict=True):
        assert close(got, true, 5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_expanded_incoming_gradients(backend, reduction):
    args = leaves(40, 30, 16)
    loss = cosine_cross_entropy(*args, reduction=reduction, backend=backend)
    expanded = gradients(loss, args, torch.tensor(2.0).expand(loss.shape))
    dense = gradients(
        cosine_cross_entropy(*args, reduction=reduction, backend=backend),
        args,
        torch.full(loss.shape, 2.0),
    )
    for got, true, plain in zip(
        expanded, truth(args, reduction, torch.full_like(loss, 2.0).double())[1], dense, strict=True
    ):
        assert close(got, true, 5e-6)
        assert torch.equal(got, plain)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_equal_finite_differences(reduction):
    args = leaves(5, 4, 6, torch.float64, 3.0)
    assert torch.autograd.gradcheck(
        lambda image, text, scale: cosine_cross_entropy(
            image, text, args[2], scale, reduction=reduction
        ),
        (args[0], args[1], args[3]),
    )


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512", "native"])
def test_every_instruction_set(level):
    if why := _native.missing():
        pytest.skip(why)
    if level not in ("native", *_native.instruction_sets()):
        pytest.skip(f"this CPU has no {level}")
    args = leaves(70, 1030, 37, scale=100.0)
    true_loss, true_gradients = truth(args, "mean")
    _native.library().limit_isa(level)
    try:
        loss = cosine_cross_entropy(*args, backend="native")
        for got, true in zip(gradients(loss, args), true_gradients, strict=True):
            assert close(got, true, 2e-6)
    finally:
        _native.library().limit_isa("native")
    assert close(loss, true_loss.detach(), 2e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_bits_from_run_to_run_and_for_every_thread_count(reduction):
    args = leaves(1100, 600, 40)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 9, 1):
            torch.set_num_threads(threads)
            loss = cosine_cross_entropy(*args, reduction=reduction)
            results.append([loss.detach(), *gradients(loss, args, torch.ones_like(loss))])
    finally:
        torch.set_num_threads(before)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_agree(backend):
    args = leaves(33, 20, 8)
    rows, total, mean = (
        cosine_cross_entropy(*args, reduction=reduction, backend=backend).detach().double()
        for reduction in ("none", "sum", "mean")
    )
    assert float(rows.sum()) == pytest.approx(float(total), rel=1e-6)
    assert float(total / 33) == pytest.approx(float(mean), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_images(backend):
    args = leaves(0, 20, 8)
    assert float(cosine_cross_entropy(*args, reduction="sum", backend=backend).detach()) == 0.0
    assert math.isnan(float(cosine_cross_entropy(*args, backend=backend).detach()))
    loss = cosine_cross_entropy(*args, reduction="sum", backend=backend)
    image, text, scale = gradients(loss, args)
    assert image.shape == (0, 8)
    assert (text == 0).all()
    assert float(scale) == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_inputs_get_no_gradient(backend):
    image, text, labels, scale = leaves(20, 30, 8)
    loss = cosine_cross_entropy(image.detach(), text, labels, scale.detach(), backend=backend)
    loss.backward()
    assert text.grad is not None
    assert image.grad is None
    assert scale.grad is None


def test_half_precision_gradients_keep_their_dtype():
    image, text, labels, scale = leaves(20, 30, 8, torch.float16)
    loss = cosine_cross_entropy(image, text, labels, scale)
    loss.backward()
    assert loss.dtype == torch.float32
    assert image.grad.dtype == text.grad.dtype == scale.grad.dtype == torch.float16


def test_autocast_changes_nothing():
    args = leaves(20, 30, 8)
    plain = gradients(cosine_cross_entropy(*args), args)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients(cosine_cross_entropy(*args), args)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_derivative_is_refused(reduction):
    args = leaves(5, 4, 6)
    loss = cosine_cross_entropy(*args, reduction=reduction).sum()
    (first,) = torch.autograd.grad(loss, args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(first.sum(), args[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend):
    image, text, labels, scale = leaves(70, 40, 16)
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'avg'"):
        cosine_cross_entropy(image, text, labels, scale, reduction="avg", backend=backend)
    with pytest.raises(ValueError, match=r"labels must be in 0..39, got 40 in row 0"):
        cosine_cross_entropy(image, text, labels * 0 + 40, scale, backend=backend)
    broken = image.detach().clone()
    broken[66, 1] = math.nan
    for wanted in (False, True):
        with pytest.raises(ValueError, match=r"image_features must be finite.*row 66"):
            cosine_cross_entropy(
                broken.requires_grad_(wanted), text.detach(), labels, 30.0, backend=backend
            )


# opcheck itself looks at the gradients of tensors that are not leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    image, text, labels, scale = leaves(9, 12, 8)
    ops = torch.ops.vlcal
    with use_backend(backend):
        opcheck(ops.cosine_cross_entropy.default, (image, text, labels, scale, ""))
        opcheck(
            ops.cosine_cross_entropy_sum.default,
            (image, text, labels, scale, True, True, True, ""),
        )
        detached = [value.detach() for value in (image, text, labels, scale)]
        opcheck(
            ops.cosine_cross_entropy_backward.default,
            (torch.ones(9), *detached, True, False, True, ""),
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiles_without_a_graph_break(reduction):
    args = leaves(9, 12, 8)
    compiled = torch.compile(
        lambda *a: cosine_cross_entropy(*a, reduction=reduction).sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    eager = cosine_cross_entropy(*args, reduction=reduction).sum()
    traced = compiled(*args)
    assert torch.equal(traced, eager)
    for a, b in zip(gradients(traced, args), gradients(eager, args), strict=True):
        assert torch.equal(a, b)
