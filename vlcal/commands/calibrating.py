"""The command that calibrates: fit one or several calibrators, or apply one that was fitted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlcal._files import naming
from vlcal.calibrators import (
    CALIBRATORS,
    Chain,
    load_calibrator,
    save_calibrator,
)
from vlcal.calibrators import calibrator as calibrator_named
from vlcal.commands.answers import Answer, told, words
from vlcal.evaluation import Evaluation
from vlcal.evaluation import evaluate as evaluate_arrays
from vlcal.experiment import Progress
from vlcal.inputs import TunedArrays, ValArrays, halves, read_predictions
from vlcal.reports import write_report
from vlcal.reports.headline import display
from vlcal.tuners import check_options
from vlcal.types import Predictions
from vlcal.writeup import near_images, write_up_arrays

FLAGS = {
    "labels": "--labels",
    "image_features": "--image-features",
    "text_features": "--text-features",
    "zero_shot": "--zero-shot-logits, or --zero-shot-text-features with --image-features and "
    "--logit-scale",
    "class_names": "--classes",
}


def calibrate(
    progress: Progress,
    given: TunedArrays,
    val_given: ValArrays,
    *,
    method: str | None = None,
    set: dict[str, Any] | None = None,
    calibrator: str | None = None,
    val: str | None = None,
    test: str | None = None,
    seed: int = 0,
    convention: str = "standard",
    trust: bool = False,
    save_probs: bool = False,
    out: str = "vlcal-calibrated",
) -> Answer:
    """Fit calibrators and apply them, to arrays of any library or to saved predictions.

    Arrays are .npy files, or FILE.npz:NAME. Without validation arrays a random half of the rows is
    fitted on and only the other half is calibrated and measured.

    Args:
        method: comma-separated names, each a calibrator, a chain such as ts+dac, or
            package.module:Class; all stands for every calibrator that the arrays allow. ts by
            default.
        set: options of a calibrator, e.g. --set k=10, or --set dac.k=10 if there are several.
        calibrator: a fitted calibrator.safetensors to apply to all rows instead of fitting.
        val: validation predictions, as written by vlcal predict.
        test: test predictions.
        seed: of the random halves.
        convention: of the metrics.
        trust: take logits that all lie in -1..1, which look like cosines.
        save_probs: also write the calibrated probabilities [N, C] as probs.npy.
        out: folder for calibrator.safetensors, calibrated.safetensors and the report; one folder in
            it per method if several.
    """
    fits = calibrator is None
    if calibrator is None:
        makers = _methods(method or "ts", set or {})
    else:
        makers = _loaded(calibrator, method, set)
    fit_on, apply_to, how = _read(given, val_given, val, test, seed, trust, fits=fits)
    separate = val is not None or val_given != ValArrays()
    made, left_out = {}, {}
    for i, (name, maker) in enumerate(makers.items()):
        progress("calibrate", i, len(makers))
        try:
            made[name] = _made(maker, fit_on, apply_to, separate)
        except (ValueError, ImportError) as refusal:
            if method != "all":
                raise
            left_out[name] = str(refusal)
    progress("calibrate", len(makers), len(makers))
    _save(made, Path(out), save_probs)
    return _answer(made, left_out, fit_on, apply_to, how, convention, Path(out))


class Made(NamedTuple):
    """A fitted calibrator, what it made, and the seconds that fitting and applying took."""

    fitted: Any
    predictions: Predictions
    seconds: float


def _read(
    given: TunedArrays,
    val_given: ValArrays,
    val: str | None,
    test: str | None,
    seed: int,
    trust: bool,
    *,
    fits: bool,
) -> tuple[Predictions | None, Predictions, str]:
    """What to fit on, if anything is fitted, what to calibrate, and how they were chosen."""
    arrays, val_arrays = given != TunedArrays(), val_given != ValArrays()
    if arrays == (test is not None) or (val is not None and (arrays or val_arrays)):
        raise ValueError("calibrate: give --logits and --labels, or --val and --test")
    if test is not None:
        if fits and val is None:
            raise ValueError("calibrate: give --logits and --labels, or --val and --test")
        found, source, note = Predictions.load(test), test, ""
    else:
        found, note = read_predictions("calibrate", given, trust=trust)
        source = given.logits or given.probs or given.image_features or ""
    if not fits:
        return None, found, f"Nothing was fitted; measured on {source}. {note}".strip()
    if val is not None:
        return Predictions.load(val), found, f"Fitted on {val}, measured on {test}."
    if val_arrays:
        both = val_given.completed(given)
        fit_on, _ = read_predictions("calibrate", both, trust=trust)
        val_source = both.logits or both.probs or both.image_features
        return fit_on, found, f"Fitted on {val_source}, measured on {source}. {note}".strip()
    if found.labels is None:
        raise ValueError(
            "calibrate: without --val-logits or its like, --labels are needed to fit on one half "
            "and measure on the other"
        )
    fit_on, rest, how = halves(found, source, seed)
    return fit_on, rest, f"{how} {note}".strip()


def _methods(text: str, options: dict[str, Any]) -> dict[str, Any]:
    """Unfitted calibrators by the names they are shown under; options go to their owners."""
    names = [cls.name for cls in CALIBRATORS] if text == "all" else words(text)
    classes = {name: [calibrator_named(part) for part in name.split("+")] for name in names}
    owners = {cls.name: cls for steps in classes.values() for cls in steps}
    given: dict[str, dict[str, Any]] = {owner: {} for owner in owners}
    for key, value in options.items():
        owner, colon, option = key.replace(".", ":").rpartition(":")
        if not colon and len(owners) > 1:
            raise ValueError(
                f"calibrate: --set {option} needs its calibrator, as in --set "
                f"{next(iter(owners))}.{option}; known: {', '.join(owners)}"
            )
        owner = owner or next(iter(owners))
        if owner not in owners:
            raise ValueError(f"calibrate: --set {owner}.{option} needs --method {owner}")
        given[owner][option] = value
    for owner, cls in owners.items():
        check_options(cls, given[owner])
    return {
        "+".join(cls.name for cls in steps): _chain([cls(**given[cls.name]) for cls in steps])
        for steps in classes.values()
    }


def _chain(steps: list[Any]) -> Any:
    return steps[0] if len(steps) == 1 else Chain(steps)


def _loaded(path: str, method: str | None, options: dict[str, Any] | None) -> dict[str, Any]:
    """The calibrator of a file; --method names a class of somebody else that the file may hold."""
    if options:
        raise ValueError("calibrate: --set belongs to fitting, a fitted --calibrator has its own")
    classes = tuple(calibrator_named(name) for name in words(method or ""))
    fitted = load_calibrator(path, classes)
    steps = fitted.steps if isinstance(fitted, Chain) else [fitted]
    return {"+".join(step.name for step in steps): fitted}


def _made(
    calibrator: Any, fit_on: Predictions | None, apply_to: Predictions, separate: bool
) -> Made:
    start = time.perf_counter()
    if fit_on is not None:
        _check_needs(calibrator, fit_on, "validation" if separate else "")
        calibrator.fit(fit_on)
    _check_needs(calibrator, apply_to, "", without=("labels",))
    made = calibrator.transform(apply_to)
    return Made(calibrator, made, round(time.perf_counter() - start, 4))


def _check_needs(
    calibrator: Any, given: Predictions, of: str, without: tuple[str, ...] = ()
) -> None:
    """Say which flag gives what a calibrator needs and the predictions lack."""
    for name in calibrator.needs:
        if name in without or getattr(given, name, None) is not None:
            continue
        if name == "logits" and given.image_features is not None:
            continue  # they exist in blocks
        flags = FLAGS.get(name, "--" + name.replace("_", "-"))
        if of:
            flags = flags.replace("--", "--val-").replace("--val-logit-scale", "--logit-scale")
        raise ValueError(f"{_title(calibrator)}: needs {f'{of} ' * bool(of)}{name}: give {flags}")


def _title(calibrator: Any) -> str:
    steps = calibrator.steps if isinstance(calibrator, Chain) else [calibrator]
    return "+".join(step.name for step in steps)


def _save(made: dict[str, Made], out: Path, save_probs: bool) -> None:
    for name, each in made.items():
        folder = out / name if len(made) > 1 else out
        folder.mkdir(parents=True, exist_ok=True)
        save_calibrator(each.fitted, folder / "calibrator.safetensors")
        each.predictions.save(folder / "calibrated.safetensors")
        if save_probs:
            _save_probs(each.predictions, folder / "probs.npy")


def _save_probs(predictions: Predictions, path: Path) -> None:
    about = {"descr": "<f4", "fortran_order": False}
    about["shape"] = (len(predictions), predictions.n_classes)
    partial = path.with_suffix(".partial.npy")
    # written and not mapped: a full disk is an error then, and not the end of the process
    with naming(partial), open(partial, "wb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        for _, block in predictions.blocks():
            file.write(block.double().softmax(-1).float().cpu().numpy().astype("<f4").tobytes())
    partial.replace(path)


def _answer(
    made: dict[str, Made],
    left_out: dict[str, str],
    fit_on: Predictions | None,
    apply_to: Predictions,
    how: str,
    convention: str,
    out: Path,
) -> Answer:
    facts: dict[str, Any] = {f"left out: {name}": why for name, why in left_out.items()}
    said = [f"{name} was left out: {why}" for name, why in left_out.items()]
    if apply_to.labels is None:
        data = {"out": str(out), "methods": list(made), "left_out": left_out}
        lines = ["Without --labels nothing was measured.", *said, str(out)]
        return Answer(data, "\n".join(lines))
    hold_out = None if fit_on is None else fit_on.image_features
    near = near_images(apply_to.image_features, hold_out, convention)
    found = {"none": _measured(apply_to, near, convention)}
    found |= {name: _measured(each.predictions, near, convention) for name, each in made.items()}
    report = write_up_arrays(
        found,
        title=f"Calibration by {', '.join(display(name) for name in made)}",
        about=how,
        names=apply_to.class_names,
        facts=facts,
        seconds={name: each.seconds for name, each in made.items()},
        test=apply_to,
        base=fit_on,
    )
    answer = told(report, write_report(out, report))
    return answer._replace(text="\n".join([answer.text, *said]))


def _measured(predictions: Predictions, near: Any, convention: str) -> Evaluation:
    return evaluate_arrays(predictions=predictions, proximity=near, convention=convention)
