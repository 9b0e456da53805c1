"""What is timed on a GPU: the card itself, every kernel alone, and calls beside their peers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_plan import PLAN, Comparison, three

ROUNDS, SECONDS = 20, 3.0  # of one of ours and a peer
FLUSHED = 1 << 28  # bytes, several times an L2
REPLAYED = 20  # launches of a kernel in one graph
Items = dict[str, Callable[[], Iterator[dict[str, Any]]]]


class Clock:
    """Milliseconds and MiB of calls: by events behind a flushed cache, or on the CPU's clock."""

    def __init__(self, rehearsed: bool) -> None:
        self.device = "cpu" if rehearsed else "cuda"
        torch.set_float32_matmul_precision("highest")
        self.flush = torch.empty(0 if rehearsed else FLUSHED, dtype=torch.uint8, device=self.device)

    def milliseconds(self, call: Callable[[], Any]) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        self.flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def peak_mib(self, call: Callable[[], Any]) -> float:
        """Above what was there; the call has warmed up."""
        if self.device == "cpu":
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def alone(self, launch: Callable[[], Any]) -> list[float]:
        """Milliseconds of a launch without the host: many in a graph that is replayed."""
        launch()
        if self.device == "cpu":
            return [self.milliseconds(launch)]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPLAYED):
                launch()
        graph.replay()
        return [self.milliseconds(graph.replay) / REPLAYED for _ in range(7)]


# ---- stages that time something: items by name, each gives rows


def ceilings(clock: Clock) -> Items:
    """What this card can do: memory, and products of fp16 at three shapes."""

    def moved(name: str) -> Iterator[dict[str, Any]]:
        source = torch.empty(
            1 << (16 if clock.device == "cpu" else 33), dtype=torch.uint8, device=clock.device
        )
        target = torch.empty_like(source)
        call = partial(target.copy_, source) if name == "copy" else source.view(torch.int64).sum
        size = len(source) * (2 if name == "copy" else 1)
        times = [clock.milliseconds(call) for _ in range(7)]
        yield {**quantiles(times), "note": f"{size / statistics.median(times) / 1e9:.3g} TB/s"}

    def multiplied(shape: tuple[int, int, int]) -> Iterator[dict[str, Any]]:
        n, m, k = shape if clock.device == "cuda" else (8, 8, 8)
        a = torch.randn(n, k, device=clock.device).half()
        b = torch.randn(m, k, device=clock.device).half()
        times = [clock.milliseconds(lambda: a @ b.T) for _ in range(7)]
        rate = 2 * n * m * k / statistics.median(times) / 1e9
        yield {**quantiles(times), "note": f"{rate:.0f} TFLOP/s"}

    shapes = ((8192, 8192, 8192), (1000, 1_000_000, 512), (10_000, 100_000, 512))
    return {name: partial(moved, name) for name in ("copy", "read")} | {
        f"fp16 {shape[0]} x {shape[1]} x {shape[2]}": partial(multiplied, shape) for shape in shapes
    }


def kernels(clock: Clock) -> Items:
    """Every Triton kernel of every workload alone, and the CUDA C++ kernels with their variants."""

    def of_triton(one: Comparison) -> Iterator[dict[str, Any]]:
        call, launches = one.run(clock.device).calls["triton"], []
        call(0)
        with recorded(launches):
            call(1)
        for name, launch in launches:
            yield {"peer": name, **quantiles(clock.alone(launch))}

    def of_screens() -> Iterator[dict[str, Any]]:
        from vlcal import _cuda

        q16 = torch.randn(1000, 512, device=clock.device).half()
        k16 = torch.randn(1_000_000, 512, device=clock.device).half()
        bias = torch.zeros(len(k16), device=clock.device)
        yield {
            "peer": "sample",
            **quantiles(clock.alone(lambda: _cuda.group_max(q16, k16[::16], bias))),
        }
        gap = bias.new_zeros(-(-len(k16) // 256))
        best = _cuda.group_max(q16, k16[::16], bias).topk(10).values
        rungs = best[:, [4, 1, 0]].contiguous()
        none = rungs[:, :0].contiguous()
        for name, floor, ladder in (
            ("screen, nothing reaches its floor", torch.full_like(best[:, 0], torch.inf), none),
            ("screen, floors stay", best[:, -1].contiguous(), none),
            ("screen, floors rise", best[:, -1].contiguous(), rungs),
        ):

            def launch(floor: Any = floor, ladder: Any = ladder) -> Any:
                # a copy, because floors rise
                return _cuda.screen(q16, k16, bias, floor.clone(), 1024, gap, ladder, ladder, 10)

            found = float(launch()[0].double().mean())
            yield {"peer": name, **quantiles(clock.alone(launch)), "note": f"{found:.0f} entries"}

    items: Items = {
        f"{one.op} {one.workload}, triton": partial(of_triton, one)
        for one in PLAN
        if "triton" in one.ours
    }
    return items if clock.device == "cpu" else {"screens in CUDA C++": of_screens, **items}


@contextmanager
def recorded(launches: list[tuple[str, Callable[[], Any]]]) -> Iterator[None]:
    """Append the name of each Triton kernel launched inside, and the same launch to repeat."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import KernelInterface

    def patched(original: Any, kernel: Any, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **kwargs: Any) -> Any:
            again = partial(original(kernel, grid), *args, **kwargs)
            launches.append((kernel.fn.__name__, again))
            return again()

        return launch

    kinds = (KernelInterface, InterpretedFunction)
    originals = [kind.__dict__.get("__getitem__") for kind in kinds]
    for kind, original in zip(kinds, originals, strict=True):
        if original:
            kind.__getitem__ = lambda kernel, grid, original=original: patched(
                original, kernel, grid
            )
    try:
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            if original:
                kind.__getitem__ = original


def compare(clock: Clock, extras: bool = False) -> Items:
    """Calls as users make them beside the strongest peer; `extras`: beside the others."""

    def beside(one: Comparison, backend: str, peers: list[str]) -> Iterator[dict[str, Any]]:
        run, wrong = one.run(clock.device), ""
        try:
            run.gate(backend)
        except AssertionError as error:
            wrong = f"WRONG: {' '.join(str(error).split())[:120]}"
        for peer in peers or ["-"]:
            calls = [run.calls[name] for name in (backend, peer) if name in run.calls]
            times: list[list[float]] = [[] for _ in calls]
            for call in calls:
                for i in range(3):
                    call(i)
            begun = time.perf_counter()
            for i in range(ROUNDS):
                for taken, call in zip(times, calls, strict=True):
                    taken.append(clock.milliseconds(partial(call, i)))
                if time.perf_counter() - begun > SECONDS:
                    break
            row = {"peer": peer, **quantiles(times[0]), "note": wrong}
            row["mib"], *theirs = (f"{clock.peak_mib(partial(call, 0)):.1f}" for call in calls)
            if theirs:
                row |= {"peer_p50_ms": three(statistics.median(times[1])), "peer_mib": theirs[0]}
                ratios = [their / our for our, their in zip(*times, strict=True)]
                limits = statistics.median(ratios), min(ratios), max(ratios)
                # how fast a wrong answer comes says nothing
                names = () if wrong else ("ratio", "ratio_min", "ratio_max")
                row |= {name: three(value) for name, value in zip(names, limits, strict=False)}
            yield row

    items: Items = {}
    for one in PLAN:
        for backend in one.ours:
            peers = list(one.peers)[1:] if extras else list(one.peers)[:1]
            if (peers or not extras) and not (
                clock.device == "cpu" and (backend == "cuda" or extras)
            ):
                items[f"{one.op} {one.workload}, {backend}"] = partial(beside, one, backend, peers)
    return items


TIMED: dict[str, Callable[[Clock], Items]] = {
    "ceilings": ceilings,
    "kernels": kernels,
    "compare": compare,
    "extras": partial(compare, extras=True),
}


def quantiles(times: list[float]) -> dict[str, str]:
    ordered = sorted(times)
    return {
        f"p{share}_ms": three(ordered[round(share / 100 * (len(ordered) - 1))])
        for share in (20, 50, 80)
    }
