"""What a request asks of its tokens: penalties, biases, banned words, its own functions, log-probabilities, samples."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model

from quatrain.core.errors import InputError
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.requests import SequenceState
from quatrain.generation.vocabulary import Vocabulary
from quatrain.tokenizers.tokenizer import Tokenizer

VOCABULARY = 12
TEXT = "The cat sat on the mat; a café, naïve — 日本語! 'Don't' said 12 dogs."
TOKENIZERS = {
    "byte-level": {"kind": "bpe", "vocab_size": 330},
    "free spaces": {"kind": "bpe", "vocab_size": 330, "spaces": "free"},
    "bytes as a fallback": {"kind": "unigram", "vocab_size": 400},
    "words": {"kind": "word", "vocab_size": 330},
    "word pieces": {"kind": "wordpiece", "vocab_size": 120},
    "characters": {"kind": "char"},
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return Tokenizer.train([TEXT] * 20, **TOKENIZERS[request.param])


@pytest.fixture(scope="module")
def engine():
    tokenizer = Tokenizer.train([TEXT] * 20, vocab_size=330)
    return Engine(random_model(llama(vocab_size=tokenizer.vocab_size)), tokenizer, end_ids=[])


def chosen(params, ids, logits, prompt=(1, 2)):
    """The processed logits of one sequence with these new tokens."""
    state = SequenceState(list(prompt), params, 99, 0)
    for token in ids:
        state.append(token, 0.0)
    return TokenChooser().process(logits, [state])


@given(
    ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=12),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=4),
)
@settings(deadline=None)
def test_penalties_and_biases_as_openai_defines_them(ids, frequency, presence, bias):
    """mu[j] - c[j] · frequency - (c[j] > 0) · presence, over generated tokens alone; then the bias."""
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias)
    counts = Counter(ids)
    expected = [
        value + bias.get(token, 0.0) - counts[token] * frequency - (counts[token] > 0) * presence
        for token, value in enumerate(logits[0].tolist())
    ]
    torch.testing.assert_close(chosen(params, ids, logits), torch.tensor([expected]))


def test_a_banned_text_is_never_written_however_it_is_tokenized(tokenizer):
    """Greedy decoding from random logits, with and without the ban: without it the words do occur."""
    vocabulary = Vocabulary(tokenizer)
    words = ("at", "e", " s", "é", "日", "o")
    params = SamplingParams(max_new_tokens=60, temperature=1.0, bad_words=words)
    chooser = TokenChooser(tokenizer=tokenizer)
    found = 0
    for seed in range(4):
        texts = []
        for each in (params, SamplingParams(max_new_tokens=60, temperature=1.0)):
            state = SequenceState([1], each, 60, seed)
            generator = torch.Generator().manual_seed(seed)
            while state.finished is None:
                logits = torch.randn(1, len(vocabulary.pieces), generator=generator)
                chooser.choose(logits, [state]).append_to([state])
            texts.append(tokenizer.decode(state.ids))
        assert not any(word in texts[0] for word in words), texts[0]
        found += sum(word in texts[1] for word in words)
    assert found


def test_pieces_join_to_the_text(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    for text in (TEXT, "cat", " mat mat", "Don't", "é"):
        ids = tokenizer.encode(text)
        assert vocabulary.text(ids).decode("utf-8", "replace") == tokenizer.decode(ids)


def test_banned_ids_stop_tokens_and_vocabulary(engine):
    prompt = [[5, 6, 7]]
    (free,) = engine.generate(prompt, SamplingParams(8))
    (banned,) = engine.generate(prompt, SamplingParams(8, bad_words=[free.ids[2:4]]))
    assert banned.ids[:3] == free.ids[:3] and banned.ids[3] != free.ids[3]
    last = next(place for place, token in enumerate(free.ids) if place and token not in free.ids[:place])
    (stopped,) = engine.generate(prompt, SamplingParams(8, stop_token_ids=[free.ids[last]], ignore_eos=True))
    assert stopped.ids == free.ids[: last + 1] and stopped.finish_reason == "stop"
    assert stopped.text == engine.tokenizer.decode(free.ids[:last])
    (later,) = engine.generate(prompt, SamplingParams(8, stop_token_ids=[free.ids[last]], min_new_tokens=8))
    assert len(later.ids) == 8 and free.ids[last] not in later.ids[:7]
    size = engine.model.config.vocab_size
    with pytest.raises(InputError) as caught:
        engine.generate(prompt, SamplingParams(8, stop_token_ids=[size], logit_bias={size + 1: 1}, bad_words=[[size]]))
    assert len(caught.value.problems) == 3 and all(str(size) in problem for problem in caught.value.problems)
    with pytest.raises(InputError, match="bad_words: texts need a tokenizer"):
        Engine(engine.model, end_ids=[]).generate(prompt, SamplingParams(8, bad_words=["x"]))


@pytest.mark.parametrize(
    "values",
    [
        {"bad_words": ["\ud800"]},
        {"stop": ["\ud800"]},
        {"force_words": ["\ud800"], "num_beams": 2},
        {"negative_prompt": "\ud800", "guidance_scale": 2.0},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"a": 1.0}},
        {"logit_bias": {1: 101.0}},
        {"logit_bias": {1: float("nan")}},
        {"frequency_penalty": 2.1},
        {"presence_penalty": float("nan")},
        {"bad_words": [[]]},
        {"bad_words": [[1.5]]},
        {"stop_token_ids": [True]},
        {"logprobs": -1},
        {"logprobs": 10_000},
        {"logprobs_mode": "both"},
        {"logits_processors": ["not a function"]},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(values):
    with pytest.raises(InputError, match=f"{next(iter(values))}: "):
        SamplingParams(**values)


def test_parameters_are_values():
    deep = [[5]]
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InputError, match="force_words"):
        SamplingParams(num_beams=2, force_words=deep)
    one = SamplingParams(logit_bias={"7": 1, 3: -2}, bad_words=["a", [1, 2]], stop_token_ids=[4])
    other = SamplingParams(logit_bias=((7, 1.0), (3, -2.0)), bad_words=("a", (1, 2)), stop_token_ids=(4,))
    assert one == other and hash(one) == hash(other)


def test_log_probabilities_of_the_likeliest(engine):
    base = SamplingParams(6, temperature=0.7, top_k=5, seed=3, logprobs=4)
    (raw,) = engine.generate([[5, 6, 7]], base)
    (processed,) = engine.generate([[5, 6, 7]], SamplingParams(**{**vars(base), "logprobs_mode": "processed"}))
    assert raw.ids == processed.ids
    for place, token in enumerate(raw.ids):
        logits = engine.model(torch.tensor([[5, 6, 7, *raw.ids[:place]]]))[0][0, -1].detach()
        kept = (logits / 0.7).topk(5)
        for completion, expected in (
            (raw, logits.log_softmax(-1)),
            (processed, torch.full_like(logits, float("-inf")).scatter(0, kept.indices, kept.values).log_softmax(-1)),
        ):
            best = expected.topk(4)
            assert [each for each, _ in completion.top_logprobs[place]] == best.indices.tolist()
            assert [value for _, value in completion.top_logprobs[place]] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )
            assert completion.logprobs[place] == pytest.approx(float(expected[token]), abs=1e-4)
    (plain,) = engine.generate([[5]], SamplingParams(2))
    assert plain.top_logprobs == []
    (none,) = engine.generate([[5]], SamplingParams(2, logprobs=0))
    assert none.top_logprobs == [[], []]
    with pytest.raises(InputError, match="logprobs"):
        SamplingParams(num_beams=2, logprobs=1)


def test_several_samples_are_those_of_the_prompt_given_several_times(engine):
    prompts, params = [[5, 6], [7], [5, 6]], SamplingParams(5, temperature=1.0, seed=1)
    several = engine.generate(prompts, SamplingParams(5, temperature=1.0, seed=1, num_return_sequences=3))
    repeated = engine.generate([ids for ids in prompts for _ in range(3)], params)
    assert [each.ids for one in several for each in (one, *one.alternatives)] == [each.ids for each in repeated]
    assert len({tuple(each.ids) for each in repeated}) > 5
    for ways in ({"temperature": 1.0}, {"num_beams": 3}):
        with pytest.raises(InputError, match="num_return_sequences: 3; a stream is one"):
            engine.stream([5], SamplingParams(5, **ways, num_return_sequences=3))
    with pytest.raises(InputError, match="same completion each time"):
        SamplingParams(num_return_sequences=3)


def test_a_callers_processor_sees_its_row_alone(engine):
    seen = []

    def forbid_repeats(ids, logits):
        seen.append(list(ids))
        logits[ids] = float("-inf")
        return logits

    prompts, params = [[5, 6], [7, 8, 9, 10]], SamplingParams(6, logits_processors=[forbid_repeats])
    for completion, prompt in zip(engine.generate(prompts, params), prompts, strict=True):
        assert len({*prompt, *completion.ids}) == len(prompt) + 6
        assert all([*prompt, *completion.ids[:place]] in seen for place in range(6))
    (alone,) = engine.generate(prompts[:1], params)
    assert alone.ids == engine.generate(prompts, params)[0].ids


def test_a_processor_that_fails_fails_its_request_alone(engine):
    def broken(ids, logits):
        if 9 in ids:
            raise ValueError("no nines")
        return logits if 8 not in ids else logits[:3]

    params = SamplingParams(6, temperature=1.0, logits_processors=(broken,))
    states = [SequenceState([token], params, 6, 0) for token in (7, 8, 9)]
    choice = TokenChooser().choose(torch.randn(3, 20), states)
    assert choice.problems[0] is None
    assert "returned (3,); must be logits of shape (20,)" in str(choice.problems[1])
    assert "broken raised ValueError: no nines" in str(choice.problems[2])
    with pytest.raises(InputError, match="no nines"):
        engine.generate([[9]], params)


def test_log_probabilities_at_the_temperature_know_no_filter(engine):
    prompts, seeds = [[5, 6, 7], [5, 6, 7]], [11, 12]
    params = SamplingParams(6, temperature=0.7, top_k=5, logprobs_mode="temperature")
    first, second = engine.generate(prompts, params, seeds=seeds)
    assert first.ids != second.ids
    for place, token in enumerate(first.ids):
        logits = engine.model(torch.tensor([[5, 6, 7, *first.ids[:place]]]))[0][0, -1].detach()
        assert first.logprobs[place] == pytest.approx(float((logits / 0.7).log_softmax(-1)[token]), abs=1e-5)
    alone = engine.generate(prompts[:1], params, seeds=seeds[1:])
    assert alone[0].ids == second.ids
    (greedy,) = engine.generate(prompts[:1], SamplingParams(3, logprobs_mode="temperature"))
    assert greedy.logprobs == pytest.approx(engine.generate(prompts[:1], SamplingParams(3))[0].logprobs)
    with pytest.raises(InputError, match="seeds: 1 for 2 completions"):
        engine.generate(prompts, params, seeds=[1])
