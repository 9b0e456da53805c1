"""From result rows of base-to-new runs to tables, and to whether the papers' findings are seen."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlcal._files import write_atomic
from vlcal.reports import markdown, result_table
from vlcal.reports.summary import distinct_rows
from vlcal.reports.tables import Table, signed

HERE = Path(__file__).parent / "results"
METRICS = ("accuracy", "ece", "ace", "mce", "mce_weighted", "piece")
COMMAND = "python -m benchmarks.base_to_new OUT --write"

Row = Mapping[str, Any]
Values = dict[tuple[str, str, str, int], Row]  # by tuner, calibrator, split and seed


def write(rows: Sequence[Row], methods: Mapping[str, Any]) -> None:
    """`results/icons-base-to-new.md` and the rows behind it as CSV."""
    rows = sorted(distinct_rows(rows), key=_order(list(methods)))
    write_atomic(HERE / "icons-base-to-new.csv", as_csv(rows))
    write_atomic(HERE / "icons-base-to-new.md", as_markdown(rows, methods))


def as_csv(rows: Iterable[Row]) -> str:
    """One line per tuner, calibrator, split and seed; fractions, not percent."""
    rows = list(rows)
    names = list(rows[0]["metrics"])
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ("tuner", "calibrator", "split", "seed", "n")
    writer.writerow([*head, *names])
    for row in rows:
        values = [row["metrics"][name] for name in names]
        texts = ["" if value is None else f"{value:.6f}" for value in values]
        writer.writerow([*(row[name] for name in head), *texts])
    return file.getvalue()


def as_markdown(rows: Sequence[Row], methods: Mapping[str, Any]) -> str:
    """The page: how, the table, the gaps, the findings."""
    seeds = sorted({row["seed"] for row in rows})
    sizes = {row["split"]: row["n"] for row in rows}
    recipes = "\n".join(f"- {recipe(row)}" for row in _first_of_each(rows))
    return f"""# Prompt tuners on the bundled icons, base to new

`{COMMAND}`; seeds {", ".join(map(str, seeds))}, 16 shots of each of the base classes,
{sizes["base"]} base and {sizes["new"]} new test images, fp32, one thread. The model is small (8 M
parameters) and good at these classes before any tuning, so effects are smaller than the papers' on
CLIP ViT-B/16. The rows of every seed are in `icons-base-to-new.csv`.

Settings: each tuner's `upstream` (ProDA: `dac2024`), but for what a small model and two CPU cores
ask for; nothing is augmented:

{recipes}

## All metrics

{markdown(result_table(rows, METRICS))}
## Signed gap, mean confidence minus accuracy

{markdown(gaps(rows))}
## What the papers found, and what is seen here

{markdown(findings(rows))}
"""


def recipe(row: Row) -> str:
    """What was tuned and how, in one line."""
    options = ", ".join(f"{name} {value}" for name, value in row["options"].items())
    how = row["recipe"]
    return (
        f"`{row['tuner']}`: {how['epochs']} epochs, rate {how['lr']}, batch {how['batch_size']}; "
        f"{options or 'no options'}"
    )


def gaps(rows: Sequence[Row]) -> Table:
    """Mean confidence minus accuracy of the uncalibrated models, in points."""
    found = by_name(rows)
    lines = []
    for tuner in dict.fromkeys(name for name, *_ in found):
        cells = []
        for split in ("base", "new"):
            each = [gap(row) for key, row in found.items() if key[:3] == (tuner, "none", split)]
            cells.append(f"{signed(statistics.fmean(each), 2)} ({', '.join(map(signed, each))})")
        lines.append((tuner, *cells))
    header = ("Tuner", "base (by seed)", "new (by seed)")
    return Table(header, tuple(lines), texts=1)


def findings(rows: Sequence[Row]) -> Table:
    """Every claim with the difference that decides it, seed by seed."""
    found = by_name(rows)
    lines = [
        _claim(found, "CoOp is over-confident on new classes", "coop", "new", 1),
        _claim(found, "KgCoOp is under-confident on base classes", "kgcoop", "base", -1),
        _less(found, "CoOp's new-class ECE is above zero-shot's", ("coop",), ("zero_shot",)),
    ]
    tuners = [name for name in dict.fromkeys(name for name, *_ in found) if name != "zero_shot"]
    for tuner in tuners:
        if f"{tuner}+dor" in tuners:
            claim = f"DOR lowers the new-class ECE of {tuner}"
            lines.append(_less(found, claim, (tuner,), (f"{tuner}+dor",)))
    for tuner in tuners:
        claim = f"DAC lowers the new-class ECE of {tuner}"
        lines.append(_less(found, claim, (tuner,), (tuner, "dac")))
    caption = (
        "Points of signed gap, or of ECE that are gained. Seen: the claimed sign in every seed. "
        "A difference of a few tenths is within chance on so few images."
    )
    return Table(("Claim", "By seed", "Mean", "Seen"), tuple(lines), caption=caption, texts=1)


def by_name(rows: Sequence[Row]) -> Values:
    """The rows by tuner, calibrator, split and seed."""
    return {(r["tuner"], r["calibrator"], r["split"], r["seed"]): r for r in rows}


def gap(row: Row) -> float:
    """Mean confidence minus accuracy."""
    return row["metrics"]["mean_confidence"] - row["metrics"]["accuracy"]


def _claim(found: Values, text: str, tuner: str, split: str, sign: int) -> tuple[str, ...]:
    each = [gap(row) for key, row in found.items() if key[:3] == (tuner, "none", split)]
    return _line(text, each, sign)


def _less(
    found: Values, text: str, first: tuple[str, ...], second: tuple[str, ...]
) -> tuple[str, ...]:
    """Whether `second` has a lower new-class ECE than `first`; each is (tuner[, calibrator])."""
    a, b = ((*name, "none")[:2] for name in (first, second))
    seeds = [seed for *name, seed in found if (*name,) == (*a, "new")]
    each = [
        found[(*a, "new", seed)]["metrics"]["ece"] - found[(*b, "new", seed)]["metrics"]["ece"]
        for seed in seeds
        if (*b, "new", seed) in found
    ]
    return _line(text, each, 1)


def _line(text: str, each: Sequence[float], sign: int) -> tuple[str, ...]:
    agree = sum(value * sign > 0 for value in each)
    seen = "yes" if agree == len(each) else "no" if agree == 0 else f"in {agree} of {len(each)}"
    shown = ", ".join(signed(value, 2) for value in each)
    return text, shown, signed(statistics.fmean(each), 2), seen


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    kept: dict[str, Row] = {}
    for row in rows:
        if "+" not in row["tuner"] and row["tuner"] != "zero_shot":
            kept.setdefault(row["tuner"], row)
    return list(kept.values())


def _order(tuners: Sequence[str]) -> Any:
    calibrators = ("none", "ts", "dac")

    def key(row: Row) -> tuple[Any, ...]:
        name, _, more = row["tuner"].partition("+")
        place = tuners.index(name) + 1 if name in tuners else 0
        return place, more, calibrators.index(row["calibrator"]), row["seed"], row["split"]

    return key
