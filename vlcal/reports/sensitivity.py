"""Metric sensitivity: the error of every method at 5 to 50 bins, so that a lucky choice shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vlcal._optional import optional
from vlcal.reports import figures
from vlcal.reports.cells import BINS, equal_mass, equal_width
from vlcal.reports.figures import INK, MUTED
from vlcal.reports.lines import looks

if TYPE_CHECKING:
    from vlcal.ops import BinStatistics

RULES: dict[str, Callable[[BinStatistics, int], BinStatistics]] = {
    "equal width": equal_width,
    "equal mass": equal_mass,
}


def curve(cells: BinStatistics, rule: str) -> list[float]:
    """The expected calibration error at 5, 6, ... 50 bins of the rule: equal width or mass."""
    return [RULES[rule](cells, n).ece() for n in BINS]


def sensitivity(
    cells: Sequence[BinStatistics], titles: Sequence[str], n_bins: int | None = None
) -> tuple[Any, tuple[Any, ...]]:
    """ECE against the number of bins, one line per method, a panel per rule of binning.

    Args:
        cells: of every method, on the same samples; see `vlcal.reports.cells.cells_of`.
        titles: one per method.
        n_bins: the number of bins of the page's convention, marked.

    Returns:
        The figure and its two axes, which share their limits.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no method, or one without samples.
    """
    if not cells or len(cells) != len(titles):
        raise ValueError(
            "sensitivity: one title per method and at least one method, "
            f"got {len(cells)} methods and {len(titles)} titles"
        )
    optional("matplotlib", "report", "sensitivity")
    columns, rows = _legend_grid([figures.label(title) for title in titles])
    figure = figures.new_figure(7.4, 3.2 + 0.2 * rows, "sensitivity")
    axes: list[Any] = []
    highest = 0.0
    for rule in RULES:
        shared = {"sharex": axes[0], "sharey": axes[0]} if axes else {}
        ax = figures.place(figure, 0.65 + 3.4 * len(axes), 0.42, 3.1, 2.2, **shared)
        figures.style_axes(ax)
        for i, each in enumerate(cells):
            values = curve(each, rule)
            highest = max(highest, *values)
            ax.plot(list(BINS), values, **looks(i))
        figures.set_title(ax, f"bins of {rule}")
        ax.set_xlabel("number of bins")
        axes.append(ax)
    _finish(axes, highest, n_bins)
    _add_legend(figure, titles, columns)
    return figure, tuple(axes)


def best_sentence(cells: Sequence[BinStatistics], titles: Sequence[str]) -> str:
    """Which method has the lowest error, and whether that depends on the number of bins."""
    if len(cells) < 2:
        return ""
    wins = {rule: _wins(rule, cells, titles) for rule in RULES}
    winners = {name for counts in wins.values() for name in counts}
    if len(winners) == 1:
        return f"The lowest error at every number of either kind of bins: {winners.pop()}."
    return " ".join(_sentence(rule, counts) for rule, counts in wins.items())


def _wins(rule: str, cells: Sequence[BinStatistics], titles: Sequence[str]) -> dict[str, int]:
    """At how many numbers of bins each method has the lowest error, most often first."""
    shared: dict[tuple[float, ...], str] = {}
    for each, title in zip(cells, titles, strict=True):
        values = tuple(curve(each, rule))
        shared[values] = f"{shared[values]} and {title}" if values in shared else title
    best = [shared[min(shared, key=lambda values, k=k: values[k])] for k in range(len(BINS))]
    return {name: best.count(name) for name in sorted(set(best), key=best.count, reverse=True)}


def _sentence(rule: str, wins: dict[str, int]) -> str:
    if len(wins) == 1:
        return (
            f"With bins of {rule}, the lowest error at every number is that of {next(iter(wins))}."
        )
    first, *others = (f"{name} at {count}" for name, count in wins.items())
    texts = ", ".join([f"{first} of {len(BINS)} numbers", *others])
    return f"With bins of {rule}, the lowest error is that of {texts}."


def _finish(axes: Sequence[Any], highest: float, n_bins: int | None) -> None:
    first = axes[0]
    top = 1.1 * max(highest, 0.005)
    first.set(xlim=(BINS[0], BINS[-1]), ylim=(0, top), ylabel="ECE (%)")
    first.set_xticks([5, 10, 15, 20, 30, 40, 50])
    figures.percent_ticks(first.yaxis)
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    if n_bins in BINS:
        for ax in axes:
            ax.axvline(n_bins, color=MUTED, linestyle=(0, (1, 2)), linewidth=1, zorder=1.5)


def _legend_grid(names: Sequence[str]) -> tuple[int, int]:
    """Columns and rows of a legend that fits the figure, rows equally long."""
    inches = 0.75 + 0.068 * max(len(name) for name in names)
    rows = -(-len(names) // max(1, int(7.0 / inches)))
    return -(-len(names) // rows), rows


def _add_legend(figure: Any, titles: Sequence[str], columns: int) -> None:
    from matplotlib.lines import Line2D

    names = [figures.label(title) for title in titles]
    handles = [Line2D([], [], label=name, **looks(i)) for i, name in enumerate(names)]
    options = {"frameon": False, "fontsize": 8, "labelcolor": INK, "columnspacing": 1.6}
    figure.legend(handles=handles, loc="lower center", ncols=columns, **options)
