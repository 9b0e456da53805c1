"""Marks of classes in scatter pictures: over- and under-confident, base and new, with hover."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from vlcal.reports.classes import ClassRow
from vlcal.reports.figures import INK, MUTED, OVER, UNDER
from vlcal.reports.tables import signed


class Mark(NamedTuple):
    """A class at a place: its signed gap, its half, its size in 0..1, and what it says on hover."""

    x: float
    y: float
    gap: float
    base: bool | None
    size: float
    text: str


def draw_marks(ax: Any, marks: Sequence[Mark], name: str) -> dict[str, list[str]]:
    """Draw up-pointing orange and down-pointing blue marks, base classes hollow.

    Returns:
        The hover texts by group id, as `figures.to_svg` takes them.
    """
    hovers = {}
    for over, base in product((True, False), repeat=2):
        chosen = [mark for mark in marks if (mark.gap > 0) == over and bool(mark.base) == base]
        if not chosen:
            continue
        color, group = OVER if over else UNDER, f"{name}-{'over' if over else 'under'}-{base}"
        ax.scatter(
            [mark.x for mark in chosen],
            [mark.y for mark in chosen],
            s=[10 + 70 * mark.size for mark in chosen],
            marker="^" if over else "v",
            facecolors="none" if base else color,
            edgecolors=color,
            linewidths=0.9,
            alpha=0.75,
            zorder=3,
            gid=group,
        )
        hovers[group] = [mark.text for mark in chosen]
    return hovers


def hover(row: ClassRow, gap: float) -> str:
    """Name, half, gap, size and nearest base class in one line."""
    half = {True: " (base)", False: " (new)", None: ""}[row.base]
    nearest = f", nearest base class {row.nearest}" if row.nearest and not row.base else ""
    return f"{row.name}{half}: {signed(gap)} points, {row.n} predictions{nearest}"


def add_legend(figure: Any, *, halves: bool = True, line: str | None = None) -> None:
    """What the marks mean, below the panels.

    Args:
        figure: to write on.
        halves: whether both base and new classes are drawn.
        line: what a line of means is, if there is one.
    """
    from matplotlib.lines import Line2D

    def mark(marker: str, color: str, filled: bool, text: str) -> Any:
        face = color if filled else "none"
        return Line2D(
            [], [], linestyle="", marker=marker, color=color, markerfacecolor=face, label=text
        )

    handles = [
        mark("^", OVER, True, "over-confident"),
        mark("v", UNDER, True, "under-confident"),
    ]
    if halves:
        handles.append(mark("o", MUTED, True, "new class"))
        handles.append(mark("o", MUTED, False, "base class"))
    if line:
        handles.append(Line2D([], [], color=INK, marker="o", markersize=3, label=line))
    narrow = figure.get_size_inches()[0] < 6
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=3 if narrow else 5,
        frameon=False,
        fontsize=7 if narrow else 8,
        labelcolor=INK,
        handletextpad=0.4,
        columnspacing=1.4,
    )
