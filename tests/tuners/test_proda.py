"""The spread of class features in ProDA, and which contexts a step takes."""

import pytest
import torch
import torch.nn.functional as F

from vlcal.clip import unit
from vlcal.tuners import ProDA, Progress
from vlcal.tuners.proda import label_variance, positions


def bank_of(k, c, d, seed=0):
    shape = (k, c, d)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_spread_of_two_classes_by_hand():
    # deviations of class 0 under two prompts: -1, 1; of class 1: 1, -1; of class 2: -1, 1
    bank = torch.tensor([[[1.0], [2.0], [0.0]], [[3.0], [0.0], [2.0]]]).double()
    images, labels = torch.tensor([[2.0]]).double(), torch.tensor([0])
    # f^2 = 4, S_00 + S_11 - 2 S_01 = (2 + 2 + 4) / 3, S_00 + S_22 - 2 S_02 = 0
    expected = torch.tensor([[0.0, 32 / 3, 0.0]]).double()
    torch.testing.assert_close(label_variance(images, bank, labels, 3), expected)


@pytest.mark.parametrize("divisor", [5, 4, 3])
def test_spread_is_that_of_the_full_covariance(divisor):
    bank, images = bank_of(4, 5, 7), bank_of(1, 6, 7, 1)[0]
    labels = torch.tensor([0, 1, 2, 3, 4, 2])
    centered = bank - bank.mean(0)
    covariance = torch.einsum("kcd,ked->dce", centered, centered) / divisor
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for i, y in enumerate(labels):
        for c in range(5):
            spread = covariance[:, y, y] + covariance[:, c, c] - 2 * covariance[:, y, c]
            expected[i, c] = (images[i] ** 2 * spread).sum()
    found = label_variance(images, bank, labels, divisor)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_loss_of_a_step_is_the_papers(exact, base, images, labels):
    tuner = ProDA(exact, base, n_ctx=3, n_prompts=8).double()
    out = tuner(images)
    losses = tuner.losses(out, labels)
    names = tuner._tokenize(base.names)
    bank = torch.stack([unit(tuner.contexts[k](names)) for k in tuner.selected()])
    scale, f = tuner.logit_scale, exact.encode_image(images)
    logits = scale * f @ bank.mean(0).T + 0.5 * scale**2 * label_variance(f, bank, labels, 5)
    torch.testing.assert_close(losses["bound"], F.cross_entropy(logits, labels))
    assert losses["bound"] > F.cross_entropy(out.logits, labels)


def test_closeness_is_the_mean_cosine_of_prompts_without_a_name(exact, base):
    tuner = ProDA(exact, base, n_ctx=3, n_prompts=4, orthogonality=1.0).double()
    features = []
    for context in tuner.contexts:
        tokens = exact.text.tokenize(["x x x ."])
        embeddings = exact.text.embed(tokens).clone()
        embeddings[0, 1:4] = context.ctx
        features.append(unit(exact.text.encode(embeddings, exact.text.end(tokens)))[0])
    pairs = [
        float((features[i] @ features[j]).abs().detach())
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    assert float(tuner._closeness().detach()) == pytest.approx(sum(pairs) / 12, rel=1e-10)


def test_every_context_has_its_turn_and_the_order_changes(clip, base):
    tuner = ProDA(clip, base, n_ctx=3, n_prompts=8, prompts_per_step=2, seed=3)
    taken = []
    for step in range(8):
        taken += tuner.selected()
        tuner.on_step_end(Progress(0, step, {}))
    first, second = taken[:8], taken[8:]
    assert sorted(first) == sorted(second) == list(range(8)) and first != second


@torch.no_grad()
def test_predictions_use_the_mean_of_all_contexts(exact, base, images):
    tuner = ProDA(exact, base, n_ctx=3, n_prompts=8).double().eval()
    names = tuner._tokenize(base.names)
    mean = torch.stack([unit(context(names)) for context in tuner.contexts]).mean(0)
    out, f = tuner(images), exact.encode_image(images)
    torch.testing.assert_close(out.logits, tuner.logit_scale * f @ mean.T)
    torch.testing.assert_close(out.text_features, unit(mean))
    short = ProDA(exact, base, n_ctx=3, n_prompts=8, normalize=True).double().eval()
    torch.testing.assert_close(short(images).logits, tuner.logit_scale * f @ unit(mean).T)


def test_names_stand_in_front_in_the_middle_and_at_the_end():
    assert positions(32) == ["front"] * 8 + ["middle"] * 8 + ["end"] * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_prompts": 9}, "multiple of prompts_per_step, got 9 and 4"),
        ({"divisor_offset": -4}, "divisor_offset must be at least -3 for 4 prompts"),
    ],
)
def test_refuses_with_a_reason(clip, base, options, message):
    with pytest.raises(ValueError, match=message):
        ProDA(clip, base, **options)
