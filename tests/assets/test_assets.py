"""Bundled files are what their README says, and the shrunk weights are the model."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import vlcal.assets
from vlcal.assets import asset, icon_clip_config, icon_clip_weights, pack_rows, unpack_rows

FOLDER = Path(vlcal.assets.__file__).parent
LISTED = dict(
    re.findall(r"^\| `([^`]+)` \|.*\| ([0-9a-f]{64}) \|$", (FOLDER / "README.md").read_text(), re.M)
)


@pytest.mark.parametrize("name", sorted(LISTED))
def test_checksum_is_the_one_in_the_readme(name):
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == LISTED[name]


def test_readme_lists_every_file():
    files = {
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert files - {"README.md"} == set(LISTED)


def test_model_has_at_most_12_megabytes():
    assert asset("icon_clip.safetensors").stat().st_size <= 12_000_000


def test_every_family_has_a_license_text():
    families = json.loads(asset("families.json").read_text())
    drawn = np.load(asset("icons139.npz"), allow_pickle=False)["families"]
    assert set(families) == set(drawn.tolist())
    texts = {path.stem for path in (FOLDER / "LICENSES").iterdir()}
    assert {family["license"]["spdx"] for family in families.values()} <= texts


def test_weights_load_strictly_into_open_clip():
    open_clip = pytest.importorskip("open_clip")
    weights = icon_clip_weights()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    model = open_clip.model.CLIP(**icon_clip_config()["model_cfg"])
    model.load_state_dict(weights, strict=True)


def test_packed_rows_are_within_half_a_step():
    rows = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).half()
    rows[4] = 0
    refined = torch.tensor([True, False, True, False, False, True])
    error = (unpack_rows(**pack_rows(rows, refined)) - rows.float()).abs().amax(1)
    largest = rows.float().abs().amax(1)
    # the scale itself is float16: 1.001 covers its rounding
    assert bool((error <= largest * 1.001 / torch.where(refined, 2 * 2047, 2 * 127)).all())
    assert error[4] == 0


def test_unknown_asset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no bundled file 'x'; bundled: .*icons139\.npz"):
        asset("x")
