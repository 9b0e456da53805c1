"""One line per method: colors and dashes that tell methods apart, and a legend with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlcal.reports import figures
from vlcal.reports.figures import INK, MUTED, OVER, RIGHT, UNDER, WRONG

_COLORS = (INK, UNDER, OVER, RIGHT, WRONG, MUTED)
# the first is solid, so that what was given stands out from what was made of it
_DASHES = ("-", (0, (5, 1.6)), (0, (2.2, 1.4)), (0, (7, 1.6, 1.6, 1.6)), (0, (1, 1.2)), (0, (9, 3)))


def looks(i: int) -> dict[str, Any]:
    """Color, dashes and width of the i-th line; 36 lines differ from each other."""
    size = len(_COLORS)
    return {
        "color": _COLORS[i % size],
        "linestyle": _DASHES[(i + i // size) % size],
        # dashes over the solid first line, so that a method that changes nothing is still seen
        "linewidth": 1.5 if i else 1.9,
        "zorder": 3 + 0.01 * i,
    }


def legend_beside(
    ax: Any, names: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]], *, left: float
) -> None:
    """A legend to the right of the axes: a sample of each line, its name, and columns of numbers.

    Args:
        ax: the axes whose lines these are.
        names: of the lines, in their order.
        columns: heading and one text per line.
        left: where it begins, in inches from the right edge of the axes.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = ax.figure
    inches = figure.dpi_scale_trans
    corner = inches + ScaledTranslation(1, 1, ax.transAxes)
    name_width = max(len(figures.label(name)) for name in names)
    starts = [left + 0.42 + 0.068 * name_width + 0.82 * (i + 1) for i in range(len(columns))]

    def write(x: float, y: float, text: str, color: str, side: str = "left") -> None:
        made = ax.text(x, y, figures.label(text), transform=corner, clip_on=False)
        made.set(fontsize=8, color=color, ha=side, va="center", parse_math=False)

    for start, (heading, _) in zip(starts, columns, strict=True):
        for k, part in enumerate(heading.split("\n")):
            write(start, -0.08 - 0.14 * k, part, MUTED, "right")
    for i, name in enumerate(names):
        y = -0.44 - 0.2 * i
        sample = {**looks(i), "transform": corner, "clip_on": False}
        ax.plot([left, left + 0.3], [y, y], scalex=False, scaley=False, **sample)
        write(left + 0.38, y, name, INK)
        for start, (_, texts) in zip(starts, columns, strict=True):
            write(start, y, texts[i], INK, "right")
