"""Compile every kernel that some calls launch, for a GPU that is not there, and read the result.

The calls run on the GPU of `fake_cuda`, in a process without Triton's interpreter, so the launchers
themselves choose every argument. What is read: remarks of ptxas, PTX, and machine code (SASS).
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROCESSES = 2


def compile_calls(names: Sequence[str], capability: int = 90, room: int = 227) -> list[dict]:
    """Facts of every kernel that calls of `gpu_calls.BUDGETED` launch, each specialization once.

    The GPU has this compute capability and so many KiB of shared memory. Facts of a kernel:
    `kernel`, `call`, `constants`, `warps`, `shared` (bytes), `ahead` (loads under way beside the
    one it waits for), `layouts` (how threads share a block), those of `ptx_facts` and
    `ptxas_facts`, and for `code_of` the `cubin`.
    """

    def compiled(part: int) -> list[dict]:
        return _compile(names[part::PROCESSES], str(capability), str(room))

    with ThreadPoolExecutor(PROCESSES) as pool:
        return [fact for made in pool.map(compiled, range(PROCESSES)) for fact in made]


def _compile(names: Sequence[str], *gpu: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        environment |= {"TRITON_ALWAYS_COMPILE": "1", "TRITON_CACHE_DIR": folder}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.ops.gpu_code", *gpu, *names],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _main(capability: int, room: int, names: Sequence[str]) -> None:
    import contextlib
    import io
    from types import SimpleNamespace

    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import MockTensor

    from tests.ops.fake_cuda import fake_cuda
    from tests.ops.gpu_calls import BUDGETED

    knobs.nvidia.dump_ptxas_log = True
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    made: dict[int, tuple[Any, dict[str, Any]]] = {}

    def mock(value: Any) -> Any:
        if not hasattr(value, "dtype"):
            return value
        # whether it is a multiple of 16 is compiled in
        address = value.storage_offset() * value.element_size()
        pointer = MockTensor(value.dtype)
        pointer.data_ptr = lambda: address
        return pointer

    def compile_launch(kernel: Any, given: dict[str, Any], options: dict[str, Any]) -> None:
        given = {name: mock(value) for name, value in given.items()}
        with contextlib.redirect_stdout(io.StringIO()) as log:
            compiled = kernel.run(grid=(1,), warmup=True, **given, **options)
        if id(compiled) in made:
            return
        waits = re.findall(r"async_wait.*num = (\d+)", compiled.asm["ttgir"])
        constants = {param.name: given[param.name] for param in kernel.params if param.is_constexpr}
        facts = {"kernel": kernel.fn.__name__, "call": name, "constants": constants}
        facts |= {"warps": compiled.metadata.num_warps, "shared": compiled.metadata.shared}
        facts |= {"ahead": max(map(int, waits), default=0), **ptx_facts(compiled.asm["ptx"])}
        facts |= ptxas_facts(log.getvalue())
        facts["layouts"] = sorted(re.findall(r"^#blocked = .*", compiled.asm["ttgir"], re.M))
        facts["cubin"] = base64.b64encode(compiled.asm["cubin"]).decode()
        # kept alive, or another could have its address
        made[id(compiled)] = compiled, facts

    for name in names:
        kind = {"capability": divmod(capability, 10), "shared": room << 10}
        with fake_cuda(capturing=True, compile_launch=compile_launch, **kind) as gpu:
            BUDGETED[name](gpu.device)
    print(json.dumps([facts for _, facts in made.values()]))


def compile_cu(source: Path, folder: Path) -> list[dict[str, Any]]:
    """The same facts of the kernels of a .cu file, compiled by nvcc as setup.py does."""
    cubin = folder / f"{source.stem}.cubin"
    target = "-gencode=arch=compute_90a,code=sm_90a"
    flags = ["-std=c++17", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", target]
    command = [str(shutil.which("nvcc")), *flags, "-cubin", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sections = re.split(r"Compiling entry function '(\w+)'", done.stderr)
    by_name = dict(zip(sections[1::2], sections[2::2], strict=True))
    # a remark can stand in front of the section that it is about
    remarks = re.findall(r"\(C7\d+\).*", done.stderr)
    kernels = re.split(r"Function : (\w+)", disassembled(cubin))
    return [
        {"kernel": name, "code": _parsed(text), **ptxas_facts(by_name[name]), "remarks": remarks}
        for name, text in zip(kernels[1::2], kernels[2::2], strict=True)
    ]


# ---- ptxas


def ptxas_facts(log: str) -> dict[str, Any]:
    """Remarks (C7...) about products that are serialized, bytes spilled, registers of a thread."""
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == 1, log
    remarks = re.findall(r"\(C7\d+\).*", log)
    return {"remarks": remarks, "spilled": max(spilled, default=0), "registers": registers[0]}


# ---- PTX


def ptx_facts(ptx: str) -> dict[str, Any]:
    """Counts of what no interpreter shows."""
    return {
        "fused": ptx.count("fma.rn.f64"),
        "acq_rel": ptx.count("acq_rel"),
        "wgmma": ptx.count("wgmma.mma_async"),
        "copies": len(re.findall(r"cp\.async\.c[ag]\.shared", ptx)),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global.*?, 0x10", ptx)),
        "touched": sorted(touched_in_flight(ptx)),
    }


def touched_in_flight(ptx: str) -> set[str]:
    """Instructions that reach accumulators which `wgmma` may still be writing.

    Those are undefined until `wgmma.wait_group 0` on every path; other products may follow.
    """
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, ptx.splitlines()):
        if label := re.match(r"(\$L\w+):", line):
            labels[label[1]] = len(code)
        elif line and (line[0].isalpha() or line[0] == "@"):
            code.append(line)
    accumulators: set[str] = set()
    for line in code:
        if found := re.search(r"wgmma\.mma_async[^{]*\{([^}]*)\}", line):
            accumulators |= _registers(found[1])
    touched: set[str] = set()
    # of every instruction, whether it was reached without and with products in flight
    reached = [[False, False] for _ in code]
    ways = [(0, False)] if accumulators else []
    while ways:
        at, flying = ways.pop()
        while at < len(code) and not reached[at][flying]:
            reached[at][flying] = True
            line = code[at]
            if "wgmma.mma_async" in line:
                flying = True
            elif re.search(r"wgmma\.wait_group\S*\s+0;", line):
                flying = False
            elif flying and "wgmma" not in line and _registers(line) & accumulators:
                touched.add(line)
            jump = re.search(r"\bbra(?:\.uni)?\s+(\$L\w+)", line)
            if jump and not line.startswith("@"):
                at = labels[jump[1]]
                continue
            if jump:
                ways.append((labels[jump[1]], flying))
            if re.match(r"(ret|exit|trap)\b", line):
                break
            at += 1
    return touched


def _registers(text: str) -> set[str]:
    return set(re.findall(r"%[a-z]+\d+", text))


# ---- machine code

Code = list[tuple[int, str]]


def disassembled(cubin: Path) -> str:
    """What cuobjdump says of a file; the one of nvcc, or else the one that Triton brings."""
    places = [Path(shutil.which("cuobjdump") or "")]
    if (triton := find_spec("triton")) and triton.origin:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    for tool in filter(Path.is_file, places):
        done = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
    raise FileNotFoundError("no cuobjdump that reads this machine code was found")


def code_of(kernel: dict) -> Code:
    """The address and the text of every instruction of what `compile_calls` returned."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(base64.b64decode(kernel["cubin"]))
        return _parsed(disassembled(Path(file.name)).split("Function : ")[1])


def _parsed(kernel: str) -> Code:
    found = re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+([^;]+);", kernel, re.MULTILINE)
    code = [(int(address, 16), text) for address, text in found]
    # behind the end it is filled up, with a jump of each filler to itself
    real = [line for line in code if f"BRA {line[0]:#x}" not in line[1]]
    while real and real[-1][1].startswith("NOP"):
        real.pop()
    return real


def mnemonic(text: str) -> str:
    """The name of an instruction without its predicate."""
    return re.sub(r"^@!?U?P\w+ +", "", text).split()[0]


def loop_with(code: Code, wanted: str) -> list[str]:
    """The smallest loop that holds such an instruction, as mnemonics."""
    loops = []
    for address, text in code:
        if (jump := re.search(r"\bBRA(?:\.\w+)*\s+(?:U?P\w+, )?`?\(?(0x[0-9a-f]+)", text)) and int(
            jump[1], 16
        ) <= address:
            body = [mnemonic(t) for a, t in code if int(jump[1], 16) <= a <= address]
            if any(name.startswith(wanted) for name in body):
                loops.append(body)
    return min(loops, key=len)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
