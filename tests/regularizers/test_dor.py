"""DOR: the loss in numbers, which words it takes, how it samples them, what it refuses."""

import pytest
import torch

from vlcal.regularizers import DOR, Setup
from vlcal.regularizers.outliers import word_features
from vlcal.tuners import CoOp, Tuner, ZeroShot
from vlcal.types import ClassSet, Outputs

from .conftest import BASE, WORDS

NOTHING = Outputs(*(torch.zeros(1, 1) for _ in range(3)))


def prepared(setup, seed=0, **options):
    dor = DOR(**({"vocabulary": WORDS} | options))
    dor.generator.manual_seed(seed)
    dor.prepare(setup)
    return dor


def steps(dor, count):
    return [[dor.words_[row] for row in dor.sample().tolist()] for _ in range(count)]


# -- the loss


def by_hand(features, frozen):
    """A regularizer over given frozen features, and the function that gives the tuned ones."""
    dor = DOR(vocabulary=["unused"], weight=8.0)
    dor.words_ = [str(row) for row in range(len(frozen))]
    dor.features_, dor.per_step_ = frozen, len(frozen)
    dor.order_, dor.position_ = torch.zeros(0, dtype=torch.int64), 0
    return dor, lambda words: features[[int(word) for word in words]]


def test_loss_of_a_hand_made_case():
    # cosines 1, 0.8 and -1: 8 * (1 - 0.8 / 3)
    tuned = torch.tensor([[2.0, 0], [0.8, 0.6], [0, 3.0]], dtype=torch.float64, requires_grad=True)
    frozen = torch.tensor([[1.0, 0], [1.0, 0], [0, -1.0]], dtype=torch.float64)
    dor, encode = by_hand(tuned, frozen)
    loss = dor.penalty(NOTHING, encode)
    assert float(loss.detach()) == pytest.approx(8 * (1 - 0.8 / 3), abs=1e-14)
    loss.backward()
    # d cos / d w = (u - cos * w) / |w| for a unit w
    expected = -8 / 3 * torch.tensor([[0, 0], [1 - 0.64, -0.48], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(tuned.grad, expected, rtol=0, atol=1e-14)


def test_loss_is_weight_halves_of_the_squared_distance(generator):
    tuned, frozen = (
        torch.nn.functional.normalize(torch.randn(9, 5, generator=generator).double(), dim=-1)
        for _ in range(2)
    )
    dor, encode = by_hand(tuned, frozen)
    expected = 4 * (tuned - frozen).square().sum(-1).mean()
    torch.testing.assert_close(dor.penalty(NOTHING, encode), expected, rtol=0, atol=1e-14)


def test_untrained_prompt_that_is_the_phrase_loses_nothing(clip):
    tuner = CoOp(clip, BASE, ctx_init="a photo of a")
    dor = prepared(Setup(clip, BASE, tuner.encode_text))
    assert abs(float(dor.penalty(NOTHING, tuner.encode_text).detach())) < 1e-5
    other = CoOp(clip, BASE, ctx_init="no photo of the")
    loss = dor.penalty(NOTHING, other.encode_text)
    loss.backward()
    assert float(loss.detach()) > 0.01 and bool(other.context.ctx.grad.any())


def test_half_precision_leaves_the_cosine_alone(setup, clip):
    tuner = CoOp(clip, BASE, n_ctx=4)
    dor = prepared(setup, per_step=26, top_k=26)
    with torch.autocast("cpu", torch.bfloat16):
        assert dor.penalty(NOTHING, tuner.encode_text).dtype == torch.float32


# -- the words


def test_class_names_are_no_outliers(setup):
    assert set(WORDS) - set(prepared(setup).words_) == {"cat"}
    assert set(WORDS) - set(prepared(setup, exclude="words").words_) == {
        "cat",
        "wild_cat",
        "tree-house",
    }
    new = prepared(setup, exclude_new=True, new_names=["House", "moon"])
    assert set(WORDS) - set(new.words_) == {"cat", "house", "moon"}
    assert "house" in prepared(setup, new_names=["house"]).words_


def test_words_are_ranked_by_mean_cosine_with_the_classes_in_the_phrase(setup, clip):
    dor = prepared(setup, top_k=5)
    phrase = "a photo of a {}."
    classes = clip.encode_text(ClassSet(BASE.names, phrase).prompts())
    rest = [word for word in WORDS if word != "cat"]
    score = (clip.encode_text(ClassSet(tuple(rest), phrase).prompts()) @ classes.T).mean(1)
    assert dor.words_ == [rest[row] for row in score.topk(5).indices.tolist()]
    torch.testing.assert_close(dor.features_, word_features(clip, dor.words_, phrase))


def test_the_template_of_the_classes_is_an_option(setup):
    classes = ClassSet(BASE.names, "a bad drawing of some {}.")
    dor = prepared(setup._replace(classes=classes), template="classes")
    expected = word_features(setup.clip, dor.words_, classes.template)
    torch.testing.assert_close(dor.features_, expected)


def test_the_template_of_a_model_that_has_one_is_the_default(setup, clip, monkeypatch):
    monkeypatch.setattr(clip, "template", "an icon of a {}.")
    dor = prepared(setup)
    expected = word_features(clip, dor.words_, "an icon of a {}.")
    torch.testing.assert_close(dor.features_, expected)


def test_oracle_takes_the_new_names(setup, clip):
    dor = prepared(setup, rank="oracle", new_names=["moth", "three_toed sloth"])
    assert dor.words_ == ["moth", "three_toed sloth"] and dor.per_step_ == 2
    expected = clip.encode_text(["a photo of a moth.", "a photo of a three toed sloth."])
    torch.testing.assert_close(dor.features_, expected)


def test_words_too_long_for_the_tuned_prompt_are_left_out(clip):
    # 24 positions, 16 of context: start, name, full stop and end share the other 8
    long = "fox fox fox fox fox fox"
    tuner = CoOp(clip, BASE, n_ctx=16)
    dor = prepared(Setup(clip, BASE, tuner.encode_text), vocabulary=[*WORDS, long])
    assert long not in dor.words_ and "horse" in dor.words_
    short = CoOp(clip, BASE, n_ctx=4)
    kept = prepared(Setup(clip, BASE, short.encode_text), vocabulary=[*WORDS, long])
    assert long in kept.words_


def test_words_too_long_for_the_phrase_are_left_out(clip):
    # 18 tokens and a full stop: 21 positions with start and end, 22 with context, 25 in the phrase
    long = " ".join(["fox"] * 18)
    tuner = CoOp(clip, BASE, n_ctx=1)
    dor = prepared(Setup(clip, BASE, tuner.encode_text), vocabulary=[*WORDS, long])
    assert long not in dor.words_ and len(tuner.encode_text([long])) == 1


def test_a_vocabulary_may_be_a_file(setup, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    named, given = (
        prepared(setup, vocabulary=tmp_path / "words.txt"),
        prepared(setup, vocabulary=[word.replace("_", " ") for word in WORDS]),
    )
    assert named.words_ == given.words_ and named.identity() == given.identity()


# -- sampling


def test_cursor_shows_every_word_once_per_pass(setup):
    dor = prepared(setup, top_k=12, per_step=4)
    first, second = steps(dor, 3), steps(dor, 3)
    for one in (first, second):
        assert sorted(word for step in one for word in step) == sorted(dor.words_)
    assert first != second


def test_a_pass_that_cannot_fill_a_step_ends_early(setup):
    dor = prepared(setup, top_k=11, per_step=4)
    for _ in range(20):
        words = [word for step in steps(dor, 2) for word in step]
        assert len(set(words)) == 8


@pytest.mark.parametrize("sampling", ["cursor", "independent"])
def test_all_words_are_equally_frequent(setup, sampling):
    dor = prepared(setup, top_k=11, per_step=4, sampling=sampling)
    count = torch.zeros(11)
    for _ in range(3000):
        rows = dor.sample()
        assert len(rows.unique()) == 4
        count[rows] += 1
    assert bool((count / 3000 - 4 / 11).abs().max() < 0.04)


def test_independent_draws_repeat_words_before_all_were_seen(setup):
    dor = prepared(setup, top_k=12, per_step=4, sampling="independent")
    assert len({word for step in steps(dor, 3) for word in step}) < 12


def test_as_many_words_as_classes_unless_told(setup):
    assert len(prepared(setup).sample()) == len(BASE)
    assert len(prepared(setup, per_step=7).sample()) == 7
    assert len(prepared(setup, per_step=7, top_k=5).sample()) == 5


@pytest.mark.parametrize("sampling", ["cursor", "independent"])
@pytest.mark.parametrize("rank", ["mean", "random"])
def test_seed_decides_the_words(setup, sampling, rank):
    def drawn(seed):
        return steps(prepared(setup, seed, top_k=9, rank=rank, sampling=sampling), 5)

    assert drawn(1) == drawn(1) and drawn(1) != drawn(2)


# -- who it is, what it refuses


def test_identity_names_the_content_of_the_vocabulary():
    one, other = DOR(vocabulary=["fox"]).identity(), DOR(vocabulary=["moth"]).identity()
    assert one["name"] == "dor" and one["top_k"] == 5000 and "cache" not in one
    assert one["vocabulary"]["words"] == 1 and one != other
    assert DOR(vocabulary=["fox"], new_names=["moth"]).identity() == one


def test_default_vocabulary_is_wordnet():
    assert DOR().identity()["vocabulary"]["words"] == 117798


class Fixed(Tuner):
    """Has classes and nothing else."""

    name = "fixed"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: Fixed(clip, BASE), "any word, but fixed: has no open vocabulary, only its"),
        (
            lambda clip: CoOp(clip, BASE, n_ctx=4, class_specific=True),
            "dor: needs features of any word, but coop: a class-specific context belongs to its 4",
        ),
        (lambda clip: ZeroShot(clip, BASE), "dor: the text features are not learned"),
    ],
    ids=["fixed", "class-specific", "zero-shot"],
)
def test_a_tuner_that_learns_no_words_is_refused_before_anything_is_encoded(
    clip, make, message, tmp_path
):
    setup = Setup(clip, BASE, make(clip).encode_text)
    with pytest.raises(NotImplementedError, match=message):
        prepared(setup)
    assert not (tmp_path / "cache").exists()


def test_no_outlier_left_is_an_error(setup):
    with pytest.raises(ValueError, match="dor: no outlier is left"):
        prepared(setup, vocabulary=["Cat", "dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "dor: top_k must be an integer of at least 1, got 0"),
        ({"per_step": 2.5}, "dor: per_step must be an integer of at least 1, got 2.5"),
        ({"weight": float("nan")}, "dor: weight must be finite and not negative, got nan"),
        ({"rank": "near"}, "dor: rank must be one of mean, max, top, far, random, oracle, got"),
        ({"sampling": "all"}, "dor: sampling must be one of cursor, independent, got 'all'"),
        ({"exclude": "none"}, "dor: exclude must be one of names, words, got 'none'"),
        ({"rank": "oracle"}, "dor: new_names are needed"),
        ({"exclude_new": True}, "dor: new_names are needed"),
        ({"template": "a photo"}, "template must contain exactly one"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_with_a_reason(options, message):
    with pytest.raises(ValueError, match=message):
        DOR(**options)
