"""Files of calibrators: damaged, foreign and hostile ones are refused with a sentence."""

import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from vlcal.calibrators import TemperatureScaling, load_calibrator, save_calibrator


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
