"""Per-class reliability: how sure a model is when it predicts a class, against how often right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlcal.reports import figures
from vlcal.reports.classes import ClassRow
from vlcal.reports.figures import MUTED
from vlcal.reports.marks import Mark, add_legend, draw_marks, hover


def class_reliability(
    classes: Sequence[ClassRow], titles: Sequence[str] = ("before", "after")
) -> tuple[Any, tuple[Any, ...]]:
    """One mark per class: mean confidence against accuracy of the images predicted as it.

    Marks below the diagonal are over-confident (orange, pointing up), marks above it
    under-confident (blue, pointing down); area grows with the number of predictions. Two panels if
    the classes have an `after`, one otherwise.

    Returns:
        The figure and its axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no class with predictions.
    """
    figure, axes, _ = _draw(classes, titles)
    return figure, axes


def class_reliability_svg(
    classes: Sequence[ClassRow], titles: Sequence[str] = ("before", "after"), name: str = "classes"
) -> str:
    """The same picture as SVG; a mark tells name, gap and size on hover."""
    figure, _, hovers = _draw(classes, titles)
    return figures.to_svg(figure, name, "Confidence against accuracy, one mark per class", hovers)


def _draw(
    classes: Sequence[ClassRow], titles: Sequence[str]
) -> tuple[Any, tuple[Any, ...], dict[str, list[str]]]:
    known = [c for c in classes if c.n]
    if not known:
        raise ValueError("class_reliability: needs a class with predictions")
    two = all(c.after is not None for c in known)
    largest = max(c.n for c in known)
    figure = figures.new_figure(7.0 if two else 3.75, 4.05, "class_reliability")
    hovers: dict[str, list[str]] = {}
    axes: list[Any] = []
    panels = [[_mark(c, largest, after=after) for c in known] for after in (False, True)[: 1 + two]]
    low = _lowest([value for marks in panels for mark in marks for value in mark[:2]])
    for i, (marks, title) in enumerate(zip(panels, titles, strict=False)):
        ax = figures.place(figure, 0.65 + 3.2 * i, 0.42, 2.85, 2.75)
        _prepare(ax, low)
        hovers |= draw_marks(ax, marks, f"panel{i}")
        figures.set_title(ax, title)
        ax.tick_params(labelleft=not axes)
        axes.append(ax)
    axes[0].set_ylabel("accuracy (%)")
    add_legend(figure, halves=len({c.base for c in known}) > 1)
    return figure, tuple(axes), hovers


def _mark(row: ClassRow, largest: int, *, after: bool) -> Mark:
    confidence = row.after if after and row.after is not None else row.before
    gap = confidence - row.accuracy
    return Mark(confidence, row.accuracy, gap, row.base, row.n / largest, hover(row, gap))


def _lowest(values: Sequence[float]) -> float:
    """The tenth below all values, at most 0.8: where both axes of both panels begin."""
    return min(0.8, max(0.0, math.floor(10 * min(values) - 0.1) / 10))


def _prepare(ax: Any, low: float) -> None:
    figures.style_axes(ax)
    room = 0.025 * (1 - low)
    ax.set(xlim=(low - room, 1 + room), ylim=(low - room, 1 + room), aspect="equal")
    ax.plot([low, 1], [low, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, zorder=1.5)
    ax.set_xlabel("mean confidence (%)")
    figures.percent_ticks(ax.xaxis, ax.yaxis)
