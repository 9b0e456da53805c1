"""Checks that operations share: at the door, and of values inside."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vlcal import _native
from vlcal.types import check_finite, check_labels

BLOCK_BYTES = 64 << 20


PRECISIONS = ("accurate", "fast")


def check_tensors(who: str, **values: object) -> None:
    """Refuse arrays of other libraries: an operation gives tensors, and takes them."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            kind = type(value)
            raise TypeError(
                f"{who}: {name} must be a torch.Tensor, got {kind.__module__}.{kind.__qualname__}; "
                "torch.as_tensor shares the memory of an array"
            )


def check_precision(who: str, precision: str) -> None:
    """Refuse what is not the name of a precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"{who}: precision must be 'accurate' or 'fast', got {precision!r}")


def check_features(who: str, image: Tensor, text: Tensor, which: str = "") -> None:
    """Refuse features that are not [N, D] and [C, D] floating point with C, D >= 1."""
    check_tensors(who, image_features=image, text_features=text)
    for name, value in (("image_features", image), ("text_features", text)):
        if value.ndim != 2 or not value.is_floating_point() or value.shape[1] < 1:
            raise ValueError(
                f"{who}: {which}{name} must be floating point with 2 dimensions and D >= 1, "
                f"got {value.dtype} {tuple(value.shape)}"
            )
    if image.shape[1] != text.shape[1] or text.shape[0] < 1 or image.device != text.device:
        raise ValueError(
            f"{who}: {which}image_features [N, D] and text_features [C, D] must agree in D and "
            f"device, and C >= 1, got {tuple(image.shape)} on {image.device} "
            f"and {tuple(text.shape)} on {text.device}"
        )


def check_factors(who: str, name: str, factors: Tensor | None, size: int) -> None:
    """Refuse factors that are not floating point [size]; their values come later."""
    check_tensors(who, **{name: factors})
    if factors is not None and (factors.shape != (size,) or not factors.is_floating_point()):
        raise ValueError(
            f"{who}: {name} must be floating point [{size}], "
            f"got {factors.dtype} {tuple(factors.shape)}"
        )


def check_label_kind(who: str, labels: Tensor | None, n: int) -> None:
    """Refuse labels that are not integers [n]; their values come later."""
    check_tensors(who, labels=labels)
    if labels is not None:
        check_labels(who, labels, n, None)


def scale_tensor(who: str, scale: float | Tensor) -> Tensor:
    """`logit_scale` as a 0-d tensor; a number becomes float64."""
    if isinstance(scale, Tensor):
        if scale.ndim != 0 or not scale.is_floating_point():
            raise ValueError(
                f"{who}: logit_scale must be a number or a floating point 0-d tensor, "
                f"got {scale.dtype} {tuple(scale.shape)}"
            )
        return scale
    return torch.full((), scale, dtype=torch.float64)


# what only the values can break, checked inside the operations where torch.compile does not look


def check_values(
    who: str,
    scale: Tensor,
    labels: Tensor | None = None,
    n_classes: int = 0,
    **factors: Tensor | None,
) -> Tensor | None:
    """`labels` as int64, after checking them and that every factor is positive and finite.

    Unchecked while a CUDA graph is captured: checks wait for the device.
    """
    if any(value is not None and capturing(value) for value in (scale, labels, *factors.values())):
        return None if labels is None else labels.long()
    for name, value in {"logit_scale": scale, **factors}.items():
        if value is None or not value.numel():
            continue
        good = (value > 0) & torch.isfinite(value)
        if not bool(good.all()):
            row = int((~good.reshape(-1)).int().argmax())
            where = f" in row {row} ({int((~good).sum())} in all)" if value.ndim else ""
            raise ValueError(
                f"{who}: {name} must be positive and finite, got {float(value.reshape(-1)[row])}"
                f"{where}"
            )
    return None if labels is None else check_labels(who, labels, len(labels), n_classes)


def refuse_rows(who: str, bad: int, *features: tuple[Tensor | None, Tensor | None]) -> None:
    """Raise for the row a kernel stopped at (-1: none), naming what is wrong with it."""
    if bad < 0:
        return
    for which, (image, text) in zip(("", "other "), features, strict=False):
        for name, value in (("image_features", image), ("text_features", text)):
            if value is not None:
                check_finite(f"{who}: {which}{name}", value)
    raise ValueError(
        f"{who}: logits must stay within the range of {wide(*features[0])}, "
        f"they overflow in row {bad}; are the features unit norm?"
    )


def wide(*features: Tensor | None) -> torch.dtype:
    """The dtype of the results: float64 if a feature is, else float32."""
    double = any(value is not None and value.dtype == torch.float64 for value in features)
    return torch.float64 if double else torch.float32


def capturing(value: Tensor) -> bool:
    """Whether work on this tensor is being captured in a CUDA graph, where nothing can be read."""
    return value.is_cuda and torch.cuda.is_current_stream_capturing()


def first_bad(values: Tensor) -> int:
    """The first row that is NaN or infinite, or -1."""
    bad = ~torch.isfinite(values)
    return int(bad.int().argmax()) if bool(bad.any()) else -1


def blocks(image: Tensor, text: Tensor) -> Iterator[slice]:
    """Rows in blocks whose logits take about BLOCK_BYTES; one empty block for no rows."""
    size = max(1, BLOCK_BYTES // (8 * len(text)))
    for start in range(0, max(1, len(image)), size):
        yield slice(start, start + size)


def without_autocast(device: str) -> torch.autocast:
    """Autocast switched off, for the body of an operation."""
    return torch.autocast(device, enabled=False)


def refuse_float64(*args: object) -> str | None:
    """The native kernels take float32 and half precision features on the CPU."""
    if any(
        isinstance(arg, Tensor) and arg.dtype == torch.float64 and arg.ndim == 2 for arg in args
    ):
        return "float64 features are computed by the reference alone"
    return _native.refuse_device(*args)
