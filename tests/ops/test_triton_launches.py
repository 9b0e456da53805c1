"""The launchers of the kernels on logits hand over what the kernels compile with."""

import pytest
import torch

from tests.ops.cases import factors, features
from tests.ops.triton_launch import compile_launches
from vlcal.ops._triton import cross_entropy, logits

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


def test_every_launch_compiles_with_its_arguments():
    made = compile_launches("tests.ops.test_triton_launches:every_call", (9, 0))
    assert set(made) == KERNELS
    # the shared memory of Hopper
    assert max(made.values()) <= 227 << 10
