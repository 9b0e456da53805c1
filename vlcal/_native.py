"""Loads vlcal._C, or remembers in a sentence why not; the only file that passes pointers.

Every function here takes contiguous CPU tensors of the stated types, allocates the outputs and
calls one binding.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

# that of csrc/module.cpp, raised with every change of a binding
INTERFACE = 5


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        module = importlib.import_module("vlcal._C")
    except ImportError as error:
        return None, (
            f"the native extension was not built ({error}); VLCAL_NATIVE=1 pip install . shows why"
        )
    found = getattr(module, "interface", 1)
    if found != INTERFACE:
        return None, (
            f"the native extension was built from other sources (interface {found}, these call "
            f"{INTERFACE}); pip install -e . builds it again"
        )
    return module, None


_C, why_missing = _load()


def missing() -> str | None:
    """Why no native operation can run here; None if they can."""
    return why_missing


def refuse_device(*args: object) -> str | None:
    """The native operations take CPU tensors only."""
    devices = {arg.device.type for arg in args if isinstance(arg, Tensor)} - {"cpu"}
    return f"tensors are on {', '.join(sorted(devices))}, it runs on cpu" if devices else None


def library() -> ModuleType:
    """The loaded extension; callers have asked `missing` before."""
    assert _C is not None, why_missing
    return _C


def instruction_sets() -> list[str]:
    """Names of the instruction sets the kernels may use on this CPU, the portable one first."""
    return library().isa_names() if _C is not None else []


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; any tensor, the extension missing or not.

    Torch's own reductions would do, but their OpenMP threads spin for a while after, on cores that
    the threads of the operation that follows could use.
    """
    run = _FINITE.get(values.dtype)
    if _C is None or run is None or values.device.type != "cpu" or not values.is_contiguous():
        if not values.numel():
            return True
        # no stack of the two: under autocast it refuses float16 on a CPU
        low, high = values.aminmax()
        return bool(torch.isfinite(low) & torch.isfinite(high))
    return getattr(_C, run)(values.data_ptr(), values.numel(), torch.get_num_threads())


_FINITE = {torch.float32: "all_finite_float32", torch.float64: "all_finite_float64"}


def bin_statistics(confidence: Tensor, correct: Tensor, thresholds: Tensor) -> tuple[Tensor, int]:
    """Table [3, B] int64 of counts, correct ones and confidence units, and the first bad row or -1.

    Args:
        confidence: [N] float32 or float64.
        correct: [N] bool.
        thresholds: [B - 1], dtype of `confidence`.
    """
    n_bins = len(thresholds) + 1
    table = torch.empty(3, n_bins, dtype=torch.int64)
    run = {
        torch.float32: library().bin_statistics_float32,
        torch.float64: library().bin_statistics_float64,
    }[confidence.dtype]
    bad = run(
        confidence.data_ptr(),
        correct.data_ptr(),
        len(confidence),
        thresholds.data_ptr(),
        n_bins,
        table.data_ptr(),
        torch.get_num_threads(),
    )
    return table, bad


def group_statistics(
    group: Tensor, confidence: Tensor, correct: Tensor, n_groups: int
) -> tuple[Tensor, int]:
    """The same table per group [N] int64, and the first row out of range or -1."""
    table = torch.empty(3, n_groups, dtype=torch.int64)
    run = {
        torch.float32: library().group_statistics_float32,
        torch.float64: library().group_statistics_float64,
    }[confidence.dtype]
    bad = run(
        group.data_ptr(),
        confidence.data_ptr(),
        correct.data_ptr(),
        len(confidence),
        n_groups,
        table.data_ptr(),
        torch.get_num_threads(),
    )
    return table, bad


def equal_mass_statistics(
    confidence: Tensor, correct: Tensor, n_bins: int, together: bool
) -> tuple[Tensor, int]:
    """The same table over bins of equal count, and the first bad row or -1; float32 only."""
    table = torch.empty(3, n_bins, dtype=torch.int64)
    bad = library().equal_mass_statistics(
        confidence.data_ptr(),
        correct.data_ptr(),
        len(confidence),
        n_bins,
        together,
        table.data_ptr(),
        torch.get_num_threads(),
    )
    return table, bad


def classwise_statistics(probs: Tensor, labels: Tensor, thresholds: Tensor) -> tuple[Tensor, int]:
    """Table [3, C, B] for probs [N, C] float32, and the first bad flat index or -1."""
    n_bins = len(thresholds) + 1
    table = torch.empty(3, probs.shape[1], n_bins, dtype=torch.int64)
    bad = library().classwise_statistics(
        probs.data_ptr(),
        labels.data_ptr(),
        *probs.shape,
        thresholds.data_ptr(),
        n_bins,
        table.data_ptr(),
        torch.get_num_threads(),
    )
    return table, bad


def softmax_statistics(
    logits: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Of logits [N, C] float32: the fields of SoftmaxStatistics, and the first bad row or -1.

    The log-likelihood is empty without labels; a bad row has no softmax.
    """
    predicted = torch.empty(len(logits), dtype=torch.int64)
    confidence, entropy, squares = (torch.empty(len(logits)) for _ in range(3))
    likelihood = torch.empty(0 if labels is None else len(logits))
    bad = library().softmax_statistics(
        logits.data_ptr(),
        0 if labels is None else labels.data_ptr(),
        *logits.shape,
        predicted.data_ptr(),
        confidence.data_ptr(),
        entropy.data_ptr(),
        likelihood.data_ptr(),
        squares.data_ptr(),
        torch.get_num_threads(),
    )
    return predicted, confidence, entropy, likelihood, squares, bad


def kernel_density(queries: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    """Densities [N] float32 of queries [N, 2] float32 under points [M, 2] float32.

    Args:
        queries: [N, 2] finite.
        points: [M, 2] finite, M >= 1.
        bandwidth: [2] float64, positive.
    """
    density = torch.empty(len(queries))
    library().kernel_density(
        queries.data_ptr(),
        len(queries),
        points.data_ptr(),
        len(points),
        bandwidth.data_ptr(),
        density.data_ptr(),
        torch.get_num_threads(),
    )
    return density


def real_rows(matrix: Tensor) -> Tensor:
    """Contiguous float64, or float32 (which holds the half precisions); itself if it is that."""
    double = matrix.dtype == torch.float64
    return matrix.to(torch.float64 if double else torch.float32).contiguous()


class SearchIndex:
    """Keys [M, D] float32 or float64, prepared for many exact searches; see csrc/cpu/search.h."""

    def __init__(self, keys: Tensor, dot: bool = False, directions: Tensor | None = None) -> None:
        build = {
            torch.float32: library().SearchIndexFloat32,
            torch.float64: library().SearchIndexFloat64,
        }[keys.dtype]
        self.keys = keys
        given = torch.empty(0, keys.shape[1]) if directions is None else directions
        self.handle = build(keys.data_ptr(), *keys.shape, dot, given.data_ptr(), len(given))

    def pack(self) -> None:
        """Prepare now what the first large search would."""
        self.handle.pack(torch.get_num_threads())

    @property
    def nbytes(self) -> int:
        """Memory taken so far beside the keys."""
        return self.handle.bytes()

    def search(self, queries: Tensor, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
        """Squared distances (or negated dots) float64 and indices int64, [Q, k], smallest first."""
        # by NumPy, which leaves no spinning threads behind
        wide = queries.contiguous().float() if queries.dtype.itemsize < 4 else queries.contiguous()
        queries = torch.from_numpy(wide.numpy().astype("float64", copy=False))
        cost = torch.empty(len(queries), k, dtype=torch.float64)
        index = torch.empty(len(queries), k, dtype=torch.int64)
        self.handle.search(
            queries.data_ptr(),
            len(queries),
            k,
            exclude_self,
            cost.data_ptr(),
            index.data_ptr(),
            torch.get_num_threads(),
        )
        return cost, index


def roots(squares: Tensor) -> Tensor:
    """Square roots of float64 values as float32; by NumPy, which leaves no spinning threads."""
    return torch.from_numpy(np.sqrt(squares.numpy()).astype("float32"))


def dots(keys: Tensor, query: Tensor) -> Tensor:
    """Dot product [M] float64 of each key [M, D] float32 or float64 with `query` [D] float64."""
    run = {torch.float32: library().dots_float32, torch.float64: library().dots_float64}[keys.dtype]
    out = torch.empty(len(keys), dtype=torch.float64)
    threads = torch.get_num_threads()
    run(query.data_ptr(), keys.data_ptr(), *keys.shape, out.data_ptr(), threads)
    return out


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def calibrated_softmax(
    image: Tensor,
    text: Tensor,
    scale: float,
    row_scale: Tensor | None,
    predicted_scale: Tensor | None,
    labels: Tensor | None,
    k: int,
) -> tuple[tuple[Tensor, ...], int]:
    """What `reference.calibrated_softmax` returns, and the first bad row or -1.

    Args:
        image: [N, D] float32.
        text: [C, D] float32.
        scale: logit scale.
        row_scale: [N] float64.
        predicted_scale: [C] float64.
        labels: [N] int64.
        k: number of most probable classes.
    """
    n = len(image)
    outputs = (
        torch.empty(n, dtype=torch.int64),
        torch.empty(n),
        torch.empty(n),
        torch.empty(0 if labels is None else n),
        torch.empty(n),
        torch.empty(n, k, dtype=torch.int64),
        torch.empty(n, k),
    )
    bad = library().calibrated_softmax(
        image.data_ptr(),
        n,
        text.data_ptr(),
        *text.shape,
        scale,
        _address(row_scale),
        _address(predicted_scale),
        _address(labels),
        k,
        *(output.data_ptr() for output in outputs),
        torch.get_num_threads(),
    )
    return outputs, bad


def logit_statistics(
    image: Tensor,
    text: Tensor,
    scale: float,
    other_image: Tensor | None,
    other_text: Tensor | None,
) -> tuple[tuple[Tensor, ...], int]:
    """What `reference.logit_statistics` returns for float32 matrices, and the first bad row."""
    n = len(image)
    outputs = (
        torch.empty(n),
        torch.empty(n, dtype=torch.int64),
        torch.empty(n),
        torch.empty(0 if other_image is None else n),
    )
    bad = library().logit_statistics(
        image.data_ptr(),
        n,
        text.data_ptr(),
        *text.shape,
        scale,
        _address(other_image),
        _address(other_text),
        0 if other_text is None else other_text.shape[1],
        *(output.data_ptr() for output in outputs),
        torch.get_num_threads(),
    )
    return outputs, bad


def cross_entropy(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    scale: float,
    weights: Tensor | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int]:
    """Losses, the wanted gradients of their sum by image, text and scale, and the first bad row.

    Args:
        image: [N, D] float32.
        text: [C, D] float32.
        labels: [N] int64.
        scale: logit scale.
        weights: [N] float64 factors of the losses; None for ones.
        wanted: which gradients; the others are empty.
    """
    losses = torch.empty(len(image))
    gradients = (
        torch.empty(image.shape if wanted[0] else (0,)),
        torch.empty(text.shape if wanted[1] else (0,)),
        torch.zeros(() if wanted[2] else (0,), dtype=torch.float64),
    )
    bad = library().cross_entropy(
        image.data_ptr(),
        len(image),
        text.data_ptr(),
        *text.shape,
        labels.data_ptr(),
        scale,
        _address(weights),
        losses.data_ptr(),
        *(out.data_ptr() if want else 0 for out, want in zip(gradients, wanted, strict=True)),
        torch.get_num_threads(),
    )
    return (losses, *gradients), bad
