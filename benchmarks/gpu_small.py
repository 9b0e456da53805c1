"""Runs every GPU backend on small inputs: something to look at under compute-sanitizer.

`python -m benchmarks.gpu_small triton cuda`: a few cases of `tests/ops/cases.py` for every op that
has such a backend, in both precisions and with gradients; of the searches in CUDA C++ also the
kernels that this device would not choose.
"""

from __future__ import annotations

import inspect
import sys
import traceback

import torch

from tests.ops.cases import CASES
from tests.oracle import device_of, moved, run
from vlcal import _cuda, ops

MOST_NUMBERS = 50_000  # of an input


def small_calls(backend: str, most: int) -> tuple[list[str], list[str]]:
    """Run about `most` of the small cases of every op: "op: case" of those that ran and failed."""
    ran, failed = [], []
    for op, (function, cases, _) in CASES.items():
        if backend not in {b.name for b in ops.OPS[op] if b.missing() is None}:
            continue
        precise = "precision" in inspect.signature(function).parameters
        for case in cases[:: max(1, len(cases) // most)]:
            args, kwargs = moved(case.make(), device_of(backend))
            if max(arg.numel() for arg in args if isinstance(arg, torch.Tensor)) > MOST_NUMBERS:
                continue
            try:
                for options in ({}, {"precision": "fast"})[: 1 + precise]:
                    run(function, args, {**kwargs, **options}, backend)
            except NotImplementedError:
                continue  # not one of the inputs it takes
            except Exception:
                traceback.print_exc()
                failed.append(f"{op}: {case}")
            else:
                ran.append(f"{op}: {case}")
    return ran, failed


def both_screens() -> list[str]:
    """The screens of the searches: those of compute capability 8.0, and of 9.0 where it is that."""
    ran = []
    device = torch.device("cuda")
    for wgmma in (False, True)[: 1 + _cuda.has_wgmma(device)]:
        # queries that stay in shared memory, and wider ones that do not
        for n, keys, dim in ((1, 1, 64), (70, 700, 256), (65, 300, 1088)):
            q16 = torch.randn(n, dim, device=device).half()
            k16 = torch.randn(keys, dim, device=device).half()
            bias = torch.randn(keys, device=device)
            _cuda.group_max(q16, k16, bias, wgmma=wgmma)
            _cuda.screen(q16, k16, bias, bias.new_zeros(n), 64, wgmma=wgmma)
            ran.append(f"screens: {n} x {keys} x {dim}, {'wgmma' if wgmma else 'mma'}")
    return ran


def main(backends: list[str]) -> str | None:
    """What went wrong."""
    lost = []
    for backend in backends:
        ran, failed = small_calls(backend, most=6)
        if backend == "cuda" and ran:
            ran += both_screens()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(f"{backend}: {len(ran)} small calls ran, {len(failed)} failed")
        lost += failed or ([] if ran else [f"no op can run on {backend} here"])
    return f"gpu_small: {', '.join(lost)}" if lost else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
