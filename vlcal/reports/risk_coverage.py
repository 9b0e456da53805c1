"""Risk against coverage: what answering only above a threshold of confidence buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vlcal._optional import optional
from vlcal.reports import figures
from vlcal.reports.figures import MUTED, PAPER
from vlcal.reports.lines import legend_beside, looks
from vlcal.reports.tables import percent

if TYPE_CHECKING:
    from vlcal.ops import BinStatistics

FEW = 30  # samples; a share of fewer is not drawn
PRECISIONS = (0.95, 0.99, 0.999)
NOT_MEASURED = "\N{EN DASH}"  # no threshold reaches the precision


class Operating(NamedTuple):
    """A threshold: samples above it are answered.

    `threshold` of confidence, `coverage` the share of samples above it, `precision` the share of
    these that are right.
    """

    threshold: float
    coverage: float
    precision: float


def selective(cells: BinStatistics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, coverage and risk when only samples above the threshold are answered.

    One value per cell that holds samples, from the surest on: risk is the share of wrong ones among
    those answered (El-Yaniv & Wiener, JMLR 2010; Geifman & El-Yaniv, NeurIPS 2017).

    Args:
        cells: statistics over intervals of confidence, of at least one sample.
    """
    if cells.n == 0 or cells.edges is None:
        raise ValueError("selective: cells must have edges and at least one sample")
    count, correct = (side.cpu().numpy()[::-1] for side in (cells.count, cells.correct))
    full = count > 0
    kept, right = count.cumsum()[full], correct.cumsum()[full]
    threshold = cells.edges[:-1].cpu().numpy()[::-1][full]
    return threshold, kept / cells.n, 1 - right / kept


def operating_point(cells: BinStatistics, precision: float) -> Operating | None:
    """The lowest threshold that reaches the precision; None if no share of 30 samples does."""
    threshold, coverage, risk = selective(cells)
    enough = coverage * cells.n >= min(FEW, cells.n) - 0.5
    good = np.flatnonzero((1 - risk >= precision) & enough)
    if not len(good):
        return None
    i = good[-1]
    return Operating(float(threshold[i]), float(coverage[i]), float(1 - risk[i]))


def precision_asked(cells: BinStatistics) -> float:
    """95 %, or the first of 99 and 99.9 % where answering everything is already that precise."""
    accuracy = int(cells.correct.sum()) / max(cells.n, 1)
    return next((p for p in PRECISIONS if p > accuracy), PRECISIONS[-1])


def risk_coverage(
    cells: Sequence[BinStatistics], titles: Sequence[str], precision: float | None = None
) -> tuple[Any, Any]:
    """Selective risk against coverage, one line per method, with the threshold of a precision.

    Args:
        cells: of every method, on the same samples; see `vlcal.reports.cells.cells_of`.
        titles: one per method.
        precision: the share of answers that must be right; by default `precision_asked` of the
            first.

    Returns:
        The figure and its axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no method, or one without samples.
    """
    if not cells or len(cells) != len(titles):
        raise ValueError(
            "risk_coverage: one title per method and at least one method, "
            f"got {len(cells)} methods and {len(titles)} titles"
        )
    curves = [selective(each) for each in cells]
    asked = precision_asked(cells[0]) if precision is None else precision
    optional("matplotlib", "report", "risk_coverage")
    wide = max(len(figures.label(title)) for title in titles)
    height = max(3.0, 1.2 + 0.2 * len(cells))
    figure = figures.new_figure(6.5 + 0.068 * wide, height, "risk_coverage")
    ax = figures.place(figure, 0.62, 0.15, 3.4, height - 0.7)
    figures.style_axes(ax)
    points = [operating_point(each, asked) for each in cells]
    for i, (curve, each, point) in enumerate(zip(curves, cells, points, strict=True)):
        _draw_line(ax, curve, each.n, looks(i), point)
    _finish(ax, [curve[2][-1] for curve in curves], asked)
    columns = (("confidence\nabove (%)", [_threshold(p) for p in points]),)
    columns += (("answered\n(%)", [_share(p) for p in points]),)
    legend_beside(ax, titles, columns, left=0.3)
    return figure, ax


def _draw_line(
    ax: Any,
    curve: tuple[np.ndarray, np.ndarray, np.ndarray],
    n: int,
    style: dict[str, Any],
    point: Operating | None,
) -> None:
    _, coverage, risk = curve
    drawn = coverage * n >= min(FEW, n) - 0.5
    ax.plot(coverage[drawn], risk[drawn], **style)
    if point is not None:
        mark = {"markersize": 5, "color": style["color"], "markeredgecolor": PAPER}
        ax.plot(point.coverage, 1 - point.precision, marker="o", zorder=6, **mark)


def _finish(ax: Any, risks: Sequence[float], asked: float) -> None:
    top = 1.12 * max(*risks, 1 - asked, 0.01)
    ax.set(xlim=(0, 1), ylim=(0, top), xlabel="answered: surest first (%)")
    ax.set_ylabel("wrong among the answered (%)")
    figures.percent_ticks(ax.xaxis, ax.yaxis)
    ax.axhline(1 - asked, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, zorder=1.5)
    text = ax.text(0.01, 1 - asked + 0.012 * top, f"{_short(asked)} % right", va="bottom")
    text.set(fontsize=7.5, color=MUTED)


def _threshold(point: Operating | None) -> str:
    if point is None:
        return NOT_MEASURED
    digits = 1
    # a model that is nearly always sure needs more digits than one
    while digits < 5 and round(100 * point.threshold, digits) >= 100 and point.threshold < 1:
        digits += 1
    return percent(point.threshold, digits)


def _share(point: Operating | None) -> str:
    return NOT_MEASURED if point is None else percent(point.coverage)


def _short(fraction: float) -> str:
    return f"{100 * fraction:g}"
