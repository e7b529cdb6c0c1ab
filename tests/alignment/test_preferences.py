"""Pairs from the model's own samples: what is chosen, what is rejected, what is counted."""

import pytest
import torch
from tiny_models import llama, random_model

from quatrain.alignment.preferences import PairStatistics, from_chat, sample_pairs
from quatrain.core.errors import InputError
from quatrain.generation.engine import Completion, Engine


class Fixed:
    """An engine that gives fixed completions to each prompt, in turn."""

    def __init__(self, answers):
        self.answers = answers

    def generate(self, prompts, params, *, batch_size):
        self.params = params
        taken = {key: iter(value) for key, value in self.answers.items()}
        return [next(taken[tuple(prompt)]) for prompt in prompts]


def said(text, logprob=-1.0, reason="stop"):
    return Completion(text, [ord(letter) for letter in text], reason, [logprob])


def ids(text):
    return [ord(letter) for letter in text]


def test_commonest_right_and_commonest_wrong():
    engine = Fixed({(1,): [said("good"), said("bad"), said("fine"), said("fine"), said("worse", -9), said("bad")]})
    calls = []

    def judge(number, text):
        calls.append(text)
        return text in ("good", "fine")

    pairs, statistics = sample_pairs(engine, [[1]], judge, samples=6, pairs_per_prompt=2, temperature=0.8, seed=3)
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        ([1], ids("fine"), ids("bad")), ([1], ids("fine"), ids("worse")),
    ]  # fmt: skip
    assert sorted(calls) == ["bad", "fine", "good", "worse"], "a text is judged once"
    assert (engine.params.temperature, engine.params.seed) == (0.8, 3)
    assert statistics.accuracy == pytest.approx(0.5)


def test_counts_gold_and_duplicates():
    engine = Fixed({
        (1,): [said("yes"), said("yes")],
        (2,): [said("no"), said("nay")],
        (3,): [said("yes", reason="length"), said("no")],
    })  # fmt: skip
    prompts = [[1], [2], [3]]
    pairs, statistics = sample_pairs(engine, prompts, lambda _, text: text == "yes", samples=2)
    assert pairs == []
    pairs, statistics = sample_pairs(
        engine, [*prompts], lambda _, text: text == "yes", samples=2, gold=[ids("yes")] * 3, pairs_per_prompt=5
    )
    assert [(p.prompt, bytes(p.chosen), bytes(p.rejected)) for p in pairs] == [
        ([2], b"yes", b"no"), ([2], b"yes", b"nay"), ([3], b"yes", b"no"),
    ]  # fmt: skip
    found = PairStatistics(prompts=3, samples=6, correct=3, solved=1, mixed=1, failed=1, from_gold=2, pairs=3)
    assert statistics == found and found.accuracy == 0.5
    twice = PairStatistics(prompts=6, samples=12, correct=6, solved=2, mixed=2, failed=2, from_gold=4, pairs=6)
    assert found + found == twice and found + PairStatistics() == found


def test_equal_pairs_are_kept_once_and_gold_never_meets_itself():
    class Twice(Fixed):
        def generate(self, prompts, params, *, batch_size):
            return [said(text) for text in ("yes", "no", "yes", "no")]

    pairs, statistics = sample_pairs(Twice({}), [[1], [1]], lambda _, text: text == "yes", samples=2)
    assert (len(pairs), statistics.duplicates) == (1, 1)
    engine = Fixed({(1,): [said("no"), said("no")]})
    pairs, _ = sample_pairs(engine, [[1]], lambda *_: False, samples=2, gold=[ids("no")])
    assert pairs == []


def test_with_the_real_engine():
    engine = Engine(random_model(llama(vocab_size=30)), end_ids=list(range(15)))
    prompts = [[20 + number] for number in range(8)]
    wanted = []

    def judge(number, text):
        wanted.append(number)
        return number % 2 == 0

    pairs, statistics = sample_pairs(engine, prompts, judge, samples=3, seed=1, max_new_tokens=8, gold=[[29]] * 8)
    assert set(wanted) == set(range(8))
    assert {tuple(pair.prompt) for pair in pairs} == {(21,), (23,), (25,), (27,)}
    assert all(pair.chosen == [29] and pair.rejected != [29] for pair in pairs)
    assert statistics.samples == 24 and statistics.correct == 12
    again, _ = sample_pairs(engine, prompts, judge, samples=3, seed=1, max_new_tokens=8, gold=[[29]] * 8)
    assert again == pairs


def test_from_chat():
    from quatrain.tokenizers.chat import render
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["who is there? nobody. somebody is."] * 3, vocab_size=300, chat_template="chatml")
    messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"},
                {"role": "user", "content": "is there?"}]  # fmt: skip
    pair = from_chat(tokenizer, messages, "nobody.", "somebody is.")
    assert pair.prompt == render(tokenizer, messages, add_generation_prompt=True).ids
    assert tokenizer.decode(pair.chosen, skip_special_tokens=False).startswith("nobody.")
    assert pair.chosen[-1] in tokenizer.stop_ids and pair.rejected[-1] in tokenizer.stop_ids
    assert tokenizer.decode(pair.rejected) == "somebody is."
    assert torch.tensor(pair.prompt).dtype == torch.long
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("nobody.", "somebody is."))
    assert from_chat(tokenizer, messages, chosen, rejected) == pair
    with pytest.raises(InputError, match="one message of the assistant; this one has 2"):
        from_chat(tokenizer, messages, [messages[0], *chosen], rejected)
