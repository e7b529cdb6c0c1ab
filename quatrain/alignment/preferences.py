"""Preference examples: from data, and from the model's own samples judged by a function or ranked by a reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quatrain.alignment.dpo import PreferenceExample
from quatrain.alignment.kto import RatedExample
from quatrain.alignment.rewards.base import WeightedRewards
from quatrain.core.errors import InputError
from quatrain.data.messages import is_empty
from quatrain.data.records import Messages, Preference, RatedAnswer
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


@dataclass
class RewardStatistics:
    """Statistics of sampling by reward. A prompt is `flat` if all its samples have the same reward."""

    prompts: int = 0
    samples: int = 0
    unscorable: int = 0
    flat: int = 0
    pairs: int = 0
    rewards: float = 0.0

    def __add__(self, other: RewardStatistics) -> RewardStatistics:
        """The statistics of both samplings together."""
        return RewardStatistics(**{key: count + getattr(other, key) for key, count in asdict(self).items()})

    @property
    def mean_reward(self) -> float:
        """The mean reward of the samples that could be scored."""
        scored = self.samples - self.unscorable
        return self.rewards / scored if scored else 0.0


def sample_by_reward(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    examples: Sequence[Any],
    rewards: WeightedRewards,
    *,
    samples: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    pairs_per_prompt: int = 1,
    max_new_tokens: int = 128,
    batch_size: int = 64,
) -> tuple[list[PreferenceExample], RewardStatistics]:
    """Draw `samples` answers to each prompt (token ids), score them, and pair the best with the worst.

    `examples` are what the rewards get for each prompt. The chosen answer has the highest reward of those that ended
    with an end token; up to `pairs_per_prompt` distinct answers with lower rewards are rejected, the lowest first.
    Among equals the most likely answer counts. Answers that a reward cannot judge are left out. Raises RewardError.
    """
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    completions = engine.generate(
        [list(prompt) for prompt in prompts for _ in range(samples)], params, batch_size=batch_size
    )
    scores = rewards.score([each for each in examples for _ in range(samples)], [each.text for each in completions])
    total, unscorable = scores.total.tolist(), scores.unscorable.tolist()
    statistics = RewardStatistics(
        prompts=len(prompts), samples=len(completions), unscorable=sum(unscorable), rewards=sum(total)
    )
    pairs = []
    for number, prompt in enumerate(prompts):
        places = [place for place in range(number * samples, (number + 1) * samples) if not unscorable[place]]
        likelihood = {place: sum(completions[place].logprobs) for place in places}
        places.sort(key=lambda place: (-total[place], -likelihood[place]))
        best = next((place for place in places if completions[place].finish_reason == "stop"), None)
        statistics.flat += bool(places) and total[places[0]] == total[places[-1]]
        if best is None:
            continue
        lower = [place for place in places if total[place] < total[best]]
        lower.sort(key=lambda place: (total[place], -likelihood[place]))
        for rejected in list(dict.fromkeys(tuple(completions[place].ids) for place in lower))[:pairs_per_prompt]:
            pairs.append(PreferenceExample(list(prompt), list(completions[best].ids), list(rejected)))
    statistics.pairs = len(pairs)
    return pairs, statistics


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


def rated_from_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], answer: Answer, desirable: bool
) -> RatedExample:
    """Render a conversation up to the user's turn with one rated answer. Raises InputError as `from_chat`."""
    pair = from_chat(tokenizer, messages, answer, answer)
    return RatedExample(pair.prompt, pair.chosen, desirable)


def prompt_key(record: Preference | RatedAnswer) -> str:
    """What records of one prompt have in common, so that all of them are held out or all are learned."""
    return repr(list(record.prompt))


def encode_preferences(
    tokenizer: Any, records: Sequence[Preference | RatedAnswer]
) -> tuple[list[PreferenceExample | RatedExample], list[str]]:
    """The pairs or rated answers as examples, and a note on each reason to leave some out."""
    examples: list[PreferenceExample | RatedExample] = []
    left_out: Counter[str] = Counter()
    for record in records:
        if (reason := _unusable(record)) is not None:
            left_out[reason] += 1
        elif isinstance(record, RatedAnswer):
            examples.append(rated_from_chat(tokenizer, record.prompt, record.completion, record.label))
        else:
            examples.append(from_chat(tokenizer, record.prompt, record.chosen, record.rejected))
    return examples, [f"{count:,} of {len(records):,} left out: {reason}" for reason, count in left_out.items()]


def _unusable(record: Preference | RatedAnswer) -> str | None:
    """Why a record gives no example; None if it does."""
    answers = [record.completion] if isinstance(record, RatedAnswer) else [record.chosen, record.rejected]
    if isinstance(record, Preference) and record.chosen == record.rejected:
        return "chosen and rejected are the same"
    if any(len(answer) != 1 or answer[0]["role"] != "assistant" for answer in answers):
        return "an answer is not one message of the assistant"
    if any(is_empty(answer[0]) for answer in answers):
        return "an answer is empty"
    return None


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
