"""The build of the CUDA kernels: what setup.py decides, and what is in the extension."""

import importlib.util
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
    for variable in ("VLCAL_CUDA", "VLCAL_CUDA_ARCHS"):
        monkeypatch.delenv(variable, raising=False)
    names = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setenv("VLCAL_NATIVE", "auto")
    return SimpleNamespace(**names, names=names["BuildNative"].build_extension.__globals__)


def builder(build, monkeypatch, nvcc, fails):
    """A build whose attempts are recorded; those in `fails` raise."""
    monkeypatch.setitem(build.names, "which", lambda _: nvcc)
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
    monkeypatch.setitem(build.names, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="need nvcc, which is not on PATH"):
        build.find_nvcc()


def test_cuda_without_the_native_extension_is_refused(build, monkeypatch):
    monkeypatch.setenv("VLCAL_CUDA", "1")
    monkeypatch.setenv("VLCAL_NATIVE", "0")
    with pytest.raises(SystemExit, match="VLCAL_CUDA=1 needs the native extension"):
        build.extensions()


@pytest.mark.parametrize(
    ("given", "code", "ptx"),
    [("80;90a", ["80", "90a"], "80"), ("90a", ["90a"], "90"), ("100a;86", ["100a", "86"], "86")],
)
def test_machine_code_for_each_architecture_and_ptx_of_the_lowest(
    build, monkeypatch, given, code, ptx
):
    monkeypatch.setenv("VLCAL_CUDA_ARCHS", given)
    flags = [flag for flag in build.nvcc_flags() if flag.startswith("-gencode")]
    assert flags == [
        *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in code),
        f"-gencode=arch=compute_{ptx},code=compute_{ptx}",
    ]


@pytest.mark.parametrize("given", ["", "70", "sm_80", "80,90"])
def test_what_is_no_architecture_is_refused(build, monkeypatch, given):
    monkeypatch.setenv("VLCAL_CUDA_ARCHS", given)
    with pytest.raises(SystemExit, match="VLCAL_CUDA_ARCHS must be like '80;90a', from 80 on"):
        build.architectures()


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


def object_dumper():
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    inside = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec else None
    return found or (str(inside) if inside and inside.exists() else None)


@needs_kernels
def test_the_extension_holds_every_architecture():
    if not (dump := object_dumper()):
        pytest.skip("no cuobjdump was found")
    listed = subprocess.run(
        [dump, "-lelf", "-lptx", _native.library().__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for arch in _cuda.architectures():
        # older tools leave the letter out
        assert re.search(rf"sm_{arch.rstrip('af')}[af]?\.cubin", listed)
    assert ".ptx" in listed


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
        assert f"built with CUDA {_cuda.toolkit()}: {', '.join(_cuda.architectures())}" in text
