"""Every constraint scores as its counterpart in transformers; padding and neighbours change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import generation

from quatrain.generation.constraints import PADDING, DecodingState, GenerationRules, constraints, padded
from quatrain.generation.params import SamplingParams

VOCABULARY, LIMIT = 12, 6
ENDS = torch.tensor([2, 5])

THEIRS = {
    "repetition_penalty": (1.3, lambda start: generation.RepetitionPenaltyLogitsProcessor(1.3)),
    "no_repeat_ngram_size": (2, lambda start: generation.NoRepeatNGramLogitsProcessor(2)),
    "bad_words_ids": (
        ((3,), (2,), (4, 7), (1, 1, 6)),
        lambda start: generation.NoBadWordsLogitsProcessor([[3], [2], [4, 7], [1, 1, 6]], ENDS),
    ),
    "min_length": (4, lambda start: generation.MinLengthLogitsProcessor(4, ENDS)),
    "min_new_tokens": (3, lambda start: generation.MinNewTokensLengthLogitsProcessor(start, 3, ENDS)),
    "forced_bos_token_id": (6, lambda start: generation.ForcedBOSTokenLogitsProcessor(6)),
    "forced_eos_token_id": ((2, 5), lambda start: generation.ForcedEOSTokenLogitsProcessor(start + LIMIT, [2, 5])),
    "suppress_tokens": ((1, 9), lambda start: generation.SuppressTokensLogitsProcessor([1, 9])),
    "begin_suppress_tokens": ((1, 9), lambda start: generation.SuppressTokensAtBeginLogitsProcessor([1, 9], start)),
    "sequence_bias": (
        (BIASES := (((3,), 1.5), ((4, 7), -2.0), ((5, 7), 0.5), ((1, 1, 6), 9.0))),
        lambda start: generation.SequenceBiasLogitsProcessor([[list(words), bias] for words, bias in BIASES]),
    ),
    "exponential_decay_length_penalty": (
        (2, 1.4),
        lambda start: generation.logits_process.ExponentialDecayLengthPenalty((2, 1.4), ENDS, start),
    ),
    "encoder_repetition_penalty": (
        1.7,
        lambda start: (
            lambda ids, scores: generation.EncoderRepetitionPenaltyLogitsProcessor(1.7, ids[:, :start])(ids, scores)
        ),
    ),
    "encoder_no_repeat_ngram_size": (
        2,
        lambda start: (
            lambda ids, scores: generation.EncoderNoRepeatNGramLogitsProcessor(2, ids[:, :start])(ids, scores)
        ),
    ),
    "renormalize_logits": (True, lambda start: generation.LogitNormalization()),
}
TOKENS = st.integers(0, 7)


def scored(rules, ids, start, scores, *, params=None, encoder_decoder=False):
    """The scores after the constraints, of rows that are padded on the left to one length."""
    new = len(ids[0]) - start[0]
    width = max(map(len, ids))
    said = DecodingState(
        torch.tensor([[PADDING] * (width - len(row)) + row for row in ids]),
        torch.tensor(start)[:, None],
        torch.full((len(ids), 1), LIMIT),
        torch.full((len(ids), 1), new),
        padded([row[:count] for row, count in zip(ids, start)], torch.device("cpu")),
    )
    params = params or SamplingParams(num_beams=2)
    for constrain in constraints(rules, params, ENDS, encoder_decoder=encoder_decoder):
        scores = constrain(scores, said)
    return scores


@pytest.mark.parametrize("name", THEIRS)
@given(
    prompt=st.lists(TOKENS, min_size=1, max_size=7), new=st.lists(TOKENS, max_size=LIMIT - 1), seed=st.integers(0, 9)
)
@settings(deadline=None)
def test_scores_of_transformers(name, prompt, new, seed):
    value, counterpart = THEIRS[name]
    scores = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    before = scores.clone()
    expected = counterpart(len(prompt))(torch.tensor([prompt + new]), scores.clone())
    found = scored(GenerationRules(**{name: value}), [prompt + new], [len(prompt)], scores)
    torch.testing.assert_close(found, expected)
    assert torch.equal(scores, before), "the caller's scores are left alone"


@given(
    prompts=st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=2, max_size=4),
    new=st.integers(0, LIMIT - 1),
    data=st.data(),
)
@settings(deadline=None)
def test_a_row_is_scored_alone_as_in_a_batch(prompts, new, data):
    rows = [prompt + data.draw(st.lists(TOKENS, min_size=new, max_size=new)) for prompt in prompts]
    rules = GenerationRules(**{name: value for name, (value, _) in THEIRS.items()})
    scores = torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(0))
    starts = [len(prompt) for prompt in prompts]
    together = scored(rules, rows, starts, scores)
    for index, row in enumerate(rows):
        alone = scored(rules, [row], [starts[index]], scores[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone)


def test_parameters_go_before_the_models_rules():
    rules = GenerationRules(min_length=6, no_repeat_ngram_size=2, repetition_penalty=2.0)
    scores = torch.arange(VOCABULARY).float()[None]
    ruled = scored(rules, [[3, 4, 3]], [2], scores)
    assert ruled[0, 4] == ruled[0, 2] == float("-inf") and ruled[0, 3] == 1.5
    params = SamplingParams(min_new_tokens=0, no_repeat_ngram_size=0, repetition_penalty=1.0)
    assert torch.equal(scored(rules, [[3, 4, 3]], [2], scores, params=params), scores)
    asked = SamplingParams(min_new_tokens=2)
    assert scored(GenerationRules(), [[3, 4, 3]], [2], scores, params=asked)[0, 5] == float("-inf")
    assert torch.equal(scored(GenerationRules(), [[3, 4, 3, 4]], [2], scores, params=asked), scores)


def test_begin_suppress_waits_for_a_forced_first_token():
    rules = GenerationRules(forced_bos_token_id=6, begin_suppress_tokens=(1,))
    scores = torch.zeros(1, VOCABULARY)
    first = scored(rules, [[0]], [1], scores, encoder_decoder=True)
    assert first.argmax() == 6 and torch.isinf(first).sum() == VOCABULARY - 1
    second = scored(rules, [[0, 6]], [1], scores, encoder_decoder=True)
    assert torch.isinf(second).nonzero().tolist() == [[0, 1]]
    assert torch.equal(scored(rules, [[0, 6, 1]], [1], scores, encoder_decoder=True), scores)


def test_nothing_is_forced_last_where_ends_are_ignored():
    params = SamplingParams(ignore_eos=True)
    assert constraints(GenerationRules(forced_eos_token_id=(2,)), params, ENDS[:0], encoder_decoder=True) == []
