"""What people use today for the same work; every peer may be missing and then says why."""

from __future__ import annotations

import importlib
import itertools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def missing(module: str) -> str | None:
    """Why a peer cannot be timed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{module} is not installed ({error})"
    return None


def torchmetrics_ece(confidence: Tensor, correct: Tensor) -> float:
    """ECE of a binary task whose scores are the confidences: the bins of the top label."""
    from torchmetrics.functional.classification import binary_calibration_error

    return float(binary_calibration_error(confidence, correct, n_bins=15, validate_args=False))


def torchmetrics_ece_of_logits(logits: Tensor, labels: Tensor) -> float:
    """The public functional, with its default checks off."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = logits.shape[1]
    return float(
        multiclass_calibration_error(logits, labels, classes, n_bins=15, validate_args=False)
    )


def netcal_ece(confidence: Any, correct: Any) -> float:
    from netcal.metrics import ECE

    return float(ECE(15).measure(confidence.numpy(), correct.numpy()))


def scatter_ece(confidence: Tensor, correct: Tensor) -> float:
    """The best plain torch: three float64 scatter_add."""
    index = (confidence * 15).ceil().long().clamp(1, 15) - 1
    sums = torch.zeros(2, 15, dtype=torch.float64)
    sums[0].scatter_add_(0, index, confidence.double())
    sums[1].scatter_add_(0, index, correct.double())
    return float((sums[0] - sums[1]).abs().sum() / len(confidence))


def bincount_ece(confidence: Tensor, correct: Tensor) -> float:
    """The best plain NumPy: two weighted bincounts."""
    import numpy as np

    values, right = confidence.numpy(), correct.numpy()
    index = np.clip(np.ceil(values * np.float32(15)).astype(np.int64) - 1, 0, 14)
    sums = np.bincount(index, values, 15), np.bincount(index, right, 15)
    return float(np.abs(sums[0] - sums[1]).sum() / len(values))


def mask_loop_ece(confidence: Tensor, correct: Tensor) -> float:
    """The loop over bin masks of most research code."""
    total = torch.zeros(1)
    edges = torch.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = confidence.gt(low) & confidence.le(high)
        if inside.any():
            gap = confidence[inside].mean() - correct[inside].float().mean()
            total += gap.abs() * inside.float().mean()
    return float(total)


def sorted_equal_mass_ece(confidence: Tensor, correct: Tensor) -> float:
    """Equal-mass ECE by a sort, the usual way."""
    ordered, order = confidence.sort()
    sizes = [len(part) for part in torch.tensor_split(ordered, 15)]
    gap = ordered.double() - correct[order].double()
    return float(sum(part.sum().abs() for part in gap.split(sizes)) / len(confidence))


def key_sort_ece(confidence: Tensor, correct: Tensor) -> float:
    """The fast way: sort (bits of the float << 1 | correct) with NumPy's wide integer sort."""
    import numpy as np

    keys = confidence.numpy().view(np.uint32) << np.uint32(1) | correct.numpy()
    keys.sort()
    gap = (keys >> np.uint32(1)).view(np.float32).astype(np.float64) - (keys & np.uint32(1))
    return float(sum(abs(part.sum()) for part in np.array_split(gap, 15)) / len(gap))


def classwise_ece(probs: Tensor, labels: Tensor) -> float:
    """Class by class, each with two weighted bincounts."""
    errors = [bincount_ece(probs[:, c].contiguous(), labels == c) for c in range(probs.shape[1])]
    return sum(errors) / len(errors)


def softmax_metrics(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """ECE, accuracy, NLL and Brier score of logits in plain torch."""
    probabilities = logits.softmax(-1)
    confidence, predicted = probabilities.max(-1)
    correct = predicted == labels
    nll = F.cross_entropy(logits, labels)
    squares = probabilities.square().sum(-1)
    brier = squares - 2 * probabilities.gather(1, labels[:, None])[:, 0] + 1
    ece = scatter_ece(confidence, correct)
    return ece, float(correct.float().mean()), float(nll), float(brier.mean())


class FaissFlat:
    """faiss' exact index over the same rows; `blas` forces its matrix product for few queries."""

    def __init__(self, keys: Tensor, blas: bool) -> None:
        import faiss

        self.faiss, self.blas = faiss, blas
        self.index = faiss.IndexFlatL2(keys.shape[1])
        self.index.add(keys.numpy())

    def search(self, queries: Tensor, k: int) -> tuple[Any, Any]:
        before = self.faiss.cvar.distance_compute_blas_threshold
        if self.blas:
            self.faiss.cvar.distance_compute_blas_threshold = 20
        try:
            return self.index.search(queries.numpy(), k)
        finally:
            self.faiss.cvar.distance_compute_blas_threshold = before


def torch_topk(queries: Tensor, keys: Tensor, k: int, rows: int = 128) -> tuple[Tensor, Tensor]:
    """Matrix product and topk, in chunks of queries: the plain torch search of unit rows."""
    parts = [(chunk @ keys.T).topk(k) for chunk in queries.split(rows)]
    cosine, index = (torch.cat(values) for values in zip(*parts, strict=True))
    return (2 - 2 * cosine).clamp(min=0).sqrt(), index


def naive_outputs(images: Tensor, classes: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    """What calibration needs, with every logit in memory."""
    logits = images @ classes.T * scale[:, None]
    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    confidence, predicted = probabilities.max(-1)
    entropy = -(probabilities * log_probabilities).sum(-1)
    likelihood = log_probabilities.gather(1, labels[:, None])[:, 0]
    squares = probabilities.square().sum(-1)
    return torch.stack([predicted.float(), confidence, entropy, likelihood, squares])


def chunked_outputs(
    images: Tensor, classes: Tensor, scale: Tensor, labels: Tensor, rows: int = 128
) -> Tensor:
    """The same in chunks of images."""
    chunks = zip(images.split(rows), scale.split(rows), labels.split(rows), strict=True)
    return torch.cat([naive_outputs(x, classes, s, y) for x, s, y in chunks], dim=1)


def naive_step(images: Tensor, classes: Tensor, scale: float, labels: Tensor) -> Tensor:
    """Cross-entropy of cosine logits and its gradients."""
    images, classes = (x.detach().requires_grad_() for x in (images, classes))
    loss = F.cross_entropy(images @ classes.T * scale, labels)
    loss.backward()
    return loss.detach()


def linear_cross_entropy_step(
    images: Tensor, classes: Tensor, scale: float, labels: Tensor
) -> Tensor:
    """torch's fused head."""
    images, classes = (x.detach().requires_grad_() for x in (images, classes))
    loss = F.linear_cross_entropy(images * scale, classes, labels)
    loss.backward()
    return loss.detach()
