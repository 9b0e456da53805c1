"""The pictures of a report, drawn from its rows and classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlcal.ops import BinStatistics
from vlcal.reports.cells import row_cells
from vlcal.reports.class_reliability import class_reliability_svg
from vlcal.reports.classes import ClassRow
from vlcal.reports.figures import to_svg
from vlcal.reports.headline import display, where_of
from vlcal.reports.histogram import confidence_histograms
from vlcal.reports.reliability import reliability_panels
from vlcal.reports.report import Report
from vlcal.reports.risk_coverage import FEW, precision_asked, risk_coverage
from vlcal.reports.rows import Row, row_bins
from vlcal.reports.scatter import proximity_scatter_svg
from vlcal.reports.sensitivity import best_sentence, sensitivity
from vlcal.reports.summary import calibrator_labels, distinct_rows, tuner_labels
from vlcal.reports.tradeoff import tradeoff

MOST_PICTURES = 12  # reliability rows on one page, so that it stays below 3 MB
MOST_DOTS = 1000
MOST_LINES = 12  # methods in one picture of lines
MOST_SPLITS = 2
_PANELS = 3

Group = dict[str, BinStatistics]
Pooled = dict[tuple[str, str], Group]


@dataclass(frozen=True)
class Picture:
    """An SVG with a title, a caption, and its natural width in inches."""

    title: str
    caption: str
    svg: str
    width: float


def pictures(report: Report) -> tuple[Picture, ...]:
    """Every picture the data allow, in reading order; empty if there is nothing to draw."""
    pooled, drawn = pool_bins(report), _drawn(report)
    cells = _last_tuner(_pool(report.rows_with_cells, row_cells))
    n_bins = {key: next(iter(group.values())).n_bins for key, group in pooled.items()}
    found = [
        *_reliability(pooled, drawn),
        *_histograms(pooled),
        *(_risk_coverage(*each, drawn) for each in cells.items() if _enough(each[1])),
        *(_sensitivity(*each, n_bins.get(each[0]), drawn) for each in cells.items()),
        *_tradeoff(report),
        *_classes(report),
        *_scatter(report),
    ]
    return tuple(found)


def pool_bins(report: Report) -> Pooled:
    """Bin statistics by (tuner, split) and calibrator, last tuner and new classes first.

    Datasets are added. Of several seeds the first is taken: they share their test images, so adding
    them would count every image several times and make the whiskers too short.
    """
    return _pool(report.rows, row_bins)


def _pool(rows: Sequence[Row], read: Callable[[Row], BinStatistics | None]) -> Pooled:
    pooled: Pooled = {}
    seeds: dict[tuple[str, str], object] = {}
    rows = distinct_rows(rows)
    labels = zip(tuner_labels(rows), calibrator_labels(rows), strict=True)
    for row, (tuner, calibrator) in zip(rows, labels, strict=True):
        bins, key = read(row), (tuner, row["split"])
        if (
            bins is not None
            and bins.n
            and seeds.setdefault(key, row.get("seed")) == row.get("seed")
        ):
            group = pooled.setdefault(key, {})
            old = group.get(calibrator)
            group[calibrator] = bins if old is None else old + bins
    order = {tuner: -i for i, tuner in enumerate(dict.fromkeys(tuner for tuner, _ in pooled))}
    return dict(sorted(pooled.items(), key=lambda item: (order[item[0][0]], item[0][1] != "new")))


def _last_tuner(pooled: Pooled) -> Pooled:
    last = next(iter(pooled), ("", ""))[0]
    mine = [(key, group) for key, group in pooled.items() if key[0] == last]
    return {key: dict(list(group.items())[:MOST_LINES]) for key, group in mine[:MOST_SPLITS]}


def _drawn(report: Report) -> str:
    seeds = {row.get("seed") for row in report.rows}
    datasets = {row.get("dataset") for row in report.rows}
    parts = ["the first seed"] * (len(seeds) > 1) + [f"all {len(datasets)} datasets"] * (
        len(datasets) > 1
    )
    return f", of {' and '.join(parts)}" if parts else ""


def _reliability(pooled: Pooled, drawn: str) -> list[Picture]:
    found: list[Picture] = []
    for (tuner, split), group in pooled.items():
        items = list(group.items())
        for start in range(0, len(items), _PANELS):
            if len(found) == MOST_PICTURES:
                found[-1] = _with_caption(found[-1], "More would make this page too large.")
                return found
            part = items[start : start + _PANELS]
            figure, _ = reliability_panels([b for _, b in part], [display(c) for c, _ in part])
            title = _where(tuner, split) + ", continued" * (start > 0)
            caption = (
                f"Accuracy against confidence; the numbers are those of the drawn bins{drawn}."
            )
            found.append(_picture(figure, title, caption, f"reliability{len(found)}"))
    return found


def _histograms(pooled: Pooled) -> list[Picture]:
    if not pooled:
        return []
    (tuner, split), group = next(iter(pooled.items()))
    names = list(dict.fromkeys((next(iter(group)), list(group)[-1])))
    figure, _ = confidence_histograms([group[n] for n in names], [display(n) for n in names])
    title = f"Right and wrong predictions: {_where(tuner, split)}"
    caption = (
        "Wrong predictions far to the right are the costly ones. The share axis is logarithmic."
    )
    return [_picture(figure, title, caption, "histogram")]


def _enough(cells: Group) -> bool:
    """Whether the lines of risk have a length: they begin at `FEW` images."""
    return min(each.n for each in cells.values()) >= 2 * FEW


def _risk_coverage(key: tuple[str, str], cells: Group, drawn: str) -> Picture:
    asked = precision_asked(next(iter(cells.values())))
    figure, _ = risk_coverage(list(cells.values()), [display(name) for name in cells], asked)
    caption = (
        "The share of wrong answers if only those above a threshold of confidence are given. Dots, "
        f"and the numbers beside, are the lowest threshold at which {100 * asked:g} % of the "
        f"answers are right, and the share still answered{drawn}."
    )
    if len(cells) > 1:
        caption += (
            " A calibrator that keeps the order of the images moves the threshold and leaves the "
            "line where it is."
        )
    return _picture(figure, f"What a threshold buys: {_where(*key)}", caption, f"risk-{key[1]}")


def _sensitivity(key: tuple[str, str], cells: Group, n_bins: int | None, drawn: str) -> Picture:
    names = [display(name) for name in cells]
    figure, _ = sensitivity(list(cells.values()), names, n_bins)
    caption = f"The error at 5 to 50 bins{drawn}. {best_sentence(list(cells.values()), names)}"
    if n_bins is not None:
        caption = f"{caption.rstrip()} The dotted line marks the {n_bins} bins of this page."
    title = f"Does the error depend on the bins? {_where(*key)}"
    return _picture(figure, title, caption, f"sensitivity-{key[1]}")


def _tradeoff(report: Report) -> list[Picture]:
    try:
        figure, _ = tradeoff(report.rows)
    except ValueError as reason:
        if "base and new" not in str(reason):
            raise
        return []
    caption = (
        "Each dot is an uncalibrated tuner, each arrow a calibrator: towards the lower left is "
        "better on both halves. Blue arrows lower the mean of the two errors, orange ones raise it."
    )
    return [_picture(figure, "Base against new classes", caption, "tradeoff")]


def _classes(report: Report) -> list[Picture]:
    classes, more = _most_predicted([c for c in report.classes if c.n])
    if not classes:
        return []
    caption = (
        "One mark per class: how sure the model is on average when it predicts the class, against "
        "how often it is right then. Below the diagonal it promises more than it keeps. Larger "
        f"marks have more predictions; point at one for its name.{more}"
    )
    svg = class_reliability_svg(classes, [display(name) for name in report.class_titles])
    width = 7.0 if all(c.after is not None for c in classes) else 3.75
    return [Picture("Reliability of every class", caption, svg, width)]


def _scatter(report: Report) -> list[Picture]:
    near = [c for c in report.classes if c.proximity is not None and c.n]
    classes, more = _most_predicted(near)
    if not classes:
        return []
    caption = (
        "One mark per class: how near its name is to the base classes, against how far confidence "
        f"exceeds accuracy. Larger marks have more predictions; point at one for its name.{more}"
    )
    svg = proximity_scatter_svg(classes, [display(name) for name in report.class_titles])
    width = 7.4 if all(c.after is not None for c in classes) else 4.2
    return [Picture("Which classes are over-confident", caption, svg, width)]


def _most_predicted(classes: Sequence[ClassRow]) -> tuple[list[ClassRow], str]:
    if len(classes) <= MOST_DOTS:
        return list(classes), ""
    chosen = sorted(classes, key=lambda c: -c.n)[:MOST_DOTS]
    return chosen, f" The {MOST_DOTS:,} most predicted classes are shown."


def _where(tuner: str, split: str) -> str:
    return f"{display(tuner)} on {where_of(split)}"


def _picture(figure: object, title: str, caption: str, name: str) -> Picture:
    width = figure.get_size_inches()[0]  # type: ignore[attr-defined]
    return Picture(title, caption, to_svg(figure, name, f"{title}. {caption}"), float(width))


def _with_caption(picture: Picture, more: str) -> Picture:
    return Picture(picture.title, f"{picture.caption} {more}", picture.svg, picture.width)
