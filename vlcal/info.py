"""What this installation can do: versions, devices, and which backends each op has here."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

import vlcal
from vlcal import _cuda, _native
from vlcal.ops import OPS

OPTIONAL = {
    "open_clip_torch": "clip",
    "pillow": "clip",
    "scipy": "calibrators",
    "matplotlib": "report",
    "jinja2": "report",
    "jsonargparse": "cli",
    "rich": "cli",
    "triton": "comes with CUDA builds of torch",
}


def collect() -> dict[str, Any]:
    """Versions, devices, the native extension; op -> backend -> None or why it is missing."""
    return {
        "vlcal": vlcal.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "optional": {name: _version(name) for name in OPTIONAL},
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "native": {
            "missing": _native.missing(),
            "compiler": None if _native.missing() else _native.library().compiler,
            "instruction_sets": _native.instruction_sets(),
        },
        "cuda": {
            "not_built": _cuda.not_built(),
            "missing": _cuda.missing(),
            "toolkit": None if _cuda.not_built() else _cuda.toolkit(),
        },
        "ops": {
            op: {backend.name: backend.missing() for backend in backends}
            for op, backends in OPS.items()
        },
    }


def versions() -> dict[str, str]:
    """Versions of what every result depends on."""
    return {
        "vlcal": vlcal.__version__,
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
    }


def devices() -> list[str]:
    """The CPU and every CUDA device, by name."""
    names = [f"cpu: {platform.processor() or platform.machine()}"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            names.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}")
    return names


def text(facts: dict[str, Any]) -> str:
    """`collect()` as lines to read or to paste into an issue."""
    lines = [f"vlcal {facts['vlcal']}, Python {facts['python']}, {facts['platform']}"]
    lines.append("  " + ", ".join(f"{name} {v}" for name, v in facts["versions"].items()))
    for name, version in facts["optional"].items():
        where = OPTIONAL[name]
        how = f"pip install 'vlcal[{where}]'" if " " not in where else where
        lines.append(f"  {name} {version}" if version else f"  {name} missing: {how}")
    lines.append("devices")
    lines += [f"  {device}" for device in facts["devices"]]
    lines.append(f"  {facts['threads']} threads")
    native = facts["native"]
    lines.append("native extension")
    if native["missing"]:
        lines.append(f"  missing: {native['missing']}")
    else:
        lines.append(f"  built with {native['compiler']}: {', '.join(native['instruction_sets'])}")
    cuda = facts["cuda"]
    lines.append("CUDA kernels")
    if not cuda["not_built"]:
        lines.append(f"  built with CUDA {cuda['toolkit']} for compute capability 9.0")
    if cuda["missing"]:
        lines.append(f"  missing: {cuda['missing']}")
    lines.append("operations, backends in order of preference")
    for op, backends in facts["ops"].items():
        states = [f"{name} yes" if why is None else f"{name} no" for name, why in backends.items()]
        lines.append(f"  {op:<24} {', '.join(states)}")
    reasons = {
        f"{name}: {why}"
        for backends in facts["ops"].values()
        for name, why in backends.items()
        if why
    }
    lines += [f"  {reason}" for reason in sorted(reasons)]
    return "\n".join(lines)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
