"""The only place where a backend is chosen, and it can say why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

BACKENDS = ("triton", "cuda", "native", "reference")

# a module-level dictionary because torch.compile does not trace context variables
_forced: dict[str, str | None] = {"name": os.environ.get("VLCAL_BACKEND") or None}


def _nothing(*_: Any) -> None:
    return None


class Backend(NamedTuple):
    """One implementation of an op.

    `missing` says why it cannot run on this machine at all, `refuse` why it cannot take these
    inputs; both give None if it can. A backend that cannot honor the whole contract refuses; it
    never approximates.
    """

    name: str
    run: Callable[..., Any]
    missing: Callable[[], str | None] = _nothing
    refuse: Callable[..., str | None] = _nothing


def dispatch(op: str, backends: Sequence[Backend], args: tuple, backend: str | None) -> Any:
    """Run `op` on the named backend, or on the first in order that accepts the inputs."""
    wanted = backend or _forced["name"]
    refusals = []
    for candidate in backends:
        if wanted not in (None, candidate.name):
            continue
        why = candidate.missing() or candidate.refuse(*args)
        if why is None:
            return candidate.run(*args)
        refusals.append(f"  {candidate.name}: {why}")
    if not refusals:
        known = [candidate.name for candidate in backends]
        raise ValueError(f"{op}: backend must be one of {known}, got {wanted!r}")
    raise NotImplementedError(f"{op}: no backend can run this call\n" + "\n".join(refusals))


def custom_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op` for functions that change no input.

    Typed as Any, because torch's annotations lose `register_fake` and `register_autograd`.
    """
    return torch.library.custom_op(name, mutates_args=())


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force every op onto one backend inside the block; None gives the choice back."""
    if name not in (None, *BACKENDS):
        raise ValueError(f"use_backend: name must be one of {list(BACKENDS)} or None, got {name!r}")
    before = _forced["name"]
    _forced["name"] = name
    try:
        yield
    finally:
        _forced["name"] = before
