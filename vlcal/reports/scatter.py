"""Per-class proximity against signed gap: are far-away classes the over-confident ones?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlcal.reports import figures
from vlcal.reports.classes import ClassRow
from vlcal.reports.figures import INK, MUTED
from vlcal.reports.marks import Mark, add_legend, draw_marks, hover
from vlcal.reports.tables import signed

_LINE_BINS = 8


def proximity_scatter(
    classes: Sequence[ClassRow], titles: Sequence[str] = ("before", "after")
) -> tuple[Any, tuple[Any, ...]]:
    """One mark per class: proximity to the base classes against mean confidence minus accuracy.

    Up-pointing orange marks are over-confident classes, down-pointing blue ones under-confident;
    area grows with the number of predictions; base classes are hollow. The line is the mean gap of
    all predictions in eight bins with equally many classes. Two panels with the same limits if the
    classes have an `after`, one otherwise.

    Returns:
        The figure and its axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no class has a proximity.
    """
    figure, axes, _ = _draw(classes, titles)
    return figure, axes


def proximity_scatter_svg(
    classes: Sequence[ClassRow], titles: Sequence[str] = ("before", "after"), name: str = "scatter"
) -> str:
    """The same picture as SVG; a mark tells name, gap, size and nearest base class on hover."""
    figure, _, hovers = _draw(classes, titles)
    text = "Proximity to the base classes against confidence minus accuracy, one mark per class"
    return figures.to_svg(figure, name, text, hovers)


def _draw(
    classes: Sequence[ClassRow], titles: Sequence[str]
) -> tuple[Any, tuple[Any, ...], dict[str, list[str]]]:
    known = [c for c in classes if c.proximity is not None and math.isfinite(c.proximity) and c.n]
    if not known:
        raise ValueError("proximity_scatter: needs a class with predictions and a proximity")
    two = all(c.after is not None for c in known)
    panels = [[(c, c.gap) for c in known]]
    if two:
        panels.append([(c, c.gap_after or 0.0) for c in known])
    figure = figures.new_figure(7.4 if two else 4.2, 3.75, "proximity_scatter")
    largest = max(c.n for c in known)
    hovers: dict[str, list[str]] = {}
    axes: list[Any] = []
    for i, (panel, title) in enumerate(zip(panels, titles, strict=False)):
        place = {"sharex": axes[0], "sharey": axes[0]} if axes else {}
        ax = figures.place(figure, 0.7 + 3.4 * i, 0.42, 3.1, 2.45, **place)
        _draw_panel(ax, panel, largest, f"panel{i}", hovers)
        figures.set_title(ax, title)
        ax.set_xlabel("proximity to the base classes")
        axes.append(ax)
    axes[0].set_ylabel("confidence \N{MINUS SIGN} accuracy (points)")
    axes[0].set_ylim(*_limits([gap for panel in panels for _, gap in panel]))
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    add_legend(figure, halves=len({c.base for c in known}) > 1, line="mean of all predictions")
    return figure, tuple(axes), hovers


def _draw_panel(
    ax: Any,
    panel: Sequence[tuple[ClassRow, float]],
    largest: int,
    name: str,
    hovers: dict[str, list[str]],
) -> None:
    figures.style_axes(ax)
    ax.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    ax.yaxis.set_major_formatter(lambda value, _: signed(value, 0))
    marks = [
        Mark(c.proximity or 0.0, gap, gap, c.base, c.n / largest, hover(c, gap)) for c, gap in panel
    ]
    hovers |= draw_marks(ax, marks, name)
    x, y = _mean_line(panel)
    ax.plot(x, y, color=INK, linewidth=1.4, marker="o", markersize=3, zorder=4)


def _mean_line(panel: Sequence[tuple[ClassRow, float]]) -> tuple[list[float], list[float]]:
    x = np.array([c.proximity for c, _ in panel], dtype=float)
    y, n = np.array([gap for _, gap in panel]), np.array([c.n for c, _ in panel], dtype=float)
    order = np.argsort(x, kind="stable")
    parts = [p for p in np.array_split(order, min(_LINE_BINS, max(1, len(x) // 4))) if len(p)]
    return (
        [float(np.average(x[p], weights=n[p])) for p in parts],
        [float(np.average(y[p], weights=n[p])) for p in parts],
    )


def _limits(gaps: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *gaps), max(0.0, *gaps)
    room = 0.07 * max(high - low, 0.02)
    return low - room, high + room
