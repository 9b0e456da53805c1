"""Launchers of the fused softmax and of the row statistics: waves of images, then four kernels.

A wave is packed, walks the classes (approximate scores of a certified error: sums and maxima of
groups), is ranked in float64 by the groups that can matter, and finished. Nothing is read back to
the host before the end, and nothing at all while a graph is captured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vlcal.ops import _triton, reference
from vlcal.ops._inputs import capturing, first_bad, refuse_rows
from vlcal.ops._triton.logits_pack import (
    BLOCK,
    STEP,
    WARPS,
    Classes,
    Images,
    factor_on,
    kernels,
    pack_classes,
    pack_images,
    padded_rows,
    shape,
    walk_shape,
)
from vlcal.types import check_finite

WORKSPACE = 512 << 20
# more classes than this are wanted: float64 products of all, sorted
LISTED = 32
# tiles that a program walks
SEGMENT = 8
# rows of a program that works in float64: a GPU wants many programs, the interpreter few
RANKED = 64 if _triton.interpreted() else 1


def calibrated_softmax(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    row_scale: Tensor | None,
    predicted_scale: Tensor | None,
    labels: Tensor | None,
    k: int,
    precision: str,
) -> tuple[Tensor, ...]:
    """What `vlcal.ops.calibrated_softmax` returns; an empty log-likelihood without labels."""
    n = len(image)
    if not n:
        return no_rows(
            "calibrated_softmax", reference.calibrated_softmax, (image, text),
            (image, text, scale, row_scale, predicted_scale, labels, k),
        )  # fmt: skip
    with torch.cuda.device_of(image):
        base = factor_on(image.device, scale)
        factors = base.expand(n) if row_scale is None else base * row_scale.double()
        classes = pack_classes(text, image if precision == "fast" else None)
        listed = 24 * k if k <= LISTED else 24 * len(text)
        parts = [
            _softmax_wave(
                image[rows],
                text,
                classes,
                factors[rows],
                predicted_scale,
                None if labels is None else labels[rows].contiguous(),
                k,
            )
            for rows in waves(n, classes, listed)
        ]
    *out, health = joined(parts)
    check("calibrated_softmax", health, (image, text))
    return tuple(out)


def _softmax_wave(
    image: Tensor,
    text: Tensor,
    classes: Classes,
    factor: Tensor,
    predicted_scale: Tensor | None,
    labels: Tensor | None,
    k: int,
) -> tuple[Tensor, ...]:
    """The outputs of a wave, and what is NaN or infinite for rows that are not to be had."""
    packed = pack_images(image, classes)
    known = predicted_scale is None
    # with predicted_scale the factor waits for the prediction: maxima first, then the sums
    partial, maxima = walk(packed, classes, factor if known else None, maxima=k <= LISTED)
    index, score, label_score = rank(image, text, packed, classes, maxima, labels, k)
    predicted = index[:, 0].clone()
    if predicted_scale is not None:
        # an index is out of range in rows that are refused below
        factor = factor * predicted_scale.double()[predicted.clamp(max=classes.count - 1)]
        partial, _ = walk(packed, classes, factor)
    out = _finish(partial, factor.contiguous(), score, label_score, labels is not None)
    health = packed.margin[: len(image)] + (score[:, 0] * factor).float()
    return predicted, *out[:4], index, out[4], health


def _finish(
    partial: Tensor, factor: Tensor, score: Tensor, label_score: Tensor, labeled: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Confidence, entropy, log-likelihood, sum of squares and the k probabilities."""
    n, k = score.shape
    _, segment_count, padded = partial.shape
    confidence, entropy, squares = (
        torch.empty(n, dtype=torch.float32, device=score.device) for _ in range(3)
    )
    likelihood = torch.empty(n if labeled else 0, dtype=torch.float32, device=score.device)
    prob = torch.empty((n, k), dtype=torch.float32, device=score.device)
    kernels("logits_kernels").finish[(padded // BLOCK,)](
        partial,
        factor,
        score,
        label_score,
        confidence,
        entropy,
        likelihood,
        squares,
        prob,
        n,
        padded,
        segment_count * padded,
        segment_count,
        k,
        LABELS=labeled,
        BLOCK_N=BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return confidence, entropy, likelihood, squares, prob


def logit_statistics(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    other_image: Tensor | None,
    other_text: Tensor | None,
    precision: str,
) -> tuple[Tensor, ...]:
    """What `vlcal.ops.logit_statistics` returns; an empty difference without another."""
    who, pairs = "logit_statistics", ((image, text), (other_image, other_text))
    if not len(image):
        args = (image, text, scale, other_image, other_text)
        return no_rows(who, reference.logit_statistics, (*pairs[0], *pairs[1]), args)
    fast = precision == "fast"
    with torch.cuda.device_of(image):
        factor = factor_on(image.device, scale)
        classes = pack_classes(text, image if fast else None)
        others = None
        if other_image is not None and other_text is not None:
            others = pack_classes(other_text, other_image if fast else None)
        parts = [
            _statistics_wave(
                image[rows],
                text,
                classes,
                None if other_image is None else other_image[rows],
                others,
                factor,
            )
            for rows in waves(len(image), classes, 16, others)
        ]
    *out, health = joined(parts)
    check(who, health, *pairs)
    return tuple(out)


def _statistics_wave(
    image: Tensor,
    text: Tensor,
    classes: Classes,
    other_image: Tensor | None,
    others: Classes | None,
    factor: Tensor,
) -> tuple[Tensor, ...]:
    """The outputs of a wave, and what is NaN or infinite for rows that are not to be had."""
    n = len(image)
    packed = pack_images(image, classes)
    other = None
    if other_image is not None and others is not None:
        other = pack_images(other_image, others)
    partial, maxima = _walk_statistics(packed, classes, other, others)
    index, score, _ = rank(image, text, packed, classes, maxima, None, 1)
    top = (score[:, 0] * factor).float()
    low = ((partial[0].amin(0)[:n].double() + packed.pivot[:n]) * factor).float()
    health = packed.margin[:n] + top - low
    gap = top.new_empty(0)
    if other is not None:
        gap = (partial[1].double().sum(0)[:n] / classes.count * factor).float()
        health = health + other.margin[:n] + gap
    return top, index[:, 0].clone(), low, gap, health


def waves(n: int, classes: Classes, listed: int, others: Classes | None = None) -> Iterator[slice]:
    """Rows in equal waves of whole blocks whose workspace stays below WORKSPACE bytes."""
    depth = classes.hi.shape[1] + (0 if others is None else others.hi.shape[1])
    row = 4 * depth + 4 * classes.groups + 16 * segments(classes) + listed + 64
    count = -(-n * row // WORKSPACE)
    size = -(-n // (count * BLOCK)) * BLOCK
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def segments(classes: Classes) -> int:
    """Segments of classes that are walked apart, whatever the number of images."""
    return -(-classes.tiles // SEGMENT)


def walk(
    images: Images,
    classes: Classes,
    factor: Tensor | None,
    *,
    maxima: bool = False,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums under `factor` [n] if given (with the scores of labels, or with moments), and maxima."""
    device, n = images.hi.device, len(images.hi)
    partial = torch.empty(
        (4 if labels is None else 3, segments(classes), n), dtype=torch.float32, device=device
    )
    groups = torch.empty((n if maxima else 0, classes.groups), dtype=torch.float32, device=device)
    config = walk_shape(device, classes.terms)
    if factor is not None:
        factor = padded_rows((factor * math.log2(math.e)).float(), n, 1.0)
    if factor is None and not maxima:
        return partial, groups
    kernels("logits_kernels").walk[(n // BLOCK, segments(classes))](
        images.hi,
        images.lo,
        classes.hi,
        classes.lo,
        images.inverse,
        classes.unscale,
        classes.unscale if classes.bias is None else classes.bias,
        images.inverse if factor is None else factor,
        images.inverse if labels is None else padded_rows(labels, n, -1),
        groups,
        partial,
        n,
        classes.count,
        classes.hi.shape[1],
        classes.tiles,
        SEGMENT,
        TERMS=classes.terms,
        MAXIMA=maxima,
        SUMS=factor is not None,
        MOMENTS=labels is None,
        LABELS=labels is not None,
        GROUP=classes.group,
        BLOCK_N=BLOCK,
        BLOCK_C=BLOCK,
        BLOCK_D=STEP,
        num_warps=WARPS,
        num_stages=config.stages,
        maxnreg=config.registers,
        enable_fp_fusion=True,
    )
    return partial, groups


def _walk_statistics(
    images: Images, classes: Classes, other: Images | None, others: Classes | None
) -> tuple[Tensor, Tensor]:
    """Smallest score and summed difference by segment, and maxima of groups."""
    device, n = images.hi.device, len(images.hi)
    partial = torch.empty((2, segments(classes), n), dtype=torch.float32, device=device)
    groups = torch.empty((n, classes.groups), dtype=torch.float32, device=device)
    config = shape(device, classes.terms)
    second, second_classes = other or images, others or classes
    kernels("logits_kernels").statistics[(n // BLOCK, segments(classes))](
        images.hi,
        images.lo,
        classes.hi,
        classes.lo,
        images.inverse,
        classes.unscale,
        classes.unscale if classes.bias is None else classes.bias,
        second.hi,
        second.lo,
        second_classes.hi,
        second_classes.lo,
        second.inverse,
        second_classes.unscale,
        second_classes.unscale if second_classes.bias is None else second_classes.bias,
        (images.pivot - second.pivot).float(),
        groups,
        partial,
        n,
        classes.count,
        classes.hi.shape[1],
        second_classes.hi.shape[1],
        classes.tiles,
        SEGMENT,
        TERMS=classes.terms,
        OTHER=other is not None,
        GROUP=classes.group,
        BLOCK_N=BLOCK,
        BLOCK_C=BLOCK,
        BLOCK_D=STEP,
        num_warps=WARPS,
        num_stages=config.stages,
        enable_fp_fusion=True,
    )
    return partial, groups


def rank(
    image: Tensor,
    text: Tensor,
    packed: Images,
    classes: Classes,
    maxima: Tensor,
    labels: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices and float64 scores of the k best classes [n, k], and scores of the labels [n]."""
    n = len(image)
    count, dim = text.shape
    strides = (*image.stride(), *text.stride())
    if k > LISTED:
        every = torch.empty((n, count), dtype=torch.float64, device=image.device)
        kernels("logits_rank_kernels").exact_scores[(-(-n // RANKED) * -(-count // 64),)](
            image,
            text,
            every,
            n,
            count,
            dim,
            *strides,
            ROWS=RANKED,
            COUNT=64,
            BLOCK_D=64,
            num_warps=4,
            enable_fp_fusion=True,
        )
        # equal ones by the lowest index
        found = every.sort(dim=1, descending=True, stable=True)
        best, index = (part[:, :k].contiguous() for part in found)
        # while a graph is captured nobody has looked whether labels are out of range
        own = every[:, :1]
        if labels is not None:
            own = every.gather(1, labels.clamp(0, count - 1)[:, None])
        return index, best, own[:, 0].contiguous()
    index = torch.empty((n, k), dtype=torch.int64, device=image.device)
    score = torch.empty((n, k), dtype=torch.float64, device=image.device)
    label_score = torch.empty(n, dtype=torch.float64, device=image.device)
    chunk = min(8192, _power(classes.groups))
    # a warp alone reduces without barriers
    warps = 1 if chunk <= 512 else 4 if chunk <= 2048 else 8
    kernels("logits_rank_kernels").rank[(-(-n // RANKED),)](
        image,
        text,
        index if labels is None else labels,
        maxima,
        packed.margin,
        packed.pivot,
        index,
        score,
        label_score,
        n,
        count,
        dim,
        classes.groups,
        *strides,
        k,
        LABELS=labels is not None,
        K=_power(k),
        GROUP=classes.group,
        CHUNK=chunk,
        ROWS=RANKED,
        BLOCK_D=128,
        num_warps=warps,
        enable_fp_fusion=True,
    )
    return index, score, label_score


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The outputs of all waves."""
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def no_rows(
    who: str, compute: Callable[..., tuple[Tensor, ...]], features: tuple, args: tuple
) -> tuple[Tensor, ...]:
    """The outputs for no images, which need no kernel."""
    for value in features:
        if value is not None and not capturing(value):
            check_finite(f"{who}: text_features", value)
    # an empty column of a matrix keeps the stride of the matrix
    return tuple(value.clone(memory_format=torch.contiguous_format) for value in compute(*args))


def check(who: str, health: Tensor, *features: tuple[Tensor | None, Tensor | None]) -> None:
    """Raise for the first row that is not finite; waits for the device unless it captures."""
    if not capturing(health):
        refuse_rows(who, first_bad(health), *features)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
