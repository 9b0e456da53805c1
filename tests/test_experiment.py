"""An experiment: rows of every tuner, calibrator and split; resumed by content; the same twice."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch

from vlcal.clip import CLIP, tiny_clip
from vlcal.data.items import Dataset, Item
from vlcal.evaluation import evaluate
from vlcal.experiment import Method, run
from vlcal.protocols import base_to_new
from vlcal.reports import read_report
from vlcal.reports.cells import cells_of, row_cells
from vlcal.tuners import Recipe
from vlcal.types import ClassSet, Predictions, VlcalWarning
from vlcal.writeup import write_up

# a random model on random pixels: temperature scaling says that its logits tell nothing
pytestmark = pytest.mark.filterwarnings("ignore:ts.*:vlcal.types.VlcalWarning")

WORDS = ("cat", "dog", "house", "tree", "car", "bird", "boat", "book", "cup", "fish", "hat", "sun")
METHOD = Method("coop", {"n_ctx": 2}, Recipe(epochs=2, batch_size=4), views=2)


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def task():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (240, 16, 16), generator=generator, dtype=torch.uint8).numpy()
    items = [Item(str(i), i % 12, WORDS[i % 12]) for i in range(240)]
    names = ClassSet(WORDS, "a photo of a {}.")
    parts = items[:96], items[96:144], items[144:]
    dataset = Dataset("noise", names, *parts, None, read=lambda item: pixels[int(item.path)])
    return base_to_new(dataset, shots=4, seed=1)


def whole(task):
    """A dataset of the base classes alone, with all that `base_to_new` needs."""
    return replace(task.tuning, train=task.tuning.train * 2)


@pytest.fixture(scope="module")
def done(clip, task, tmp_path_factory):
    """One finished run that the tests only look at."""
    folder = tmp_path_factory.mktemp("done")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VlcalWarning)
        return folder, run(task, clip, METHOD, folder=folder)


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_calibrators_of_known_classes_have_no_row_of_new_ones(done, clip, task, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "copied")
    result = run(task, clip, METHOD, folder=folder, calibrators=["mir", "hb"])
    measured = {(row["calibrator"], row["split"]) for row in result.rows}
    assert measured == {
        ("none", "base"),
        ("none", "new"),
        ("mir", "base"),
        ("mir", "new"),
        ("hb", "base"),
    }
    report = write_up([result], title="t", about="a", calibrator="hb")
    assert {row["calibrator"] for row in report.rows} == {"none", "mir", "hb"}


def test_rows_name_every_tuner_calibrator_and_split(done):
    folder, result = done
    names = [(row["tuner"], row["calibrator"], row["split"]) for row in result.rows]
    each = [("zero_shot", "none"), ("coop", "none"), ("coop", "ts"), ("coop", "dac")]
    assert names == [(*pair, split) for split in ("base", "new") for pair in each]
    assert {row["n"] for row in result.rows} == {48}
    stored = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert stored == result.rows
    again = read_report(folder)
    assert again.rows == tuple(result.rows)
    for each, kept in zip(result.measured, again.cells, strict=True):
        seen = each.evaluation.outcomes
        assert row_cells({"cells": kept}).table.equal(cells_of(seen, "right").table)


def test_the_zero_shot_row_does_not_depend_on_what_is_tuned(done, clip, task, tmp_path):
    images = replace(METHOD, tuner="vpt", options={"n_ctx_vision": 2})
    result = run(task, clip, images, folder=tmp_path)
    for split in ("base", "new"):
        one, two = (each.find("zero_shot", "none", split).row for each in (done[1], result))
        assert one["metrics"] == two["metrics"] and "recipe" not in one


def test_a_second_run_reads_what_the_first_one_wrote(clip, task, done):
    folder, first = done
    stages = []
    again = run(task, clip, METHOD, folder=folder, progress=lambda *args: stages.append(args))
    assert stages == []
    assert without_time(again.rows) == without_time(first.rows)
    assert len((folder / "results.jsonl").read_text().splitlines()) == len(first.rows)


def test_another_method_is_another_run(clip, task, done):
    folder, first = done
    other = replace(METHOD, views=1, recipe=Recipe(epochs=1, batch_size=4))
    assert run(task, clip, other, folder=folder).folder != first.folder


def test_a_bound_on_memory_is_no_other_run(clip, task, done):
    folder, first = done
    bounded = replace(METHOD, options={**METHOD.options, "max_bytes": 10**9})
    again = run(task, clip, bounded, folder=folder)
    assert again.folder == first.folder and "max_bytes" not in again.rows[1]["options"]


def test_an_interrupted_run_ends_with_the_numbers_of_an_uninterrupted_one(
    clip, task, done, tmp_path
):
    class Killed(Exception):
        pass

    def kill(stage, done, total):
        if stage == "tune" and done == total - 1:
            raise Killed

    with pytest.raises(Killed):
        run(task, clip, METHOD, folder=tmp_path / "killed", progress=kill)
    assert list((tmp_path / "killed").rglob("unfinished*"))
    resumed = run(task, clip, METHOD, folder=tmp_path / "killed")
    assert without_time(resumed.rows) == without_time(done[1].rows)
    assert not list((tmp_path / "killed").rglob("unfinished*"))


def test_rows_of_a_regularized_tuner_name_the_arguments(clip, task, done, tmp_path, monkeypatch):
    monkeypatch.setenv("VLCAL_CACHE", str(tmp_path / "cache"))
    options = {"vocabulary": ["fox", "cat", "Bird", "star", "boat"], "exclude_new": True}
    stages = []
    method = replace(METHOD, regularizers={"dor": options})
    result = run(task, clip, method, folder=tmp_path, progress=lambda *at: stages.append(at))
    row = result.find("coop+dor", "none", "new").row
    (about,) = row["regularizers"]
    assert (about["name"], about["weight"], about["top_k"]) == ("dor", 8.0, 5000)
    assert about["vocabulary"]["words"] == 5
    assert set(about["new_names"]) == set(task.tests["new"].classes.names)
    assert "coop+dor" in result.folder.name and ("prepare dor", 5, 5) in stages
    plain = done[1].find("coop", "none", "new").row
    assert "regularizers" not in plain and plain["metrics"] != row["metrics"]
    again = run(task, clip, method, folder=tmp_path)
    assert without_time(again.rows) == without_time(result.rows)
    other = replace(METHOD, regularizers={"dor": options | {"weight": 2.0}})
    assert run(task, clip, other, folder=tmp_path).folder != result.folder


@pytest.mark.parametrize("tuner", ["zero_shot", "vpt"])
@pytest.mark.parametrize("regularizer", ["dor", "knowledge"])
def test_a_tuner_that_learns_no_text_is_refused_before_anything_is_encoded(
    clip, task, tmp_path, monkeypatch, tuner, regularizer
):
    for name in ("encode_text", "encode_image"):
        monkeypatch.setattr(CLIP, name, lambda *_: pytest.fail("encoded"))
    with pytest.raises(NotImplementedError, match=f"{regularizer}: the text features are not lear"):
        run(task, clip, Method(tuner, regularizers={regularizer: {}}), folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_regularizer_without_anything_to_learn_is_refused(clip, task, tmp_path):
    nothing = "vlcal.regularizers:Regularizer"
    with pytest.raises(ValueError, match=r"zero_shot\+none: zero_shot learns nothing"):
        run(task, clip, Method("zero_shot", regularizers={nothing: {}}), folder=tmp_path)


def test_rows_are_what_evaluate_says_of_the_stored_predictions(done):
    result = done[1]
    stored = Predictions.load(result.folder / "new.safetensors")
    row = result.find("coop", "none", "new").row
    metrics = evaluate(logits=stored.logits, labels=stored.labels).metrics
    assert {name: row["metrics"][name] for name in metrics} == pytest.approx(metrics)


def test_calibrators_keep_accuracy(done):
    result = done[1]
    for split in ("base", "new"):
        values = {
            row["metrics"]["accuracy"]
            for row in result.rows
            if row["split"] == split and row["tuner"] == "coop"
        }
        assert len(values) == 1


def test_zero_shot_alone_is_not_listed_twice(clip, task, tmp_path):
    rows = run(task, clip, Method("zero_shot"), folder=tmp_path).rows
    names = [(row["tuner"], row["calibrator"]) for row in rows if row["split"] == "base"]
    assert names == [("zero_shot", "none"), ("zero_shot", "ts"), ("zero_shot", "dac")]
    assert not any({"recipe", "options", "views"} & set(row) for row in rows)


def test_damaged_predictions_are_refused_by_name(clip, task, done, tmp_path):
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "runs" / done[1].folder.name / "new.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"new\.safetensors is not a readable safetensors file"):
        run(task, clip, METHOD, folder=tmp_path)


def test_unknown_names_are_refused_before_anything_runs(clip, task, tmp_path):
    with pytest.raises(ValueError, match="unknown tuner 'coopp'; known: zero_shot, coop"):
        Method("coopp")
    with pytest.raises(ValueError, match="unknown option 'nctx'; known: n_ctx"):
        Method("coop", {"nctx": 4})
    with pytest.raises(ValueError, match="dor: unknown option 'topk'; known: vocabulary, top_k"):
        Method("coop", regularizers={"dor": {"topk": 4}})
    with pytest.raises(ValueError, match="unknown name 'tss'"):
        run(task, clip, METHOD, folder=tmp_path, calibrators=["tss"])
    with pytest.raises(ValueError, match="unknown name 'guo'"):
        run(task, clip, METHOD, folder=tmp_path, convention="guo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dac": {"kk": 3}}, "dac: unknown option 'kk'; known: k, exempt"),
        ({"dac": {"k": 0}}, "dac: k must be at least 1, got 0"),
        ({"cac": {}}, "options of cac need it to be one of them, got ts, dac"),
    ],
)
def test_options_of_calibrators_are_refused_before_anything_runs(
    options, sentence, clip, task, tmp_path
):
    with pytest.raises(ValueError, match=sentence):
        run(task, clip, METHOD, folder=tmp_path, calibrator_options=options)
    assert not list(tmp_path.iterdir())


def test_a_calibrator_that_cannot_use_the_classes_refuses_before_anything_is_tuned(
    clip, task, tmp_path
):
    few = base_to_new(whole(task), shots=4, seed=1)  # 3 base classes
    with pytest.raises(
        ValueError, match=r"k must be in 1\.\.3.*leaving dac out.*Nothing was tuned"
    ):
        run(few, clip, METHOD, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    nearer = {"dac": {"k": 2}}
    names = ["dac", "ts+dac"]
    made = run(few, clip, METHOD, folder=tmp_path, calibrators=names, calibrator_options=nearer)
    row = made.find("coop", "ts+dac", "new").row
    assert row["calibrator_options"] == nearer
    assert "calibrator_options" not in made.find("coop", "none", "new").row


def test_a_calibrator_that_refuses_later_says_that_the_tuned_model_is_kept(clip, task, tmp_path):
    few = base_to_new(whole(task), shots=1, seed=1)
    with pytest.raises(ValueError, match="without pb among the calibrators goes on from it"):
        run(few, clip, METHOD, folder=tmp_path, calibrators=["ts", "pb"])
    stages = []
    run(
        few, clip, METHOD, folder=tmp_path, calibrators=["ts"], progress=lambda *a: stages.append(a)
    )
    assert stages == []


def test_report_speaks_about_every_predicted_class(done):
    result = done[1]
    report = write_up([result], title="t", about="a")
    base = {row.name: row for row in report.classes if row.base}
    assert set(base) <= set(WORDS[:6])
    assert all(row.nearest != row.name for row in report.classes)
    assert report.class_titles == ("none", "dac")
    assert write_up([result], title="t", about="a", calibrator=None).classes[0].after is None
