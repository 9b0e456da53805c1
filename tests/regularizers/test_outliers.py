"""Which words are outliers: encoded once and resumably, free of class names, ranked as stated."""

import pytest
import torch
from safetensors.torch import load_file

from vlcal.data import cache as feature_cache
from vlcal.regularizers import outliers
from vlcal.regularizers.outliers import distinct, fitting, plain, ranked, word_features
from vlcal.types import ClassSet

from .conftest import WORDS

PHRASE = "a photo of a {}."
LONG = "hexahydroxycyclohexane phosphatidylinositol bisphosphate"


def unit_rows(count, dim=6, seed=0):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double()
    return torch.nn.functional.normalize(rows, dim=-1)


# -- features


@pytest.mark.parametrize("template", [PHRASE, "{} in a photo.", "{}"])
def test_a_shared_prefix_changes_no_feature(clip, template):
    found = word_features(clip, WORDS, template)
    expected = clip.encode_text(ClassSet(tuple(WORDS), template).prompts())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_one_word_is_encoded_alone(clip):
    found = word_features(clip, ["fox"], PHRASE)
    torch.testing.assert_close(found, clip.encode_text(["a photo of a fox."]), rtol=0, atol=2e-6)


def test_a_word_that_does_not_fit_is_zeros_and_the_others_are_not(clip):
    words = ["fox", " ".join([LONG] * 3), "moon"]
    assert fitting(clip, words).tolist() == [True, False, True]
    found = word_features(clip, words, PHRASE)
    assert found.any(-1).tolist() == [True, False, True]
    torch.testing.assert_close(found[[0, 2]], word_features(clip, ["fox", "moon"], PHRASE))


@pytest.mark.parametrize("more", [0, 1])
def test_a_prompt_fits_up_to_the_last_position(clip, more):
    # start, words, end: 24 positions
    prompt = " ".join(["fox"] * (clip.text.context_length - 2 + more))
    assert fitting(clip, [prompt]).tolist() == [not more]


def test_interrupted_encoding_ends_with_the_same_features(clip, monkeypatch, tmp_path):
    monkeypatch.setattr(outliers, "SHARD", 8)
    whole = word_features(clip, WORDS, PHRASE, cache=str(tmp_path / "whole")).clone()
    encoded = []
    encode = outliers._encode

    def dies(clip, prompts):
        encoded.append(len(prompts))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return encode(clip, prompts)

    monkeypatch.setattr(outliers, "_encode", dies)
    with pytest.raises(KeyboardInterrupt):
        word_features(clip, WORDS, PHRASE)
    seen = []
    again = word_features(clip, WORDS, PHRASE, progress=lambda *done: seen.append(done))
    assert encoded == [8, 8, 8, 8, 7] and len(WORDS) == 31
    assert seen == [(8, 31), (16, 31), (24, 31), (31, 31)]
    assert torch.equal(again, whole)
    word_features(clip, WORDS, PHRASE)
    assert len(encoded) == 5, "a finished vocabulary is read, not encoded"


def test_other_words_or_templates_are_other_features(clip):
    word_features(clip, WORDS, PHRASE)
    word_features(clip, WORDS[1:], PHRASE)
    word_features(clip, WORDS, "{}")
    stored = list(feature_cache.cache_folder().rglob("features.safetensors"))
    assert sorted(len(load_file(file)["features"]) for file in stored) == [30, 31, 31]


# -- names


def test_names_are_compared_without_case_and_signs():
    assert plain("Jack-o'-Lantern") == plain("jack_o lantern ") == "jack o lantern"
    words = ["Big heavy-airplane", "airplane", "CAT", "wild cat", "cattle", "cat's"]
    names = ["big_heavy airplane", "cat"]
    assert distinct(words, names).tolist() == [False, True, False, True, True, True]
    assert distinct(words, names, "words").tolist() == [False, True, False, False, True, False]
    assert distinct(words, []).all()


# -- ranking


def test_order_of_a_hand_made_case():
    # cosines with the two anchors: (1, 0), (0, 1), (0.6, 0.8), (-1, 0), (0.8, 0.6)
    features = torch.tensor([[1, 0], [0, 1], [0.6, 0.8], [-1, 0], [0.8, 0.6]]).double()
    anchors = torch.eye(2).double()
    answers = {
        "mean": [2, 4, 0, 1, 3],
        "top": [2, 4, 0, 1, 3],
        "max": [0, 1, 2, 4, 3],
        "far": [3, 0, 1, 2, 4],
    }
    for rank, answer in answers.items():
        found = ranked(features, anchors, 5, rank, top_m=2, generator=torch.Generator())
        # 0.6 + 0.8 and 0.8 + 0.6 are one number
        assert found.tolist() == answer, rank


def test_mean_ranking_is_that_of_the_mean_class():
    features, anchors = unit_rows(500), unit_rows(7, seed=1)
    found = ranked(features, anchors, 40, "mean", top_m=5, generator=torch.Generator())
    assert torch.equal(found, (features @ anchors.mean(0)).argsort(descending=True)[:40])
    full = (features @ anchors.T).mean(1).argsort(descending=True)
    assert torch.equal(found, full[:40])
    far = ranked(features, anchors, 500, "far", top_m=5, generator=torch.Generator())
    assert torch.equal(far.flip(0), full)


@pytest.mark.parametrize(("top_m", "like"), [(1, "max"), (7, "mean"), (50, "mean")])
def test_top_m_lies_between_max_and_mean(top_m, like):
    features, anchors = unit_rows(500), unit_rows(7, seed=1)
    options = {"top_m": top_m, "generator": torch.Generator()}
    found = ranked(features, anchors, 40, "top", **options)
    assert torch.equal(found, ranked(features, anchors, 40, like, **options))


def test_random_ranking_is_drawn_from_the_generator():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return ranked(unit_rows(50), unit_rows(2), 9, "random", top_m=5, generator=generator)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert len(draw(1).unique()) == 9
