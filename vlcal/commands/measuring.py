"""The commands that measure and show: evaluate, report, info."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vlcal import info as installation
from vlcal._files import write_atomic
from vlcal.commands.answers import Answer, told, words
from vlcal.evaluation import Evaluation
from vlcal.evaluation import evaluate as evaluate_arrays
from vlcal.experiment import Progress
from vlcal.inputs import Arrays, read_array, read_names, read_predictions, read_units
from vlcal.metrics import CONVENTIONS
from vlcal.reports import (
    csv_text,
    latex,
    markdown,
    read_report,
    reliability_panels,
    summarize,
    write_report,
)
from vlcal.reports.tables import summary_table
from vlcal.types import Predictions
from vlcal.writeup import near_images, write_up_arrays

# by the end of the file's name: how a table is written, and whether deviations stand apart
TABLES = {".csv": (csv_text, True), ".md": (markdown, False), ".tex": (latex, False)}


def evaluate(
    progress: Progress,
    given: Arrays,
    *,
    confidence: str | None = None,
    correct: str | None = None,
    predictions: str | None = None,
    proximity: str | None = None,
    val_image_features: str | None = None,
    convention: str = "standard",
    bad: Literal["error", "drop", "propagate"] = "error",
    classwise: bool = False,
    trust: bool = False,
    plot: str | None = None,
    report: str | None = None,
) -> Answer:
    """Measure accuracy and calibration under named conventions.

    Arrays are .npy files, or FILE.npz:NAME. What an array is is said by its flag, never guessed.

    Args:
        confidence: [N], with --correct.
        correct: [N] bool.
        predictions: a file written by vlcal predict or vlcal calibrate.
        proximity: [N] in 0..1, for PIECE.
        val_image_features: [M, D] of hold-out images, from which --image-features get a proximity.
        convention: comma-separated names, or all; each gets its own numbers.
        bad: what to do with rows that are not finite or have no label: error, drop or propagate.
        classwise: also measure class-wise ECE, plain and thresholded.
        trust: do not check values: not finite, sums of probabilities, logits that look like
            cosines.
        plot: .svg, .pdf or .png for the reliability diagram.
        report: folder for report.html and report.json, one folder in it per convention if several.
    """
    names = _conventions(convention)
    arrays = _arrays(given, confidence, correct, predictions, trust)
    if proximity is not None and val_image_features is not None:
        raise ValueError("evaluate: give --proximity or --val-image-features, not both")
    if val_image_features is not None and given.image_features is None:
        raise ValueError("evaluate: --val-image-features needs --image-features")
    near = None if proximity is None else read_array(proximity)
    images, hold_out = read_units(given.image_features), read_units(val_image_features)
    options = {"bad": bad, "classwise": classwise, "validate": not trust}
    found = [
        evaluate_arrays(
            **arrays,
            **options,
            proximity=near if hold_out is None else near_images(images, hold_out, name),
            convention=name,
        )
        for name in names
    ]
    lines = ["\n\n".join(map(str, found))]
    if plot is not None:
        lines.append(_plotted(found, plot))
    if report is not None:
        labels = None if given.classes is None else read_names(given.classes)
        lines += [str(page) for page in _reported(found, report, labels)]
    facts = [each.to_dict() for each in found]
    return Answer(facts[0] if len(facts) == 1 else {"conventions": facts}, "\n".join(lines))


def report(
    progress: Progress,
    source: str,
    *,
    convention: str | None = None,
    metrics: str = "accuracy,ece",
    table: str | None = None,
    out: str = "vlcal-report",
) -> Answer:
    """Write the report of stored results: a results.jsonl, or the report.json of an older report.

    Args:
        source: the file, or the folder of the results.jsonl.
        convention: whose rows are taken, where the file holds those of several.
        metrics: comma-separated names, the columns of the table.
        table: also write the table, as .csv (deviations in columns of their own), .md or .tex.
        out: folder for report.html and report.json.
    """
    if table is not None and Path(table).suffix not in TABLES:
        raise ValueError(f"report: --table must end in one of {', '.join(TABLES)}, got {table!r}")
    made = read_report(source, convention)
    wanted = words(metrics)
    known = sorted({name for row in made.rows for name in row["metrics"]})
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(
            f"report: unknown metric {unknown[0]!r}; these rows hold {', '.join(known)}"
        )
    answer = told(made, write_report(out, made), wanted)
    if table is None:
        return answer
    write, separate = TABLES[Path(table).suffix]
    write_atomic(table, write(summary_table(summarize(made.rows, wanted), separate=separate)))
    return Answer(answer.data | {"table": table}, f"{answer.text}\n{table}")


def info(progress: Progress) -> Answer:
    """Show versions, devices, and which backends each operation has here, with reasons."""
    facts = installation.collect()
    return Answer(facts, installation.text(facts))


def _conventions(text: str) -> list[str]:
    names = [each.name for each in CONVENTIONS] if text == "all" else words(text)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"evaluate: --convention needs distinct names, got {text!r}")
    return names


def _arrays(
    given: Arrays,
    confidence: str | None,
    correct: str | None,
    predictions: str | None,
    trust: bool,
) -> dict[str, Any]:
    """The arguments of `vlcal.evaluate`; it refuses none and several kinds."""
    named = {"logits": given.logits, "probs": given.probs}
    named |= {"confidence": confidence, "correct": correct}
    arrays: dict[str, Any] = {k: read_array(v) for k, v in named.items() if v is not None}
    if predictions is not None:
        arrays["predictions"] = Predictions.load(predictions)
    elif not arrays and (given.image_features or given.text_features or given.logit_scale):
        together = (given.image_features, given.text_features, given.logit_scale, given.labels)
        if None in together:
            raise ValueError(
                "evaluate: --image-features, --text-features, --logit-scale and --labels go "
                "together"
            )
        arrays["predictions"] = read_predictions("evaluate", given, trust=trust)[0]
    if given.labels is not None and (predictions is not None or "predictions" not in arrays):
        arrays["labels"] = read_array(given.labels)
    return arrays


def _plotted(found: list[Evaluation], plot: str) -> str:
    titles = [f"convention {each.convention.name}" for each in found]
    figure, _ = reliability_panels([each.bins for each in found], titles)
    figure.savefig(plot)
    return plot


def _reported(found: list[Evaluation], folder: str, names: tuple[str, ...] | None) -> list[Path]:
    pages = []
    for each in found:
        out = Path(folder) / each.convention.name if len(found) > 1 else Path(folder)
        made = write_up_arrays({"none": each}, title="Calibration of given arrays", names=names)
        pages.append(write_report(out, made))
    return pages
