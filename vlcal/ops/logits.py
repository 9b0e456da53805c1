"""Softmax outputs and row statistics of scaled cosine logits, which are never stored as N x C.

They compute in float32 (float64 for float64 features), under autocast too: the features are cast
inside the operations, which autocast does not enter.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vlcal import _native
from vlcal.ops import _triton, reference
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._inputs import (
    blocks,
    check_factors,
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
from vlcal.ops._triton import logits as triton_logits
from vlcal.ops._triton import logits_pack
from vlcal.types import check_finite

_FEATURE_NAMES = (
    "image_features",
    "text_features",
    "other image_features",
    "other text_features",
)


class CalibratedSoftmax(NamedTuple):
    """What calibration and evaluation read of a softmax, per row; float32 unless the features are.

    `predicted` [N] int64; `confidence` [N], the probability of `predicted`; `entropy` [N] in nats;
    `log_likelihood` [N] = log p(label) in nats, None without labels; `sum_squares` [N] = sum over
    classes of p^2 (Brier score: sum_squares - 2 p(label) + 1); `topk_index` and `topk_prob` [N, k],
    most probable first.
    """

    predicted: Tensor
    confidence: Tensor
    entropy: Tensor
    log_likelihood: Tensor | None
    sum_squares: Tensor
    topk_index: Tensor
    topk_prob: Tensor


class LogitStatistics(NamedTuple):
    """Per row, in units of logits (scale included): max, argmax, min, mean |row - other row|."""

    max: Tensor
    argmax: Tensor
    min: Tensor
    mean_difference: Tensor | None


def calibrated_softmax(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    row_scale: Tensor | None = None,
    predicted_scale: Tensor | None = None,
    labels: Tensor | None = None,
    k: int = 1,
    precision: Literal["accurate", "fast"] = "accurate",
    backend: str | None = None,
) -> CalibratedSoftmax:
    """Softmax of `logit_scale * image_features @ text_features.T`, reduced row by row.

    Row i is first multiplied by `row_scale[i]` and by `predicted_scale[predicted[i]]`, which is how
    distance-aware, contrast-aware and sample-adaptive calibration act; no factor changes the order
    of a row. The order is that of the real-number products of the given features up to float64
    rounding, whatever the dtype; equal ones by the lowest index.

    Args:
        image_features: [N, D] floating point; N may be 0.
        text_features: [C, D] floating point, C >= 1.
        logit_scale: the factor itself (about 100), a number or a 0-d tensor, > 0.
        row_scale: [N] positive factors.
        predicted_scale: [C] positive factors, looked up at the argmax of the row.
        labels: [N] integers in 0..C-1, wanted for `log_likelihood`.
        k: number of most probable classes to return, 1..C.
        precision: "accurate" computes logits as float32 does; "fast" lets GPU backends round the
            features to float16 once, after centering: at unit norm and a scale of 100 that puts
            confidences off by up to 4e-4 on CLIP's features seen so far, and by 4e-3 on synthetic
            ones with a steeper spectrum. The order is the float64 one in both.
        backend: "native", "triton" or "reference"; by default the fastest that accepts the call.

    Returns:
        CalibratedSoftmax. Each row is the same bits for every batch split and thread count, but for
        "fast" on a GPU, which centers the images of a call. Memory is O(N k) beside 8 MiB of packed
        classes, as much of packed rows, and, per thread, the logits of 128 rows by 504 classes;
        with `predicted_scale`, which is known last, beside a packed copy of all classes and the
        logits of 128 rows by all of them. On a GPU, beside the classes, 512 MiB for a wave of rows
        (more where 128 rows need it); with `predicted_scale` the classes are walked twice, once
        for the prediction. k > 32 sorts the float64 logits of a wave.

    Raises:
        ValueError: shapes, dtypes or ranges break the contract, features or factors are not finite,
            or logits overflow; the message names the row.
        NotImplementedError: the named backend refuses these inputs; the message says why.

    Not differentiable. On a GPU the checks of values wait for the device; while a CUDA graph is
    captured they are left out, and what they would refuse gives unspecified outputs.

        >>> eye = torch.eye(2)
        >>> calibrated_softmax(eye, eye, math.log(3)).confidence
        tensor([0.7500, 0.7500])
    """
    who = "calibrated_softmax"
    check_features(who, image_features, text_features)
    n, c = len(image_features), len(text_features)
    check_factors(who, "row_scale", row_scale, n)
    check_factors(who, "predicted_scale", predicted_scale, c)
    check_label_kind(who, labels, n)
    check_precision(who, precision)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= c:
        raise ValueError(f"{who}: k must be in 1..{c} (the number of classes), got {k!r}")
    out = _calibrated_softmax(
        image_features.detach(),
        text_features.detach(),
        scale_tensor(who, logit_scale).detach(),
        None if row_scale is None else row_scale.detach(),
        None if predicted_scale is None else predicted_scale.detach(),
        labels,
        k,
        backend or "",
        precision,
    )
    likelihood = None if labels is None else out[3]
    return CalibratedSoftmax(out[0], out[1], out[2], likelihood, *out[4:])


def logit_statistics(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    other: tuple[Tensor, Tensor] | None = None,
    *,
    precision: Literal["accurate", "fast"] = "accurate",
    backend: str | None = None,
) -> LogitStatistics:
    """Largest and smallest logit of each row, and how far the row is from another model's.

    Contrast-aware calibration reads the mean difference (divide by `logit_scale` for cosines),
    sample-adaptive scaling and ZS-Norm the range.

    Args:
        image_features: [N, D] floating point; N may be 0.
        text_features: [C, D] floating point, C >= 1.
        logit_scale: the factor itself (about 100), a number or a 0-d tensor, > 0.
        other: image features [N, E] and text features [C, E] of another model on the same images
            and classes, under the same `logit_scale`.
        precision: as in `calibrated_softmax`; "fast" leaves `max` and `argmax` as they are.
        backend: "native", "triton" or "reference"; by default the fastest that accepts the call.

    Returns:
        LogitStatistics in units of logits; `argmax` [N] int64, of equal ones the lowest index;
        `mean_difference` [N] = sum_c |row_c - other row_c| / C, None without `other`.

    Raises:
        ValueError: shapes or dtypes break the contract, features are not finite, or logits
            overflow; the message names the row.

    Not differentiable. Waits for a GPU as `calibrated_softmax` does.
    """
    who = "logit_statistics"
    check_features(who, image_features, text_features)
    check_precision(who, precision)
    if other is not None:
        check_features(who, *other, "other ")
        got, wanted = [len(value) for value in other], [len(image_features), len(text_features)]
        if got != wanted:
            raise ValueError(
                f"{who}: other must be features of the same {wanted[0]} images and {wanted[1]} "
                f"classes, got {got[0]} and {got[1]}"
            )
    out = _logit_statistics(
        image_features.detach(),
        text_features.detach(),
        scale_tensor(who, logit_scale).detach(),
        None if other is None else other[0].detach(),
        None if other is None else other[1].detach(),
        backend or "",
        precision,
    )
    top, index, low, difference = out
    return LogitStatistics(top, index, low, None if other is None else difference)


def _rows(value: Tensor | None, rows: slice) -> Tensor | None:
    return None if value is None else value[rows]


def _run_softmax(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    row_scale: Tensor | None,
    predicted_scale: Tensor | None,
    labels: Tensor | None,
    k: int,
    precision: str,
) -> tuple[Tensor, ...]:
    check_finite("calibrated_softmax: image_features", image)
    check_finite("calibrated_softmax: text_features", text)
    parts = [
        reference.calibrated_softmax(
            image[rows],
            text,
            scale,
            _rows(row_scale, rows),
            predicted_scale,
            _rows(labels, rows),
            k,
        )
        for rows in blocks(image, text)
    ]
    out = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    refuse_rows("calibrated_softmax", first_bad(out[2]), (image, text))
    return out


def _run_statistics(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    other_image: Tensor | None,
    other_text: Tensor | None,
    precision: str,
) -> tuple[Tensor, ...]:
    pairs = (image, text), (other_image, other_text)
    for value, name in zip((*pairs[0], *pairs[1]), _FEATURE_NAMES, strict=True):
        if value is not None:
            check_finite(f"logit_statistics: {name}", value)
    parts = [
        reference.logit_statistics(image[rows], text, scale, _rows(other_image, rows), other_text)
        for rows in blocks(image, text)
    ]
    out = tuple(torch.cat(part) for part in zip(*parts, strict=True))
    refuse_rows("logit_statistics", first_bad(out[0] - out[2]), *pairs)
    return out


def _native_softmax(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    row_scale: Tensor | None,
    predicted_scale: Tensor | None,
    labels: Tensor | None,
    k: int,
    precision: str,
) -> tuple[Tensor, ...]:
    out, bad = _native.calibrated_softmax(
        _native.real_rows(image),
        _native.real_rows(text),
        float(scale),
        None if row_scale is None else row_scale.double().contiguous(),
        None if predicted_scale is None else predicted_scale.double().contiguous(),
        None if labels is None else labels.contiguous(),
        k,
    )
    refuse_rows("calibrated_softmax", bad, (image, text))
    return out


def _native_statistics(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    other_image: Tensor | None,
    other_text: Tensor | None,
    precision: str,
) -> tuple[Tensor, ...]:
    out, bad = _native.logit_statistics(
        _native.real_rows(image),
        _native.real_rows(text),
        float(scale),
        None if other_image is None else _native.real_rows(other_image),
        None if other_text is None else _native.real_rows(other_text),
    )
    refuse_rows("logit_statistics", bad, (image, text), (other_image, other_text))
    return out


# the last argument of each is the precision, of which those on the CPU make no use
SOFTMAX_BACKENDS = (
    Backend("native", _native_softmax, _native.missing, refuse_float64),
    Backend("triton", triton_logits.calibrated_softmax, _triton.missing, logits_pack.refuse),
    Backend("reference", _run_softmax),
)
STATISTICS_BACKENDS = (
    Backend("native", _native_statistics, _native.missing, refuse_float64),
    Backend("triton", triton_logits.logit_statistics, _triton.missing, logits_pack.refuse),
    Backend("reference", _run_statistics),
)


@custom_op("vlcal::calibrated_softmax")
def _calibrated_softmax(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    row_scale: Tensor | None,
    predicted_scale: Tensor | None,
    labels: Tensor | None,
    k: int,
    backend: str,
    precision: str = "accurate",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    who = "calibrated_softmax"
    factors = {"row_scale": row_scale, "predicted_scale": predicted_scale}
    labels = check_values(who, scale, labels, len(text), **factors)
    args = (image, text, scale, row_scale, predicted_scale, labels, k, precision)
    with without_autocast(image.device.type):
        return dispatch(who, SOFTMAX_BACKENDS, args, backend or None)


@_calibrated_softmax.register_fake
def _(image, text, scale, row_scale, predicted_scale, labels, k, backend, precision="accurate"):
    n = image.shape[0]
    real = image.new_empty(n, dtype=wide(image, text))
    return (
        torch.empty_like(real, dtype=torch.int64),
        torch.empty_like(real),
        torch.empty_like(real),
        real.new_empty(0 if labels is None else n),
        torch.empty_like(real),
        real.new_empty((n, k), dtype=torch.int64),
        real.new_empty((n, k)),
    )


@custom_op("vlcal::logit_statistics")
def _logit_statistics(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    other_image: Tensor | None,
    other_text: Tensor | None,
    backend: str,
    precision: str = "accurate",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_values("logit_statistics", scale)
    args = (image, text, scale, other_image, other_text, precision)
    with without_autocast(image.device.type):
        return dispatch("logit_statistics", STATISTICS_BACKENDS, args, backend or None)


@_logit_statistics.register_fake
def _(image, text, scale, other_image, other_text, backend, precision="accurate"):
    n = image.shape[0]
    real = image.new_empty(n, dtype=wide(image, text))
    other = real.new_empty(0 if other_image is None else n)
    return real, torch.empty_like(real, dtype=torch.int64), torch.empty_like(real), other
