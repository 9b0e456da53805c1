"""Launcher of the cross-entropy and its gradients: waves of images, whose logits are walked twice.

The first walk gives the losses, the second the gradients of the wave's logits, in float16 parts,
which two products turn into gradients of the features. The workspace of a wave is bounded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vlcal.ops._inputs import capturing
from vlcal.ops._triton.logits import SEGMENT, check, joined, segments, walk, waves
from vlcal.ops._triton.logits_pack import (
    BLOCK,
    STEP,
    WARPS,
    Classes,
    Images,
    factor_on,
    kernels,
    pack,
    pack_classes,
    pack_images,
    padded_rows,
    power_of_two,
    shape,
)
from vlcal.types import check_finite

_WHO = "cosine_cross_entropy"
# programs that a product is split for when it has few tiles; a fixed number, for the same bits
_PROGRAMS = 256


class _Call(NamedTuple):
    """What all waves share; `weight` [N] float64 of the losses, `unit` the scale of the images."""

    text: Tensor
    classes: Classes
    factor: Tensor
    weight: Tensor | None
    unit: Tensor
    wanted: tuple[bool, bool, bool]


def cross_entropy(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: Tensor,
    grad: Tensor | None,
    wanted: tuple[bool, bool, bool],
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, and the gradients of their weighted sum, empty where they are not wanted."""
    if not len(image):
        return _no_images(image, text, wanted)
    with torch.cuda.device_of(image):
        classes = pack_classes(text, image if precision == "fast" else None)
        weight = None if grad is None else grad.double().contiguous()
        # weighted images are packed under one scale, so that waves add up
        unit = power_of_two(image)
        if weight is not None:
            unit = unit * power_of_two(weight) * 2.0**-14
        call = _Call(text, classes, factor_on(image.device, scale), weight, unit, wanted)
        # the text gradient grows from wave to wave
        sums = _text_sums(call)
        held = 4 * classes.hi.shape[1] + 4 * len(classes.hi) if any(wanted) else 0
        parts = [
            _wave(image[rows], labels[rows].contiguous(), rows, call, sums)
            for rows in waves(len(image), classes, held)
        ]
        losses, image_grad, scale_grad, health = joined(parts)
        text_grad = image.new_empty(0, dtype=torch.float32)
        if sums is not None:
            total = sums.sum(0)[: len(text), : text.shape[1]]
            text_grad = total * (call.factor / (unit * 2.0**14)).float()
    check(_WHO, health, (image, text))
    if wanted[2]:
        scale_grad = scale_grad.sum()
    return losses, image_grad, text_grad, scale_grad.float()


def _no_images(
    image: Tensor, text: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not capturing(text):
        check_finite(f"{_WHO}: text_features", text)
    shapes = (image.shape, text.shape, ())
    sizes = (shape if want else (0,) for shape, want in zip(shapes, wanted, strict=True))
    losses, *gradients = (
        torch.zeros(size, dtype=torch.float32, device=image.device) for size in ((0,), *sizes)
    )
    return losses, gradients[0], gradients[1], gradients[2]


def _text_sums(call: _Call) -> Tensor | None:
    if not call.wanted[1]:
        return None
    rows, depth = call.classes.hi.shape
    splits = _splits(rows, depth, BLOCK * 64)
    return torch.zeros((splits, rows, depth), dtype=torch.float32, device=call.text.device)


def _wave(
    image: Tensor, labels: Tensor, rows: slice, call: _Call, sums: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, image gradient, weighted slopes by scale, and what is not finite in bad rows."""
    n, classes = len(image), call.classes
    packed = pack_images(image, classes)
    partial, _ = walk(packed, classes, call.factor.expand(n), labels=labels)
    losses, top, inverse_sum = _losses(partial, call.factor, n)
    health = packed.margin[:n] + ((top[:n] + packed.pivot[:n]) * call.factor).float()
    image_grad, slopes = (image.new_empty(0, dtype=torch.float32) for _ in range(2))
    if any(call.wanted):
        weight = None if call.weight is None else call.weight[rows]
        z_hi, z_lo, slope = _logit_gradients(packed, classes, labels, call.factor, top, inverse_sum)
        if call.wanted[0]:
            image_grad = _image_gradient(z_hi, z_lo, call, weight, *image.shape)
        if sums is not None:
            hi, lo, _, _ = pack(image, call.unit, weight=weight)
            _multiply((z_hi, z_lo), (hi, lo), sums, classes.terms, transposed=True)
        if call.wanted[2]:
            slopes = slope.double().sum(0)[:n]
            slopes = slopes if weight is None else slopes * weight
    return losses, image_grad, slopes, health


def _losses(partial: Tensor, factor: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [n], maxima and inverse sums [padded] from the sums of the segments."""
    _, segment_count, padded = partial.shape
    losses = torch.empty(n, dtype=torch.float32, device=partial.device)
    top = torch.empty(padded, dtype=torch.float32, device=partial.device)
    inverse_sum = torch.empty_like(top)
    kernels("cross_entropy_kernels").losses[(padded // BLOCK,)](
        partial,
        factor,
        losses,
        top,
        inverse_sum,
        n,
        padded,
        segment_count * padded,
        segment_count,
        BLOCK_N=BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return losses, top, inverse_sum


def _logit_gradients(
    images: Images,
    classes: Classes,
    labels: Tensor,
    factor: Tensor,
    top: Tensor,
    inverse_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the logits in two parts [padded images, padded classes], and slopes."""
    n, device = len(images.hi), images.hi.device
    z_hi = torch.empty((n, len(classes.hi)), dtype=torch.float16, device=device)
    z_lo = torch.empty_like(z_hi) if classes.terms == 3 else z_hi
    slope = torch.empty((segments(classes), n), dtype=torch.float32, device=device)
    config = shape(device, classes.terms)
    kernels("cross_entropy_kernels").logit_gradients[(n // BLOCK, segments(classes))](
        images.hi,
        images.lo,
        classes.hi,
        classes.lo,
        images.inverse,
        classes.unscale,
        classes.unscale if classes.bias is None else classes.bias,
        (factor * math.log2(math.e)).float().expand(n).contiguous(),
        padded_rows(labels, n, -1),
        top,
        inverse_sum,
        z_hi,
        z_lo,
        slope,
        n,
        classes.count,
        classes.hi.shape[1],
        classes.tiles,
        SEGMENT,
        TERMS=classes.terms,
        BLOCK_N=BLOCK,
        BLOCK_C=BLOCK,
        BLOCK_D=STEP,
        num_warps=WARPS,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )
    return z_hi, z_lo, slope


def _image_gradient(
    z_hi: Tensor, z_lo: Tensor, call: _Call, weight: Tensor | None, n: int, dim: int
) -> Tensor:
    """Gradient [n, dim]: z times the centered classes, as z adds up to nothing over the classes."""
    classes = call.classes
    depth = classes.hi.shape[1]
    out = torch.zeros(
        (_splits(len(z_hi), depth, z_hi.shape[1]), len(z_hi), depth),
        dtype=torch.float32,
        device=z_hi.device,
    )
    _multiply((z_hi, z_lo), (classes.hi, classes.lo), out, classes.terms)
    unit = call.factor * classes.unscale * 2.0**-14
    unit = unit.expand(n) if weight is None else unit * weight
    return (out.sum(0)[:n, :dim] * unit[:, None]).float()


def _splits(rows: int, depth: int, length: int) -> int:
    """Into how many sums a product is split, each of at least 8 steps of its length."""
    tiles = rows // BLOCK * (depth // _width(depth))
    return max(1, min(_PROGRAMS // tiles, length // (8 * STEP)))


def _width(depth: int) -> int:
    return BLOCK if depth % BLOCK == 0 else STEP


def _multiply(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    out: Tensor,
    terms: int,
    transposed: bool = False,
) -> None:
    """Add a times b, or a transposed times b, to the splits of out."""
    config = shape(out.device, terms)
    splits, rows, depth = out.shape
    length = len(b[0])
    steps = -(-length // (splits * STEP))
    width = _width(depth)
    kernels("cross_entropy_kernels").multiply[(rows // BLOCK * (depth // width), splits)](
        *a,
        *b,
        out,
        rows,
        a[0].shape[1],
        depth,
        length,
        steps,
        TRANSPOSED=transposed,
        TERMS=terms,
        BLOCK_N=BLOCK,
        BLOCK_D=width,
        BLOCK_K=STEP,
        num_warps=WARPS,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )
