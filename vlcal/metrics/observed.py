"""From predictions or probabilities to what metrics see: one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from vlcal.ops import calibrated_softmax
from vlcal.types import BLOCK_BYTES, NoSamplesError, Outcomes, Predictions

FLOOR = torch.finfo(torch.float32).tiny  # 1.2e-38


def outcomes(predictions: Predictions, proximity: Tensor | None = None) -> Outcomes:
    """Confidence, correctness, log-likelihood and Brier score of every sample.

    The prediction is the first argmax. Stored logits go through a float64 softmax in blocks of
    rows; predictions without stored logits go through `vlcal.ops.calibrated_softmax`, which never
    makes the N x C matrix. Both give the same numbers up to float32 rounding of the logits.

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
        blocks = predictions.blocks(BLOCK_BYTES // 4)
        seen = _concatenate(
            [_from_logits(block, labels[rows].to(block.device)) for rows, block in blocks]
        )
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


def _from_logits(block: Tensor, labels: Tensor) -> Outcomes:
    log_probs = block.double().log_softmax(-1)
    predicted = block.argmax(-1)
    likelihood = log_probs.gather(-1, labels[:, None])[:, 0]
    confidence = log_probs.gather(-1, predicted[:, None])[:, 0].exp()
    brier = log_probs.exp().square().sum(-1) - 2 * likelihood.exp() + 1
    return _outcomes(confidence, predicted, labels, likelihood, brier)


def _from_probs(block: Tensor, labels: Tensor) -> Outcomes:
    confidence, predicted = block.amax(-1), block.argmax(-1)
    chosen = block.gather(-1, labels[:, None])[:, 0]
    brier = block.square().sum(-1) - 2 * chosen + 1
    return _outcomes(confidence, predicted, labels, chosen.clamp(min=FLOOR).log(), brier)


def _from_features(predictions: Predictions, labels: Tensor) -> Outcomes:
    image, text = predictions.image_features, predictions.text_features
    assert image is not None and text is not None and predictions.logit_scale is not None
    labels = labels.to(image.device)
    soft = calibrated_softmax(
        image,
        text,
        predictions.logit_scale,
        row_scale=predictions.row_scale,
        predicted_scale=predictions.predicted_scale,
        labels=labels,
    )
    assert soft.log_likelihood is not None
    likelihood = soft.log_likelihood.double()
    brier = soft.sum_squares.double() - 2 * likelihood.exp() + 1
    confidence = soft.confidence.clamp(max=1)
    return _outcomes(confidence, soft.predicted, labels, likelihood, brier)


def _outcomes(
    confidence: Tensor, predicted: Tensor, labels: Tensor, likelihood: Tensor, brier: Tensor
) -> Outcomes:
    # the three terms of the Brier score cancel for a sure and correct sample
    return Outcomes(
        confidence, predicted == labels, predicted, labels, likelihood, brier.clamp(min=0)
    )


def _concatenate(blocks: list[Outcomes]) -> Outcomes:
    columns = zip(*(block[:6] for block in blocks), strict=True)
    return Outcomes(*(torch.cat(column) for column in columns))
