"""What compilers make of the GPU kernels: budgets that keep known slow spots from coming back.

No GPU is needed. The bounds were taken with Triton 3.6.0 and 3.8.0 and nvcc 13.0.88 for compute
capability 9.0, with room for another release; beside each is what it protects.
"""

import shutil

import pytest

from tests.ops import gpu_calls
from tests.ops.gpu_code import (
    ROOT,
    code_of,
    compile_calls,
    compile_cu,
    loop_with,
    mnemonic,
    touched_in_flight,
)
from vlcal.ops import _triton

pytestmark = [
    pytest.mark.gpu_proof,
    pytest.mark.skipif(_triton.missing() is not None, reason=str(_triton.missing())),
]

HOPPER = 227 << 10  # bytes of shared memory that a program can have
# Products that wait for each other leave the tensor cores idle. Only the backward products of the
# cross-entropy in "fast" precision do; a library's product is to replace them.
SERIALIZED = {("multiply", 1)}
# The compiler inserted an arrive instruction, in screens of up to 64 dimensions; it costs nothing.
HARMLESS = "(C7519)"
# Bytes a thread. Two tiles of sums are alive in the statistics of two models.
SPILLED, SPILLED_BY = 64, {"statistics": 96}
# Instructions a thread spends on a unit of work, of the smallest loop that holds such an
# instruction: how many units a thread does there is counted by it, or follows from the constants.
UNITS = {
    # 9.5; an exponential is 16 a clock, so at 8 the two are even; sums across threads took 28
    "gaussian_sums": (11, "a pair", "MUFU.EX2", lambda k: 32),
    # 47, so the instructions bound it: reading a logit from memory takes as long as 28
    "softmax_rows": (56, "a logit", "MUFU.EX2", lambda k: k["ROWS"] * k["BLOCK"] / 128),
    # 127, at 16 bins: each sample is compared with every threshold
    "bin_sums": (145, "a sample", "LDG", lambda k: k["BLOCK"] / 128),
    # 145, the same for a probability
    "classwise_sums": (165, "a probability", "LDG", lambda k: k["ROWS"] * k["CLASSES"] / 128),
    # 21; the product of a logit of 512 dimensions takes the tensor cores as long as 32
    "walk": (24, "a logit", "MUFU.EX2", lambda k: 64),
    # 27, of which the gradient is stored
    "logit_gradients": (30, "a logit", "MUFU.EX2", lambda k: 64),
}


@pytest.fixture(scope="module")
def kernels():
    return compile_calls(list(gpu_calls.BUDGETED))


@pytest.fixture(scope="module", params=["search_sm90", "binning", "equal_mass"])
def cuda_kernels(request, tmp_path_factory):
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc was found")
    source = ROOT / "csrc" / "cuda" / f"{request.param}.cu"
    return compile_cu(source, tmp_path_factory.mktemp("compiled"))


def named(kernels, *names):
    chosen = [kernel for kernel in kernels if kernel["kernel"] in names]
    assert {kernel["kernel"] for kernel in chosen} == set(names)
    return chosen


def places(kernels):
    return [(kernel["kernel"], kernel["call"]) for kernel in kernels]


def test_every_kernel_is_compiled(kernels):
    folder = ROOT / "vlcal" / "ops" / "_triton"
    text = "".join(path.read_text() for path in folder.glob("*kernels.py"))
    defined = {part.split("(")[0] for part in text.split("@triton.jit\ndef ")[1:]}
    # a function that another kernel calls is compiled with that one
    called = {name for name in defined if text.count(f"{name}(") > 1}
    assert {kernel["kernel"] for kernel in kernels} == defined - called


def test_products_do_not_wait_for_each_other(kernels):
    waiting = [
        (kernel["kernel"], kernel["call"], remark)
        for kernel in kernels
        for remark in kernel["remarks"]
        if HARMLESS not in remark
        and (kernel["kernel"], kernel["constants"].get("TERMS")) not in SERIALIZED
    ]
    assert not waiting


def test_nothing_reaches_sums_that_products_may_still_write(kernels):
    products = [kernel for kernel in kernels if kernel["wgmma"]]
    assert {kernel["kernel"] for kernel in products} == {
        *("screen_kernel", "walk", "statistics", "logit_gradients", "multiply"),
    }
    assert not places(kernel for kernel in products if kernel["touched"])
    # and loads run ahead of the products, 16 bytes at a time
    assert not places(kernel for kernel in products if not kernel["ahead"])
    assert not places(kernel for kernel in products if kernel["copies"] > kernel["wide_copies"])


def test_registers_hold_what_threads_work_with(kernels):
    spilled = [
        (kernel["kernel"], kernel["call"], kernel["spilled"])
        for kernel in kernels
        if kernel["spilled"] > SPILLED_BY.get(kernel["kernel"], SPILLED)
    ]
    assert not spilled
    assert not places(kernel for kernel in kernels if kernel["shared"] > HOPPER)
    # two programs of the fast walk share a multiprocessor
    fast = [kernel for kernel in named(kernels, "walk") if kernel["constants"]["TERMS"] == 1]
    assert not places(kernel for kernel in fast if kernel["shared"] > HOPPER // 2)


def test_kernels_fit_the_shared_memory_of_small_cards():
    # compute capability 8.6, the least that is served: with fewer stages, and not tuned
    names = ("knn 1000 in 1M", "softmax 10k x 100k, fast", "loss 32k x 32k, accurate")
    kernels = compile_calls([*names, "statistics 10k x 100k"], 86, 99)
    assert not places(kernel for kernel in kernels if kernel["shared"] > 99 << 10)


def test_atomic_additions_fence_nothing(kernels):
    # the default order makes every thread wait for all of its writes, and drops the L1 cache
    assert not places(kernel for kernel in kernels if kernel["acq_rel"])


def test_costs_that_are_compared_in_float64_are_rounded_twice(kernels):
    # a fused multiplication and addition rounds once: another order of nearly equal neighbors
    exact = named(kernels, "rerank_kernel", "scan_kernel", "dots_kernel")
    assert not places(kernel for kernel in exact if kernel["fused"])


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_of_work_takes_few_instructions(kernels, name):
    most, what, wanted, units = UNITS[name]
    benchmarks = [
        kernel for kernel in named(kernels, name) if kernel["call"] in gpu_calls.BENCHMARKS
    ]
    assert benchmarks
    for kernel in benchmarks:
        count = len(loop_with(code_of(kernel), wanted)) / units(kernel["constants"])
        assert count <= most, f"{count:.1f} instructions {what} in {kernel['call']}"


def test_order_of_a_row_does_not_depend_on_the_part_of_the_batch(kernels):
    # how threads share a row decides in which order it adds up; it must not follow from addresses
    for call in ("columns of stored logits", "rows of stored logits"):
        parts = [k for k in named(kernels, "softmax_rows") if k["call"].startswith(call)]
        assert len(parts) > 1 or call.startswith("columns")
        assert len({tuple(kernel["layouts"]) for kernel in parts}) == 1, call


def test_cuda_kernels_keep_everything_in_registers(cuda_kernels):
    for kernel in cuda_kernels:
        assert kernel["spilled"] == 0
        assert not kernel["remarks"]


def test_cuda_products_are_made_of_the_intended_instructions(cuda_kernels):
    for kernel in cuda_kernels:
        names = [mnemonic(text) for _, text in kernel["code"]]
        if not any(name.startswith("HGMMA") for name in names):
            continue
        products = [text.split()[1] for _, text in kernel["code"] if text.startswith("HGMMA")]
        # the sums stay where they are, and only the two waits of the source wait for them
        assert names.count("HGMMA.64x256x16.F32") == len(products) == 4
        assert len(set(products)) == 1
        assert names.count("WARPGROUP.DEPBAR.LE") == 2
        assert names.count("WARPGROUP.ARRIVE") == 1
        # 21 KB; 81 KB, of which most was rarely run, left no room for the loop in its cache
        assert len(names) <= 1600


# ---- the reader itself


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


def test_the_smallest_loop_is_found():
    code = [(0, "MOV R1, R2"), (16, "FADD R1, R1, R2"), (32, "MUFU.EX2 R1, R1")]
    code += [(48, "@P0 BRA 0x20"), (64, "@!P1 BRA 0x10"), (80, "EXIT")]
    assert loop_with(code, "MUFU.EX2") == ["MUFU.EX2", "BRA"]
    assert loop_with(code, "FADD") == ["FADD", "MUFU.EX2", "BRA", "BRA"]
