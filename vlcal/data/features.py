"""Feature files made elsewhere: .npy, .npz and safetensors, read without unpickling anything."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlcal.types import check_finite, check_labels

MAX_BYTES = 64 << 30
_TENSOR = "; such files may hold pickled code, numpy.save('FILE.npy', tensor.numpy()) writes one"
_TEXT = "; numpy.save('FILE.npy', numpy.loadtxt('FILE.csv', delimiter=',')) writes one"
WAYS_OUT = {".pt": _TENSOR, ".pth": _TENSOR, ".pkl": _TENSOR, ".csv": _TEXT, ".txt": _TEXT}


def read_features(
    path: str | Path,
    *,
    image_features: str = "image_features",
    text_features: str = "text_features",
    labels: str = "labels",
    normalize: bool = True,
) -> dict[str, Tensor]:
    """The arrays of a feature file under the names `Predictions` takes.

    Args:
        path: a .npz or .safetensors file, or a .npy file that holds image features alone.
        image_features: the name in the file of the image features [N, D].
        text_features: the name of the class matrix [C, D]; may be absent from the file.
        labels: the name of the labels [N]; may be absent from the file.
        normalize: scale every row to length 1; otherwise the rows are taken as they are.

    Returns:
        "image_features" float32 and, where present, "text_features" float32, "labels" int64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds pickled objects, lacks the image features, or its
            arrays have wrong shapes, NaN or infinities, or rows of length 0.
    """
    arrays = read_arrays(path)
    if set(arrays) == {""}:
        arrays = {image_features: arrays[""]}
    if image_features not in arrays:
        raise ValueError(
            f"read_features: {path} has no array {image_features!r}; it has {sorted(arrays)}"
        )
    found = {"image_features": _matrix(path, image_features, arrays[image_features], normalize)}
    n, dim = found["image_features"].shape
    if text_features in arrays:
        found["text_features"] = _matrix(path, text_features, arrays[text_features], normalize)
        if found["text_features"].shape[1] != dim:
            raise ValueError(
                f"read_features: {path}: image and text features must agree in D, "
                f"got {dim} and {found['text_features'].shape[1]}"
            )
    if labels in arrays:
        values = arrays[labels]
        if values.dtype.kind not in "iu":
            raise ValueError(
                f"read_features: {path}: {labels} must be integers, got {values.dtype}"
            )
        classes = len(found["text_features"]) if "text_features" in found else None
        who = f"read_features: {path}"
        found["labels"] = check_labels(who, torch.from_numpy(values.astype(np.int64)), n, classes)
    return found


def read_arrays(path: str | Path, *, only: str | None = None) -> dict[str, np.ndarray]:
    """Every array of a .npz, .npy (named "") or .safetensors file, in native byte order.

    Args:
        path: the file.
        only: the name of the one array that is wanted; without such a one all are read.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, str | None], dict[str, np.ndarray]]] = {
        ".npz": _read_npz,
        ".npy": _read_npy,
        ".safetensors": _read_safetensors,
    }
    if path.suffix not in readers:
        out = WAYS_OUT.get(path.suffix.lower(), "")
        raise ValueError(f"read_arrays: {path} must end in one of {', '.join(readers)}{out}")
    if not path.is_file():
        raise FileNotFoundError(f"read_arrays: no such file: {path}")
    try:
        arrays = readers[path.suffix](path, only)
    # what numpy, zipfile and zlib raise on files that are not what they claim to be
    except (
        ValueError,
        TypeError,
        OSError,
        EOFError,
        MemoryError,
        SyntaxError,
        tokenize.TokenError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"read_arrays: {path} cannot be read: {error}") from error
    # .npy files stay mapped where they are in native order, so reading one takes no memory
    return {n: a.astype(a.dtype.newbyteorder("="), copy=False) for n, a in arrays.items()}


def _read_npz(path: Path, only: str | None) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > MAX_BYTES:
        raise ValueError(f"it unpacks to {total} bytes, more than {MAX_BYTES}")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in _wanted(file.files, only)}


def _read_npy(path: Path, only: str | None) -> dict[str, np.ndarray]:
    # mapping compares the header's shape with the file's size before any memory is taken
    return {"": np.load(path, allow_pickle=False, mmap_mode="r")}


def _read_safetensors(path: Path, only: str | None) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in _wanted(list(file.keys()), only)}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    # numpy knows no bfloat16
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in tensors.items()
    }


def _wanted(names: list[str], only: str | None) -> list[str]:
    return [only] if only in names else names


def _matrix(path: str | Path, name: str, values: np.ndarray, normalize: bool) -> Tensor:
    who = f"read_features: {path}: {name}"
    if values.ndim != 2 or values.dtype.kind != "f" or 0 in values.shape:
        raise ValueError(
            f"{who} must be a floating point matrix, got {values.dtype} {values.shape}"
        )
    rows = torch.from_numpy(values.astype(np.float32))
    check_finite(who, rows)
    if not normalize:
        return rows
    length = rows.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        raise ValueError(f"{who}: row {int((length == 0).int().argmax())} must not be all zeros")
    return rows / length
