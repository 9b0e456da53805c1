"""Builds vlcal._C from csrc/: plain C++17 on raw pointers, no torch headers.

VLCAL_NATIVE and VLCAL_CUDA are 0 (never), auto (the default: warn and install without) or 1 (fail
loudly).
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("csrc/cpu")
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # gcc 12 warns about its own headers
# a file named *_<key>.cpp is compiled with these flags and called only where the CPU has them
FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "vnni": [*AVX512, "-mavx512vnni"],
    "bf16": [*AVX512, "-mavx512bf16"],
}


def wanted(variable: str) -> str:
    value = os.environ.get(variable, "auto")
    if value not in ("0", "auto", "1"):
        sys.exit(f"setup.py: {variable} must be 0, auto or 1, got {value!r}")
    return value


def isa_of(source: str) -> str | None:
    suffix = Path(source).stem.rpartition("_")[2]
    return suffix if suffix in FLAGS else None


class BuildNative(build_ext):
    """Compile every source with its own flags; without a compiler, say so and go on."""

    def build_extension(self, ext: Extension) -> None:
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda source: self.compile_one(source, ext), ext.sources))
            Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
            self.compiler.link_shared_object(
                objects,
                self.get_ext_fullpath(ext.name),
                extra_postargs=ext.extra_link_args,
                target_lang="c++",
            )
        except Exception as error:
            if wanted("VLCAL_NATIVE") == "1":
                raise
            print(f"vlcal: installing without the native extension: {error}", file=sys.stderr)

    def compile_one(self, source: str, ext: Extension) -> str:
        flags = [*ext.extra_compile_args, *FLAGS.get(isa_of(source) or "", [])]
        (compiled,) = self.compiler.compile(
            [source],
            self.build_temp,
            ext.define_macros,
            ext.include_dirs,
            extra_postargs=flags,
            depends=ext.depends,
        )
        return compiled


def extensions() -> list[Extension]:
    if wanted("VLCAL_CUDA") == "1":
        sys.exit("setup.py: VLCAL_CUDA=1 asks for CUDA kernels, this version has none")
    if wanted("VLCAL_NATIVE") == "0":
        return []
    import pybind11

    sources = ["csrc/module.cpp", *sorted(str(path) for path in CPU.glob("*.cpp"))]
    return [
        Extension(
            "vlcal._C",
            [source for source in sources if X86 or isa_of(source) is None],
            include_dirs=[pybind11.get_include(), "csrc"],
            depends=[str(path) for path in Path("csrc").rglob("*.h")],
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-fvisibility=hidden",
                "-ffp-contract=off",
                "-pthread",
                "-Wall",
            ],
            extra_link_args=["-pthread", "-s"],
            language="c++",
            optional=wanted("VLCAL_NATIVE") == "auto",
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
