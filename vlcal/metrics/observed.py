"""From predictions or probabilities to what metrics see: one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from vlcal.ops import (
    CalibratedSoftmax,
    SoftmaxStatistics,
    calibrated_softmax,
    softmax_statistics,
)
from vlcal.types import BLOCK_BYTES, NoSamplesError, Outcomes, Predictions

FLOOR = torch.finfo(torch.float32).tiny  # 1.2e-38


def outcomes(predictions: Predictions, proximity: Tensor | None = None) -> Outcomes:
    """Confidence, correctness, log-likelihood and Brier score of every sample.

    The prediction is the first argmax. Stored logits are read once by
    `vlcal.ops.softmax_statistics`; predictions without them go through
    `vlcal.ops.calibrated_softmax`, which never makes the N x C matrix. Both give the same numbers
    up to float32 rounding.

    Args:
        predictions: with labels.
        proximity: [N] in 0..1, for PIECE.

    Returns:
        Outcomes with every field, `proximity` as given.

    Raises:
        ValueError: there are no labels, or proximity does not fit.
        NoSamplesError: N is 0.
    """
    labels = predictions.labels
    if labels is None:
        raise ValueError("outcomes: needs predictions with labels [N], got none")
    if len(predictions) == 0:
        raise NoSamplesError("outcomes: needs at least one sample, got none")
    if proximity is not None and proximity.shape != labels.shape:
        raise ValueError(
            f"outcomes: proximity must be [N] = [{len(labels)}], got {tuple(proximity.shape)}"
        )
    if predictions.logits is None:
        seen = _from_features(predictions, labels)
    else:
        seen = _outcomes(softmax_statistics(predictions.logits, labels), labels)
    return seen._replace(proximity=proximity)


def outcomes_of_probs(probs: Tensor, labels: Tensor, proximity: Tensor | None = None) -> Outcomes:
    """The same for probabilities [N, C] that are taken as they are, not normalized again.

    A probability of 0 counts as 1.2e-38 (the smallest normal float32) in the log-likelihood, so
    that one impossible label costs 87 nats and not infinity.
    """
    size = max(1, BLOCK_BYTES // (16 * probs.shape[1]))
    blocks = [
        _from_probs(probs[start : start + size].double(), labels[start : start + size])
        for start in range(0, len(probs), size)
    ]
    return _concatenate(blocks)._replace(proximity=proximity)


def _from_probs(block: Tensor, labels: Tensor) -> Outcomes:
    confidence, predicted = block.amax(-1), block.argmax(-1)
    chosen = block.gather(-1, labels[:, None])[:, 0]
    brier = block.square().sum(-1) - 2 * chosen + 1
    likelihood = chosen.clamp(min=FLOOR).log()
    correct = predicted == labels
    return Outcomes(confidence, correct, predicted, labels, likelihood, brier.clamp(min=0))


def _from_features(predictions: Predictions, labels: Tensor) -> Outcomes:
    image, text = predictions.image_features, predictions.text_features
    assert image is not None and text is not None and predictions.logit_scale is not None
    labels = labels.to(image.device)
    seen = calibrated_softmax(
        image,
        text,
        predictions.logit_scale,
        row_scale=predictions.row_scale,
        predicted_scale=predictions.predicted_scale,
        labels=labels,
    )
    return _outcomes(seen, labels)


def _outcomes(seen: SoftmaxStatistics | CalibratedSoftmax, labels: Tensor) -> Outcomes:
    assert seen.log_likelihood is not None
    likelihood = seen.log_likelihood.double()
    brier = seen.sum_squares.double() - 2 * likelihood.exp() + 1
    # rounding may pass 1, and the terms of the Brier score cancel for a sure and correct sample
    confidence, labels = seen.confidence.clamp(max=1), labels.to(seen.predicted.device)
    correct = seen.predicted == labels
    return Outcomes(confidence, correct, seen.predicted, labels, likelihood, brier.clamp(min=0))


def _concatenate(blocks: list[Outcomes]) -> Outcomes:
    columns = zip(*(block[:6] for block in blocks), strict=True)
    return Outcomes(*(torch.cat(column) for column in columns))
