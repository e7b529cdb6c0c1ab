"""Speculative decoding: greedy ids are those of plain decoding, samples follow the model's own distribution."""

import random

import battery
import pytest
import torch
from running import CONFIGS, SPEAKERS, alone, assert_nothing_is_left, assert_same, prompts
from tiny_models import gpt2, llama, random_model

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.params import SamplingParams as Params
from quatrain.generation.requests import SequenceState
from quatrain.generation.speculative import DraftModel, PromptLookup, Proposal, accept_or_replace


def near(model, noise=0.03, seed=1):
    """A model that often says the same as another: its weights with some noise."""
    other = random_model(model.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs + noise * torch.randn(theirs.shape, generator=generator))
    return other


class Oracle:
    """Guesses that are partly right: of each sequence's known completion, with errors at random places."""

    count, draws = 5, False

    def __init__(self, completions):
        self.completions, self.generator = completions, random.Random(0)

    def check(self, model, tokenizer):
        pass

    def propose(self, rows, counts):
        found = []
        for row, count in zip(rows, counts, strict=True):
            rest = self.completions[tuple(row.prompt)][len(row.ids) :][: self.generator.randrange(count + 1)]
            found.append(Proposal([token if self.generator.random() < 0.8 else 3 for token in rest]))
        return found


def proposers(model):
    return {
        "draft": DraftModel(near(model)),
        "itself": DraftModel(model, count=3),
        "lookup": PromptLookup(min_ngram=1),
    }


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("longrope", "dynamic")])
@pytest.mark.parametrize("kind", ["draft", "itself", "lookup"])
def test_greedy_ids_are_those_of_plain_decoding(name, kind):
    model = random_model(CONFIGS[name])
    ends, params = list(range(5, 12)), SamplingParams(25, repetition_penalty=1.05, no_repeat_ngram_size=9)
    texts = [*prompts(7, high=30), [30, 31, 32] * 6, [33] * 58]
    engine = Engine(model, end_ids=ends, speculation=proposers(model)[kind], max_rows=4)
    for _ in range(2):
        for text, found in zip(texts, engine.generate(texts, params), strict=True):
            assert_same(found, alone(model, text, params, ends))
    numbers = engine.statistics
    assert 0 < numbers.accepted_tokens <= numbers.proposed_tokens
    if kind == "itself":
        assert numbers.decode_steps < numbers.decoded_tokens / 4
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("case", SPEAKERS[::3], ids=str)
def test_families_accept_and_reject(case):
    model, params = battery.loaded(case), SamplingParams(14)
    texts = prompts(5, high=9)
    expected = [alone(model, text, params, []) for text in texts]
    oracle = Oracle({tuple(text): each.ids for text, each in zip(texts, expected, strict=True)})
    if model.config.recurs:
        with pytest.raises(InputError, match=f"the state of a {model.config.family} model cannot go back"):
            Engine(model, end_ids=[], speculation=oracle)
        return
    engine = Engine(model, end_ids=[], speculation=oracle, max_rows=3)
    for found, wanted in zip(engine.generate(texts, params), expected, strict=True):
        assert_same(found, wanted)
    numbers = engine.statistics
    if engine.scheduler.runner.original_length is None:
        assert 0 < numbers.accepted_tokens < numbers.proposed_tokens
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_windows_that_are_smaller_than_the_guesses(window):
    """What a window sees before rejected guesses is still there."""
    layers = ("sliding", "full", "sliding")
    model = random_model(
        llama(family="mistral", vocab_size=120, num_hidden_layers=3, sliding_window=window, layer_types=layers)
    )
    texts, params = prompts(6, high=25), SamplingParams(30)
    expected = [alone(model, text, params, []) for text in texts]
    oracle = Oracle({tuple(text): each.ids for text, each in zip(texts, expected, strict=True)})
    oracle.count = 9
    for rows in (1, 4):
        engine = Engine(model, end_ids=[], speculation=oracle)
        engine.scheduler.step_tokens = 1000
        for found, wanted in zip(engine.generate(texts, params, batch_size=rows), expected, strict=True):
            assert_same(found, wanted)
        assert 0 < engine.statistics.accepted_tokens < engine.statistics.proposed_tokens


@pytest.mark.parametrize("kind", ["draft", "lookup"])
def test_samples_follow_the_models_own_distribution(kind):
    """Chi-square of pairs of tokens against the model's own probabilities."""
    model = random_model(llama(vocab_size=12), scale=0.3)
    speculation = DraftModel(near(model, 0.15)) if kind == "draft" else PromptLookup(min_ngram=1)
    engine = Engine(model, end_ids=[], speculation=speculation, max_rows=256)
    engine.scheduler.step_tokens = 10_000
    prompt, count = [3, 4, 3, 4], 6000
    params = SamplingParams(4, temperature=0.9, top_k=7, seed=0)
    drawn = engine.generate([prompt] * count, params, batch_size=256)
    assert 0.1 < engine.statistics.accepted_tokens / engine.statistics.proposed_tokens < 0.98

    def law(text):
        with torch.no_grad():
            logits = model(torch.tensor([text]))[0][0, -1] / 0.9
        return logits.masked_fill(logits < logits.topk(7).values[-1], float("-inf")).softmax(-1)

    for place in (1, 2):  # the second and third token are guessed
        observed, expected = torch.zeros(12, 12), torch.zeros(12, 12)
        for each in drawn:
            observed[each.ids[place - 1], each.ids[place]] += 1
        for each in {tuple(each.ids[:place]) for each in drawn}:
            expected[each[-1]] += law([*prompt, *each]) * sum(tuple(other.ids[:place]) == each for other in drawn)
        cells = expected > 5
        statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-9))[cells].sum()
        freedom = int(cells.sum()) - int((cells.sum(1) > 0).sum())
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (statistic, freedom)


def test_look_up_draws_the_samples_of_plain_decoding():
    """Guesses that were not drawn are accepted exactly if the token that is drawn anyway equals them."""
    model, texts = random_model(CONFIGS["llama"]), [[30, 31, 32] * 6, [40, 41] * 8]
    params = SamplingParams(20, temperature=0.6, seed=4)
    engine = Engine(model, end_ids=[], speculation=PromptLookup(min_ngram=1))
    plain = Engine(model, end_ids=[]).generate(texts, params)
    assert [each.ids for each in engine.generate(texts, params)] == [each.ids for each in plain]
    assert engine.statistics.accepted_tokens > 0


def test_a_sample_does_not_depend_on_what_else_runs():
    model = random_model(CONFIGS["llama"])
    params = SamplingParams(16, temperature=1.0, seed=2)
    texts = prompts(8)
    together = Engine(model, end_ids=[], speculation=DraftModel(near(model))).generate(texts, params)
    for text, found in zip(texts, together, strict=True):
        (single,) = Engine(model, end_ids=[], speculation=DraftModel(near(model))).generate([text], params)
        assert single.ids == found.ids


def test_rejection_sampling_leaves_the_distribution():
    generator = torch.Generator().manual_seed(0)
    logits, guess = torch.randn(6, generator=generator), torch.randn(6, generator=generator).softmax(-1).double()
    counts = torch.zeros(6)
    for seed in range(6000):
        row = SequenceState([1], Params(3, temperature=1.0), 3, seed)
        token = int(torch.multinomial(guess, 1, generator=generator))
        counts[accept_or_replace(logits, token, guess, row)] += 1
    expected = 6000 * logits.softmax(-1)
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # 0.1 % of 5 degrees of freedom
    same = logits.softmax(-1, dtype=torch.float64)
    assert all(accept_or_replace(logits, 2, same, SequenceState([1], Params(3), 3, seed)) == 2 for seed in range(50))


def test_the_latest_longest_match_is_looked_up():
    def guess(text, new=(), **more):
        row = SequenceState(list(text), Params(9), 9, 0)
        row.ids += new
        return PromptLookup(**more).propose([row], [3])[0].tokens

    assert guess([1, 2, 3, 4, 9, 1, 2]) == [3, 4, 9]
    assert guess([1, 2, 3, 1, 2, 4, 1, 2]) == [4, 1, 2]
    assert guess([5, 1, 2, 3, 6, 1, 2, 7, 5, 1, 2]) == [3, 6, 1], "three tokens match earlier, two later"
    assert guess([1, 2, 3]) == [] and guess([7]) == []
    assert guess([1, 2, 1], min_ngram=1) == [2, 1]
    assert guess([8, 9, 3], [8, 9]) == [3, 8, 9]
    lookup, row = PromptLookup(), SequenceState([1, 2, 3], Params(9), 9, 0)
    assert lookup.propose([row], [3])[0].tokens == []
    row.ids += [1, 2]
    assert lookup.propose([row], [2])[0].tokens == [3, 1]


class Letters:
    bos_id, eos_id, special_ids, stop_ids = 1, 2, frozenset({0, 1, 2}), frozenset({2})

    def __init__(self, first="a"):
        self.first = ord(first)

    def encode(self, text, *, special_tokens=False):
        return [3 + ord(letter) - self.first for letter in text]

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(chr(self.first + i - 3) for i in ids if i > 2)

    def token_to_id(self, token):
        return None


def test_another_vocabulary_is_refused():
    model = random_model(llama(vocab_size=29))
    with pytest.raises(InputError, match="has a vocabulary of 30, the model one of 29"):
        Engine(model, speculation=DraftModel(random_model(llama(vocab_size=30))))
    with pytest.raises(InputError, match="token 3 is 'A' in its tokenizer and 'a' in the model's"):
        Engine(model, Letters(), speculation=DraftModel(near(model), Letters("A")))
    with pytest.raises(InputError, match="decoders with a causal head"):
        Engine(model, speculation=DraftModel(random_model(llama(vocab_size=29, head="value"))))
    for wrong in ({"count": 0}, {"min_ngram": 0}, {"min_ngram": 4}):
        with pytest.raises(InputError, match="must be at least 1"):
            PromptLookup(**wrong)
    Engine(model, Letters(), speculation=DraftModel(near(model), Letters()))


def test_stop_strings_and_streams_are_as_without():
    model, text = random_model(llama(vocab_size=29)), [5, 6, 7]
    (free,) = Engine(model, Letters(), end_ids=[]).generate([text], SamplingParams(20))
    stop = free.text[7:9]
    expected = Engine(model, Letters(), end_ids=[]).generate([text], SamplingParams(20, stop=stop))[0]
    engine = Engine(model, Letters(), end_ids=[], speculation=DraftModel(model))
    assert_same(engine.generate([text], SamplingParams(20, stop=stop))[0], expected)
    pieces = list(engine.stream(text, SamplingParams(20, stop=stop)))
    assert "".join(pieces) == expected.text == pieces[-1].completion.text and stop not in "".join(pieces)


def test_a_draft_with_a_shorter_context_guesses_as_long_as_it_can():
    model = random_model(gpt2(vocab_size=60))
    draft = DraftModel(random_model(gpt2(vocab_size=60, max_position_embeddings=16)))
    engine = Engine(model, end_ids=[], speculation=draft)
    text = prompts(1, vocabulary=60)[0][:6]
    assert_same(engine.generate([text], SamplingParams(40))[0], alone(model, text, SamplingParams(40), []))
    assert 0 < engine.statistics.proposed_tokens <= 16 * draft.count and not draft.rows
    assert draft.runner.cache.nbytes == 0


@pytest.mark.parametrize("method", [None, "int8", "int4"])
def test_native_code_reads_guesses_as_it_reads_tokens(method):
    """Weights of few bits are multiplied with rounded inputs: guesses must be checked by the same numbers."""
    pytest.importorskip("numba")
    from quatrain.compression import methods

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4, "sliding_window": 6}
    model = random_model(llama(vocab_size=120, layer_types=("sliding", "full"), **sizes))
    if method is not None:
        methods.quantize(model, method)
    texts, params = [*prompts(5), [30, 31, 32] * 6], SamplingParams(24)
    plain = Engine(model, end_ids=[], native=True).generate(texts, params)
    for speculation in (PromptLookup(min_ngram=1), DraftModel(model, native=True)):
        engine = Engine(model, end_ids=[], native=True, speculation=speculation)
        assert [each.ids for each in engine.generate(texts, params)] == [each.ids for each in plain]
        assert engine.statistics.proposed_tokens > 0 and engine.statistics.decoder == "native"
    assert engine.statistics.accepted_tokens > 100, "the model itself guesses right"


def test_guesses_are_fewer_the_more_sequences_run():
    model = random_model(CONFIGS["llama"])
    texts = [[30 + n, 31, 32] * 5 for n in range(16)]
    counts = []

    class Counting(PromptLookup):
        def propose(self, rows, wanted):
            counts.append((len(rows), max(wanted, default=0)))
            return super().propose(rows, wanted)

    engine = Engine(model, end_ids=[], speculation=Counting(min_ngram=1))
    engine.generate(texts, SamplingParams(12))
    engine.generate(texts[:1], SamplingParams(12))
    assert all(rows * (1 + wanted) <= 32 for rows, wanted in counts)
    assert {rows: wanted for rows, wanted in counts if wanted}[1] > 1 and any(
        rows == 16 and wanted for rows, wanted in counts
    )


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_that_outgrow_the_frequencies_of_pretraining(name, temperature):
    """Guesses are made up to that length, and the text goes on past it as the plain engine gives it."""
    model = random_model(CONFIGS[name])
    texts = [[30, 31, 32] * 3, [40, 41] * 6, [50] * 4]
    params = SamplingParams(40, temperature=temperature, seed=2, ignore_eos=True)
    engine = Engine(model, end_ids=[5], speculation=PromptLookup())
    found = engine.generate(texts, params)
    plain = Engine(model, end_ids=[5]).generate(texts, params)
    assert [each.ids for each in found] == [each.ids for each in plain]
    assert engine.statistics.proposed_tokens > 0 or temperature
