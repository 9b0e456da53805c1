"""Files of calibrators: damaged, foreign and hostile ones are refused with a sentence."""

import json
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vlcal.calibrators import (
    Chain,
    HistogramBinning,
    IsotonicRegression,
    MultiIsotonic,
    NotFitted,
    ProximityBinned,
    TemperatureScaling,
    load_calibrator,
    save_calibrator,
)
from vlcal.types import Predictions


@dataclass
class Foreign:
    name: ClassVar[str] = "foreign"

    strength: float = 2.0
    knots_: torch.Tensor | None = field(default=None, init=False)


def test_classes_of_others_are_loaded_only_when_given(tmp_path):
    foreign = Foreign(strength=3.0)
    foreign.knots_ = torch.arange(4)
    save_calibrator(foreign, tmp_path / "f")
    with pytest.raises(ValueError, match=r"unknown calibrator 'foreign'; known: ts, dac, .*chain"):
        load_calibrator(tmp_path / "f")
    again = load_calibrator(tmp_path / "f", classes=(Foreign,))
    assert again.strength == 3.0
    assert again.knots_.tolist() == [0, 1, 2, 3]


def written(path, about):
    save_file({}, path, None if about is None else {"vlcal": json.dumps(about)})
    return path


@pytest.mark.parametrize(
    ("about", "match"),
    [
        (None, "not written by save_calibrator"),
        ({"format": 2, "calibrator": {}}, r"format 1 expected"),
        (
            {"format": 1, "calibrator": {"name": "os:system", "values": {}}},
            "unknown calibrator 'os:system'",
        ),
        (
            {"format": 1, "calibrator": {"name": "ts", "values": {"lowest": 1}}},
            "ts has the fields",
        ),
    ],
)
def test_refuses_foreign_content(tmp_path, about, match):
    with pytest.raises(ValueError, match=match):
        load_calibrator(written(tmp_path / "f", about))


def test_refuses_damaged_and_missing_files(tmp_path):
    save_calibrator(TemperatureScaling(), tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:20])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_calibrator(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_calibrator(tmp_path / "none")


def predictions(n=40, classes=3):
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(n, 5, generator=generator), dim=-1)
    logits = torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return Predictions(logits=logits, labels=labels, image_features=features)


FITTED = {
    "hb": HistogramBinning,
    "ir": IsotonicRegression,
    "mir": MultiIsotonic,
    "pb": lambda: ProximityBinned(HistogramBinning(n_bins=3, mode="top_label"), n_bins=2),
    "pb in a chain": lambda: Chain([TemperatureScaling(), ProximityBinned(n_bins=2)]),
}
every_fitted = pytest.mark.parametrize("make", FITTED.values(), ids=FITTED.keys())


@every_fitted
def test_options_knots_and_calibrators_inside_come_back(make, tmp_path):
    fitted = make().fit(predictions())
    save_calibrator(fitted, tmp_path / "c")
    again = load_calibrator(tmp_path / "c")
    assert repr(again) == repr(fitted)
    test = replace(predictions(50), labels=None)
    assert torch.equal(again.predict_proba(test), fitted.predict_proba(test))
    save_calibrator(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "c").read_bytes()


@every_fitted
def test_unfitted_calibrators_come_back_unfitted(make, tmp_path):
    save_calibrator(make(), tmp_path / "c")
    with pytest.raises(NotFitted):
        load_calibrator(tmp_path / "c").transform(predictions())


@every_fitted
def test_no_truncation_of_a_file_is_read(make, tmp_path):
    save_calibrator(make().fit(predictions()), tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "c").write_bytes(content[:length])
        with pytest.raises(ValueError, match="load_calibrator"):
            load_calibrator(tmp_path / "c")


def changed(path, change):
    """The file with its description and tensors changed by a function."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["vlcal"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about["calibrator"]["values"], tensors)
    save_file(tensors, path, {"vlcal": json.dumps(about)})
    return path


def shorter(name):
    return lambda values, tensors: tensors.update({name: tensors[name][:-1].clone()})


def times(name, factor):
    return lambda values, tensors: tensors.update({name: tensors[name] * factor})


def option(name, value):
    return lambda values, tensors: values.update({name: value})


HOSTILE = [
    ("hb", shorter("table_"), r"hb: counts must be \[2, classes, 10\]"),
    ("hb", times("table_", -1), "hb: counts must be"),
    ("hb", option("n_bins", 4), "hb: counts must be"),
    ("hb", option("table_", "text"), "hb: counts must be"),
    ("hb", option("n_bins", [1]), "hb: n_bins must be an integer"),
    ("hb", option("class_names_", ["one"]), "with a name for every class"),
    ("hb", option("table_", {"tensor": "none"}), "load_calibrator: the file has no tensor"),
    ("hb", option("table_", {"file": "passwd"}), "load_calibrator: the file has no tensor"),
    ("ir", shorter("x_"), "ir: knots and their offsets do not fit"),
    ("ir", shorter("offsets_"), "ir: knots and their offsets do not fit"),
    ("ir", times("offsets_", 1000), "ir: knots and their offsets do not fit"),
    ("ir", times("x_", -1), "ir: knots must ascend inside 0..1"),
    ("ir", times("y_", torch.nan), "ir: knots must ascend inside 0..1"),
    ("ir", option("x_", None), "ir: knots must be three tensors"),
    ("ir", option("ties", "many"), "ir cannot be made with these options"),
    ("mir", times("x_", 0), "mir: knots must ascend inside 0..1"),
    ("pb", shorter("edges_"), "pb: edges, image features and calibrators"),
    ("pb", option("calibrators_", []), "pb: edges, image features and calibrators"),
    ("pb", option("calibrators_", [{"name": "os", "values": {}}]), "unknown calibrator 'os'"),
    ("pb", option("base", "mir"), "pb: edges, image features and calibrators"),
    ("pb", option("base", {"name": "ts", "values": 3}), "load_calibrator: the file has no tensor"),
]


@pytest.mark.parametrize(("name", "change", "match"), HOSTILE)
def test_learned_values_that_do_not_fit_together_are_refused(name, change, match, tmp_path):
    save_calibrator(FITTED[name]().fit(predictions()), tmp_path / "c")
    with pytest.raises(ValueError, match=match):
        load_calibrator(changed(tmp_path / "c", change))


@pytest.mark.parametrize("depth", [400, 100_000])
def test_files_nested_without_end_are_refused(depth, tmp_path):
    inner = '{"name": "chain", "values": {"steps": ['
    text = f'{{"format": 1, "calibrator": {inner * depth}{"]}}" * depth}}}'
    save_file({}, tmp_path / "f", {"vlcal": text})
    with pytest.raises(ValueError, match="load_calibrator"):
        load_calibrator(tmp_path / "f")
