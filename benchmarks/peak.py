"""What one core of this machine can do at most, from a small program compiled here and now."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.cpp")


@functools.cache
def peaks() -> dict[str, float]:
    """Billions of operations a second: of "avx2" and "float32" multiply-adds, "bfloat16", "int8".

    Empty where there is no compiler or it is no x86-64; the largest of several tries, as others on
    the machine can only take away from it.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        build = [compiler, "-O3", "-march=native", str(SOURCE), "-o", str(program)]
        if subprocess.run(build, capture_output=True, check=False).returncode:
            return {}
        printed = subprocess.run([program], capture_output=True, text=True, check=False).stdout
    pairs = (line.split() for line in printed.splitlines())
    found = {name: float(rate) for name, rate in pairs}
    # a 512-bit instruction that is done in two halves is no faster than two of 256 bits
    found["float32"] = max(found.get("float32", 0.0), found.get("avx2", 0.0))
    return found
