"""What the calibration metrics need of stored logits, in one pass over them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlcal import _native
from vlcal.ops import _triton, reference
from vlcal.ops._dispatch import Backend, custom_op, dispatch
from vlcal.ops._inputs import check_tensors
from vlcal.ops._triton import softmax
from vlcal.ops.binning import any_bad
from vlcal.types import check_labels

WHO = "softmax_statistics"
BLOCK_BYTES = 16 << 20


class SoftmaxStatistics(NamedTuple):
    """Per row of logits, named as in `CalibratedSoftmax`; float32 unless the logits are float64.

    `predicted` [N] int64, lowest index of the largest logit; `confidence` [N] its probability;
    `entropy` [N] in nats; `log_likelihood` [N] = log p(label) in nats, None without labels;
    `sum_squares` [N] = sum over classes of p^2 (Brier score: sum_squares - 2 p(label) + 1).
    """

    predicted: Tensor
    confidence: Tensor
    entropy: Tensor
    log_likelihood: Tensor | None
    sum_squares: Tensor


def softmax_statistics(
    logits: Tensor, labels: Tensor | None = None, *, backend: str | None = None
) -> SoftmaxStatistics:
    """Prediction, confidence, entropy, log-likelihood and sum of squares of softmax(logits).

    Accuracy, ECE, NLL and Brier score follow without another look at the logits. For logits that
    come from features, `calibrated_softmax` gives the same without storing them.

    Args:
        logits: [N, C] floating point, C >= 1; -inf masks a class.
        labels: [N] integers in 0..C-1, wanted for `log_likelihood`.
        backend: "native", "triton" or "reference"; by default the fastest that accepts the call.

    Returns:
        SoftmaxStatistics. Each row is the same bits for every batch split and thread count.

    Raises:
        ValueError: shapes, dtypes or labels break the contract, or a row holds NaN or +inf, or
            nothing but -inf; the message names the row.
        NotImplementedError: the named backend refuses these inputs; the message says why.

    Not differentiable. Memory is O(N), and 32 MiB for half precisions on the CPU. On a GPU the
    check of the values is the one wait for the device; while a CUDA graph is captured they are not
    checked, and a row that would be refused has NaN.
    """
    check_tensors(WHO, logits=logits, labels=labels)
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] < 1:
        raise ValueError(
            f"{WHO}: logits must be floating point [N, C] with C >= 1, "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    if labels is not None:
        labels = check_labels(WHO, labels, len(logits), None).to(logits.device)
    out = SoftmaxStatistics(*_softmax_statistics(logits.detach(), labels, backend or ""))
    return out._replace(log_likelihood=None) if labels is None else out


# values are looked at inside the op, where torch.compile does not look
def _check_range(logits: Tensor, labels: Tensor | None) -> None:
    if labels is not None:
        check_labels(WHO, labels, len(logits), logits.shape[1])


def _refuse_logits(logits: Tensor, row: int) -> None:
    if row >= 0:
        raise ValueError(
            f"{WHO}: a row of logits must have a finite maximum and no NaN or +inf "
            f"(overflow in float16?), got {float(logits[row].amax())} as the maximum of row {row}"
        )


def _first_bad(logits: Tensor) -> int:
    bad = ~logits.amax(-1).isfinite() if len(logits) else torch.zeros(0)
    return int(bad.int().argmax()) if bool(bad.any()) else -1


def _run_reference(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    _check_range(logits, labels)
    _refuse_logits(logits, _first_bad(logits))
    return reference.softmax_statistics(logits, labels)


def _run_triton(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    outputs, bad = softmax.softmax_statistics(logits, labels)
    if any_bad(bad):
        _check_range(logits, labels)
        _refuse_logits(logits, _first_bad(logits))
    return outputs


def _run_native(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    _check_range(logits, labels)
    rows = len(logits)
    if logits.dtype != torch.float32 or not logits.is_contiguous():
        rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))  # converted block by block
    blocks = []
    for start in range(0, max(len(logits), 1), max(rows, 1)):
        block = logits[start : start + rows].float().contiguous()
        of_block = None if labels is None else labels[start : start + rows].contiguous()
        *outputs, bad = _native.softmax_statistics(block, of_block)
        _refuse_logits(logits, bad + start if bad >= 0 else -1)
        blocks.append(outputs)
    return tuple(
        parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*blocks, strict=True)
    )


def _refuse_double(logits: Tensor) -> str | None:
    if logits.dtype == torch.float64:
        return "float64 logits are not supported, only float32 and half precisions"
    return None


def _refuse(logits: Tensor, labels: Tensor | None) -> str | None:
    return _refuse_double(logits) or _native.refuse_device(logits, labels)


def _refuse_triton(logits: Tensor, labels: Tensor | None) -> str | None:
    return _refuse_double(logits) or _triton.refuse_device(logits, labels)


BACKENDS = (
    Backend("native", _run_native, _native.missing, _refuse),
    Backend("triton", _run_triton, _triton.missing, _refuse_triton),
    Backend("reference", _run_reference),
)


@custom_op("vlcal::softmax_statistics")
def _softmax_statistics(
    logits: Tensor, labels: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return dispatch(WHO, BACKENDS, (logits, labels), backend or None)


@_softmax_statistics.register_fake
def _(
    logits: Tensor, labels: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    confidence, entropy, squares = (logits.new_empty(len(logits), dtype=wide) for _ in range(3))
    likelihood = logits.new_empty(0 if labels is None else len(logits), dtype=wide)
    predicted = logits.new_empty(len(logits), dtype=torch.int64)
    return predicted, confidence, entropy, likelihood, squares
