"""Cross-entropy of scaled cosine logits and its gradients, without stored logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vlcal import _native
from vlcal.ops import _triton, reference
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._inputs import (
    blocks,
    check_features,
    check_label_kind,
    check_precision,
    check_values,
    first_bad,
    refuse_float64,
    refuse_rows,
    scale_tensor,
    wide,
    without_autocast,
)
from vlcal.ops._triton import cross_entropy as triton_cross_entropy
from vlcal.ops._triton import logits_pack
from vlcal.types import check_finite

WHO = "cosine_cross_entropy"


def cosine_cross_entropy(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: float | Tensor,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    precision: Literal["accurate", "fast"] = "accurate",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of `logit_scale * image_features @ text_features.T` with `labels`, in nats.

    Differentiable once in both features and in a tensor `logit_scale`, without stored logits in
    either direction. For "mean" and "sum" the gradients are computed in the forward pass, for
    "none" the backward pass computes the logits again. Bit-identical from run to run and for every
    thread count.

    On a GPU the logits' gradients exist for a wave of images, in at most 512 MiB (more where 128
    images need it). Checks of values wait for the device; while a CUDA graph is captured they are
    left out, and a `logit_scale` with a gradient must be on the device.

    Args:
        image_features: [N, D] floating point.
        text_features: [C, D] floating point, C >= 1.
        labels: [N] integers in 0..C-1.
        logit_scale: the factor itself (about 100), a number or a 0-d tensor, > 0.
        reduction: over images; the mean over no images is NaN, as in PyTorch.
        precision: "accurate" computes as float32 does; "fast" lets GPU backends round features and
            gradients of logits to float16 once, which at unit norm, D = 512 and a scale of 100 puts
            losses off by up to 3e-3 and gradients by up to 2e-3 of their largest element.
        backend: "native", "triton" or "reference"; by default the fastest that accepts the call.

    Returns:
        0-d, or [N] for "none"; float32, float64 for float64 features.

    Raises:
        ValueError: shapes, dtypes or labels break the contract, features are not finite, or logits
            overflow; the message names the row.
    """
    who = "cosine_cross_entropy"
    check_features(who, image_features, text_features)
    check_label_kind(who, labels, len(image_features))
    check_precision(who, precision)
    scale = scale_tensor(who, logit_scale)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{who}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if reduction == "none":
        return _cross_entropy(
            image_features, text_features, labels, scale, backend or "", precision
        )
    record = torch.is_grad_enabled()
    total = _cross_entropy_sum(
        image_features,
        text_features,
        labels,
        scale,
        record and image_features.requires_grad,
        record and text_features.requires_grad,
        record and scale.requires_grad,
        backend or "",
        precision,
    )[0]
    return total if reduction == "sum" else total / len(image_features)


def _run_reference(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: Tensor,
    grad: Tensor | None,
    wanted: tuple[bool, bool, bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_finite(f"{WHO}: image_features", image)
    check_finite(f"{WHO}: text_features", text)
    real = wide(image, text)
    losses = image.new_empty(len(image), dtype=real)
    out = [
        value.new_zeros(value.shape if want else (0,), dtype=real)
        for value, want in zip((image, text, scale), wanted, strict=True)
    ]
    for rows in blocks(image, text):
        block, ids = image[rows], labels[rows]
        losses[rows] = reference.cosine_cross_entropy(block, text, ids, scale)
        if any(wanted):
            weight = torch.ones_like(losses[rows]) if grad is None else grad[rows]
            parts = reference.cosine_cross_entropy_gradients(weight, block, text, ids, scale)
            if wanted[0]:
                out[0][rows] = parts[0]
            for total, part, want in zip(out[1:], parts[1:], wanted[1:], strict=True):
                total += part if want else 0
    refuse_rows(WHO, first_bad(losses), (image, text))
    return losses, out[0], out[1], out[2]


def _run_native(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: Tensor,
    grad: Tensor | None,
    wanted: tuple[bool, bool, bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, bad = _native.cross_entropy(
        _native.real_rows(image),
        _native.real_rows(text),
        labels.contiguous(),
        float(scale),
        None if grad is None else grad.double().contiguous(),
        wanted,
    )
    refuse_rows(WHO, bad, (image, text))
    return out


# arguments: image, text, labels, scale, weights of the losses or None for ones, which of the
# gradients are wanted, and the precision, of which those on the CPU make no use; results: losses
# and the gradients of their weighted sum, empty if unwanted
BACKENDS = (
    Backend("native", _run_native, _native.missing, refuse_float64),
    Backend("triton", triton_cross_entropy.cross_entropy, _triton.missing, logits_pack.refuse),
    Backend("reference", _run_reference),
)


def _run(image, text, labels, scale, grad, wanted, backend, precision):
    labels = check_values(WHO, scale, labels, len(text))
    args = (image, text, labels, scale, grad, wanted, precision)
    with without_autocast(image.device.type):
        out = dispatch(WHO, BACKENDS, args, backend or None)
    likes = zip(out[1:], (image, text, scale), wanted, strict=True)
    # a scale may be on the CPU
    return out[0], *(part.to(x) if want else x.new_empty(0) for part, x, want in likes)


@custom_op("vlcal::cosine_cross_entropy")
def _cross_entropy(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: Tensor,
    backend: str,
    precision: str = "accurate",
) -> Tensor:
    return _run(image, text, labels, scale, None, (False, False, False), backend, precision)[0]


@_cross_entropy.register_fake
def _(image, text, labels, scale, backend, precision="accurate"):
    return image.new_empty(image.shape[0], dtype=wide(image, text))


@custom_op("vlcal::cosine_cross_entropy_backward")
def _backward(
    grad: Tensor,
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: Tensor,
    image_wanted: bool,
    text_wanted: bool,
    scale_wanted: bool,
    backend: str,
    precision: str = "accurate",
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = (image_wanted, text_wanted, scale_wanted)
    return tuple(_run(image, text, labels, scale, grad, wanted, backend, precision)[1:])


@_backward.register_fake
def _(grad, image, text, labels, scale, image_wanted, text_wanted, scale_wanted, *_):
    return _fake_gradients(image, text, scale, image_wanted, text_wanted, scale_wanted)


def _fake_gradients(image, text, scale, image_wanted, text_wanted, scale_wanted):
    wanted = ((image, image_wanted), (text, text_wanted), (scale, scale_wanted))
    return tuple(value.new_empty(value.shape if want else (0,)) for value, want in wanted)


def _save_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.backend, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _backward_rows(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, text, labels, scale = ctx.saved_tensors
    by_image, by_text, _, by_scale, *_ = ctx.needs_input_grad
    wanted = (by_image, by_text, by_scale)
    parts = _backward(grad, image, text, labels, scale, *wanted, ctx.backend, ctx.precision)
    image_grad, text_grad, scale_grad = (
        part if want else None for part, want in zip(parts, wanted, strict=True)
    )
    return image_grad, text_grad, None, scale_grad, None, None


_cross_entropy.register_autograd(_backward_rows, setup_context=_save_inputs)


@custom_op("vlcal::cosine_cross_entropy_sum")
def _cross_entropy_sum(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: Tensor,
    image_wanted: bool,
    text_wanted: bool,
    scale_wanted: bool,
    backend: str,
    precision: str = "accurate",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = (image_wanted, text_wanted, scale_wanted)
    losses, *gradients = _run(image, text, labels, scale, None, wanted, backend, precision)
    return losses.double().sum().to(losses.dtype), *gradients


@_cross_entropy_sum.register_fake
def _(image, text, labels, scale, image_wanted, text_wanted, scale_wanted, *_):
    total = image.new_empty((), dtype=wide(image, text))
    return total, *_fake_gradients(image, text, scale, image_wanted, text_wanted, scale_wanted)


@custom_op("vlcal::scaled_gradient")
def _scaled_gradient(grad: Tensor, gradient: Tensor) -> Tensor:
    # an operation of its own without a derivative, so that a second derivative is refused
    return (gradient.to(grad.dtype) * grad).to(gradient.dtype)


@_scaled_gradient.register_fake
def _(grad, gradient):
    return torch.empty_like(gradient)


def _save_gradients(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.wanted = inputs[4:7]
    ctx.save_for_backward(*output[1:])


def _backward_sum(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    image_grad, text_grad, scale_grad = (
        _scaled_gradient(grad, gradient) if want else None
        for gradient, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)
    )
    return image_grad, text_grad, None, scale_grad, *[None] * 5


_cross_entropy_sum.register_autograd(_backward_sum, setup_context=_save_gradients)
