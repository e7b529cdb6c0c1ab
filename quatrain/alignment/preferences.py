"""Preference pairs: from the model's own samples, judged by a function, or from chats with two answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quatrain.alignment.dpo import PreferenceExample
from quatrain.core.errors import InputError
from quatrain.data.records import Messages
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.logits import SamplingParams

Judge = Callable[[int, str], bool]
"""Whether a text is a right answer to the prompt of this number."""


@dataclass
class PairStatistics:
    """What sampling found. A prompt is `solved` when all its samples were right, `failed` when none was."""

    prompts: int = 0
    samples: int = 0
    correct: int = 0
    solved: int = 0
    mixed: int = 0
    failed: int = 0
    from_gold: int = 0
    """Pairs whose chosen answer is the given one, because no sample was right."""
    duplicates: int = 0
    """Pairs left out because another prompt gave the same."""
    pairs: int = 0

    def __add__(self, other: PairStatistics) -> PairStatistics:
        """Of both samplings together."""
        return PairStatistics(**{key: count + getattr(other, key) for key, count in asdict(self).items()})

    @property
    def accuracy(self) -> float:
        """Share of the samples that were right."""
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
    """Draws `samples` answers to each prompt (token ids), judges them, and pairs right ones with wrong ones.

    Chosen is the prompt's commonest right sample that ended by itself, likeliest first among equals; where there is
    none, its `gold` answer (ids with the end token), if given. Rejected are up to `pairs_per_prompt` distinct wrong
    samples, commonest first: the mistakes that the model is surest of. Equal pairs are kept once.
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
    """How often each right and each wrong answer was drawn, by its ids; a text is judged once."""
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
    """The best right answer that ended by itself: one that was cut would teach never to end."""
    ended = {tuple(each.ids) for each in drawn if each.finish_reason == "stop"}
    return next((ids for ids in _ranked(right, drawn) if ids in ended), None)


Answer = str | Sequence[Mapping[str, Any]]
"""What the assistant said, or the messages of it."""


def from_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], chosen: Answer, rejected: Answer
) -> PreferenceExample:
    """A conversation up to the user's turn with two answers, through the one chat renderer.

    An answer is a text or the one message that `read_preferences` gives. Raises InputError where it is neither, where
    the two renderings share no prompt, or where an answer has no token of its own.
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
        raise InputError("An answer has no token: the chat template marks nothing of it as the assistant's.")
    return PreferenceExample(first.ids[:start], better, worse)


def _turn(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"role": "assistant", "content": answer}
    if len(answer) != 1 or answer[0].get("role") != "assistant":
        roles = ", ".join(str(message.get("role")) for message in answer) or "none"
        raise InputError(f"An answer must be one message of the assistant; this one has {len(answer)} ({roles}).")
    return dict(answer[0])


def _last_turn(mask: Sequence[bool]) -> int:
    """Where the last run of True begins; the length where there is none."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    if not end:
        return len(mask)
    start = end
    while start and mask[start - 1]:
        start -= 1
    return start
