"""Compiling Triton kernels for GPUs this machine may not have: proof that they can be built."""

import inspect
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.ops.ptx import facts

CAPABILITIES = (80, 90)


def compile_all(module: str, specs: list[dict]) -> dict[str, dict]:
    """Compile kernels of `module` for every capability, in a process without the interpreter.

    A spec: `kernel`, its name; `signature`, name to Triton type ("*fp16", "fp32", "i64") for every
    argument that is no constexpr; `constants`, name to value; `options`, such as num_warps;
    `divisible`, names of arguments known as multiples of 16, as launches find out; `capabilities`,
    if not all. Returns "kernel/number/capability" to what the compiler says: bytes of `shared`
    memory, how many loads are under way `ahead` of the one it waits for, and `ptx.facts`.
    """
    # in this order every part gets as much of each capability
    jobs = [
        (number, capability, spec)
        for capability in CAPABILITIES
        for number, spec in enumerate(specs)
        if capability in spec.get("capabilities", CAPABILITIES)
    ]
    parts = min(os.cpu_count() or 1, 4, (len(jobs) + 3) // 4)
    with ThreadPoolExecutor(parts) as pool:
        made = list(pool.map(lambda part: _compile(module, jobs[part::parts]), range(parts)))
    return {name: about for each in made for name, about in each.items()}


def _compile(module: str, jobs: list[tuple[int, int, dict]]) -> dict[str, dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.triton_compile", module],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _attributes(divisible: list[int]):
    from triton.backends import compiler

    if hasattr(compiler, "AttrsDescriptor"):
        return compiler.AttrsDescriptor.from_hints(dict.fromkeys(divisible, 16))
    return {(place,): [["tt.divisibility", 16]] for place in divisible}


def _main(module: str) -> None:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = importlib.import_module(module)
    made = {}
    for number, capability, spec in json.load(sys.stdin):
        kernel = getattr(kernels, spec["kernel"])
        names = kernel.arg_names
        constants = {(names.index(name),): value for name, value in spec["constants"].items()}
        named = (
            "constexprs" if "constexprs" in inspect.signature(ASTSource).parameters else "constants"
        )
        signature = {name: spec["signature"].get(name, "constexpr") for name in names}
        if named == "constants":
            constants = spec["constants"]
            # in the order of the arguments
            signature = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        attrs = _attributes([names.index(name) for name in spec.get("divisible", [])])
        source = ASTSource(fn=kernel, signature=signature, attrs=attrs, **{named: constants})
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=spec.get("options", {}))
        waits = re.findall(r"async_wait.*num = (\d+)", compiled.asm["ttgir"])
        made[f"{spec['kernel']}/{number}/{capability}"] = {
            "shared": compiled.metadata.shared,
            "ahead": max(map(int, waits), default=0),
            **facts(compiled.asm["ptx"]),
        }
    print(json.dumps(made))


if __name__ == "__main__":
    _main(sys.argv[1])
