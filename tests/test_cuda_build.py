"""The build of the CUDA kernels: what setup.py decides, and what is in the extension."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlcal import _cuda, _native, info

ROOT = Path(__file__).parents[1]
needs_kernels = pytest.mark.skipif(_cuda.not_built() is not None, reason=str(_cuda.not_built()))


@pytest.fixture
def build(monkeypatch):
    """The names of setup.py, run without building anything."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("VLCAL_NATIVE", "0")
    monkeypatch.delenv("VLCAL_CUDA", raising=False)
    names = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setenv("VLCAL_NATIVE", "auto")
    return SimpleNamespace(**names, names=names["BuildNative"].build_extension.__globals__)


def builder(build, monkeypatch, nvcc, fails):
    """A build whose attempts are recorded; those in `fails` raise."""
    monkeypatch.setitem(build.names, "nvcc_path", lambda: nvcc)
    command = build.BuildNative.__new__(build.BuildNative)
    tried = []

    def build_with(_, cuda):
        tried.append(cuda)
        if cuda in fails:
            raise OSError("no luck")

    command.build_with = build_with
    return command, tried


@pytest.mark.parametrize(
    ("wanted", "nvcc", "fails", "tried"),
    [
        ("auto", "nvcc", (), [True]),
        ("auto", "nvcc", (True,), [True, False]),
        ("auto", "nvcc", (True, False), [True, False]),
        ("auto", None, (), [False]),
        ("0", "nvcc", (), [False]),
        ("1", "nvcc", (), [True]),
    ],
)
def test_auto_builds_what_it_can_and_says_what_it_leaves_out(
    build, monkeypatch, capsys, wanted, nvcc, fails, tried
):
    monkeypatch.setenv("VLCAL_CUDA", wanted)
    command, seen = builder(build, monkeypatch, nvcc, fails)
    command.build_extension(None)
    assert seen == tried
    said = capsys.readouterr().err
    assert said.count("vlcal: installing without") == len(fails)
    assert ("without CUDA kernels: no luck" in said) == (True in fails)


def test_one_fails_loudly(build, monkeypatch):
    monkeypatch.setenv("VLCAL_CUDA", "1")
    command, seen = builder(build, monkeypatch, "nvcc", (True,))
    with pytest.raises(OSError, match="no luck"):
        command.build_extension(None)
    assert seen == [True]
    monkeypatch.setitem(build.names, "nvcc_path", lambda: None)
    with pytest.raises(FileNotFoundError, match="need nvcc: not on PATH, nor in /usr/local/cuda"):
        build.find_nvcc()


def test_cuda_without_the_native_extension_is_refused(build, monkeypatch):
    monkeypatch.setenv("VLCAL_CUDA", "1")
    monkeypatch.setenv("VLCAL_NATIVE", "0")
    with pytest.raises(SystemExit, match="VLCAL_CUDA=1 needs the native extension"):
        build.extensions()


def test_nvcc_is_found_where_it_usually_is(build, monkeypatch, tmp_path):
    monkeypatch.setitem(build.names, "which", lambda _: None)
    monkeypatch.setitem(build.names, "Path", lambda *parts: tmp_path)
    for name in ("cuda-12.9", "cuda-13.0"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "nvcc").touch()
    assert build.nvcc_path() == str(tmp_path / "cuda-13.0/bin/nvcc")


def test_the_static_runtime_is_that_of_nvcc(build):
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("no nvcc was found")
    assert build.static_runtime(nvcc).name == "libcudart_static.a"


def test_python_and_extension_have_the_same_interface_number():
    (number,) = re.findall(r"kInterface = (\d+);", (ROOT / "csrc/module.cpp").read_text())
    assert int(number) == _native.INTERFACE


@pytest.mark.parametrize("stale", [SimpleNamespace(), SimpleNamespace(interface=-1)])
def test_a_stale_extension_is_a_sentence(monkeypatch, stale):
    monkeypatch.setattr(_native.importlib, "import_module", lambda _: stale)
    module, why = _native._load()
    assert module is None
    assert re.search(r"from other sources .*; pip install -e \. builds it again", why)


@needs_kernels
def test_the_extension_imports_and_says_why_without_a_device():
    lines = ["from vlcal import _native, _cuda", "print(_cuda.missing(), _native.missing())"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == "no CUDA device was found None\n"


@needs_kernels
def test_no_shared_runtime_is_needed():
    if not (reader := shutil.which("readelf")):
        pytest.skip("no readelf was found")
    shown = subprocess.run(
        [reader, "-d", _native.library().__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", shown)
    assert needed and not [name for name in needed if "cuda" in name]


def test_info_says_what_was_built():
    text = info.text(info.collect())
    if why := _cuda.not_built():
        assert f"missing: {why}" in text
    else:
        assert f"built with CUDA {_cuda.toolkit()} for compute capability 9.0" in text
