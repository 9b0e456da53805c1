"""Runs every GPU backend on small inputs: something to look at under compute-sanitizer.

`python -m benchmarks.gpu_small cuda`: a few cases of `tests/ops/cases.py` for every op that has it.
"""

from __future__ import annotations

import sys

import torch

from tests.ops.cases import CASES
from tests.oracle import device_of, moved
from vlcal import ops

MOST_NUMBERS = 50_000  # of an input


def small_calls(backend: str, most: int) -> list[str]:
    """Run up to `most` small cases of every op; "op: case" of each that ran."""
    ran = []
    for op, (function, cases, _) in CASES.items():
        if backend not in {b.name for b in ops.OPS[op] if b.missing() is None}:
            continue
        done = 0
        for case in cases:
            args, kwargs = moved(case.make(), device_of(backend))
            sizes = [arg.numel() for arg in args if isinstance(arg, torch.Tensor)]
            if done == most or max(sizes) > MOST_NUMBERS:
                continue
            try:
                function(*args, **kwargs, backend=backend)
            except NotImplementedError:
                continue  # not one of the inputs it takes
            done += 1
            ran.append(f"{op}: {case}")
    return ran


if __name__ == "__main__":
    ran = small_calls(sys.argv[1], most=4)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(f"{sys.argv[1]}: {len(ran)} small calls")
    sys.exit(0 if ran else f"gpu_small: no op can run on {sys.argv[1]} here")
