"""Rank, world, sums and gathers under torchrun; without torchrun everything here does nothing.

Call `setup()` once at the start of a program. Library code never asks whether it is distributed.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def setup(device: str | torch.device = "cpu") -> torch.device:
    """Join the process group that torchrun describes in the environment, if there is one.

    Returns:
        The device of this process: with CUDA the one of its local rank.
    """
    place = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _active():
        if place.type == "cuda":
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(place)
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    return place


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return dist.get_rank() if _active() else 0


def world() -> int:
    """The number of processes, 1 without torchrun."""
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Whether this process writes files and reports progress."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def sum_(tensor: Tensor) -> Tensor:
    """Add `tensor` up over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, which may differ in number."""
    if world() == 1:
        return tensor
    counts = torch.zeros(world(), dtype=torch.int64, device=tensor.device)
    counts[rank()] = len(tensor)
    sizes = sum_(counts).tolist()
    padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
