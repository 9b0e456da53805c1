"""Every op on a GPU as programs use it: in a CUDA graph that is replayed, and on a side stream."""

import pytest
import torch

from tests.ops.cases import CASES
from tests.oracle import moved, run
from vlcal import ops
from vlcal.ops import SearchIndex

GPU = [
    (op, backend) for op in CASES for backend in ops.OPS[op] if backend.name in ("triton", "cuda")
]
NAMES = [f"{op} {backend.name}" for op, backend in GPU]


def call_of(op, backend):
    """The arguments of the first case of an op, on the GPU, and its call with them."""
    if why := backend.missing():
        pytest.skip(why)
    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs and streams need a GPU")
    function, cases, _ = CASES[op]
    args, kwargs = moved(cases[0].make(), "cuda")
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]

    def call():
        return run(function, args, kwargs, backend.name)[0]

    try:
        call()
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))
    return args, call


def assert_same(got, want):
    for ours, other in zip(got, want, strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize(("op", "backend"), GPU, ids=NAMES)
def test_a_graph_replays_what_is_there_then(op, backend):
    args, call = call_of(op, backend)
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    inputs = [a for a in args if isinstance(a, torch.Tensor) and a.ndim]
    for value in inputs:
        value.copy_(value.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    assert_same(captured, call())


@pytest.mark.parametrize(("op", "backend"), GPU, ids=NAMES)
def test_a_side_stream_gives_the_same(op, backend):
    _, call = call_of(op, backend)
    want, side = call(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        got = call()
    side.synchronize()
    assert_same(got, want)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_graph_replays_the_search_of_an_index(backend):
    _, _ = call_of("knn", next(b for b in ops.OPS["knn"] if b.name == backend))
    generator = torch.Generator("cuda").manual_seed(0)
    keys, queries, others = (
        torch.randn(n, 70, device="cuda", generator=generator) for n in (20_000, 40, 40)
    )
    index = SearchIndex(keys, backend=backend)
    index.knn(queries, 10)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = index.knn(queries, 10)
    queries.copy_(others)
    graph.replay()
    assert_same(found, ops.knn(others, keys, 10, backend="reference"))
