"""Traps of the Triton kernel of stored logits; the cases run in test_against_reference."""

import math
import os
import subprocess
import sys

import pytest
import torch

from tests.ops.cases import stored_logits
from tests.ops.triton_compile import compile_all
from vlcal.ops import _triton, softmax_statistics

pytest.importorskip("triton")
device = "cpu" if _triton.interpreted() else "cuda"


@pytest.fixture(autouse=True)
def runnable():
    if why := _triton.missing():
        pytest.skip(why)


def stored(*args, **kwargs):
    return tuple(values.to(device) for values in stored_logits(*args, **kwargs))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("classes", [3, 64, 4096, 4097, 9001])
def test_meets_float64_when_the_maximum_moves_from_block_to_block(classes, descending):
    logits, labels = stored(5, classes)
    logits = logits.sort(-1, descending=descending).values
    logits[0] = 7.0  # ties over all blocks
    logits[1, : classes - 1] = -math.inf
    logits[2] *= 1e30
    labels[1] = classes - 1
    got = softmax_statistics(logits, labels, backend="triton")
    truth = softmax_statistics(logits.double(), labels, backend="reference")
    assert torch.equal(got.predicted, truth.predicted)
    for ours, true in zip(got[1:], truth[1:], strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6)


def test_rows_do_not_depend_on_the_batch():
    logits, labels = stored(40, 37)
    whole = softmax_statistics(logits, labels, backend="triton")
    parts = [softmax_statistics(logits[i::3], labels[i::3], backend="triton") for i in range(3)]
    for field, value in enumerate(whole):
        assert all(torch.equal(parts[i][field], value[i::3]) for i in range(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 20, 36])
def test_refuses_rows_without_a_softmax(bad, column):
    logits, labels = stored(50, 37)
    logits[13, column] = bad
    with pytest.raises(ValueError, match=r"no NaN or \+inf .* the maximum of row 13"):
        softmax_statistics(logits, labels, backend="triton")


def test_refuses_a_row_without_classes_and_labels_out_of_range():
    logits, labels = stored(50, 37)
    with pytest.raises(ValueError, match="labels"):
        softmax_statistics(logits, labels + 1, backend="triton")
    logits[13] = -math.inf
    with pytest.raises(ValueError, match=r"got -inf as the maximum of row 13"):
        softmax_statistics(logits, backend="triton")


def test_strides_are_followed_and_what_lies_between_is_not_read():
    logits, labels = stored(30, 20)
    wide = torch.full((30, 2, 20, 3), torch.nan, device=device)
    wide[:, 1, :, 2] = logits
    got = softmax_statistics(wide[:, 1, :, 2], labels, backend="triton")
    for ours, same in zip(got, softmax_statistics(logits, labels, backend="triton"), strict=True):
        assert torch.equal(ours, same)


SIGNATURE = {
    "logit_ptr": "*fp16",
    "label_ptr": "*i64",
    "predicted_ptr": "*i64",
    "confidence_ptr": "*fp32",
    "entropy_ptr": "*fp32",
    "likelihood_ptr": "*fp32",
    "squares_ptr": "*fp32",
    "bad_ptr": "*i32",
    "n": "i64",
    "n_classes": "i32",
    "stride_row": "i64",
    "stride_class": "i64",
    "stride_label": "i64",
}


def spec(rows, block, labels, warps, ones=()):
    return {
        "kernel": "softmax_rows",
        "signature": {name: kind for name, kind in SIGNATURE.items() if name not in ones},
        "constants": {"ROWS": rows, "BLOCK": block, "LABELS": labels, **dict.fromkeys(ones, 1)},
        "options": {"num_warps": warps, "enable_fp_fusion": True},
    }


def test_kernels_compile_for_ampere_and_hopper_as_launched():
    specs = [spec(128, 16, True, 4), spec(2, 1024, True, 4), spec(1, 4096, False, 8)]
    # a size or stride of 1 becomes a constant
    sizes = [name for name, kind in SIGNATURE.items() if kind in ("i32", "i64")]
    specs += [spec(128, 16, True, 4, sizes), spec(2, 1024, True, 4, sizes[-2:])]
    made = compile_all("vlcal.ops._triton.softmax_kernels", specs)
    assert len(made) == 10
    assert all(kernel["shared"] <= 99 * 1024 for kernel in made.values())


# launches for a GPU, compiled only: the layout of the logits decides in which order a row adds up
LAYOUTS = """
from types import SimpleNamespace
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit
target = GPUTarget("cuda", 90, 32)
driver.set_active(SimpleNamespace(
    get_current_target=lambda: target, get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
))
launch, made = jit.JITFunction.run, []
def compile_only(self, *args, grid, warmup, **kwargs):
    made.append(launch(self, *args, grid=grid, warmup=True, **kwargs).asm["ttgir"])
jit.JITFunction.run = compile_only
from vlcal.ops._triton.softmax import softmax_statistics
whole = torch.zeros(64, 208).T if COLUMNS else torch.zeros(208, 64)
for part in (whole, whole[1:], whole[5:6]):
    softmax_statistics(part, None)
print(len({line for text in made for line in text.splitlines() if line.startswith("#blocked =")}))
"""


@pytest.mark.parametrize("columns", [False, True])
def test_a_part_of_the_batch_adds_up_in_the_order_of_the_whole(columns):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = LAYOUTS.replace("COLUMNS", str(columns))
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 1
