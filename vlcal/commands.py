"""The commands behind the command line: plain functions whose signatures are the flags."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlcal import info as installation
from vlcal.calibrators import calibrator as calibrator_named
from vlcal.calibrators import save_calibrator
from vlcal.clip import load
from vlcal.data.items import loader
from vlcal.data.registry import open_dataset
from vlcal.data.transforms import evaluation as evaluation_transform
from vlcal.demo import METHOD
from vlcal.demo import demo as run_demo
from vlcal.evaluation import evaluate as evaluate_arrays
from vlcal.experiment import Method, Progress, run
from vlcal.inputs import read_array, read_features_of, read_pair
from vlcal.prediction import predict as predict_images
from vlcal.protocols import base_to_new
from vlcal.regularizers import regularizer as regularizer_named
from vlcal.reports import Report, plain, read_report, result_table, write_report
from vlcal.reports.reliability import reliability_diagram
from vlcal.tuners import ZeroShot, by_name, check_options, load_tuner
from vlcal.types import ClassSet, Predictions
from vlcal.writeup import write_up


class Answer(NamedTuple):
    """What a command has to say: for programs, and for people."""

    data: dict[str, Any]
    text: str


def demo(
    progress: Progress,
    *,
    out: str = "vlcal-demo",
    seeds: str = "1,2,3",
    shots: int = 16,
    epochs: int = METHOD.recipe.epochs,
) -> Answer:
    """Tune a prompt on bundled icons, calibrate it, and write a report; no network, no GPU.

    Args:
        out: folder for report.html, report.json, results.jsonl and the runs.
        seeds: comma-separated seeds of the few-shot draw and of training.
        shots: train images per class.
        epochs: passes over the train images.
    """
    method = replace(METHOD, recipe=replace(METHOD.recipe, epochs=epochs))
    made = run_demo(out, seeds=_seeds(seeds), shots=shots, method=method, progress=progress)
    return _told(made.report, made.page)


def tune(
    progress: Progress,
    tuner: str,
    *,
    data: str = "icons",
    root: str | None = None,
    model: str = "icons",
    pretrained: str | None = None,
    checkpoint: str | None = None,
    download: bool = False,
    setting: str | None = None,
    set: dict[str, Any] | None = None,
    shots: int = 16,
    seeds: str = "1",
    epochs: int | None = None,
    views: int = 0,
    dor: bool = False,
    regularizer: str = "",
    calibrators: str = "ts,dac",
    convention: str = "standard",
    out: str = "vlcal-runs",
) -> Answer:
    """Tune on the base classes of a dataset and measure base and new classes, calibrated or not.

    Args:
        tuner: zero_shot, coop, cocoop, proda, vpt, kgcoop, ivlp, maple, prograd, promptsrc, or
            package.module:Class.
        data: name of a dataset, or the path of a folder with one folder of images per class.
        root: the folder that holds the datasets.
        model: icons (bundled), or the name of an open_clip architecture.
        pretrained: open_clip tag of published weights.
        checkpoint: local file of weights.
        download: fetch weights that are not on this machine.
        setting: a published setting of the tuner, e.g. dac2024 or upstream.
        set: options of the tuner, e.g. --set n_ctx=4, or of a regularizer, e.g. --set dor.weight=4.
        shots: train images per class.
        seeds: comma-separated.
        epochs: passes over the train images; the setting's own by default.
        views: augmented passes whose features are stored and trained on; 0 encodes every epoch.
        dor: regularize by outlier words from WordNet, short for --regularizer dor.
        regularizer: comma-separated names: dor, knowledge, or package.module:Class.
        calibrators: comma-separated names.
        convention: of the metrics: standard or dac2024.
        out: folder of results and report.
    """
    clip = load(model, pretrained=pretrained, checkpoint=checkpoint, download=download)
    dataset = open_dataset(data, root)
    options, regularizers = _by_owner(set or {}, [*["dor"] * dor, *_words(regularizer)])
    method = _method(tuner, setting, options, epochs, views, regularizers)
    names = _words(calibrators)
    results = [
        run(
            base_to_new(dataset, shots, seed),
            clip,
            method,
            folder=out,
            calibrators=names,
            convention=convention,
            progress=progress,
        )
        for seed in _seeds(seeds)
    ]
    about = f"{clip.name}, {method.label} on {dataset.name}, {shots} shots of each base class."
    title = f"{method.label} on {dataset.name}"
    report = write_up(results, title=title, about=about, calibrator=names[-1] if names else None)
    return _told(report, write_report(out, report))


def predict(
    progress: Progress,
    run: str,
    *,
    data: str = "icons",
    root: str | None = None,
    list: str = "test",
    classes: str | None = None,
    model: str = "icons",
    pretrained: str | None = None,
    checkpoint: str | None = None,
    out: str = "predictions.safetensors",
) -> Answer:
    """Predict the images of a dataset with a tuned model; classes may be new.

    Args:
        run: folder of a tuned model (holds config.json and model.safetensors).
        data: name of a dataset, or the path of a folder with one folder of images per class.
        root: the folder that holds the datasets.
        list: train, val or test.
        classes: text file with one name per line, in label order; the dataset's own by default.
            Images of other classes are left out.
        model: the CLIP that was tuned.
        pretrained: its open_clip tag.
        checkpoint: its local file of weights.
        out: where the predictions go: logits, labels, features, and the zero-shot twin.
    """
    clip = load(model, pretrained=pretrained, checkpoint=checkpoint)
    tuner, dataset = load_tuner(run, clip), open_dataset(data, root)
    if list not in ("train", "val", "test"):
        raise ValueError(f"predict: list must be train, val or test, got {list!r}")
    names = dataset.classes if classes is None else _names(classes, dataset.classes.template)
    label = {name: position for position, name in enumerate(names.names)}
    items = [
        item._replace(label=label[item.class_name])
        for item in getattr(dataset, list)
        if item.class_name in label
    ]
    if not items:
        raise ValueError(
            f"predict: no {list} image of {dataset.name} is of the {len(label)} classes"
        )
    tuner.set_classes(names)
    progress("predict", 0, len(items))
    images = loader(items, dataset, evaluation_transform(clip.preprocess), batch_size=100)
    predictions = predict_images(tuner, images, ZeroShot(clip, names))
    progress("predict", len(items), len(items))
    predictions.save(out)
    found = evaluate_arrays(predictions=predictions)
    return Answer({"out": out, **found.to_dict()}, f"{found}\n{out}")


def calibrate(
    progress: Progress,
    *,
    method: str = "ts",
    set: dict[str, Any] | None = None,
    logits: str | None = None,
    labels: str | None = None,
    val_logits: str | None = None,
    val_labels: str | None = None,
    val: str | None = None,
    test: str | None = None,
    seed: int = 0,
    convention: str = "standard",
    out: str = "vlcal-calibrated",
) -> Answer:
    """Fit a calibrator and apply it, to two arrays of any library or to saved predictions.

    Arrays are .npy files, or FILE.npz:NAME. Without validation arrays a random half of the rows is
    fitted on and only the other half is calibrated and measured.

    Args:
        method: ts, dac, or package.module:Class.
        set: options of the calibrator, e.g. --set k=10.
        logits: [N, C], already multiplied by the model's logit scale.
        labels: [N] integers.
        val_logits: validation logits.
        val_labels: validation labels.
        val: validation predictions, as written by vlcal predict.
        test: test predictions.
        seed: of the random halves.
        convention: of the metrics.
        out: folder for calibrator.safetensors, calibrated.safetensors and the report.
    """
    cls, options = calibrator_named(method), set or {}
    check_options(cls, options)
    fit_on, apply_to, how = read_pair(logits, labels, val_logits, val_labels, val, test, seed)
    fitted = cls(**options).fit(fit_on)
    made = fitted.transform(apply_to)
    Path(out).mkdir(parents=True, exist_ok=True)
    save_calibrator(fitted, Path(out) / "calibrator.safetensors")
    made.save(Path(out) / "calibrated.safetensors")
    rows = []
    for name, predictions in (("none", apply_to), (method, made)):
        found = evaluate_arrays(predictions=predictions, convention=convention)
        about = {"tuner": "given", "calibrator": name, "split": "test", "convention": convention}
        rows.append({**about, **found.to_dict()})
    report = Report.from_rows(rows, title=f"Calibration by {method}", about=how)
    return _told(report, write_report(out, report))


def evaluate(
    progress: Progress,
    *,
    logits: str | None = None,
    probs: str | None = None,
    confidence: str | None = None,
    correct: str | None = None,
    labels: str | None = None,
    image_features: str | None = None,
    text_features: str | None = None,
    logit_scale: float | None = None,
    predictions: str | None = None,
    proximity: str | None = None,
    convention: str = "standard",
    plot: str | None = None,
) -> Answer:
    """Measure accuracy and calibration under a named convention.

    Arrays are .npy files, or FILE.npz:NAME. What an array is is said by its flag, never guessed.

    Args:
        logits: [N, C], already multiplied by the model's logit scale.
        probs: [N, C], rows sum to 1.
        confidence: [N], with --correct.
        correct: [N] bool.
        labels: [N] integers.
        image_features: [N, D], with --text-features and --logit-scale; rows are normalized.
        text_features: [C, D]; rows are normalized.
        logit_scale: the factor on cosines, 100 for released CLIPs.
        predictions: a file written by vlcal predict.
        proximity: [N] in 0..1, for PIECE.
        convention: standard or dac2024.
        plot: .svg or .png for the reliability diagram.
    """
    given = {"logits": logits, "probs": probs, "confidence": confidence, "correct": correct}
    given |= {"proximity": proximity}
    arrays: dict[str, Any] = {
        name: read_array(spec) for name, spec in given.items() if spec is not None
    }
    if image_features or text_features or logit_scale:
        arrays["predictions"] = read_features_of(image_features, text_features, logit_scale, labels)
    elif predictions:
        arrays["predictions"] = Predictions.load(predictions)
    if labels is not None and "predictions" not in arrays:
        arrays["labels"] = read_array(labels)
    found = evaluate_arrays(**arrays, convention=convention)
    text = str(found)
    if plot is not None:
        figure, _ = reliability_diagram(found.bins, title=f"convention {convention}")
        figure.savefig(plot)
        text += f"\n{plot}"
    return Answer(found.to_dict(), text)


def report(progress: Progress, source: str, *, out: str = "vlcal-report") -> Answer:
    """Write the report of stored results: a results.jsonl, or the report.json of an older report.

    Args:
        source: the file.
        out: folder for report.html and report.json.
    """
    made = read_report(source)
    return _told(made, write_report(out, made))


def info(progress: Progress) -> Answer:
    """Show versions, devices, and which backends each operation has here, with reasons."""
    facts = installation.collect()
    return Answer(facts, installation.text(facts))


COMMANDS = (demo, tune, predict, calibrate, evaluate, report, info)


def _by_owner(
    given: dict[str, Any], regularizers: list[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Options of the tuner, and of each regularizer: those that are written NAME.OPTION."""
    owners = {regularizer_named(name).name: name for name in regularizers}
    own: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {name: {} for name in owners.values()}
    for key, value in given.items():
        owner, colon, option = key.replace(".", ":").partition(":")
        if colon and owner not in owners:
            raise ValueError(f"tune: --set {owner}.{option} needs --regularizer {owner}")
        (others[owners[owner]] if colon else own)[option or key] = value
    return own, others


def _method(
    tuner: str,
    setting: str | None,
    options: dict[str, Any],
    epochs: int | None,
    views: int,
    regularizers: dict[str, dict[str, Any]],
) -> Method:
    cls = by_name(tuner)
    recipe = cls.recipe
    if setting is not None:
        if setting not in cls.settings:
            known = ", ".join(cls.settings) or "none"
            raise ValueError(f"{tuner}: unknown setting {setting!r}; known: {known}")
        chosen = cls.settings[setting]
        options, recipe = {**chosen.arguments, **options}, chosen.recipe
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    return Method(tuner, options, recipe, views, regularizers=regularizers)


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"seeds must be integers with commas between, got {text!r}") from error


def _names(path: str, template: str) -> ClassSet:
    names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return ClassSet(tuple(name for name in names if name), template)


def _told(report: Report, page: Path) -> Answer:
    text = "\n".join([plain(result_table(report.rows)), "", *report.headline, "", str(page)])
    return Answer(json.loads(report.to_json()) | {"page": str(page)}, text)
