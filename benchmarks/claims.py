"""Claims of the papers, each looked up in the measured values: what is seen, and where not."""

from __future__ import annotations

import statistics
from collections.abc import Callable

Key = tuple[str, str, str, str]  # calibrator, half, convention, metric
Table = dict[str, dict[Key, list[float]]]  # by data set, one value a seed
Value = Callable[[str, str, str], float]  # mean by calibrator, half and metric

RULE = "standard"
MISSING = "not measured"
NOISE = 0.2  # percent: smaller differences are called none


def claims(tables: Table) -> str:
    """A Markdown table: one line a claim, one column a data set, with the numbers compared."""
    lines = [f"| claim | seen | {' | '.join(tables)} |", "|---" * (2 + len(tables)) + "|"]
    for sentence, compare in CLAIMS.items():
        cells = [_cell(compare, table) for table in tables.values()]
        measured = [cell for cell in cells if cell != MISSING]
        seen = f"{sum(cell.startswith('yes') for cell in measured)} of {len(measured)}"
        lines.append(f"| {sentence} | {seen} | {' | '.join(cells)} |")
    lines.append(
        f"\nConvention `{RULE}`, means over seeds; *no difference* is less than {NOISE} percent."
    )
    return "\n".join(lines)


def _values(table: dict[Key, list[float]]) -> Value:
    """Means over seeds; a KeyError where a calibrator refused."""
    return lambda name, half, metric: statistics.mean(table[name, half, RULE, metric])


def _cell(compare: Callable[[Value], tuple[float, float]], table: dict) -> str:
    try:
        small, large = compare(_values(table))
    except KeyError:
        return MISSING
    seen = "no difference" if abs(large - small) < NOISE else "yes" if small < large else "no"
    return f"{seen}: {small:.1f} against {large:.1f}"


def lower(
    name: str, other: str, half: str, metric: str = "ece"
) -> Callable[[Value], tuple[float, float]]:
    """A calibrator has less error than another on a half."""
    return lambda value: (value(name, half, metric), value(other, half, metric))


def gap(value: Value) -> tuple[float, float]:
    """Tuning costs more calibration on new than on base classes."""
    return (
        value("none", "base", "ece") - value("untuned", "base", "ece"),
        value("none", "new", "ece") - value("untuned", "new", "ece"),
    )


# sentences say what is below: the first number of a cell belongs to what they claim to be lower
CLAIMS: dict[str, Callable[[Value], tuple[float, float]]] = {
    "tuning raises ECE less on base than on new classes (DAC paper)": gap,
    "temperature scaling lowers ECE on base classes": lower("ts", "none", "base"),
    "but not on new classes: untouched is lower there (DAC paper)": lower("none", "ts", "new"),
    "DAC lowers ECE on new classes (DAC paper)": lower("dac", "none", "new"),
    "CAC lowers ECE on base classes (CAC paper)": lower("cac", "none", "base"),
    "CAC lowers ECE on new classes (CAC paper)": lower("cac", "none", "new"),
    "CAC is below DAC on new classes (CAC paper)": lower("cac", "dac", "new"),
    "CAC without the shift that softmax does not see is below CAC, base": lower(
        "cac, centered", "cac", "base"
    ),
    "the same, new": lower("cac, centered", "cac", "new"),
    "SaLS lowers ECE on base classes": lower("sals", "none", "base"),
    "SaLS lowers ECE on new classes (its paper: under shift)": lower("sals", "none", "new"),
    "histogram binning lowers ECE on base classes": lower("hb", "none", "base"),
    "one-versus-rest isotonic lowers ECE on base classes": lower("ir", "none", "base"),
    "multi-isotonic lowers ECE on base classes": lower("mir", "none", "base"),
    "multi-isotonic lowers ECE on new classes": lower("mir", "none", "new"),
    "density ratio lowers PIECE on base classes": lower("den", "none", "base", "piece"),
    "density ratio lowers PIECE on new classes": lower("den", "none", "new", "piece"),
}
