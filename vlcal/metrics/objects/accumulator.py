"""What metric objects need of torchmetrics' protocol, for where torchmetrics is missing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

_REDUCE = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX} if dist.is_available() else {}


class Accumulator(nn.Module):
    """States that add up over batches and processes, with the names torchmetrics gives them.

    Args:
        process_group: processes to add up over; all of them by default.
        sync_on_compute: whether `compute` adds up over processes.
        compute_with_cache: whether `compute` remembers its value until the next `update`.

    Raises:
        ValueError: an option that only torchmetrics has.
    """

    is_differentiable: ClassVar[bool | None] = None
    higher_is_better: ClassVar[bool | None] = None
    full_state_update: ClassVar[bool | None] = False
    dist_sync_on_step = False
    dist_sync_fn = None

    def __init__(
        self,
        *,
        process_group: Any = None,
        sync_on_compute: bool = True,
        compute_with_cache: bool = True,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise ValueError(
                f"{type(self).__name__}: {', '.join(sorted(others))} needs torchmetrics: "
                "pip install torchmetrics"
            )
        self.process_group = process_group
        self.sync_on_compute = sync_on_compute
        self.compute_with_cache = compute_with_cache
        self._to_sync, self._should_unsync = sync_on_compute, True
        self._defaults: dict[str, Tensor] = {}
        self._reductions: dict[str, str] = {}
        self._persistent: dict[str, bool] = {}
        self._update_count = 0
        self._computed: Tensor | None = None
        self._forward_cache: Tensor | None = None
        self._is_synced = False
        self._cache: dict[str, Tensor] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, wrap in (("update", _counted), ("compute", _synced)):
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    def add_state(
        self, name: str, default: Tensor, dist_reduce_fx: str = "sum", persistent: bool = False
    ) -> None:
        """A tensor `self.name` that starts as `default` and is reduced by "sum" or "max"."""
        if dist_reduce_fx not in ("sum", "max"):
            raise ValueError(f"add_state: dist_reduce_fx must be sum or max, got {dist_reduce_fx}")
        self._defaults[name] = default.detach().clone()
        self._reductions[name] = dist_reduce_fx
        self._persistent[name] = persistent
        setattr(self, name, default)

    @property
    def metric_state(self) -> dict[str, Tensor]:
        """The states by name."""
        return {name: getattr(self, name) for name in self._defaults}

    @property
    def update_count(self) -> int:
        """Batches since the last `reset`."""
        return self._update_count

    @property
    def update_called(self) -> bool:
        """Whether there was a batch since the last `reset`."""
        return self._update_count > 0

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        return next(iter(self._defaults.values())).device

    def reset(self) -> None:
        """Every state as it was at the start."""
        for name, default in self._defaults.items():
            setattr(self, name, default.clone())
        self._update_count, self._computed, self._forward_cache = 0, None, None
        self._is_synced, self._cache = False, None

    def clone(self) -> Self:
        """A copy that shares nothing."""
        return deepcopy(self)

    def persistent(self, mode: bool = False) -> None:
        """Choose whether `state_dict` holds the states."""
        self._persistent = dict.fromkeys(self._persistent, mode)

    def sync(self) -> None:
        """Add the states up over all processes, keeping those of this process aside."""
        if self._is_synced:
            raise RuntimeError(f"{type(self).__name__}: is synced already; call unsync() first")
        if not (dist.is_available() and dist.is_initialized()):
            return
        self._cache = {name: value.clone() for name, value in self.metric_state.items()}
        for name, value in self._cache.items():
            total = value.clone()
            dist.all_reduce(total, _REDUCE[self._reductions[name]], self.process_group)
            setattr(self, name, total)
        self._is_synced = True

    def unsync(self) -> None:
        """Go back to the states of this process alone."""
        if self._cache is None:
            raise RuntimeError(f"{type(self).__name__}: is not synced; call sync() first")
        for name, value in self._cache.items():
            setattr(self, name, value)
        self._is_synced, self._cache = False, None

    @contextmanager
    def sync_context(
        self, *, dist_sync_fn: None = None, should_sync: bool = True, should_unsync: bool = True
    ) -> Iterator[None]:
        """The states of all processes inside the block, those of this process after it."""
        if should_sync:
            self.sync()
        try:
            yield
        finally:
            if self._is_synced and should_unsync:
                self.unsync()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, value in self._defaults.items():
            self._defaults[name] = fn(value)
            setattr(self, name, fn(getattr(self, name)))
        self._computed = self._forward_cache = None
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The states by name, with those of the module."""
        content = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name, value in self.metric_state.items():
            if self._persistent[name]:
                content[prefix + name] = value.detach().clone()
        return content


def _counted(update: Any) -> Any:
    @functools.wraps(update)
    def wrapped(self: Accumulator, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            update(self, *args, **kwargs)
        self._computed = None
        self._update_count += 1

    return wrapped


def _synced(compute: Any) -> Any:
    @functools.wraps(compute)
    def wrapped(self: Accumulator) -> Tensor:
        if self._computed is not None:
            return self._computed
        synced = self._is_synced
        with self.sync_context(should_sync=self._to_sync and not synced, should_unsync=not synced):
            value = compute(self)
        self._computed = value if self.compute_with_cache else None
        return value

    return wrapped
