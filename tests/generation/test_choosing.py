"""One batch, every row by its own parameters: a row's tokens are those it gets alone, whatever the other rows do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.constraints import GenerationRules
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import NOISE_BLOCK, SequenceState, row_seeds
from quatrain.tokenizers.tokenizer import Tokenizer

VOCABULARY = 40
PARAMS = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.4, no_repeat_ngram_size=2),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=9, top_p=0.9),
    SamplingParams(temperature=1.3, typical_p=0.8, top_h=0.7, min_new_tokens=3, repetition_penalty=2.0),
]
RULES = GenerationRules(exponential_decay_length_penalty=(2, 1.3), begin_suppress_tokens=(5,))


class Table:
    """A model of two tokens: the logits of the next one follow from the last two of a sequence."""

    def __init__(self, seed):
        self.rows = torch.randn(97, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2

    def __call__(self, states):
        tails = [[0, *state.prefix, *state.ids][-2:] for state in states]
        return torch.stack([self.rows[(7 * before + last) % 97] for before, last in tails])


def sequence(params, *, prompt=(3, 4), limit=8, seed=0, ends=(2,)):
    return SequenceState(list(prompt), params, limit, seed, ends)


def decode(states, logits, chooser=None):
    """Every sequence to its end, all unfinished ones in one batch."""
    chooser = chooser or TokenChooser(RULES)
    while active := [state for state in states if state.finished is None]:
        chooser.choose(logits(active), active).append_to(active)
    return [(state.ids, state.logprobs, state.finished) for state in states]


@st.composite
def requests(draw):
    params, seed = draw(st.sampled_from(PARAMS)), draw(st.integers(0, 99))
    prompt = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6))
    ends = tuple(draw(st.sets(st.integers(0, 9), max_size=2)))
    return {"params": params, "prompt": prompt, "seed": seed, "limit": draw(st.integers(1, 9)), "ends": ends}


@given(asked=st.lists(requests(), min_size=2, max_size=5), delays=st.lists(st.integers(0, 4), min_size=5, max_size=5))
@settings(deadline=None, max_examples=60)
def test_a_row_does_not_depend_on_the_batch(asked, delays):
    logits = Table(0)
    alone = [decode([sequence(**one)], logits)[0] for one in asked]
    chooser, states = TokenChooser(RULES), [sequence(**one) for one in asked]
    for step in range(20):
        # Rows arrive at different times, so that the batch has rows of every progress.
        active = [state for state, delay in zip(states, delays) if delay <= step and state.finished is None]
        if active:
            chooser.choose(logits(active), active).append_to(active)
    together = [(state.ids, state.logprobs, state.finished) for state in states]
    for (ids, logprobs, finished), (expected, expected_logprobs, why) in zip(together, alone, strict=True):
        assert (ids, finished) == (expected, why)
        assert logprobs == pytest.approx(expected_logprobs, abs=1e-5)


def test_one_row_without_a_token_leaves_the_others():
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(1))
    logits[1] = float("nan")
    logits[2, 7] = float("inf")
    every = SamplingParams(temperature=1.0, top_h=0.5, typical_p=0.9)
    rules = GenerationRules(suppress_tokens=tuple(range(VOCABULARY)))
    for params in (SamplingParams(), every):
        states = [sequence(params, seed=seed) for seed in range(4)]
        choice = TokenChooser().choose(logits, states)
        assert [type(problem) for problem in choice.problems] == [type(None), QuatrainError, QuatrainError, type(None)]
        alone = [TokenChooser().choose(logits[[row]], [states[row]]).tokens[0] for row in (0, 3)]
        assert [choice.tokens[0], choice.tokens[3]] == alone
        with pytest.raises(QuatrainError, match="not finite"):
            choice.append_to(states)
        assert all(not state.ids for state in states)
        (problem,) = TokenChooser(rules).choose(logits[:1], states[:1]).problems
        assert isinstance(problem, InputError) and "ruled out" in str(problem)


def test_tokens_that_are_taken_back_leave_no_trace():
    logits, params = Table(3), SamplingParams(repetition_penalty=3.0, temperature=1.0, no_repeat_ngram_size=1)
    (expected,) = decode([sequence(params)], logits)
    chooser, state = TokenChooser(RULES), sequence(params)
    while state.finished is None:
        for token in (11, 12):
            state.append(token, 0.0)
            if state.finished is None:
                chooser.choose(logits([state]), [state])
        state.truncate(len(state.ids) - 2)
        chooser.choose(logits([state]), [state]).append_to([state])
    assert (state.ids, state.logprobs, state.finished) == expected


def test_the_noise_of_a_token_depends_on_seed_and_place():
    first, second = sequence(SamplingParams(), seed=5), sequence(SamplingParams(), seed=5)
    expected = torch.rand(3 * NOISE_BLOCK, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).tolist()
    assert [first.noise(index) for index in range(len(expected))] == expected
    assert second.noise(len(expected) - 1) == expected[-1] and second.noise(0) == expected[0]


def test_equal_prompts_get_different_seeds_that_depend_on_nothing_else():
    assert len(set(row_seeds([[1], [1], [2]], 0))) == 3
    assert row_seeds([[2], [1], [1]], 0)[1:] == row_seeds([[1], [1], [2]], 0)[:2]


@pytest.mark.parametrize("seed", range(5))
def test_samples_follow_the_distribution(seed):
    """Chi-square of 4,000 draws, each with the noise of its own seed, against the processed distribution."""
    from scipy.stats import chisquare

    params = SamplingParams(temperature=0.8, top_k=12)
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    states = [sequence(params, seed=number) for number in row_seeds([[1]] * 4000, seed)]
    chooser = TokenChooser()
    tokens = chooser.choose(logits.expand(4000, -1), states).tokens
    expected = chooser.process(logits, states[:1]).softmax(dim=-1)[0].double()
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY)
    there = expected > 0
    assert counts[~there].sum() == 0
    frequencies = (expected[there] / expected[there].sum() * 4000).numpy()
    assert chisquare(counts[there].numpy(), frequencies).pvalue > 1e-3


def given_the_likeliest(rules=None, **values):
    """What is chosen where a step names a token that is not the likeliest; whether it is what was chosen without it."""
    logits, rows = Table(1)([sequence(SamplingParams())]), [sequence(SamplingParams(**values))]
    named = torch.tensor([[float(logits.argmin())], [-9.0], [1.0], [-8.0]])
    chooser = TokenChooser(rules)
    plain, fast = chooser.choose(logits, rows), chooser.choose(logits, rows, likeliest=named)
    return fast, plain, logits


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 1e-9}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 1e-9},
        {"logit_bias": {1: 1.0}}, {"repetition_penalty": 1.1}, {"frequency_penalty": 0.1}, {"presence_penalty": -0.1},
        {"no_repeat_ngram_size": 2}, {"min_new_tokens": 1}, {"bad_words": [[9]]}, {"bad_words": [[8, 9]]},
        {"logits_processors": [lambda ids, logits: logits]}, {"logprobs": 0}, {"logprobs": 3},
        {"logprobs_mode": "processed"}, {"logprobs_mode": "temperature"},
    ],
    ids=lambda values: " ".join(values),
)  # fmt: skip
def test_a_step_chooses_for_no_row_that_asks_for_more(values):
    """The token that a native step names is taken only where greedy decoding is all that is asked for."""
    fast, plain, _ = given_the_likeliest(**values)
    assert fast == plain


@pytest.mark.parametrize(
    "rules",
    [
        {"forced_eos_token_id": (2,)}, {"bad_words_ids": ((9,),)}, {"suppress_tokens": (9,)},
        {"begin_suppress_tokens": (9,)}, {"min_length": 3}, {"min_new_tokens": 2}, {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.1}, {"encoder_repetition_penalty": 1.1}, {"encoder_no_repeat_ngram_size": 2},
        {"sequence_bias": (((9,), 1.0),)}, {"exponential_decay_length_penalty": (0, 1.1)},
        {"forced_bos_token_id": 9},
    ],
    ids=str,
)  # fmt: skip
def test_a_step_does_not_choose_against_the_models_own_rules(rules):
    fast, plain, _ = given_the_likeliest(GenerationRules(**rules))
    assert fast == plain


@pytest.mark.parametrize(
    "values",
    [{}, {"top_k": 5, "top_p": 0.5}, {"min_new_tokens": 0}, {"repetition_penalty": 1.0}, {"seed": 3}, {"stop": "x"}],
    ids=str,
)
def test_a_step_chooses_for_plain_greedy_rows(values):
    fast, plain, logits = given_the_likeliest(**values)
    assert fast.tokens == [int(logits.argmin())] != plain.tokens and fast.logprobs == [-9.0]


@pytest.mark.parametrize("values", [{"choice": ("ab", "c")}, {"regex": "[abc]+"}, {"bad_words": ["a"]}], ids=str)
def test_a_step_does_not_choose_under_constraints_on_text(values):
    pytest.importorskip("llguidance")
    tokenizer = Tokenizer.train(["abc"] * 9, kind="char")
    chooser = TokenChooser(tokenizer=tokenizer)
    logits = torch.randn(1, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    named = torch.tensor([[float(logits.argmin())], [-9.0], [1.0], [-8.0]])
    rows = [sequence(SamplingParams(**values), ends=(tokenizer.vocab_size - 1,)) for _ in range(2)]
    plain, fast = chooser.choose(logits, rows[:1]), chooser.choose(logits, rows[1:], likeliest=named)
    assert fast == plain
