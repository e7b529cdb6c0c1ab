"""n-gram models: probabilities that sum to 1, the formulas of NLTK and KenLM, files, generation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.speculative import DraftModel
from quatrain.loading.model import load_model
from quatrain.models.classic import _counts, find, model_types
from quatrain.models.classic._smoothing import METHODS, SmoothingOptions
from quatrain.models.classic.ngram import NgramModel
from quatrain.models.io import model_folder
from quatrain.tokenizers.tokenizer import Tokenizer

SMOOTHED = sorted(set(METHODS) - {"mle"})
TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog met on the road. " * 3


def histories(size: int, length: int) -> np.ndarray:
    """All histories of `length` tokens, those at the beginning of a text too."""
    rows = [[-1] * (length - known) + list(tail) for known in range(length + 1)
            for tail in product(range(size), repeat=known)]  # fmt: skip
    return np.array(rows, dtype=np.int64).reshape(len(rows), length)


@pytest.mark.parametrize("method", SMOOTHED)
@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=60), order=st.integers(1, 4))
def test_probabilities_sum_to_one_and_none_is_zero(method, ids, order):
    model = NgramModel.fit(ids, 5, order, method)
    found = np.exp(model.log_probs(histories(5, order - 1)).astype(np.float64))
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found > 0).all(), "a token that was never seen has a probability after every history"


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=60), order=st.integers(1, 4))
def test_maximum_likelihood_is_relative_frequency(ids, order):
    model = NgramModel.fit(ids, 5, order, "mle")
    rows = histories(5, order - 1)
    found = np.exp(model.log_probs(rows).astype(np.float64))
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    for history, own in zip(rows.tolist(), found, strict=True):
        after = [ids[i] for i in range(order - 1, len(ids)) if ids[i - order + 1 : i] == history]
        if after:
            assert np.allclose(own, np.bincount(after, minlength=5) / len(after), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    ids=st.lists(st.integers(0, 4), min_size=2, max_size=80),
    method=st.sampled_from(sorted(METHODS)),
    order=st.integers(1, 5),
)
def test_the_loss_of_a_text_is_that_of_its_distributions(ids, method, order):
    model = NgramModel.fit(ids, 6, order, method)
    text = [*ids[::-1], 5] if method != "mle" else ids
    logits, loss = model(torch.tensor([text[:-1]]), torch.tensor([text[1:]]))
    one_by_one = logits.log_softmax(-1).gather(-1, torch.tensor(text[1:])[None, :, None])[0, :, 0]
    assert torch.allclose(-loss[0], one_by_one, atol=1e-4)
    assert np.allclose(model.token_log_probs(np.array(text), 1), one_by_one.numpy(), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=100),
    chunk=st.integers(1, 40),
    order=st.integers(1, 5),
    bos=st.sampled_from([None, 0]),
)
def test_counts_in_chunks_equal_counts_in_one(ids, chunk, order, bos):
    array = np.array(ids)
    whole, parts = (_counts.count(array, 6, order, bos_id=bos, chunk=size) for size in (1000, chunk))
    for one, other in zip(whole.tables, parts.tables, strict=True):
        assert (one.keys == other.keys).all() and (one.counts == other.counts).all()
        assert (one.suffix == other.suffix).all()
    for length, table in enumerate(whole.tables, 1):
        expected: dict[tuple[int, ...], int] = {}
        for start in range(len(ids) - length + 1):
            gram = tuple(ids[start : start + length])
            if length == 1 or bos is None or bos not in gram[1:]:
                expected[gram] = expected.get(gram, 0) + 1
        found = {tuple(row): int(count) for row, count in zip(whole.rows(length).tolist(), table.counts, strict=True)}
        assert {gram: count for gram, count in found.items() if count} == expected


@pytest.mark.parametrize("method", SMOOTHED)
def test_pruned_models_still_sum_to_one(method):
    ids = Tokenizer.train([TEXT], kind="char").encode(TEXT)
    if method == "add_k":
        with pytest.raises(InputError, match="add_k"):
            NgramModel.fit(ids, 30, 3, method, min_counts=[1, 1, 4])
        return
    model = NgramModel.fit(ids, 30, 3, method, min_counts=[1, 2, 4])
    assert model.config.ngrams[2] < NgramModel.fit(ids, 30, 3, method).config.ngrams[2]
    rows = histories(30, 2)
    assert np.allclose(np.exp(model.log_probs(rows).astype(np.float64)).sum(axis=1), 1, atol=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model of characters and its tokenizer."""
    folder = tmp_path_factory.mktemp("ngram")
    tokenizer = Tokenizer.train([TEXT], kind="char")
    model = NgramModel.fit(tokenizer.encode(TEXT), tokenizer.vocab_size, 4)
    model_folder.save(model, folder)
    tokenizer.save(folder)
    return folder, model, tokenizer


def test_a_saved_model_is_the_same_and_is_found_by_its_type(saved):
    folder, model, _ = saved
    loaded, tokenizer = load_model(folder)
    assert isinstance(loaded, NgramModel) and loaded.config == model.config
    assert find("ngram") is NgramModel and "ngram" in model_types() and find("llama") is None
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert model_folder.load_config(folder) == model.config and tokenizer is not None


def test_tensors_of_another_model_are_refused_by_name(saved, tmp_path):
    _, model, _ = saved
    model_folder.save(model, tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"order": 4', '"order": 5'))
    with pytest.raises(InputError, match="order_5_keys: missing"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "ngram", "order": 0, "smoothing": "katz", "x": 1}')
    with pytest.raises(InputError) as error:
        load_model(tmp_path)
    assert {line.partition(":")[0] for line in error.value.problems} == {"order", "x"}


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}, {"temperature": 1.0, "top_p": 0.5},
     {"temperature": 1.0, "min_p": 0.2}, {"temperature": 1.0, "typical_p": 0.5}, {"num_beams": 3},
     {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, {"repetition_penalty": 1.3},
     {"guidance_scale": 1.5}, {"stop": (".",)}, {"no_repeat_ngram_size": 3}],
)  # fmt: skip
def test_the_engine_samples_each_prompt_as_if_alone(saved, params):
    folder, _, _ = saved
    engine = Engine.load(folder)
    chosen = SamplingParams(max_new_tokens=12, seed=3, **params)
    prompts = ["the cat sat", "a dog", "the l"]
    together = engine.generate(prompts, chosen, seeds=[1, 2, 3])
    alone = [engine.generate([prompt], chosen, seeds=[seed])[0] for prompt, seed in zip(prompts, (1, 2, 3))]
    assert [each.ids for each in together] == [each.ids for each in alone]
    assert "".join(engine.stream(prompts[0], SamplingParams(max_new_tokens=12))) == (
        engine.generate(prompts[:1], SamplingParams(max_new_tokens=12))[0].text
    )


def test_greedy_tokens_are_the_likeliest_and_scores_are_the_models(saved):
    folder, model, tokenizer = saved
    engine = Engine.load(folder)
    (completion,) = engine.generate(["the cat"], SamplingParams(max_new_tokens=8))
    ids = tokenizer.encode("the cat")
    for token in completion.ids:
        history = np.array([ids[-3:]])
        assert token == int(model.log_probs(history)[0].argmax())
        ids.append(token)
    (score,) = engine.score(["the cat"], [completion.text])
    expected = model.token_log_probs(np.array(ids), len(ids) - 8)
    assert score.is_greedy and np.allclose(score.logprobs, expected, atol=1e-5)


def test_it_drafts_for_another_model_and_contrastive_search_is_refused(saved):
    _, model, tokenizer = saved
    target = NgramModel.fit(tokenizer.encode(TEXT), tokenizer.vocab_size, 6)
    plain = Engine(target, tokenizer)
    drafted = Engine(target, tokenizer, speculation=DraftModel(model, tokenizer))
    params = SamplingParams(max_new_tokens=40)
    assert plain.generate(["the dog"], params)[0].ids == drafted.generate(["the dog"], params)[0].ids
    assert drafted.statistics.accepted_tokens > 0
    with pytest.raises(InputError, match="penalty_alpha"):
        plain.generate(["the"], SamplingParams(penalty_alpha=0.6, top_k=4))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="empty"):
        NgramModel.fit([], 5)
    with pytest.raises(InputError, match="token 7 is not in the vocabulary of 5"):
        NgramModel.fit([1, 7], 5)
    with pytest.raises(InputError, match="smoothing"):
        NgramModel.fit([1, 2], 5, smoothing="magic")
    with pytest.raises(InputError, match="order"):
        NgramModel.fit([1, 2], 5, order=0)
    with pytest.raises(InputError, match="lambdas"):
        NgramModel.fit([1, 2], 5, 2, "jelinek_mercer", options=SmoothingOptions(lambdas=(0.5,)))
    with pytest.raises(InputError, match="vocabulary"):
        NgramModel.fit([1, 2, 3], 5, 2).text_loss(np.array([1, 9]))
    model = NgramModel.fit([1, 2, 3], 5, 2, "mle")
    assert math.isinf(model.text_loss(np.array([1, 3]))[0]), "only maximum likelihood gives no chance to the unseen"


def test_what_counting_takes_is_said_before(monkeypatch):
    rng = np.random.default_rng(0)
    text = (rng.zipf(1.3, 40_000) % 500).astype(np.int64)
    bound = NgramModel.plan(len(text), 500, 3)
    assert bound.ngrams == (500, 40_000, 40_000) and "at most 500, 40,000, 40,000" in str(bound)
    monkeypatch.setattr(_counts, "SAMPLE", 5_000)
    expected = _counts.expect(text, 500, 3)
    found = NgramModel.fit(text, 500, 3).config.ngrams
    assert expected.is_estimate and expected.memory < bound.memory
    assert all(real <= guess <= limit for real, guess, limit in zip(found, expected.ngrams, bound.ngrams, strict=True))
    monkeypatch.setattr(_counts, "available_memory", lambda device: 1000)
    with pytest.raises(InputError, match="smaller order"):
        NgramModel.fit(text, 500, 3)
