"""Launching Triton kernels for a GPU this machine may not have: compiled as called, never run."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace


def compile_launches(calls: str, capability: tuple[int, int]) -> dict[str, int]:
    """Compile every kernel that `calls` ("module:function") launches, with its real arguments.

    The function runs in a process without the interpreter, on CPU tensors whose values mean
    nothing. Returns kernel to the most shared memory a launch of it takes, in bytes.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.ops.triton_launch",
            calls,
            *map(str, capability),
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _main(calls: str, major: str, minor: str) -> None:
    from importlib import import_module

    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    capability = int(major), int(minor)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    torch.cuda.get_device_capability = lambda device=None: capability
    # what no kernel writes can still be used as an index
    torch.empty, torch.empty_like = torch.zeros, torch.zeros_like
    launch, made = jit.JITFunction.run, {}

    def compile_only(self, *args, grid, warmup, **kwargs):
        shared = launch(self, *args, grid=grid, warmup=True, **kwargs).metadata.shared
        made[self.fn.__name__] = max(shared, made.get(self.fn.__name__, 0))

    jit.JITFunction.run = compile_only
    module, function = calls.split(":")
    getattr(import_module(module), function)()
    print(json.dumps(made))


if __name__ == "__main__":
    _main(*sys.argv[1:])
