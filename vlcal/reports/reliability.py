"""Reliability diagrams: the picture and the numbers on it come from the same bin statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vlcal._optional import optional
from vlcal.metrics import wilson_interval
from vlcal.reports import figures
from vlcal.reports.figures import BAR, INK, MUTED, OVER, PAPER, RULE, UNDER
from vlcal.reports.tables import percent

if TYPE_CHECKING:
    from vlcal.ops import BinStatistics

FEW = 30  # samples; a bin with fewer is drawn faded
_SIDE, _BELOW, _LEFT, _PITCH = (
    2.75,
    0.7,
    0.6,
    3.25,
)  # inches: square, shares, margin, panel to panel


def reliability_diagram(
    bins: BinStatistics,
    *,
    ax: Any = None,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    histogram: bool = True,
) -> tuple[Any, tuple[Any, ...]]:
    """Accuracy against confidence per bin, with the gap between them hatched.

    DeGroot & Fienberg, The Statistician 1983; Guo et al., ICML 2017.

    Grey bars reach the share of correct predictions, hatched boxes span from there to the mean
    confidence of the bin: orange where the model is over-confident, blue where it is
    under-confident. Whiskers are 95 % Wilson intervals, bins with fewer than 30 samples are faded.
    Below, the share of samples per bin, with overall accuracy and confidence.

    Args:
        bins: statistics over intervals of confidence (with edges), at least one sample.
        ax: matplotlib axes to draw on; a figure of its own by default. The histogram takes its room
            from the axes.
        title: shown as given, never parsed as mathematics.
        facts: more lines for the corner, label to text; a label that is already there is replaced.
        histogram: draw the shares below.

    Returns:
        The figure and its axes: (diagram, histogram) or (diagram,).

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no samples, or bins without edges.

    Nothing is shown and pyplot is not touched.
    """
    _check(bins)
    optional("matplotlib", "report", "reliability_diagram")
    if ax is None:
        height = _SIDE + (0.12 + _BELOW if histogram else 0) + 0.95
        figure = figures.new_figure(_LEFT + _SIDE + 0.25, height, "reliability_diagram")
        ax = figures.place(figure, _LEFT, 0.42, _SIDE, height - 0.95)
    below = (_room_below(ax),) if histogram else ()
    _draw_diagram(ax, bins, title, facts or {})
    for axes in below:
        _draw_shares(axes, bins)
        ax.tick_params(labelbottom=False)
    if not below:
        ax.set_xlabel("confidence (%)")
    return ax.figure, (ax, *below)


def reliability_pair(
    before: BinStatistics, after: BinStatistics, titles: Sequence[str] = ("before", "after")
) -> tuple[Any, tuple[Any, ...]]:
    """Two reliability diagrams with shared axes: the figure and (diagram, histogram) twice."""
    return reliability_panels((before, after), titles)


def reliability_panels(
    bins: Sequence[BinStatistics], titles: Sequence[str]
) -> tuple[Any, tuple[Any, ...]]:
    """Reliability diagrams in a row, shared axes: the figure and (diagram, histogram) per panel."""
    if not bins or len(bins) != len(titles):
        raise ValueError(
            "reliability_panels: one title per panel and at least one panel, "
            f"got {len(bins)} panels and {len(titles)} titles"
        )
    for panel in bins:
        _check(panel)
    tall = _SIDE + 0.12 + _BELOW
    width = _LEFT + _PITCH * (len(bins) - 1) + _SIDE + 0.25
    figure = figures.new_figure(width, tall + 0.95, "reliability_panels")
    axes: list[Any] = []
    for i, (panel, title) in enumerate(zip(bins, titles, strict=True)):
        ax = figures.place(figure, _LEFT + i * _PITCH, 0.42, _SIDE, tall)
        axes += reliability_diagram(panel, ax=ax, title=title)[1]
    top = max(below.get_ylim()[1] for below in axes[1::2])
    for below in axes[1::2]:
        below.set_ylim(0, top)
    for ax in axes[2:]:
        ax.set_ylabel("")
    return figure, tuple(axes)


def _check(bins: BinStatistics) -> None:
    if bins.n == 0:
        raise ValueError("reliability_diagram: bins must hold at least one sample, got none")
    if bins.edges is None:
        raise ValueError("reliability_diagram: bins must be intervals of confidence, got groups")


def _room_below(ax: Any) -> Any:
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    share = f"{100 * _BELOW / _SIDE:.2f}%"
    return make_axes_locatable(ax).append_axes("bottom", size=share, pad=0.12, sharex=ax)


def _draw_diagram(
    ax: Any, bins: BinStatistics, title: str | None, facts: Mapping[str, str]
) -> None:
    figures.style_axes(ax)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set_xticks(_TICKS, labels=_PERCENT)
    ax.set_yticks(_TICKS, labels=_PERCENT)
    ax.set_ylabel("accuracy: correct in bin (%)")
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, zorder=1.5)
    low, high = (side.tolist() for side in wilson_interval(bins.correct, bins.count))
    for i, count in enumerate(bins.count.tolist()):
        if count:
            _draw_bin(ax, bins, i, (low[i], high[i]))
    if title:
        figures.set_title(ax, title)
    _draw_facts(ax, {**_facts(bins), **facts})


def _draw_facts(ax: Any, facts: Mapping[str, str]) -> None:
    column = 0.05 + 0.026 * max(len(name) for name in facts)
    width = column + 0.021 * max(len(value) for value in facts.values())
    height = 0.055 * len(facts) + 0.03
    # a sheet under the lines, so that whiskers do not cross them
    ax.add_patch(_sheet(ax, 0.01, 0.99 - height, width, height))
    for i, (name, value) in enumerate(facts.items()):
        for x, color, content in ((0.03, MUTED, name), (column, INK, value)):
            text = ax.text(x, 0.945 - 0.055 * i, figures.label(content), transform=ax.transAxes)
            text.set(va="center_baseline", fontsize=7.5, color=color, zorder=5, parse_math=False)


def _sheet(ax: Any, x: float, y: float, width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    place = {"transform": ax.transAxes, "zorder": 4.5}
    return Rectangle((x, y), width, height, facecolor=PAPER, edgecolor="none", alpha=0.75, **place)


def _draw_bin(ax: Any, bins: BinStatistics, i: int, whisker: tuple[float, float]) -> None:
    lo, hi = bins.edges[i : i + 2].tolist()  # type: ignore[index]
    count, correct = int(bins.count[i]), int(bins.correct[i])
    confidence, accuracy = float(bins.confidence[i]) / count, correct / count
    strength = 1.0 if count >= FEW else 0.35
    color, hatch = (OVER, "////") if confidence > accuracy else (UNDER, "\\\\\\\\")
    center, width = (lo + hi) / 2, 0.92 * (hi - lo)
    ax.bar(center, accuracy, width, color=BAR, alpha=strength, zorder=2)
    lower, height = min(confidence, accuracy), abs(confidence - accuracy)
    gap = ax.bar(center, height, width, bottom=lower, facecolor="none", edgecolor=color)[0]
    gap.set(hatch=hatch, linewidth=1, alpha=strength, zorder=3)
    ax.plot([center, center], whisker, color=INK, linewidth=1, alpha=strength, zorder=4)


def _facts(bins: BinStatistics) -> dict[str, str]:
    interval = "(lo, hi]" if bins.closed == "right" else "[lo, hi)"
    return {
        "ECE": f"{percent(bins.ece())} %",
        "accuracy": f"{percent(int(bins.correct.sum()) / bins.n)} %",
        "confidence": f"{percent(float(bins.confidence.sum()) / bins.n)} %",
        "n": f"{bins.n:,}",
        "bins": f"{bins.n_bins} {interval}",
    }


def _draw_shares(ax: Any, bins: BinStatistics) -> None:
    figures.style_axes(ax, grid=False)
    ax.set_aspect("auto")
    edges = bins.edges.tolist()  # type: ignore[union-attr]
    shares = [count / bins.n for count in bins.count.tolist()]
    widths = [0.92 * (hi - lo) for lo, hi in pairwise(edges)]
    centers = [(lo + hi) / 2 for lo, hi in pairwise(edges)]
    ax.bar(centers, shares, width=widths, color=BAR, zorder=2)
    ax.set(ylim=(0, 1.45 * max(shares)), xlim=(0, 1), xlabel="confidence (%)", ylabel="share (%)")
    ax.set_xticks(_TICKS, labels=_PERCENT)
    ax.yaxis.set_major_locator(_few_ticks())
    ax.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    ax.axhline(0, color=RULE, linewidth=0.8)
    accuracy = int(bins.correct.sum()) / bins.n
    confidence = float(bins.confidence.sum()) / bins.n
    sides = ("right", "left") if accuracy <= confidence else ("left", "right")
    for x, name, side, dashes in (
        (accuracy, "accuracy", sides[0], (0, (3, 2))),
        (confidence, "confidence", sides[1], "-"),
    ):
        ax.axvline(x, color=INK, linewidth=1.1, linestyle=dashes, zorder=4)
        # a name that would leave the picture moves to the other side, below the first
        leaves = x < 0.2 if side == "right" else x >= 0.75
        y = 0.74 if leaves else 0.97
        side = {"right": "left", "left": "right"}[side] if leaves else side
        shift = -0.012 if side == "right" else 0.012
        text = ax.text(x + shift, y, name, transform=ax.get_xaxis_transform(), ha=side)
        text.set(va="top", fontsize=7, color=INK, zorder=5)
        text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.6})


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=2, steps=[1, 2, 5, 10])


_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_PERCENT = tuple(percent(tick, 0) for tick in _TICKS)
