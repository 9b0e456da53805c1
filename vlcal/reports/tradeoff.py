"""The base/new trade-off: does a calibrator pay for one half with the other?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlcal.reports import figures
from vlcal.reports.figures import INK, MUTED, OVER, UNDER
from vlcal.reports.headline import display
from vlcal.reports.rows import Row
from vlcal.reports.summary import Line, summarize


def tradeoff(rows: Sequence[Row]) -> tuple[Any, Any]:
    """ECE on base (x) against new classes (y): a dot per tuner, an arrow to each calibrator.

    Arrows are blue where the arithmetic mean of the two errors falls and orange where it rises.

    Returns:
        The figure and its axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no tuner has an ECE on both halves.
    """
    lines = [line for line in summarize(rows, ("ece",)).lines if None not in _point(line)]
    if not lines:
        raise ValueError("tradeoff: needs a tuner with an ECE on base and new classes")
    figure = figures.new_figure(4.35, 4.2, "tradeoff")
    ax = figures.place(figure, 0.6, 0.15, 3.5, 3.5)
    figures.style_axes(ax)
    points = [_point(line) for line in lines]
    top = 1.18 * max(0.01, *(value for point in points for value in point))
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    ax.set(xlabel="ECE on base classes (%)", ylabel="ECE on new classes (%)")
    figures.percent_ticks(ax.xaxis, ax.yaxis)
    ax.plot([0, top], [0, top], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, zorder=1.5)
    for line in lines:
        _draw_line(ax, line, lines)
    _place_labels(ax, points, [_label(line) for line in lines], top)
    return figure, ax


def _point(line: Line) -> tuple[Any, Any]:
    empty = (None,)
    return line.cells.get(("ece", "base"), empty)[0], line.cells.get(("ece", "new"), empty)[0]


def _label(line: Line) -> str:
    return display(line.tuner) if line.calibrator == "none" else display(line.calibrator)


def _draw_line(ax: Any, line: Line, lines: Sequence[Line]) -> None:
    end = _point(line)
    start = next(
        (_point(x) for x in lines if x.tuner == line.tuner and x.calibrator == "none"), None
    )
    if start is None or line.calibrator == "none":
        ax.plot(*end, marker="o", markersize=6, color=INK, zorder=4)
        return
    color = UNDER if sum(end) < sum(start) else OVER
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "shrinkA": 4, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=3)


def _place_labels(
    ax: Any, points: Sequence[tuple[float, float]], texts: Sequence[str], top: float
) -> None:
    # greedy: the first of ten places that hits no earlier label, no point and no edge
    height, taken = 0.05 * top, [(x, y, x, y) for x, y in points]
    for (x, y), text in zip(points, texts, strict=True):
        width = 0.021 * top * len(text)
        places = [(0.025, 0), (0.02, 0.045), (0.02, -0.045), (0.025, 0.09), (0.025, -0.09)]
        boxes = [(x + dx * top, y + dy * top - height / 2) for dx, dy in places]
        boxes += [(x - dx * top - width, y + dy * top - height / 2) for dx, dy in places]
        free = [
            b
            for b in boxes
            if 0 <= b[0] <= 1.02 * top - width
            and not any(_overlap((*b, b[0] + width, b[1] + height), t) for t in taken)
        ]
        left, bottom = (free or boxes)[0]
        taken.append((left, bottom, left + width, bottom + height))
        label = ax.text(left, bottom + height / 2, figures.label(text), va="center", zorder=5)
        label.set(fontsize=8, color=INK, parse_math=False)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
