"""The Triton kernels on logits: what the cases shared by all backends do not reach."""

import math

import pytest
import torch

from tests.ops.cases import coarse_features, factors, features, rows
from tests.oracle import device_of, moved
from vlcal.ops import _triton, calibrated_softmax, logit_statistics
from vlcal.ops._triton import logits, logits_pack

pytestmark = pytest.mark.skipif(_triton.missing() is not None, reason=str(_triton.missing()))
DEVICE = device_of("triton")


def softmax(*args, **kwargs):
    args, kwargs = moved(args, DEVICE), moved(kwargs, DEVICE)
    out = calibrated_softmax(*args, **kwargs, backend="triton")
    return type(out)(*(None if value is None else value.cpu() for value in out))


# --- laws ----------------------------------------------------------------------------------------


def logits64(image, text, scale):
    return image.double() @ text.double().T * scale


def sharp(n, c, dim):
    """Images so near their classes that confidences fill 0..1 at a scale of 100."""
    image, text, labels = features(n, c, dim)
    near = torch.nn.functional.normalize(text.double() - text.double().mean(0), dim=1)
    mixed = image.double() + torch.linspace(0, 2.5, n)[:, None] * near[labels]
    return torch.nn.functional.normalize(mixed, dim=1).float(), text, labels


@pytest.mark.parametrize(
    ("precision", "limit", "floor"), [("accurate", 3e-5, 0.0), ("fast", 6e-4, 3e-6)]
)
@pytest.mark.parametrize(("n", "c", "dim"), [(129, 1030, 512), (60, 257, 200)])
def test_confidences_are_as_near_as_the_precision_says(precision, limit, floor, n, c, dim):
    image, text, labels = sharp(n, c, dim)
    out = softmax(image, text, 100.0, labels=labels, k=3, precision=precision)
    log_probs = logits64(image, text, 100.0).log_softmax(1)
    truth = log_probs.exp().amax(1)
    assert truth.min() < 0.4
    assert truth.max() > 0.6
    # what rounding loses averages out over the dimensions
    limit *= max(1.0, 512 / dim) ** 0.5
    error = (out.confidence - truth).abs().max()
    assert floor < error < limit
    own = log_probs.gather(1, labels[:, None])[:, 0]
    assert (out.log_likelihood - own).abs().max() < 10 * limit
    order = log_probs.sort(dim=1, descending=True, stable=True).indices[:, :3]
    assert torch.equal(out.topk_index, order)


@pytest.mark.parametrize("precision", ["accurate", "fast"])
@pytest.mark.parametrize("k", [1, 8, 40])
def test_near_ties_are_ordered_in_float64(precision, k):
    # rows that differ in one bit of one coordinate; float32 sums of 257 terms lose it
    generator = torch.Generator().manual_seed(0)
    image = 1 + torch.rand(9, 257, generator=generator)
    text = (1 + torch.rand(1, 257, generator=generator)).repeat(60, 1)
    text.view(torch.int32)[torch.arange(60), torch.arange(60)] += 1
    text = torch.cat([text, torch.rand(200, 257, generator=generator), text[:30]])
    # added up alike for equal rows, which a matrix product does not promise
    exact = (image.double()[:, None] * text.double()).sum(2)
    order = exact.sort(dim=1, descending=True, stable=True).indices
    assert (exact.float().sort(dim=1, descending=True, stable=True).indices != order).any()
    out = softmax(image, text, 1.0, k=k, precision=precision)
    assert torch.equal(out.topk_index, order[:, :k])
    rows_of = moved((image, text), DEVICE)
    top = logit_statistics(*rows_of, 1.0, precision=precision, backend="triton").argmax.cpu()
    assert torch.equal(top, order[:, 0])


@pytest.mark.parametrize("k", [1, 4, 32, 33])
@pytest.mark.parametrize(("ranked", "group"), [(1, 4), (64, 4), (64, 16)])
def test_ties_go_to_the_lowest_index(monkeypatch, ranked, group, k):
    use_groups(monkeypatch, group)
    # a program of one row is what a GPU runs
    monkeypatch.setattr(logits, "RANKED", ranked)
    image, text = coarse_features(6, 50, 3)
    out = softmax(image, text, 10.0, k=k)
    order = logits64(image, text, 10.0).sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(out.topk_index, order[:, :k])


HOSTILE = {
    "plain": lambda: features(30, 300, 100)[:2],
    "huge": lambda: (rows(30, 40) * 1e18, rows(300, 40, seed=1) * 1e15),
    "tiny": lambda: (rows(30, 40) * 1e-18, rows(300, 40, seed=1) * 1e-15),
    "one huge class": lambda: (rows(30, 40), rows(300, 40, seed=1) * one_huge(300)),
    "one huge image": lambda: (rows(30, 40) * one_huge(30), rows(300, 40, seed=1)),
    "far from zero": lambda: (1000 + rows(30, 40), 1000 + rows(300, 40, seed=1)),
    "one large coordinate": lambda: (wide(rows(30, 40)), wide(rows(300, 40, seed=1))),
}


def one_huge(n):
    return torch.where(torch.arange(n) == 17, 1e6, 1.0)[:, None]


def wide(values):
    return torch.cat([values, torch.full((len(values), 1), 300.0)], dim=1)


@pytest.mark.parametrize("group", [4, 16])
@pytest.mark.parametrize("precision", ["accurate", "fast"])
@pytest.mark.parametrize("name", HOSTILE)
def test_maxima_are_within_their_certified_margin(monkeypatch, name, precision, group):
    use_groups(monkeypatch, group)
    image, text = HOSTILE[name]()
    dev_image, dev_text = moved((image, text), DEVICE)
    classes = logits_pack.pack_classes(dev_text, dev_image if precision == "fast" else None)
    packed = logits_pack.pack_images(dev_image, classes)
    _, maxima = logits.walk(packed, classes, None, maxima=True)
    center = classes.center.cpu()
    scores = image.double() @ (text.double() - center).T
    tiles = torch.nn.functional.pad(scores, (0, 84), value=-math.inf).view(30, -1, group, 8)
    error = (maxima[:30].cpu().double() - tiles.amax(2).view(30, -1)).abs()
    bound = packed.margin[:30, None].cpu()
    assert (error.nan_to_num(0.0) <= bound).all()
    # and it is no idle bound: well below the scores themselves
    sizes = image.double().norm(dim=1)
    if precision == "fast":
        sizes = sizes + image.double().mean(0).norm()
    sizes = sizes * (text.double() - center).norm(dim=1).max()
    assert (bound[:, 0] < 0.02 * sizes + 1e-30).all()


def use_groups(monkeypatch, group):
    # those of few classes, or of many
    monkeypatch.setattr(logits_pack, "FEW", 8192 if group == 4 else 0)


@pytest.mark.parametrize("group", [4, 16])
@pytest.mark.parametrize("name", HOSTILE)
def test_order_holds_for_hostile_features(monkeypatch, name, group):
    use_groups(monkeypatch, group)
    image, text = HOSTILE[name]()
    scale = 10.0 / float(logits64(image, text, 1.0).abs().max())
    out = softmax(image, text, scale, k=5)
    order = logits64(image, text, scale).sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(out.topk_index, order[:, :5])


@pytest.fixture
def rows_alike(monkeypatch):
    """Products of the interpreter in float64, rounded once.

    Its float32 products are those of NumPy's BLAS, which on some CPUs adds up a row in an order
    that depends on where the row is in the matrix. Tensor cores do not.
    """
    if not _triton.interpreted():
        return
    from triton.runtime import interpreter

    def dot(self, a, b, total, *_):
        result = a.data.astype("float64") @ b.data.astype("float64") + total.data
        return interpreter.TensorHandle(result.astype("float32"), total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.mark.parametrize("names", [(), ("row_scale", "predicted_scale")])
def test_same_bits_for_every_batch_split_and_wave(rows_alike, monkeypatch, names):
    image, text, labels = features(140, 1100, 40)
    scales = {"row_scale": factors(140), "predicted_scale": factors(1100)}

    def run(part):
        optional = {name: scales[name] for name in names}
        if names:
            optional["row_scale"] = optional["row_scale"][part]
        return softmax(image[part], text, 100.0, labels=labels[part], k=2, **optional)

    whole = run(slice(None))
    parts = [run(part) for part in torch.arange(140).split([1, 139])]
    for got, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(got, torch.cat(pieces))
    monkeypatch.setattr(logits, "WORKSPACE", 1)
    for got, again in zip(whole, run(slice(None)), strict=True):
        assert torch.equal(got, again)


def test_difference_with_itself_is_zero_and_with_another_is_right():
    image, text, _ = features(30, 1200, 50)
    other = features(30, 1200, 20, seed=1)[:2]
    pairs = moved((image, text, *other), DEVICE)
    for precision, limit in (("accurate", 2e-5), ("fast", 2e-2)):
        out = logit_statistics(*pairs[:2], 100.0, pairs[2:], precision=precision, backend="triton")
        a, b = logits64(image, text, 100.0), logits64(*other, 100.0)
        for got, true in zip(
            out, (a.amax(1), a.argmax(1), a.amin(1), (a - b).abs().mean(1)), strict=True
        ):
            assert torch.allclose(got.double().cpu(), true.double(), atol=limit)
        itself = logit_statistics(
            *pairs[:2], 100.0, pairs[:2], precision=precision, backend="triton"
        )
        assert (itself.mean_difference == 0).all()


# --- what is refused -----------------------------------------------------------------------------


def test_refuses_float64_with_a_reason():
    image, text, _ = features(5, 6, 8, torch.float64)
    with pytest.raises(NotImplementedError, match="float64 features are computed by the reference"):
        softmax(image, text, 1.0)
    with pytest.raises(ValueError, match="precision must be 'accurate' or 'fast', got 'half'"):
        softmax(image, text, 1.0, precision="half")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", ["accurate", "fast"])
def test_refuses_features_that_are_not_finite(bad, precision):
    image, text, _ = features(140, 130, 16)
    broken = image.clone()
    broken[131, 3] = bad
    with pytest.raises(ValueError, match=r"softmax: image_features must be finite.*row 131"):
        softmax(broken, text, 100.0, precision=precision, predicted_scale=factors(130))
    pair = moved((image, text, broken, text), DEVICE)
    with pytest.raises(ValueError, match=r"statistics: other image_features .*row 131"):
        logit_statistics(*pair[:2], 1.0, pair[2:], precision=precision, backend="triton")
    text[129, 0] = bad
    for rows_of in (image, image[:0]):
        with pytest.raises(ValueError, match=r"text_features must be finite.*first in row 129"):
            softmax(rows_of, text, 100.0, precision=precision)
