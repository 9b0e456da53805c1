"""Confidence histograms: where the right and the wrong predictions are, on a logarithmic share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlcal.reports import figures
from vlcal.reports.figures import INK, RIGHT, WRONG
from vlcal.reports.tables import percent

if TYPE_CHECKING:
    from vlcal.ops import BinStatistics


def confidence_histograms(
    bins: Sequence[BinStatistics], titles: Sequence[str]
) -> tuple[Any, tuple[Any, ...]]:
    """Share of all samples per bin of confidence, correct and wrong ones apart, a panel each.

    Wrong predictions at high confidence are what hurts; a logarithmic axis keeps them visible.

    Returns:
        The figure and its axes, which share their limits.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no panel, no samples, or bins without edges.
    """
    if not bins or len(bins) != len(titles):
        raise ValueError(
            "confidence_histograms: one title per panel and at least one panel, "
            f"got {len(bins)} panels and {len(titles)} titles"
        )
    if any(panel.n == 0 or panel.edges is None for panel in bins):
        raise ValueError("confidence_histograms: bins must have edges and at least one sample")
    width = 0.75 + 3.35 * len(bins)
    figure = figures.new_figure(width, 2.85, "confidence_histograms")
    axes: list[Any] = []
    for i, (panel, title) in enumerate(zip(bins, titles, strict=True)):
        shared = {"sharex": axes[0], "sharey": axes[0]} if axes else {}
        ax = figures.place(figure, 0.75 + 3.35 * i, 0.42, 3.05, 1.9, **shared)
        _draw_panel(ax, panel)
        figures.set_title(ax, title)
        axes.append(ax)
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    axes[0].set_ylabel("share of images (%)")
    axes[0].set(xlim=(0, 1), ylim=(0.6 / max(panel.n for panel in bins), 1.3), yscale="log")
    axes[0].xaxis.set_major_formatter(lambda value, _: percent(value, 0))
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    for ax in axes:
        ax.yaxis.set_tick_params(which="minor", length=0)
    axes[0].legend(loc="upper left", frameon=False, fontsize=8, labelcolor=INK, ncols=2)
    return figure, tuple(axes)


def _draw_panel(ax: Any, bins: BinStatistics) -> None:
    figures.style_axes(ax)
    ax.set_xlabel("confidence (%)")
    edges = bins.edges.tolist()  # type: ignore[union-attr]
    right = bins.correct
    for count, color, name, hatch in (
        (right, RIGHT, "correct", None),
        (bins.count - right, WRONG, "wrong", "////"),
    ):
        shares = (count / bins.n).tolist()
        floor = 1e-12  # a logarithmic axis has no zero
        steps = ax.stairs(shares, edges, baseline=floor, fill=True, zorder=2, alpha=0.35)
        face = "none" if hatch else color
        steps.set(facecolor=face, edgecolor=color, hatch=hatch, linewidth=0)
        ax.stairs(shares, edges, baseline=floor, color=color, linewidth=1.5, label=name, zorder=3)
