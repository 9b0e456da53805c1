"""The launchers of the kernels hand over what the kernels compile with."""

import pytest
import torch

from tests.ops.cases import factors, features
from tests.ops.ptx import touched_in_flight
from tests.ops.triton_launch import compile_launches
from vlcal.ops._triton import cross_entropy, logits, search, search_exact, search_screen

pytest.importorskip("triton")

KERNELS = {
    "pack_classes",
    "pack_images",
    "walk",
    "rank",
    "exact_scores",
    "finish",
    "statistics",
    "losses",
    "logit_gradients",
    "multiply",
}
SEARCHES = {
    "scale_kernel",
    "place_kernel",
    "doubt_kernel",
    "floor_kernel",
    "overflow_kernel",
    "bias_kernel",
    "screen_kernel",
    "rerank_kernel",
    "scan_kernel",
    "merge_kernel",
    "dots_kernel",
}


def every_call():
    scale = torch.tensor(10.0, dtype=torch.float64)
    # one class and no option; every option; more classes wanted than are listed
    for (n, c, dim, k), precision, full in (
        ((5, 1, 1, 1), "accurate", False),
        ((130, 300, 70, 3), "fast", True),
        ((3, 40, 128, 35), "accurate", True),
    ):
        image, text, labels = features(n, c, dim)
        pair = (image.half(), text.bfloat16()) if full else (image, text)
        options = (factors(n), factors(c), labels) if full else (None, None, None)
        logits.calibrated_softmax(*pair, scale, *options, k, precision)
        if k < 35:
            other = pair if full else (None, None)
            logits.logit_statistics(*pair, scale, *other, precision)
            weight = factors(n) if full else None
            wanted = (True, True, True)
            cross_entropy.cross_entropy(*pair, labels, scale, weight, wanted, precision)


def every_search():
    screens = search_screen.screens(torch.device("cpu"))

    def single_keys(q16, k16, bias, floor, capacity):
        n = len(q16)
        first = torch.zeros(n, capacity, dtype=torch.int64)
        return torch.zeros(n, dtype=torch.int32), first, torch.zeros(n, capacity)

    half, bias = torch.zeros(1, 64).half(), torch.zeros(1)
    screens.group_max(half, half, bias)
    screens.screen(half, half, bias, bias, 1)
    # all numbers 1, which are no arguments then; none a multiple of 16; the common case
    for (n, m, dim, k), exclude_self, dot, dtype in (
        ((1, 1, 1, 1), False, False, torch.float32),
        ((1, 130, 1, 1), False, True, torch.float64),
        ((67, 2051, 70, 7), False, False, torch.bfloat16),
        ((320, 320, 512, 2), True, False, torch.float32),
    ):
        queries, keys = torch.zeros(n, dim), torch.zeros(m, dim, dtype=dtype)
        search._scan_all(queries, keys, k, exclude_self, dot)
        search_exact.dots(keys, torch.zeros(dim, dtype=torch.float64))
        for pair in (screens, search.Screens(screens.group_max, single_keys)) if m > 1 else ():
            prepared = search.prepare(keys, dot)
            search.find_prepared(queries, prepared, k, exclude_self, pair)


def test_every_search_compiles_with_its_arguments():
    made = compile_launches("tests.ops.test_triton_launches:every_search", (9, 0))
    assert set(made) == SEARCHES
    assert max(made.values()) <= 227 << 10


def test_accumulators_in_flight_are_seen():
    product = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1,%f2}, %rd1, %rd2;"
    body = f"""
    $L__BB0_1:
        {product}
        wgmma.wait_group.sync.aligned 1;
        @%p1 bra $L__BB0_2;
        wgmma.wait_group.sync.aligned 0;
        add.f32 %f3, %f1, %f4;
    $L__BB0_2:
        mov.b32 %f9, %f8;
        @%p2 bra $L__BB0_1;
        ret;
    """
    assert touched_in_flight(body) == set()
    moved = body.replace("mov.b32 %f9, %f8;", "mov.b32 %f9, %f2;")
    assert touched_in_flight(moved) == {"mov.b32 %f9, %f2;"}
    assert touched_in_flight(body.replace("aligned 0;", "aligned 1;")) == {"add.f32 %f3, %f1, %f4;"}


def test_every_launch_compiles_with_its_arguments():
    made = compile_launches("tests.ops.test_triton_launches:every_call", (9, 0))
    assert set(made) == KERNELS
    # the shared memory of Hopper
    assert max(made.values()) <= 227 << 10
