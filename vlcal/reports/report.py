"""What a report says, as data: the page is drawn from it, so a stored report can be drawn again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vlcal._files import sha256_of
from vlcal.metrics import CONVENTIONS
from vlcal.reports.cells import row_cells
from vlcal.reports.classes import ClassRow
from vlcal.reports.headline import chance, sentences
from vlcal.reports.notes import HOW_TO_READ
from vlcal.reports.rows import (
    Row,
    check_rows,
    one_convention,
    read_rows,
    read_text,
    row_bins,
    with_cells,
)

FORMAT = "vlcal-report-1"
Fact = str | int | float


@dataclass(frozen=True)
class Report:
    """A report before it is a page; numbers are unrounded fractions.

    Args:
        title: of the page.
        headline: sentences; the first is set large.
        about: one line that says what model and data these numbers are of.
        convention: name of the convention of every number.
        definition: the sentence that defines it.
        rows: result rows, one per evaluated split.
        cells: of each row its outcomes in fine cells, see `vlcal.reports.cells`, or None; or
            nothing at all. With them the page also shows risk against coverage and the error at
            every number of bins.
        classes: per-class rows; empty leaves out their table and picture.
        class_titles: what `before` and `after` of the classes are.
        facts: how the numbers came to be: command, versions, seeds, hashes, seconds, machine.
        notes: (title, text) of the "how to read this" foldouts.
    """

    title: str
    headline: tuple[str, ...]
    about: str
    convention: str
    definition: str
    rows: tuple[dict[str, Any], ...]
    cells: tuple[dict[str, Any] | None, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    class_titles: tuple[str, str] = ("before", "after")
    facts: dict[str, Fact] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = HOW_TO_READ

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Row],
        *,
        title: str = "Calibration report",
        about: str = "",
        definition: str | None = None,
        classes: Sequence[ClassRow] = (),
        class_titles: tuple[str, str] = ("before", "after"),
        facts: Mapping[str, Fact] | None = None,
    ) -> Report:
        """A report whose headline, convention and facts come from the rows, after `facts`.

        What a row holds as `cells` moves to the cells of the report.

        Raises:
            ValueError: the rows break the contract, mix conventions, or use a convention that vlcal
                does not know and that `definition` does not define.
        """
        checked = tuple(check_rows(rows, "Report.from_rows"))
        for row in checked:
            row_bins(row)
            row_cells(row)
        cells = tuple(row.pop("cells", None) for row in checked)
        convention = one_convention(checked, "Report.from_rows")
        return cls(
            title=title,
            headline=tuple(text for text in (*sentences(checked), chance(checked)) if text),
            about=about or _about(checked),
            convention=convention,
            definition=definition or _definition(convention),
            rows=checked,
            cells=cells if any(cells) else (),
            classes=tuple(classes),
            class_titles=class_titles,
            facts={**(facts or {}), **_facts(checked)},
        )

    @property
    def rows_with_cells(self) -> list[dict[str, Any]]:
        """The rows, each with its `cells` where there are any."""
        cells = self.cells or (None,) * len(self.rows)
        return [{**row, "cells": own} for row, own in zip(self.rows, cells, strict=True)]

    def to_json(self) -> str:
        """The report as strict JSON text; numbers that are not finite become null."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, path: str | Path) -> Report:
        """Read a `report.json`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is truncated, no JSON, not a report, or a field is not what it
                should be.
        """
        who = f"Report.from_json: {path}"
        text = read_text(path, "Report.from_json")
        try:
            content = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{who} is not readable JSON (truncated?): {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{who} is not a report of this version ({FORMAT} expected)")
        content.setdefault("cells", [])  # reports of earlier versions have none
        known = {f.name for f in fields(cls)}
        if set(content) != known:
            wrong = sorted(set(content) ^ known)
            raise ValueError(f"{who}: missing or unknown fields: {', '.join(map(str, wrong))}")
        return cls(**_parse(content, who))


def read_report(path: str | Path, convention: str | None = None) -> Report:
    """A report from a `report.json`, or made anew from a JSON-lines file of result rows.

    A folder stands for the `results.jsonl` in it. Fine cells are taken from `cells.jsonl` beside
    the rows, where there is one. Lines that a killed run left torn are left out, counted in the
    facts and logged. Rows of other conventions than `convention` are left out, if one is given.

    Raises:
        ValueError: no row is of that convention; or what `Report` says.
    """
    if Path(path).is_dir():
        path = Path(path) / "results.jsonl"
    if Path(path).suffix == ".jsonl":
        rows, torn = read_rows(path)
        rows = with_cells(_of(rows, convention, path), path)
        return Report.from_rows(rows, facts={"unreadable lines": torn} if torn else None)
    report = Report.from_json(path)
    _of(report.rows, convention, path)
    return report


def _of(rows: Sequence[Row], convention: str | None, path: str | Path) -> list[Row]:
    found = [row for row in rows if convention in (None, row["convention"])]
    if not found:
        known = ", ".join(sorted({row["convention"] for row in rows}))
        raise ValueError(f"read_report: {path} has rows of {known}, got convention {convention!r}")
    return found


def _parse(content: dict[str, Any], who: str) -> dict[str, Any]:
    for name in ("title", "about", "convention", "definition"):
        _check(isinstance(content[name], str), who, name, "a text")
    _check(_texts(content["headline"]), who, "headline", "a list of texts")
    pair = content["class_titles"]
    _check(_texts(pair) and len(pair) == 2, who, "class_titles", "two texts")
    facts, notes = content["facts"], content["notes"]
    good = isinstance(facts, dict) and all(_is_fact(value) for value in facts.values())
    _check(good, who, "facts", "an object of texts and numbers")
    good = isinstance(notes, list) and all(_texts(note) and len(note) == 2 for note in notes)
    _check(good, who, "notes", "a list of [title, text]")
    for name in ("rows", "cells", "classes"):
        _check(isinstance(content[name], list), who, name, "a list")
    rows = check_rows(content["rows"], who)
    for row in rows:
        row_bins(row)
    cells = content["cells"]
    _check(len(cells) in (0, len(rows)), who, "cells", "one per row, or none")
    for own in cells:
        row_cells({"cells": own})
    _check(
        one_convention(rows, who) == content["convention"], who, "convention", "that of its rows"
    )
    return {
        **content,
        "headline": tuple(content["headline"]),
        "class_titles": tuple(pair),
        "rows": tuple(rows),
        "cells": tuple(cells),
        "classes": tuple(_class_row(c, i, who) for i, c in enumerate(content["classes"])),
        "notes": tuple((title, text) for title, text in notes),
    }


def _class_row(content: object, i: int, who: str) -> ClassRow:
    known = [f.name for f in fields(ClassRow)]
    good = (
        isinstance(content, dict)
        and set(content) == set(known)
        and all(_fits(name, value) for name, value in content.items())
    )
    _check(good, who, f"classes[{i}]", f"an object of {', '.join(known)}")
    return ClassRow(**content)  # type: ignore[arg-type]


def _fits(name: str, value: object) -> bool:
    if value is None:
        return name in ("base", "after", "proximity", "nearest")
    if name in ("name", "nearest"):
        return isinstance(value, str)
    if name == "base":
        return isinstance(value, bool)
    return isinstance(value, int if name == "n" else int | float) and not isinstance(value, bool)


def _check(good: bool, who: str, name: str, what: str) -> None:
    if not good:
        raise ValueError(f"{who}: {name} must be {what}")


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_fact(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("an object names a key twice")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _definition(convention: str) -> str:
    known = {c.name: f"{c.about} ({c.source})." for c in CONVENTIONS}
    if convention not in known:
        raise ValueError(
            f"Report.from_rows: convention {convention!r} is not one of {', '.join(known)}; "
            "give its definition"
        )
    return known[convention]


def _about(rows: Sequence[Row]) -> str:
    return f"Data: {_list(rows, 'dataset')}. Tuners: {_list(rows, 'tuner')}."


def _facts(rows: Sequence[Row]) -> dict[str, Fact]:
    facts: dict[str, Fact] = {"evaluated splits": len(rows)}
    told = (("datasets", "dataset"), ("models", "clip"), ("prompts", "template"))
    for name, key in (*told, ("shots", "shots"), ("seeds", "seed")):
        if text := _list(rows, key):
            facts[name] = text
    seconds = [row["seconds"] for row in rows if _is_fact(row.get("seconds"))]
    if seconds and not any(isinstance(value, str) for value in seconds):
        facts["seconds in all rows"] = round(float(sum(seconds)), 1)
    versions = {json.dumps(row["versions"], sort_keys=True) for row in rows if row.get("versions")}
    for i, text in enumerate(sorted(versions)):
        content = json.loads(text)
        pairs = content.items() if isinstance(content, dict) else [("", content)]
        facts[f"versions {i + 1}" if len(versions) > 1 else "versions"] = ", ".join(
            f"{name} {version}".strip() for name, version in pairs
        )
    facts["hash of the rows"] = sha256_of(_finite([dict(row) for row in rows]))
    return facts


def _list(rows: Sequence[Row], key: str) -> str:
    return ", ".join(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))
