"""Builds vlcal._C from csrc/: plain C++17 and CUDA on raw pointers, no torch headers.

VLCAL_NATIVE and VLCAL_CUDA are 0 (never), auto (the default: warn and install without) or 1 (fail
loudly). CUDA is compiled where nvcc is, on PATH or in /usr/local/cuda*, for compute capability 9.0
alone; no GPU is needed.
"""

import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from shutil import which

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU, CUDA = Path("csrc/cpu"), Path("csrc/cuda")
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
# products and sums are rounded one by one, as -ffp-contract=off does for the CPU
NVCC = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Icsrc"]
NVCC += ["-gencode=arch=compute_90a,code=sm_90a"]


def wanted(variable: str) -> str:
    value = os.environ.get(variable, "auto")
    if value not in ("0", "auto", "1"):
        sys.exit(f"setup.py: {variable} must be 0, auto or 1, got {value!r}")
    return value


def cuda_wanted() -> bool:
    return wanted("VLCAL_CUDA") == "1" or (wanted("VLCAL_CUDA") == "auto" and bool(nvcc_path()))


def nvcc_path() -> str | None:
    usual = sorted(Path("/usr/local").glob("cuda*/bin/nvcc"))
    return which("nvcc") or (str(usual[-1]) if usual else None)


def find_nvcc() -> str:
    if found := nvcc_path():
        return found
    raise FileNotFoundError("CUDA kernels need nvcc: not on PATH, nor in /usr/local/cuda*/bin")


def static_runtime(nvcc: str) -> Path:
    """libcudart_static.a of nvcc's own toolkit, which nvcc names even where it is a script."""
    dry = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
    told = subprocess.run(dry, capture_output=True, text=True, check=True).stderr
    top = Path(re.search(r"^#\$ TOP=(.*)$", told, re.MULTILINE).group(1))
    for folder in ("lib64", "lib", "targets/*/lib"):
        for library in top.glob(f"{folder}/libcudart_static.a"):
            return library
    raise FileNotFoundError(f"no libcudart_static.a in lib64 or lib of {top.resolve()}")


def isa_of(source: str) -> str | None:
    suffix = Path(source).stem.rpartition("_")[2]
    return suffix if suffix in FLAGS else None


class BuildNative(build_ext):
    """Compile every source with its own flags; without a compiler, say so and go on."""

    def build_extension(self, ext: Extension) -> None:
        for cuda in (True, False) if cuda_wanted() else (False,):
            try:
                return self.build_with(ext, cuda)
            except Exception as error:
                if wanted("VLCAL_CUDA" if cuda else "VLCAL_NATIVE") == "1":
                    raise
                what = "CUDA kernels" if cuda else "the native extension"
                print(f"vlcal: installing without {what}: {error}", file=sys.stderr)

    def build_with(self, ext: Extension, cuda: bool) -> None:
        sources, macros, libraries = [*ext.sources], [*ext.define_macros], []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if cuda:
                nvcc = find_nvcc()
                kernels = list(pool.map(partial(self.compile_cu, nvcc), sorted(CUDA.glob("*.cu"))))
                libraries = [*kernels, str(static_runtime(nvcc)), "-ldl", "-lrt"]
                sources.append(str(CUDA / "module_cuda.cpp"))
                macros.append(("VLCAL_CUDA", "1"))
            objects = list(pool.map(partial(self.compile_cpp, ext, macros), sources))
        Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=[*libraries, *ext.extra_link_args],
            target_lang="c++",
        )

    def compile_cu(self, nvcc: str, source: Path) -> str:
        target = Path(self.build_temp, source.parent, f"{source.stem}-90a.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        needed = [source, Path("setup.py"), *source.parent.glob("*.*h"), *Path("csrc").rglob("*.h")]
        # minutes, not seconds: an object newer than all it can include is kept
        if not target.exists() or target.stat().st_mtime < max(f.stat().st_mtime for f in needed):
            half = target.with_suffix(f".{os.getpid()}")
            command = [nvcc, *NVCC, "-c", str(source), "-o", str(half)]
            subprocess.run(command, check=True)
            half.replace(target)
        return str(target)

    def compile_cpp(self, ext: Extension, macros: list, source: str) -> str:
        flags = [*ext.extra_compile_args, *FLAGS.get(isa_of(source) or "", [])]
        (compiled,) = self.compiler.compile(
            [source],
            self.build_temp,
            macros,
            ext.include_dirs,
            extra_postargs=flags,
            depends=ext.depends,
        )
        return compiled


def extensions() -> list[Extension]:
    if wanted("VLCAL_NATIVE") == "0":
        if wanted("VLCAL_CUDA") == "1":
            sys.exit("setup.py: VLCAL_CUDA=1 needs the native extension, VLCAL_NATIVE is 0")
        return []
    import pybind11

    sources = ["csrc/module.cpp", *sorted(str(path) for path in CPU.glob("*.cpp"))]
    return [
        Extension(
            "vlcal._C",
            [source for source in sources if X86 or isa_of(source) is None],
            include_dirs=[pybind11.get_include(), "csrc"],
            depends=sorted(str(path) for path in Path("csrc").rglob("*.*")),
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
            optional="1" not in (wanted("VLCAL_NATIVE"), wanted("VLCAL_CUDA")),
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
