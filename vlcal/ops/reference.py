"""The oracle: every op in plain PyTorch, written to be checked against the papers and believed.

Floating-point ops compute in the precision of their inputs (half precisions in float32), so that
float64 inputs give the truth other backends are measured against. Exact ops give the float64 answer
whatever the input dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONFIDENCE_UNIT = 2.0**-30


def bin_index(confidence: Tensor, edges: Tensor, right: bool) -> Tensor:
    """Bin of each confidence [N]: (lo, hi] if `right`, else [lo, hi), by float64 edges [B + 1]."""
    # the interior edges alone decide, so 0 is in the first bin and 1 in the last
    values = confidence.double().contiguous()
    return torch.bucketize(values, edges[1:-1].contiguous(), right=not right)


def group_statistics(group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int) -> Tensor:
    """Per group: counts, correct ones, confidence sums in units of 2^-30: [3, n_groups]."""
    units = (confidence.double() / CONFIDENCE_UNIT).round().long()
    values = torch.stack([torch.ones_like(units), correct.long(), units])
    table = torch.zeros(3, n_groups, dtype=torch.int64, device=confidence.device)
    return table.index_add_(1, group, values)


def bin_statistics(confidence: Tensor, correct: Tensor, edges: Tensor, right: bool) -> Tensor:
    """The same per bin: [3, B] int64."""
    return group_statistics(
        bin_index(confidence, edges, right), confidence, correct, len(edges) - 1
    )


def equal_mass_index(confidence: Tensor, n_bins: int, together: bool) -> Tensor:
    """Bin of each confidence [N]: floor(B (r + s) / (2 N)) for the ranks r..s-1 of equal ones.

    `together` or not: then ranks of equal ones are those of their rows, and s = r + 1.
    """
    n = len(confidence)
    if together:
        _, run, count = confidence.unique(return_inverse=True, return_counts=True)
        end = count.cumsum(0)[run]
        twice = 2 * end - count[run]
    else:
        order = confidence.sort(stable=True).indices
        twice = torch.empty_like(order)
        twice[order] = 2 * torch.arange(n, device=order.device) + 1
    return (n_bins * twice).div(2 * max(n, 1), rounding_mode="floor")


def equal_mass_statistics(
    confidence: Tensor, correct: Tensor, n_bins: int, together: bool
) -> Tensor:
    """The same per bin of equal count: [3, B] int64."""
    index = equal_mass_index(confidence, n_bins, together)
    return group_statistics(index, confidence, correct, n_bins)


def classwise_statistics(probs: Tensor, labels: Tensor, edges: Tensor, right: bool) -> Tensor:
    """Bin statistics of each class's probability of being the label: [3, C, B] int64."""
    n_classes, n_bins = probs.shape[1], len(edges) - 1
    classes = torch.arange(n_classes, device=probs.device)
    group = classes * n_bins + bin_index(probs, edges, right)
    correct = labels[:, None] == classes
    flat = (group.flatten(), probs.flatten(), correct.flatten(), n_classes * n_bins)
    return group_statistics(*flat).view(3, n_classes, n_bins)


def softmax_statistics(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
    """What `vlcal.ops.softmax_statistics` returns; an empty log-likelihood without labels."""
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    probs = log_probs.exp()
    return (
        logits.argmax(-1),
        probs.amax(-1),
        torch.special.entr(probs).sum(-1),
        probs.new_empty(0) if labels is None else log_probs.gather(1, labels[:, None])[:, 0],
        probs.square().sum(-1),
    )


def density_dtype(queries: Tensor, points: Tensor) -> torch.dtype:
    """Float64 if either is, else float32."""
    both = torch.promote_types(queries.dtype, points.dtype)
    return torch.promote_types(both, torch.float32)


def kernel_density(queries: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    """Mean over the points [M, 2] of the product normal density at each query [N], in float64."""
    density = queries.new_empty(len(queries), dtype=torch.float64)
    block = max(1, BLOCK_VALUES // (2 * len(points)))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        u = (queries[rows, None].double() - points.double()) / bandwidth
        density[rows] = (-0.5 * u.square().sum(-1)).exp().mean(-1)
    peak = 1 / (2 * torch.pi * bandwidth.prod())
    return (density * peak).to(density_dtype(queries, points))


LANES = 32
BLOCK_VALUES = 1 << 23


def folded_sum(terms: Tensor) -> Tensor:
    """Sum over the last axis in the one order that every backend of an exact op follows.

    Partial sum j of 32 adds the terms j, j + 32, j + 64, ... in that order; then the 32 are folded
    by halves.
    """
    terms = torch.nn.functional.pad(terms, (0, -terms.shape[-1] % LANES))
    lanes = torch.zeros_like(terms[..., :LANES])
    for chunk in terms.split(LANES, dim=-1):
        lanes = lanes + chunk
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes.squeeze(-1)


def squared_distances(queries: Tensor, keys: Tensor) -> Tensor:
    """Float64 squared distances [Q, M], by direct difference and `folded_sum`."""
    queries, keys = queries.double(), keys.double()
    rows = max(1, BLOCK_VALUES // queries.shape[1])
    out = queries.new_empty(len(queries), len(keys))
    for q, query in enumerate(queries):
        for start in range(0, len(keys), rows):
            difference = query - keys[start : start + rows]
            out[q, start : start + rows] = folded_sum(difference * difference)
    return out


def knn(queries: Tensor, keys: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    """Distances (float32) and indices of the k nearest keys [Q, k], ties by the lowest index."""
    distance = queries.new_empty(len(queries), k, dtype=torch.float32)
    index = queries.new_empty(len(queries), k, dtype=torch.int64)
    block = max(1, BLOCK_VALUES // len(keys))
    for start in range(0, len(queries), block):
        rows = slice(start, min(start + block, len(queries)))
        squared = squared_distances(queries[rows], keys)
        if exclude_self:
            squared[:, rows].fill_diagonal_(torch.inf)
        nearest, order = squared.sort(dim=1, stable=True)
        distance[rows], index[rows] = nearest[:, :k].sqrt().float(), order[:, :k]
    return distance, index


def mean_row(rows: Tensor) -> Tensor:
    """Mean [D] float64 of rows [n, D], added up by `folded_sum`: the same on every device."""
    return folded_sum(rows.double().T) / len(rows)


def vocabulary_scores(candidates: Tensor, anchors: Tensor, largest: bool) -> Tensor:
    """Mean or largest dot product of each candidate with the anchors: [V] float64.

    The mean is the dot product with the mean anchor. Terms are added up by `folded_sum`.
    """
    rows = max(1, BLOCK_VALUES // candidates.shape[1])
    anchors = anchors.double() if largest else mean_row(anchors)[None]
    blocks = []
    for block in candidates.split(rows):
        scores = [folded_sum(block.double() * anchor) for anchor in anchors]
        blocks.append(torch.stack(scores).amax(0))
    return torch.cat(blocks)


def _logits(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Scaled similarities [N, C] = scale * image @ text.T, half precisions in float32."""
    wide = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    return image.to(wide) @ text.to(wide).T * scale.to(wide)


def calibrated_softmax(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    row_scale: Tensor | None,
    predicted_scale: Tensor | None,
    labels: Tensor | None,
    k: int,
) -> tuple[Tensor, ...]:
    """What `vlcal.ops.calibrated_softmax` returns; an empty log-likelihood without labels."""
    logits = _logits(image, text, scale)
    # raw logits give the order, so that no rounding of a scaled row can change it
    if k == 1:
        topk_index = logits.argmax(-1, keepdim=True)
    else:
        topk_index = logits.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    predicted = topk_index[:, 0].clone()
    if row_scale is not None:
        logits = logits * row_scale.to(logits)[:, None]
    if predicted_scale is not None:
        logits = logits * predicted_scale.to(logits)[predicted, None]
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    topk_prob = probs.gather(1, topk_index)
    return (
        predicted,
        topk_prob[:, 0].clone(),
        torch.special.entr(probs).sum(-1),
        probs.new_empty(0) if labels is None else log_probs.gather(1, labels[:, None])[:, 0],
        probs.square().sum(-1),
        topk_index.contiguous(),
        topk_prob,
    )


def logit_statistics(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    other_image: Tensor | None,
    other_text: Tensor | None,
) -> tuple[Tensor, ...]:
    """Per row: max, argmax, min, and the mean of |row - other row| (empty without another)."""
    logits = _logits(image, text, scale)
    difference = logits.new_empty(0)
    if other_image is not None and other_text is not None:
        difference = (logits - _logits(other_image, other_text, scale)).abs().mean(-1)
    return logits.amax(-1), logits.argmax(-1), logits.amin(-1), difference


def cosine_cross_entropy(image: Tensor, text: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """-log softmax(scale * image @ text.T)[label], [N]."""
    log_probs = _logits(image, text, scale).log_softmax(-1)
    return -log_probs.gather(1, labels[:, None])[:, 0]


def cosine_cross_entropy_gradients(
    grad: Tensor, image: Tensor, text: Tensor, labels: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum_i grad_i loss_i by image [N, D], text [C, D] and scale []."""
    similarity = _logits(image, text, torch.ones_like(scale))
    probs = (similarity * scale.to(similarity)).softmax(-1)
    one_hot = torch.zeros_like(probs).scatter_(1, labels[:, None], 1.0)
    # d loss_i / d logit_ic = p_ic - [c = label_i]
    logit_grad = (probs - one_hot) * grad.to(probs)[:, None]
    scaled = logit_grad * scale.to(probs)
    return (
        scaled @ text.to(probs),
        scaled.T @ image.to(probs),
        (logit_grad * similarity).sum(),
    )
