"""Tables: a grid of texts as Markdown, CSV, LaTeX or plain text. Percent exists only here."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlcal.metrics import METRICS
from vlcal.reports.rows import Row
from vlcal.reports.summary import (
    HARMONIC,
    HIGHER_IS_BETTER,
    NO_DIRECTION,
    Cell,
    Summary,
    summarize,
)

SCORES = frozenset({"nll", "brier"})  # of the metrics, those that are no fractions
IN_PERCENT = frozenset(metric.__name__ for metric in METRICS) - SCORES
IN_PERCENT |= {"classwise_ece", "classwise_ece_thresholded"}
TITLES = {
    "accuracy": "Accuracy",
    "mean_confidence": "Confidence",
    "brier": "Brier",
    "signed_gap": "Signed gap",
    "overconfidence": "Over-confidence",
    "underconfidence": "Under-confidence",
    "average_ce": "Average CE",
    "ace_mean": "ACE mean",
    "mce_weighted": "MCE weighted",
    "rmsce_debiased": "RMSCE debiased",
    "classwise_ece": "Class-wise ECE",
    "classwise_ece_thresholded": "Class-wise ECE, thresholded",
}
_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?([eE][+-]?\d+)?")


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as percent without the unit: 0.0371 is "3.7"; never "-0.0"."""
    text = f"{100 * fraction:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def signed(fraction: float, digits: int = 1) -> str:
    """A gap in points, with its sign: "+3.7", "\N{MINUS SIGN}3.7" or "0.0"."""
    text = percent(fraction, digits)
    return "+" + text if float(text) > 0 else text.replace("-", "\N{MINUS SIGN}")


def show(metric: str, value: float | None, digits: int = 1) -> str:
    """A metric as shown everywhere: percent for fractions, three decimals for scores, or a dash.

    Scores are nll (nats), brier and every metric that is not known here.
    """
    if value is None:
        return "–"  # noqa: RUF001 - an en dash stands for "not measured"
    return percent(value, digits) if metric in IN_PERCENT else f"{value:.3f}"


@dataclass(frozen=True)
class Table:
    """A grid of texts with the cells to print bold and a caption that says what the numbers are."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    caption: str = ""
    texts: int = 2  # leading columns that hold names, aligned left


def result_table(
    rows: Sequence[Row], metrics: Sequence[str] = ("accuracy", "ece"), *, digits: int = 2
) -> Table:
    """The table of result rows: `summary_table(summarize(rows, metrics))`."""
    return summary_table(summarize(rows, metrics), digits=digits)


def summary_table(summary: Summary, *, digits: int = 2, separate: bool = False) -> Table:
    """A summary as texts; `separate` gives deviations columns of their own."""
    keys = [(name, column) for name in summary.metrics for column in summary.columns(name)]
    spread = [any(line.cells[key].deviation is not None for line in summary.lines) for key in keys]
    header, columns = ["Tuner", "Calibrator"], []
    for key, has_spread in zip(keys, spread, strict=True):
        cells = [line.cells[key] for line in summary.lines]
        header.append(_heading(*key))
        columns.append([_text(key[0], cell, digits, not separate) for cell in cells])
        if separate and has_spread:
            header.append(f"{_heading(*key)} sd")
            columns.append([show(key[0], cell.deviation, digits) for cell in cells])
    names = [[line.tuner for line in summary.lines], [line.calibrator for line in summary.lines]]
    grid = tuple(zip(*names, *columns, strict=True))
    best = frozenset() if separate else _best(summary, keys, digits)
    return Table(tuple(header), grid, best, caption(summary))


def caption(summary: Summary) -> str:
    """What the numbers of a summary are: unit, averages, deviation, convention."""
    shown = [n for n in summary.metrics if n in IN_PERCENT]
    parts = [f"{', '.join(title(n) for n in shown)} in percent" if shown else ""]
    if "nll" in summary.metrics:
        parts.append("NLL in nats")
    if summary.seeds > 1:
        parts.append(f"mean ± standard deviation over up to {summary.seeds} seeds")
    if len(summary.datasets) > 1:
        parts.append(f"averaged over {len(summary.datasets)} datasets")
    if "base" in summary.splits and "new" in summary.splits:
        joint = ["H is the harmonic mean of base and new"] if "accuracy" in summary.metrics else []
        if set(summary.metrics) - HARMONIC:
            joint.append("mean the arithmetic one")
        parts.append(", ".join(joint))
    parts.append(f"convention {summary.convention}")
    text = "; ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}."


def title(metric: str) -> str:
    """The name of a metric in a heading."""
    return TITLES.get(metric, metric.upper().replace("_", " "))


def markdown(table: Table) -> str:
    """GitHub Markdown with aligned columns and bold best cells."""
    best = {key: f"**{_md(table.rows[key[0]][key[1]])}**" for key in table.best}
    rows = [
        [best.get((i, j), _md(cell)) for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    rule = ["---" if j < table.texts else "---:" for j in range(len(table.header))]
    lines = [[_md(name) for name in table.header], rule, *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{_md(table.caption)}\n" if table.caption else text + "\n"


def csv_text(table: Table) -> str:
    """Comma-separated values; texts that look like a formula get a leading apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([[_inert(cell) for cell in row] for row in (table.header, *table.rows)])
    return file.getvalue()


def latex(table: Table) -> str:
    """A booktabs `tabular` with escaped texts and bold best cells."""
    lines = [" & ".join(_tex(name) for name in table.header) + r" \\", r"\midrule"]
    for i, row in enumerate(table.rows):
        cells = [
            rf"\textbf{{{_tex(c)}}}" if (i, j) in table.best else _tex(c) for j, c in enumerate(row)
        ]
        lines.append(" & ".join(cells) + r" \\")
    columns = "l" * table.texts + "r" * (len(table.header) - table.texts)
    head = [f"% {' '.join(table.caption.split())}"] if table.caption else []
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([*head, begin, r"\toprule", *lines, r"\bottomrule", end]) + "\n"


def plain(table: Table) -> str:
    """Aligned columns for a terminal; best cells end in an asterisk."""
    rows = [
        [
            _printable(cell) + ("*" if (i, j) in table.best else " " * (j >= table.texts))
            for j, cell in enumerate(row)
        ]
        for i, row in enumerate(table.rows)
    ]
    head = [name + " " * (j >= table.texts) for j, name in enumerate(table.header)]
    widths = [max(len(row[j]) for row in [head, *rows]) for j in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = [
        "  ".join(
            c.ljust(w) if j < table.texts else c.rjust(w)
            for j, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, rule, *rows]
    ]
    return "\n".join([*lines, "", table.caption] if table.caption else lines) + "\n"


def _heading(name: str, column: str) -> str:
    return f"{title(name)} {column}"


def _text(name: str, cell: Cell, digits: int, spread: bool) -> str:
    text = show(name, cell.mean, digits)
    if spread and cell.deviation is not None:
        text += f" ± {show(name, cell.deviation, digits)}"
    return text


def _best(
    summary: Summary, keys: Sequence[tuple[str, str]], digits: int
) -> frozenset[tuple[int, int]]:
    found = set()
    for j, (name, column) in enumerate(keys, 2):
        shown = [show(name, line.cells[name, column].mean, digits) for line in summary.lines]
        values = {float(s): s for s in shown if _NUMBER.fullmatch(s)}
        if name in NO_DIRECTION or len(values) < 2:
            continue
        winner = values[(max if name in HIGHER_IS_BETTER else min)(values)]
        found |= {(i, j) for i, s in enumerate(shown) if s == winner}
    return frozenset(found)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _md(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]|])", r"\\\1", _printable(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _inert(text: str) -> str:
    text = _printable(text)
    formula = text.lstrip().startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text)
    return "'" + text if formula else text


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {c: "\\" + c for c in "&%$#_{}"} | {"±": r"$\pm$", "–": "--"}  # noqa: RUF001


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in _printable(text))
