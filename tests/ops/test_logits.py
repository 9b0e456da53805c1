"""Laws of the fused softmax and of the row statistics, on every backend and instruction set."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tests.ops.cases import coarse_features, factors, features
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import calibrated_softmax, logit_statistics, use_backend

BACKENDS = cpu_backends()
LEVELS = ["portable", "avx2", "avx512", "native"]


@pytest.fixture
def limited(request):
    """Pretend that the CPU has one instruction set."""
    if why := _native.missing():
        pytest.skip(why)
    if request.param not in ("native", *_native.instruction_sets()):
        pytest.skip(f"this CPU has no {request.param}")
    _native.library().limit_isa(request.param)
    yield request.param
    _native.library().limit_isa("native")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def logits64(image, text, scale):
    return image.double() @ text.double().T * scale


def same(a, b):
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_toy_softmax(backend):
    # logits [ln 3, 0] and [0, ln 3]: probabilities 3/4 and 1/4
    eye = torch.eye(2)
    out = calibrated_softmax(eye, eye, math.log(3), labels=torch.tensor([0, 0]), backend=backend)
    assert out.predicted.tolist() == [0, 1]
    assert out.confidence.tolist() == pytest.approx([0.75, 0.75], abs=1e-6)
    assert out.log_likelihood.exp().tolist() == pytest.approx([0.75, 0.25], abs=1e-6)
    assert out.sum_squares.tolist() == pytest.approx([0.625, 0.625], abs=1e-6)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert out.entropy.tolist() == pytest.approx([entropy, entropy], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_toy_statistics(backend):
    image, text = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    other = (torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0], [2.0]]))
    # rows 10 * [1, 2, -1] and 10 * [1, 0, 2]
    out = logit_statistics(image, text, 10.0, other, backend=backend)
    assert [float(value) for value in out] == pytest.approx([20.0, 1.0, -10.0, 50.0 / 3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [(), ("row_scale",), ("predicted_scale",)])
def test_all_classes_sum_to_one_and_match_the_sums(backend, names):
    image, text, labels = features(40, 700, 32)
    scales = {"row_scale": factors(40), "predicted_scale": factors(700)}
    out = calibrated_softmax(
        image,
        text,
        60.0,
        labels=labels,
        k=700,
        backend=backend,
        **{name: scales[name] for name in names},
    )
    probs = out.topk_prob.double()
    assert torch.allclose(probs.sum(1), torch.ones(40, dtype=torch.float64), atol=3e-6)
    assert (out.topk_index.sort(1).values == torch.arange(700)).all()
    assert (probs.diff(dim=1) <= 1e-7).all()
    assert torch.allclose(out.sum_squares.double(), probs.square().sum(1), atol=3e-6)
    assert torch.allclose(out.entropy.double(), torch.special.entr(probs).sum(1), atol=3e-5)
    at_label = probs[out.topk_index == labels[:, None]]
    assert torch.allclose(out.log_likelihood.double(), at_label.log(), atol=3e-5)
    assert torch.equal(out.confidence, out.topk_prob[:, 0])
    assert torch.equal(out.predicted, out.topk_index[:, 0])


@pytest.mark.parametrize("limited", LEVELS, indirect=True)
@pytest.mark.parametrize(("n", "c", "dim"), [(300, 1000, 512), (70, 3000, 64), (33, 14, 7)])
def test_every_instruction_set_is_within_3e_5_of_float64(limited, n, c, dim):
    image, text, labels = features(n, c, dim)
    out = calibrated_softmax(image, text, 100.0, labels=labels, k=3, backend="native")
    log_probs = logits64(image, text, 100.0).log_softmax(1)
    order = log_probs.sort(dim=1, descending=True, stable=True).indices[:, :3]
    assert torch.equal(out.topk_index, order)
    assert (out.confidence - log_probs.exp().amax(1)).abs().max() < 3e-5
    truth = log_probs.gather(1, labels[:, None])[:, 0]
    assert (out.log_likelihood - truth).abs().max() < 2e-4


@pytest.mark.parametrize("limited", LEVELS, indirect=True)
@pytest.mark.parametrize("k", [1, 4, 90])
def test_ties_go_to_the_lowest_index(limited, k):
    image, text = coarse_features(50, 30, 3)
    out = calibrated_softmax(image, text, 10.0, k=k, backend="native")
    order = logits64(image, text, 10.0).sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(out.topk_index, order[:, :k])
    assert torch.equal(logit_statistics(image, text, 10.0, backend="native").argmax, order[:, 0])


@pytest.mark.parametrize("limited", LEVELS, indirect=True)
def test_what_float32_cannot_order_is_ordered_in_float64(limited):
    # rows that differ in one bit of one coordinate; float32 sums of 257 terms lose it
    generator = torch.Generator().manual_seed(0)
    image = 1 + torch.rand(20, 257, generator=generator)
    text = (1 + torch.rand(1, 257, generator=generator)).repeat(60, 1)
    text.view(torch.int32)[torch.arange(60), torch.arange(60)] += 1
    text = torch.cat([text, torch.rand(700, 257, generator=generator)])
    logits = logits64(image, text, 1.0)
    out = calibrated_softmax(image, text, 1.0, k=30, backend="native")
    order = logits.sort(dim=1, descending=True, stable=True).indices
    assert (logits.float().sort(dim=1, descending=True, stable=True).indices != order).any()
    assert torch.equal(out.topk_index, order[:, :30])
    one = calibrated_softmax(image, text, 1.0, backend="native")
    assert torch.equal(one.predicted, order[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_certain_is_exactly_one(backend):
    text = torch.eye(50, 64)
    out = calibrated_softmax(text[:9], text, 1e4, labels=torch.arange(9), backend=backend)
    assert (out.confidence == 1.0).all()
    assert (out.sum_squares == 1.0).all()
    assert (out.entropy.abs() < 1e-30).all()
    assert (out.log_likelihood == 0.0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_class_is_certain(backend):
    image, text, labels = features(9, 1, 16)
    out = calibrated_softmax(image, text, 100.0, labels=labels, backend=backend)
    assert (out.confidence == 1.0).all()
    assert (out.entropy == 0.0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_likelihood_reaches_far_into_the_tail(backend):
    text = torch.eye(3)
    image = torch.tensor([[1.0, 0.5, -1.0]])
    for label, expected in ((1, -5_000.0), (2, -20_000.0)):
        out = calibrated_softmax(image, text, 1e4, labels=torch.tensor([label]), backend=backend)
        assert float(out.log_likelihood) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_predicted_scale_is_a_row_scale_looked_up_at_the_argmax(backend):
    image, text, labels = features(60, 900, 48)
    gamma = factors(900)
    predicted = logits64(image, text, 80.0).argmax(1)
    by_class = calibrated_softmax(
        image, text, 80.0, predicted_scale=gamma, labels=labels, k=4, backend=backend
    )
    by_row = calibrated_softmax(
        image, text, 80.0, row_scale=gamma[predicted], labels=labels, k=4, backend=backend
    )
    for a, b in zip(by_class, by_row, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_factors_multiply(backend):
    image, text, _ = features(30, 50, 16)
    gamma, rows = factors(50), factors(30, 1)
    out = calibrated_softmax(
        image, text, 50.0, row_scale=rows, predicted_scale=gamma, backend=backend
    )
    logits = logits64(image, text, 50.0)
    scaled = logits * rows[:, None] * gamma[logits.argmax(1), None]
    assert torch.allclose(out.confidence.double(), scaled.softmax(1).amax(1), atol=2e-6)
    assert torch.equal(out.predicted, logits.argmax(1))


@pytest.mark.parametrize("names", [(), ("predicted_scale",)])
@pytest.mark.parametrize("k", [1, 5])
def test_same_bits_for_every_batch_split_and_thread_count(threads, names, k):
    image, text, labels = features(300, 1100, 40)
    scales = {name: factors(1100) for name in names}
    other = features(300, 1100, 24, seed=2)[:2]
    threads(1)
    whole = calibrated_softmax(image, text, 100.0, labels=labels, k=k, **scales)
    rows = logit_statistics(image, text, 100.0, other)
    for count in (2, 3):
        threads(count)
        again = calibrated_softmax(image, text, 100.0, labels=labels, k=k, **scales)
        assert same(whole, again)
        assert same(rows, logit_statistics(image, text, 100.0, other))
    parts = [
        calibrated_softmax(image[part], text, 100.0, labels=labels[part], k=k, **scales)
        for part in torch.arange(300).split([1, 31, 100, 168])
    ]
    assert same(whole, [torch.cat(values) for values in zip(*parts, strict=True)])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_double_precision_equals_torch(backend):
    image, text, labels = features(40, 60, 32, torch.float64)
    if backend == "native":
        with pytest.raises(NotImplementedError, match="float64 features are computed by the ref"):
            calibrated_softmax(image, text, 100.0, backend=backend)
        backend = None
    out = calibrated_softmax(image, text, 100.0, labels=labels, k=60, backend=backend)
    probs = F.softmax(100.0 * image @ text.T, dim=1)
    assert torch.allclose(out.topk_prob, probs.sort(dim=1, descending=True).values, atol=1e-13)
    assert out.confidence.dtype == torch.float64
    nll = F.cross_entropy(100.0 * image @ text.T, labels)
    assert torch.allclose(-out.log_likelihood.mean(), nll, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_range_and_difference_of_rows(backend):
    image, text, _ = features(30, 600, 32)
    other = features(30, 600, 20, seed=1)[:2]
    out = logit_statistics(image, text, 100.0, other, backend=backend)
    a, b = logits64(image, text, 100.0), logits64(*other, 100.0)
    for got, true in zip(
        out, (a.amax(1), a.argmax(1), a.amin(1), (a - b).abs().mean(1)), strict=True
    ):
        assert torch.allclose(got.double(), true.double(), atol=3e-5)
    itself = logit_statistics(image, text, 100.0, (image, text), backend=backend)
    assert (itself.mean_difference == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    image, text, labels = features(20, 50, 64, dtype)
    for backend in ("native", "reference"):
        plain = calibrated_softmax(image, text, 100.0, labels=labels, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            cast = calibrated_softmax(image, text, 100.0, labels=labels, backend=backend)
        assert same(plain, cast)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_features_that_are_not_finite(backend, bad):
    image, text, _ = features(300, 600, 16)
    image[271, 3] = bad
    with pytest.raises(ValueError, match=r"softmax: image_features must be finite.*row 271"):
        calibrated_softmax(image, text, 100.0, backend=backend)
    with pytest.raises(ValueError, match=r"statistics: other image_features .*row 271"):
        logit_statistics(image[:100].expand(3, 100, 16).reshape(300, 16), text, 1.0, (image, text))
    image, text, _ = features(300, 600, 16)
    text[555, 0] = bad
    with pytest.raises(ValueError, match=r"text_features must be finite.*first in row 555"):
        calibrated_softmax(image, text, 100.0, backend=backend)
    with pytest.raises(ValueError, match=r"other text_features must be finite.*row 555"):
        logit_statistics(image, text[:500].repeat(2, 1)[:600], 1.0, (image, text), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_logits_that_overflow(backend):
    image, text, _ = features(70, 40, 16)
    image[66] *= 1e38
    with pytest.raises(ValueError, match=r"logits must stay within the range .* in row 66"):
        calibrated_softmax(image, text, 1e4, backend=backend)


IMAGE, TEXT = torch.ones(3, 4), torch.ones(5, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        ((IMAGE[0], TEXT, 1.0), {}, "image_features must be floating point with 2 dimensions"),
        ((IMAGE.long(), TEXT, 1.0), {}, "image_features must be floating point"),
        ((IMAGE, TEXT[:, :3], 1.0), {}, "must agree in D"),
        ((IMAGE, TEXT[:0], 1.0), {}, "C >= 1"),
        ((IMAGE[:, :0], TEXT[:, :0], 1.0), {}, "D >= 1"),
        ((IMAGE, TEXT, 0.0), {}, "logit_scale must be positive and finite, got 0.0"),
        ((IMAGE, TEXT, math.nan), {}, "logit_scale must be positive and finite, got nan"),
        ((IMAGE, TEXT, torch.ones(1)), {}, "logit_scale must be a number or a floating point 0-d"),
        ((IMAGE, TEXT, 1.0), {"k": 0}, r"k must be in 1..5 \(the number of classes\), got 0"),
        ((IMAGE, TEXT, 1.0), {"k": 6}, "k must be in 1..5"),
        ((IMAGE, TEXT, 1.0), {"row_scale": torch.ones(5)}, r"row_scale must be floating .*\[3\]"),
        ((IMAGE, TEXT, 1.0), {"predicted_scale": torch.ones(3)}, r"predicted_scale .*\[5\]"),
        (
            (IMAGE, TEXT, 1.0),
            {"row_scale": torch.tensor([1.0, -2.0, 0.0])},
            r"row_scale must be positive and finite, got -2.0 in row 1 \(2 in all\)",
        ),
        (
            (IMAGE, TEXT, 1.0),
            {"predicted_scale": torch.tensor([1.0, 1.0, 1.0, math.inf, 1.0])},
            "predicted_scale must be positive and finite, got inf in row 3",
        ),
        ((IMAGE, TEXT, 1.0), {"labels": torch.tensor([0, 5, 1])}, r"in 0..4, got 5 in row 1"),
        ((IMAGE, TEXT, 1.0), {"labels": torch.ones(3)}, "labels must be integers"),
        ((IMAGE, TEXT, 1.0), {"labels": torch.ones(2).long()}, r"labels must be \[N\] = \[3\]"),
    ],
)
def test_refuses_what_breaks_the_contract(backend, args, kwargs, match):
    with pytest.raises(ValueError, match=f"calibrated_softmax: .*{match}"):
        calibrated_softmax(*args, **kwargs, backend=backend)


def test_refuses_another_number_of_images_or_classes():
    with pytest.raises(ValueError, match="same 3 images and 5 classes, got 3 and 4"):
        logit_statistics(IMAGE, TEXT, 1.0, (IMAGE, TEXT[:4]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    image, text, labels = features(9, 12, 8)
    scale = torch.tensor(30.0)
    with use_backend(backend):
        for args in (
            (image, text, scale, factors(9), factors(12), labels, 3, ""),
            (image.half(), text, scale, None, None, None, 1, ""),
        ):
            opcheck(torch.ops.vlcal.calibrated_softmax.default, args)
        for other in ((image, text), (None, None)):
            opcheck(torch.ops.vlcal.logit_statistics.default, (image, text, scale, *other, ""))


def test_compiles_without_a_graph_break():
    image, text, labels = features(9, 12, 8)

    def both(image, text, labels):
        soft = calibrated_softmax(
            image, text, 30.0, labels=labels, predicted_scale=text[:, 0].abs()
        )
        return *soft, *logit_statistics(image, text, torch.tensor(30.0), (image, text))

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    assert same(compiled(image, text, labels), both(image, text, labels))
