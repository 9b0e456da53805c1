"""Whatever array a user holds, as a tensor of the same numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(who: str, value: Any) -> Tensor:
    """A dense real tensor of the same numbers, without a copy where the memory allows it.

    NumPy arrays may be read-only, memory-mapped, big-endian or strided in any way.

    Raises:
        ValueError: the value is not an array of numbers, or is a sparse, meta or complex tensor.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_nested or value.is_complex():
            raise ValueError(
                f"{who}: must be a dense real tensor, got {value.layout} {value.dtype} "
                f"on {value.device}"
            )
        return value.detach()
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged lists
        raise ValueError(f"{who}: must be an array of numbers, got {error}") from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(f"{who}: must be an array of numbers, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{who}: integers must fit into int64, got {array.max()}")
    wanted = np.dtype(np.int64) if array.dtype.kind == "u" else array.dtype.newbyteorder("=")
    array = np.ascontiguousarray(array.astype(wanted, copy=False)).reshape(array.shape)
    with warnings.catch_warnings():
        # read-only memory: nothing here writes into its inputs
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
