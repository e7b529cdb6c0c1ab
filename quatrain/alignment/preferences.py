"""Preference pairs, from the model's own samples judged by a function, or from chats with two answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quatrain.alignment.dpo import PreferenceExample
from quatrain.core.errors import InputError
from quatrain.data.records import Messages
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.params import SamplingParams

Judge = Callable[[int, str], bool]
"""`judge(prompt_index, text)`: whether a text is a correct answer to that prompt."""


@dataclass
class PairStatistics:
    """Statistics of sampling. A prompt is `solved` if all its samples are correct, `failed` if none is."""

    prompts: int = 0
    samples: int = 0
    correct: int = 0
    solved: int = 0
    mixed: int = 0
    failed: int = 0
    from_gold: int = 0
    """Pairs whose chosen answer is the reference answer, because no sample was correct."""
    duplicates: int = 0
    """Pairs omitted because another prompt gave the same pair."""
    pairs: int = 0

    def __add__(self, other: PairStatistics) -> PairStatistics:
        """The statistics of both samplings together."""
        return PairStatistics(**{key: count + getattr(other, key) for key, count in asdict(self).items()})

    @property
    def accuracy(self) -> float:
        """The fraction of correct samples."""
        return self.correct / self.samples if self.samples else 0.0


def sample_pairs(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    judge: Judge,
    *,
    samples: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    gold: Sequence[Sequence[int]] | None = None,
    pairs_per_prompt: int = 1,
    max_new_tokens: int = 128,
    batch_size: int = 64,
) -> tuple[list[PreferenceExample], PairStatistics]:
    """Draw `samples` answers to each prompt (token ids), judge them, and pair correct ones with wrong ones.

    The chosen answer is the most frequent correct sample that ended with an end token, the most likely one among
    equals; without one it is the prompt's `gold` answer (ids with the end token), if given. Up to `pairs_per_prompt`
    distinct wrong samples are rejected answers, most frequent first. Duplicate pairs are kept once.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    repeated = [list(prompt) for prompt in prompts for _ in range(samples)]
    completions = engine.generate(repeated, params, batch_size=batch_size)
    statistics = PairStatistics(prompts=len(prompts), samples=len(completions))
    pairs: dict[tuple[tuple[int, ...], ...], PreferenceExample] = {}
    for number, prompt in enumerate(prompts):
        drawn = completions[number * samples : (number + 1) * samples]
        right, wrong = _judged(number, drawn, judge)
        statistics.correct += sum(right.values())
        statistics.solved += not wrong
        statistics.failed += not right
        statistics.mixed += bool(right and wrong)
        chosen = _chosen(right, drawn)
        if chosen is None and gold is not None:
            chosen = tuple(gold[number])
            statistics.from_gold += bool(wrong)
        if chosen is None:
            continue
        for rejected in _ranked(wrong, drawn)[:pairs_per_prompt]:
            key = (tuple(prompt), chosen, rejected)
            statistics.duplicates += key in pairs
            if rejected != chosen:
                pairs[key] = PreferenceExample(list(prompt), list(chosen), list(rejected))
    statistics.pairs = len(pairs)
    return list(pairs.values()), statistics


def _judged(number: int, drawn: Sequence[Completion], judge: Judge) -> tuple[Counter, Counter]:
    """How often each correct and each wrong answer was drawn, by its ids. Each text is judged once."""
    verdicts: dict[str, bool] = {}
    right: Counter[tuple[int, ...]] = Counter()
    wrong: Counter[tuple[int, ...]] = Counter()
    for completion in drawn:
        if completion.text not in verdicts:
            verdicts[completion.text] = judge(number, completion.text)
        (right if verdicts[completion.text] else wrong)[tuple(completion.ids)] += 1
    return right, wrong


def _ranked(counts: Counter, drawn: Sequence[Completion]) -> list[tuple[int, ...]]:
    likelihood = {tuple(each.ids): sum(each.logprobs) for each in drawn}
    return sorted(counts, key=lambda ids: (-counts[ids], -likelihood[ids]))


def _chosen(right: Counter, drawn: Sequence[Completion]) -> tuple[int, ...] | None:
    """The best correct answer with an end token; a truncated answer would teach the model never to stop."""
    ended = {tuple(each.ids) for each in drawn if each.finish_reason == "stop"}
    return next((ids for ids in _ranked(right, drawn) if ids in ended), None)


Answer = str | Sequence[Mapping[str, Any]]
"""The assistant's text, or its messages."""


def from_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], chosen: Answer, rejected: Answer
) -> PreferenceExample:
    """Render a conversation up to the user's turn with two answers.

    An answer is a text or a list of one message. Raises InputError for other answers, if the two renderings have
    different prompts, or if an answer has no tokens.
    """
    from quatrain.tokenizers.chat import render

    before = messages if isinstance(messages, Messages) else Messages(map(dict, messages))
    whole = (before.of([*before, _turn(answer)]) for answer in (chosen, rejected))
    first, second = (render(tokenizer, each, mask=True) for each in whole)
    start = _last_turn(first.assistant_mask)
    if first.ids[:start] != second.ids[:start] or start != _last_turn(second.assistant_mask):
        raise InputError("The chat template renders the conversation before the two answers differently.")
    better, worse = (
        [token for token, learned in zip(each.ids[start:], each.assistant_mask[start:], strict=True) if learned]
        for each in (first, second)
    )
    if not better or not worse:
        raise InputError("An answer has no tokens: the chat template marks none as the assistant's.")
    return PreferenceExample(first.ids[:start], better, worse)


def _turn(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"role": "assistant", "content": answer}
    if len(answer) != 1 or answer[0].get("role") != "assistant":
        roles = ", ".join(str(message.get("role")) for message in answer) or "none"
        raise InputError(f"An answer must be one message of the assistant; this one has {len(answer)} ({roles}).")
    return dict(answer[0])


def _last_turn(mask: Sequence[bool]) -> int:
    """The start of the last run of True; the length of the mask if there is none."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    if not end:
        return len(mask)
    start = end
    while start and mask[start - 1]:
        start -= 1
    return start
