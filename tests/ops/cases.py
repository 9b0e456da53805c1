"""Named inputs per op, shared by the tests and by the gates of the benchmarks."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vlcal import ops


class Case(NamedTuple):
    """`make()` gives the positional and keyword arguments of one call."""

    name: str
    make: Callable[[], tuple[tuple, dict]]

    def __str__(self) -> str:
        return self.name


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def confidences(n, dtype=torch.float32, seed=0):
    """Confidences with exact edges, 0 and 1 among them, and correctness that follows them."""
    generator = _generator(seed)
    confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    edges = torch.linspace(0, 1, 31, dtype=torch.float64)
    confidence[: len(edges)] = edges[:n]
    correct = torch.rand(n, generator=generator, dtype=torch.float64) < confidence
    return confidence.to(dtype), correct


BINNING = [
    Case("thousand", lambda: (confidences(1000), {})),
    Case("one bin", lambda: ((*confidences(100), 1), {})),
    Case("ten bins closed left", lambda: ((*confidences(1000), 10), {"closed": "left"})),
    Case("more bins than samples", lambda: ((*confidences(40), 100), {})),
    Case("many chunks", lambda: (confidences(200_003), {})),
    Case("empty", lambda: (confidences(0), {})),
    Case("all one", lambda: ((torch.ones(50), torch.arange(50) % 2 == 0), {})),
    Case("all zero", lambda: ((torch.zeros(50), torch.arange(50) % 2 == 0), {"closed": "left"})),
    Case("float64", lambda: (confidences(1000, torch.float64), {})),
    Case("float16", lambda: (confidences(1000, torch.float16), {})),
    Case("bfloat16", lambda: (confidences(1000, torch.bfloat16), {"closed": "left"})),
    Case("strided", lambda: (tuple(values[::3] for values in confidences(999)), {})),
    Case("expanded", lambda: ((torch.tensor(0.3).expand(77), torch.tensor(True).expand(77)), {})),
]

# op name -> (public function, cases, whether the result must be exact whatever the input dtype)
CASES = {
    "bin_statistics": (ops.bin_statistics, BINNING, True),
}
