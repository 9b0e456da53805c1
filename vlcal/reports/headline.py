"""The headline of a report: what was measured, in words, whatever direction the numbers go."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlcal.metrics import wilson_interval
from vlcal.reports.rows import Row, check_rows, metric
from vlcal.reports.summary import Line, summarize
from vlcal.reports.tables import percent, signed

MOST_NAMED = 3  # calibrators; of more, only the best and the worst are named
_DISPLAY = {
    "zero_shot": "Zero-shot CLIP",
    "zero-shot": "Zero-shot CLIP",
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "proda": "ProDA",
    "kgcoop": "KgCoOp",
    "maple": "MaPLe",
    "prograd": "ProGrad",
    "promptsrc": "PromptSRC",
    "none": "uncalibrated",
    "given": "The model",
    "sals": "SaLS",
}
_WHERE = {"base": "base classes", "new": "new classes", "test": "the test data"}


def display(name: str) -> str:
    """The name of a tuner or calibrator as the papers write it; short unknown ones are acronyms.

    Of names joined by `+`, as in "coop+dor" and "ts+dac", each is written so; what follows a comma,
    as in "coop, shots 4", is put into parentheses.
    """
    name, comma, more = name.partition(", ")
    if comma:
        return f"{display(name)} ({more})"
    if "+" in name.strip("+"):
        return "+".join(display(part) for part in name.split("+"))
    return _DISPLAY.get(name, name.upper() if len(name) <= 4 and name.islower() else name)


def where_of(split: str) -> str:
    """A split in words, as in "on new classes"."""
    return _WHERE.get(split, f"the {split} split")


def headline(rows: Sequence[Row], tuner: str | None = None) -> str:
    """One sentence per split, new classes first: the gap, then what calibrators did.

    Numbers are averages as in `summarize`, rounded to 0.1 points; "unchanged" means equal after
    that rounding (accuracy: equal before it). Without `tuner` it speaks about the tuner that comes
    last in the rows.
    """
    return " ".join(sentences(rows, tuner))


def sentences(rows: Sequence[Row], tuner: str | None = None) -> tuple[str, ...]:
    """The sentences of `headline`."""
    summary = summarize(rows, ("accuracy", "mean_confidence", "ece"))
    known = list(dict.fromkeys(line.tuner for line in summary.lines))
    chosen = known[-1] if tuner is None else tuner
    if chosen not in known:
        raise ValueError(f"headline: tuner must be one of {', '.join(known)}, got {chosen!r}")
    lines = [line for line in summary.lines if line.tuner == chosen]
    order = sorted(summary.splits, key=lambda split: split != "new")
    return tuple(text for split in order if (text := _sentence(lines, split)))


def chance(rows: Sequence[Row]) -> str:
    """A sentence: how far chance moves an accuracy where it moves it most.

    Half of Wilson's 95 % interval, which has a width at an accuracy of 0 or 1, too.
    """
    widths = [
        (_half_width(accuracy, row["n"]), row["n"])
        for row in check_rows(rows, "chance")
        if isinstance(row.get("n"), int) and row["n"] > 0
        if (accuracy := metric(row, "accuracy")) is not None and 0 <= accuracy <= 1
    ]
    if not widths:
        return ""
    half, n = max(widths)
    return (
        f"With {n:,} images, chance alone moves an accuracy, and so a gap, by about "
        f"{percent(half)} points either way (95 %)."
    )


def _half_width(accuracy: float, n: int) -> float:
    low, high = wilson_interval(torch.tensor(round(accuracy * n)), torch.tensor(n))
    return float(high - low) / 2


def _sentence(lines: Sequence[Line], split: str) -> str:
    before = next((line for line in lines if line.calibrator == "none"), lines[0])
    name = display(before.tuner)
    if before.calibrator != "none":
        name += f" with {display(before.calibrator)}"
    parts = [_confidence(before, split, name)]
    after = [
        line for line in lines if line is not before and _value(line, split, "ece") is not None
    ]
    if _value(before, split, "ece") is not None:
        parts[0] += "" if after else f" (ECE {percent(_ece(before, split))} %)"
        if after:
            parts.append(_errors(before, after, split))
    elif not parts[0]:
        return ""
    return "; ".join(part for part in parts if part) + "."


def _confidence(line: Line, split: str, name: str) -> str:
    where = where_of(split)
    accuracy, confidence = (_value(line, split, m) for m in ("accuracy", "mean_confidence"))
    if accuracy is None or confidence is None:
        return f"{name} was measured on {where}"
    points = percent(abs(confidence - accuracy))
    if float(points) == 0:
        return f"{name} is on average neither over- nor under-confident on {where}"
    direction = "over" if confidence > accuracy else "under"
    return f"{name} is {direction}-confident on {where} by {points} points"


def _errors(before: Line, after: Sequence[Line], split: str) -> str:
    old = percent(_ece(before, split))
    if len(after) > MOST_NAMED:
        texts = _extremes(old, after, split)
        return "; ".join([texts, _accuracies(before, after, split)]).removesuffix("; ")
    texts = []
    for i, line in enumerate(after):
        new = percent(_ece(line, split))
        what = "it" if i else "the error (ECE)"
        start = "" if i else f"from {old} "
        if new == old:
            change = f"leaves {what} unchanged at {old} %"
        else:
            verb = "lowers" if float(new) < float(old) else "raises"
            change = f"{verb} {what} {start}to {new} %"
        texts.append(f"{display(line.calibrator)} {change}")
    return ", ".join([*texts, _accuracy(before, after, split)]).removesuffix(", ")


def _extremes(old: str, after: Sequence[Line], split: str) -> str:
    ordered = sorted(after, key=lambda line: _ece(line, split))
    (best, low), (worst, high) = (
        (display(line.calibrator), percent(_ece(line, split))) for line in (ordered[0], ordered[-1])
    )
    if low == high:
        return f"all {len(after)} calibrators take the error (ECE) from {old} to {low} %"
    return (
        f"of {len(after)} calibrators, {best} gives the lowest error (ECE), {low} % after {old} %, "
        f"and {worst} the highest, {high} %"
    )


def _accuracies(before: Line, after: Sequence[Line], split: str) -> str:
    old = _value(before, split, "accuracy")
    new = {line.calibrator: _value(line, split, "accuracy") for line in after}
    if old is None or None in new.values():
        return ""
    moved = {display(n): v - old for n, v in new.items() if v is not None and abs(v - old) > 1e-9}
    if not moved:
        return "accuracy unchanged"
    names, most = list(moved), max(moved.values(), key=abs)
    who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    points = f"{signed(most)} points"
    return f"accuracy changes with {who} only, by {'up to ' * (len(names) > 1)}{points}"


def _accuracy(before: Line, after: Sequence[Line], split: str) -> str:
    old = _value(before, split, "accuracy")
    changes = [(line, _value(line, split, "accuracy")) for line in after]
    if old is None or any(new is None for _, new in changes):
        return ""
    moved = [(line, new) for line, new in changes if new is not None and abs(new - old) > 1e-9]
    if not moved:
        return "accuracy unchanged"
    texts = []
    for line, new in moved:
        who = f" with {display(line.calibrator)}" if len(after) > 1 else ""
        if percent(new) == percent(old):
            texts.append(f"accuracy{who} changed by less than 0.1 points")
        else:
            verb = "falls" if new < old else "rises"
            texts.append(f"accuracy{who} {verb} from {percent(old)} to {percent(new)} %")
    return ", ".join(texts)


def _value(line: Line, split: str, name: str) -> float | None:
    return line.cells[name, split].mean


def _ece(line: Line, split: str) -> float:
    value = _value(line, split, "ece")
    assert value is not None
    return value
