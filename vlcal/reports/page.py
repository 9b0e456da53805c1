"""A report as one self-contained HTML page and its machine twin."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from vlcal._files import write_atomic
from vlcal._optional import optional
from vlcal.reports import figures
from vlcal.reports.classes import worst_first
from vlcal.reports.headline import display
from vlcal.reports.pictures import pictures
from vlcal.reports.report import Report
from vlcal.reports.summary import summarize
from vlcal.reports.tables import percent, signed, summary_table

SHOWN_FIRST = 20  # classes; the others appear on demand
MOST_CLASSES = 2000  # in the page; report.json holds all
_FIRST = ("accuracy", "ece")
_MORE = ("mean_confidence", "ace", "mce", "mce_weighted", "piece", "nll", "brier")
_TEMPLATE = Path(__file__).with_name("page.html")


def write_report(folder: str | Path, report: Report) -> Path:
    """Write `report.html` and `report.json` into a folder and return the path of the page.

    The page needs no network and no other file, works without its script, prints on A4 and follows
    the color scheme of the reader. Texts are escaped, the content policy of the page allows its one
    script only. Both files are replaced whole. The same report gives the same bytes.

    Raises:
        ImportError: matplotlib or jinja2 is missing.
        ValueError: the rows cannot stand in one table; see `summarize`.
    """
    page = render(report)
    write_atomic(Path(folder) / "report.json", report.to_json())
    path = Path(folder) / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def render(report: Report) -> str:
    """The page as HTML text."""
    jinja2 = optional("jinja2", "report", "write_report")
    source = _TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, signed=signed, display=display)
    worst = worst_first(report.classes)
    return environment.from_string(source).render(
        report=report,
        summary=summary_table(summarize(report.rows, _FIRST)),
        details=_details(report),
        pictures=pictures(report),
        classes=worst[:MOST_CLASSES],
        halves=any(row.base is not None for row in worst),
        calibrated=any(row.after is not None for row in worst),
        near=any(row.proximity is not None for row in worst),
        shown_first=SHOWN_FIRST,
        largest_gap=max((abs(row.gap) for row in worst), default=1.0) or 1.0,
        palette=_palette(),
        script_hash=_script_hash(source),
    )


def _details(report: Report) -> list[Any]:
    measured = {
        name for row in report.rows for name, value in row["metrics"].items() if value is not None
    }
    more = [name for name in _MORE if name in measured]
    more += sorted(measured - {*_FIRST, *_MORE})
    chunks = [more[i : i + 3] for i in range(0, len(more), 3)]
    return [summary_table(summarize(report.rows, chunk)) for chunk in chunks]


def _palette() -> dict[str, str]:
    names = ("INK", "MUTED", "RULE", "BAR", "PAPER", "OVER", "UNDER", "RIGHT", "WRONG")
    return {name.lower(): getattr(figures, name) for name in names}


def _script_hash(source: str) -> str:
    found = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    assert found is not None
    return base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
