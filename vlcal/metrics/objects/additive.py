"""What all metric objects share: a state of integers that adds up exactly, wherever it is."""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from vlcal._optional import optional
from vlcal.metrics.objects.accumulator import Accumulator
from vlcal.types import NoSamplesError, VlcalWarning


def _base() -> type:
    """`torchmetrics.Metric` where it is installed, else the same protocol without it."""
    if find_spec("torchmetrics") is None:
        return Accumulator
    try:
        from torchmetrics import Metric
    except Exception as error:  # some pairs of torch and torchvision raise RuntimeError
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            "vlcal.metrics.objects: torchmetrics is installed but cannot be imported "
            f"({cause}); the objects work without it, MetricCollection does not",
            VlcalWarning,
            stacklevel=2,
        )
        return Accumulator
    return Metric


if TYPE_CHECKING:
    Metric = Accumulator
else:
    Metric = _base()


class AdditiveMetric(Metric):
    """A metric whose state is sums of integers.

    Every split into batches, number of processes and order of samples gives the same bits.

    Args:
        rule: what the state depends on; states of other rules are refused.
        options: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    rule: Tensor

    def __init__(self, rule: object, **options: Any) -> None:
        super().__init__(**options)
        # states of other rules must never be taken for states of this one: not by merge_state, not
        # by another process, not by the compute groups of MetricCollection
        self._add_maximum("rule", _fingerprint(rule))

    def _add_sums(self, name: str, *shape: int) -> None:
        zeros = torch.zeros(shape, dtype=torch.int64)
        self.add_state(name, zeros, dist_reduce_fx="sum", persistent=True)

    def _add_maximum(self, name: str, default: Tensor) -> None:
        self.add_state(name, default, dist_reduce_fx="max", persistent=True)
        self._maxima = (*getattr(self, "_maxima", ()), name)

    @abstractmethod
    def _batch(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The states of a batch alone."""

    @abstractmethod
    def _n(self, states: Mapping[str, Tensor]) -> int:
        """Samples counted in these states."""

    @abstractmethod
    def _value(self, states: Mapping[str, Tensor]) -> float:
        """The number of states with at least one sample."""

    def _refuse(self, sentence: str) -> NoReturn:
        raise ValueError(f"{type(self).__name__}: {sentence}")

    def compute(self) -> Tensor:
        """The value over all batches and all processes, a scalar.

        Raises:
            NoSamplesError: nothing was counted.
            RuntimeError: processes hold metrics of different rules.
        """
        with self._own_states_after_an_error(self._to_sync):
            self._check(self.metric_state)
            return self._tensor(self._value(self.metric_state))

    @contextmanager
    def _own_states_after_an_error(self, synced_here: bool) -> Iterator[None]:
        """What torchmetrics leaves to the caller: go back to the states of this process."""
        try:
            yield
        except Exception:
            if self._is_synced and synced_here:
                self.unsync()
            raise

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Add a batch and give its own value: NaN if none of its samples counts."""
        if self._is_synced:
            raise RuntimeError(f"{type(self).__name__}: is synced; call unsync() first")
        if self.dist_sync_on_step:
            return super().forward(*args, **kwargs)
        with torch.no_grad():
            batch = self._batch(*args, **kwargs)
            self._add(batch)
            self._update_count, self._computed = self._update_count + 1, None
            value = self._value(batch) if self._n(batch) else math.nan
        self._forward_cache = self._tensor(value)
        return self._forward_cache

    def merge_state(self, incoming_state: Mapping[str, Tensor] | AdditiveMetric) -> None:
        """Add the states of another object, or of its `metric_state` or `state_dict()`.

        Raises:
            ValueError: it counted other things, or counted them by other rules.
        """
        if isinstance(incoming_state, AdditiveMetric):
            count, states = incoming_state._update_count, incoming_state.metric_state
        elif isinstance(incoming_state, Mapping):
            count, states = 1, incoming_state
        else:
            self._refuse(
                f"can merge a metric object or a dict of states, got {type(incoming_state)}"
            )
        if why := self._mismatch(states):
            self._refuse(why)
        self._add(states)
        self._update_count, self._computed = self._update_count + count, None

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """The value, or a sequence of values in their order; needs the extra `vlcal[report]`.

        Args:
            val: one value or several of `compute` or `forward`; by default that of `compute`.
            ax: matplotlib axes to draw on; a figure of its own by default.

        Returns:
            The figure and the axes. Nothing is shown, and pyplot is not touched.
        """
        values = self.compute() if val is None else val
        values = values if isinstance(values, Sequence) else [values]
        ax = new_axes(type(self).__name__) if ax is None else ax
        ax.plot(range(1, len(values) + 1), [float(each) for each in values], "o-")
        ax.set(xlabel="step", ylabel=type(self).__name__)
        return ax.figure, ax

    def set_dtype(self, dst_type: Any) -> AdditiveMetric:
        """Nothing: integer states stay what they are."""
        return self

    def _empty(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._defaults.items()}

    def _add(self, states: Mapping[str, Tensor]) -> None:
        for name, mine in self.metric_state.items():
            other = states[name].to(mine.device)
            # out of place: members of a compute group share their tensors
            both = torch.maximum(mine, other) if name in self._maxima else mine + other
            setattr(self, name, both)

    def _check(self, states: Mapping[str, Tensor]) -> None:
        who = type(self).__name__
        if not torch.equal(states["rule"], self._defaults["rule"]):
            raise RuntimeError(f"{who}: the processes count by different rules")
        self._check_samples(states)

    def _check_samples(self, states: Mapping[str, Tensor]) -> None:
        if not self._n(states):
            raise NoSamplesError(f"{type(self).__name__}: needs at least one sample, got none")

    def _tensor(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.rule.device)

    def _mismatch(self, states: Mapping[str, Any]) -> str | None:
        """Why these states cannot be states of this metric."""
        for name, mine in self.metric_state.items():
            other: Any = states.get(name)
            if not isinstance(other, Tensor):
                return f"the state must hold {', '.join(self._defaults)}, got none of {name}"
            if other.shape != mine.shape or other.dtype != mine.dtype:
                return (
                    f"state {name} must be {mine.dtype} {tuple(mine.shape)}, "
                    f"got {other.dtype} {tuple(other.shape)}"
                )
        if not torch.equal(states["rule"].to(self.rule.device), self.rule):
            return "the state was counted by other rules, such as other bins or another input"
        return None

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = {prefix + name: name for name in self._defaults}
        found = {name: state_dict.pop(key) for key, name in names.items() if key in state_dict}
        if not found:
            missing_keys += [key for key, name in names.items() if self._persistent[name]]
        elif why := self._mismatch(found):
            error_msgs.append(f"{type(self).__name__}: {why}")
        else:
            for name, value in found.items():
                setattr(self, name, value.to(self.rule.device).clone())
            self._update_count, self._computed = max(1, self._update_count), None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def new_axes(who: str) -> Any:
    """Axes of a new figure that pyplot does not know about."""
    optional("matplotlib", "report", f"{who}.plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _fingerprint(rule: object) -> Tensor:
    """Eight numbers that differ by much for rules that differ at all."""
    return torch.tensor(list(hashlib.sha256(repr(rule).encode()).digest()[:8]))
