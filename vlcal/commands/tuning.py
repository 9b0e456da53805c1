"""The commands that run a model: demo, tune, predict."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlcal.calibrators import CALIBRATORS
from vlcal.calibrators import calibrator as calibrator_named
from vlcal.clip import CLIP, load
from vlcal.commands.answers import Answer, seed_numbers, told, words
from vlcal.data.items import Dataset, loader
from vlcal.data.registry import is_published, open_dataset
from vlcal.data.transforms import evaluation as evaluation_transform
from vlcal.demo import METHOD
from vlcal.demo import demo as run_demo
from vlcal.evaluation import evaluate as evaluate_arrays
from vlcal.experiment import Method, Progress, run
from vlcal.inputs import read_names
from vlcal.prediction import predict as predict_images
from vlcal.protocols import Task, base_to_new
from vlcal.regularizers import regularizer as regularizer_named
from vlcal.reports import write_report
from vlcal.reports.headline import display
from vlcal.tuners import ZeroShot, by_name, load_tuner
from vlcal.types import ClassSet
from vlcal.writeup import write_up

CALIBRATOR_NAMES = tuple(cls.name for cls in CALIBRATORS)


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
    made = run_demo(out, seeds=seed_numbers(seeds), shots=shots, method=method, progress=progress)
    return told(made.report, made.page)


def tune(
    progress: Progress,
    tuner: str,
    *,
    data: str = "icons",
    root: str | None = None,
    template: str | None = None,
    model: str = "icons",
    pretrained: str | None = None,
    checkpoint: str | None = None,
    download: bool = False,
    setting: str | None = None,
    set: dict[str, Any] | None = None,
    shots: int = 16,
    seeds: str = "1",
    epochs: int | None = None,
    precision: str | None = None,
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
        data: name of a dataset, or the path of a folder with one folder of images per class, or of
            a split file in CoOp's form (.json).
        root: the folder that holds the datasets, or the images of a split file.
        template: the prompt, e.g. "a photo of a {}."; by default the published one of the dataset,
            and for data of your own that of the model.
        model: icons (bundled), or the name of an open_clip architecture.
        pretrained: open_clip tag of published weights.
        checkpoint: local file of weights.
        download: fetch weights that are not on this machine.
        setting: a published setting of the tuner, e.g. dac2024 or upstream.
        set: options of the tuner, e.g. --set n_ctx=4, or of a regularizer or calibrator, e.g. --set
            dor.weight=4 or --set dac.k=3.
        shots: train images per class.
        seeds: comma-separated.
        epochs: passes over the train images; the setting's own by default.
        precision: of training: fp32, bf16 or fp16; the setting's own by default.
        views: augmented passes whose features are stored and trained on; 0 encodes every epoch.
        dor: regularize by outlier words from WordNet, short for --regularizer dor.
        regularizer: comma-separated names: dor, knowledge, or package.module:Class.
        calibrators: comma-separated names, or chains such as ts+dac.
        convention: of the metrics, e.g. standard or dac2024.
        out: folder of results and report.
    """
    clip = load(model, pretrained=pretrained, checkpoint=checkpoint, download=download)
    dataset = _opened(data, root, template, clip)
    names = words(calibrators)
    extra = [*["dor"] * dor, *words(regularizer)]
    options, regularizers, calibrator_options = _by_owner(set or {}, extra, names)
    own = {"epochs": epochs, "precision": precision}
    method = _method(tuner, setting, options, own, views, regularizers)
    results = [
        run(
            base_to_new(dataset, shots, seed),
            clip,
            method,
            folder=out,
            calibrators=names,
            calibrator_options=calibrator_options,
            convention=convention,
            progress=progress,
        )
        for seed in seed_numbers(seeds)
    ]
    about = (
        f"Model {clip.name}, prompt {dataset.classes.template!r}, "
        f"{_shots(results[0].task)} of each base class of {dataset.name}."
    )
    title = f"{display(method.label)} on {dataset.name}"
    report = write_up(results, title=title, about=about, calibrator=names[-1] if names else None)
    return told(report, write_report(out, report))


def predict(
    progress: Progress,
    run: str,
    *,
    data: str = "icons",
    root: str | None = None,
    template: str | None = None,
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
        data: name of a dataset, or the path of a folder with one folder of images per class, or of
            a split file in CoOp's form (.json).
        root: the folder that holds the datasets, or the images of a split file.
        template: the prompt, e.g. "a photo of a {}."; by default the published one of the dataset,
            and for data of your own that of the model.
        list: train, val or test.
        classes: text file with one name per line, in label order; the dataset's own by default.
            Images of other classes are left out.
        model: the CLIP that was tuned.
        pretrained: its open_clip tag.
        checkpoint: its local file of weights.
        out: where the predictions go: logits, labels, features, and the zero-shot twin.
    """
    if runs := sorted((Path(run) / "runs").glob("*/config.json")):
        raise ValueError(
            f"predict: {run} holds {len(runs)} tuned models, name one, as in {runs[0].parent}"
        )
    clip = load(model, pretrained=pretrained, checkpoint=checkpoint)
    tuner, dataset = load_tuner(run, clip), _opened(data, root, template, clip)
    if list not in ("train", "val", "test"):
        raise ValueError(f"predict: list must be train, val or test, got {list!r}")
    names = dataset.classes
    if classes is not None:
        names = ClassSet(read_names(classes), names.template)
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


def _opened(data: str, root: str | None, template: str | None, clip: CLIP) -> Dataset:
    """The dataset; data without a published prompt are read in the words the model knows."""
    own = None if is_published(data) else clip.template
    return open_dataset(data, root, template=template or own)


def _shots(task: Task) -> str:
    """How many train images the base classes have, as in "16 shots"."""
    counts = Counter(item.label for item in task.tuning.train)
    few = min(counts.values())
    return f"{task.shots} shots" if few == task.shots else f"{few} to {task.shots} shots"


def _by_owner(
    given: dict[str, Any], regularizers: list[str], calibrators: list[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Options of the tuner, and by name those of regularizers and of calibrators: NAME.OPTION."""
    owners = {regularizer_named(name).name: name for name in regularizers}
    classes = [calibrator_named(part) for name in calibrators for part in name.split("+")]
    calibrating = {getattr(cls, "name", "") for cls in classes}
    own: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {name: {} for name in owners.values()}
    after: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        owner, colon, option = key.replace(".", ":").partition(":")
        if not colon:
            own[key] = value
        elif owner in owners:
            others[owners[owner]][option] = value
        elif owner in calibrating:
            after.setdefault(owner, {})[option] = value
        else:
            flag = "calibrators" if owner in CALIBRATOR_NAMES else "regularizer"
            raise ValueError(f"tune: --set {owner}.{option} needs --{flag} {owner}")
    return own, others, after


def _method(
    tuner: str,
    setting: str | None,
    options: dict[str, Any],
    own: dict[str, Any],
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
    recipe = replace(recipe, **{name: value for name, value in own.items() if value is not None})
    return Method(tuner, options, recipe, views, regularizers=regularizers)
