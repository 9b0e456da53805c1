"""Per-class reliability: how sure a model is when it predicts a class, against how often right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlcal.reports import figures
from vlcal.reports.classes import ClassRow
from vlcal.reports.figures import MUTED
from vlcal.reports.marks import Mark, add_legend, draw_marks, hover
from vlcal.reports.tables import percent

_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


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
    for i, title in enumerate(titles[: 1 + two]):
        ax = figures.place(figure, 0.65 + 3.2 * i, 0.42, 2.85, 2.75)
        marks = [_mark(c, largest, after=bool(i)) for c in known]
        _prepare(ax, i)
        hovers |= draw_marks(ax, marks, f"panel{i}")
        figures.set_title(ax, title)
        axes.append(ax)
    axes[0].set_ylabel("accuracy (%)")
    add_legend(figure, halves=len({c.base for c in known}) > 1)
    return figure, tuple(axes), hovers


def _mark(row: ClassRow, largest: int, *, after: bool) -> Mark:
    confidence = row.after if after and row.after is not None else row.before
    gap = confidence - row.accuracy
    return Mark(confidence, row.accuracy, gap, row.base, row.n / largest, hover(row, gap))


def _prepare(ax: Any, i: int) -> None:
    figures.style_axes(ax)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="mean confidence (%)")
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, zorder=1.5)
    texts = [percent(tick, 0) for tick in _TICKS]
    ax.set_xticks(_TICKS, labels=texts)
    ax.set_yticks(_TICKS, labels=texts if i == 0 else [""] * len(texts))
