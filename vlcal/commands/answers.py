"""What a command has to say, and the words of its flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlcal.reports import Report, plain, result_table


class Answer(NamedTuple):
    """What a command has to say: for programs, and for people."""

    data: dict[str, Any]
    text: str


def told(report: Report, page: Path, metrics: Sequence[str] = ("accuracy", "ece")) -> Answer:
    """The report as data without the cells of its pictures, and its table and headline as text."""
    text = "\n".join(
        [plain(result_table(report.rows, metrics)).rstrip(), "", *report.headline, "", str(page)]
    )
    data = json.loads(report.to_json()) | {"page": str(page)}
    del data["cells"]
    return Answer(data, text)


def words(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def seed_numbers(text: str) -> list[int]:
    """The distinct integers between commas."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"seeds must be integers with commas between, got {text!r}") from error
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be distinct, got {text!r}")
    return seeds
