"""Log-probabilities of given completions, without generating: what multiple-choice suites and perplexities need.

Prompts that begin alike, such as questions after the same examples, and the choices of one question are read as a tree:
the common beginning once, then each prompt, then each completion, over copies of the KV cache.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from quatrain.core.errors import QuatrainError
from quatrain.generation.filters import BROKEN
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.positions import depends_on_length
from quatrain.models.transformer.stack import Model

STATES = 1024
"""Hidden states whose logits are computed at once."""
SHARED = 16
"""The least common tokens of prompts for which a copy of the KV cache is worth its cost."""
TREE_TOKENS = 16_384
"""Tokens of the texts, their common beginning included, that one batch of a tree holds in its KV cache."""


@dataclass
class CompletionScore:
    """How likely a given completion is after its prompt."""

    ids: list[int]
    logprobs: list[float]
    """Log-probability of each id under the model itself, in nats."""
    is_greedy: bool
    """Whether each id is the likeliest one, as greedy decoding without constraints would choose it."""
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    """At each id, the likeliest tokens and their log-probabilities, likeliest first, if asked for."""

    @property
    def total(self) -> float:
        """Log-probability of the whole completion."""
        return sum(self.logprobs)


@torch.inference_mode()
def score_completions(
    model: Model,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    decoder_start: int | None = None,
    adapters: Sequence[str | None] | None = None,
    logprobs: int = 0,
    batch_size: int = 64,
) -> list[CompletionScore]:
    """Scores each completion after its prompt; neither may be empty.

    With a `decoder_start`, the encoder of an encoder-decoder reads the prompt, and its decoder that token and then the
    completion. `logprobs` is the number of likeliest tokens that are returned with each id.
    Raises QuatrainError if logits are not finite.
    """
    if decoder_start is None and _can_share(model):
        return _score_tree(model, prompts, completions, logprobs, batch_size)
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), len(completions[index])))
    scores: dict[int, CompletionScore] = {}
    for batch in _batches(model, order, prompts, completions, batch_size):
        rows = [(list(prompts[index]), list(completions[index])) for index in batch]
        own = None if adapters is None or model.adapter_set is None else [adapters[index] for index in batch]
        scores |= zip(batch, _score_batch(model, rows, decoder_start, own, logprobs), strict=True)
    return [scores[index] for index in range(len(prompts))]


def _can_share(model: Model) -> bool:
    """Whether texts may be read from a copied cache: the attention sees positions alone, and each row has one model."""
    return getattr(model.config, "supports_branches", False) and model.adapter_set is None and model.soft_prompt is None


@dataclass
class _Text:
    """A text that is read once: a prompt with several completions, or a prompt together with its only one."""

    ids: list[int]
    rows: list[int]
    """Numbers of the completions."""
    start: int
    """The place in `ids` whose state predicts the first token of each completion."""


def _score_tree(
    model: Model, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], logprobs: int, batch_size: int
) -> list[CompletionScore]:
    scores: dict[int, CompletionScore] = {}
    groups = list(_with_common_beginning(_texts(prompts, completions)))
    alone = [text for texts, shared in groups if not shared for text in texts]  # they are batched by length instead
    for texts, shared in [*(group for group in groups if group[1]), *([(alone, 0)] if alone else [])]:
        beginning = None
        if shared:
            beginning = KVCache(model.config, 1, shared, dtype=model.embed_tokens.weight.dtype, device=model.device)
            model.hidden_states(_padded([texts[0].ids[:shared]], model.device), cache=beginning)
        for batch in _tree_batches(texts, completions, batch_size):
            numbers, states, owners = _states(model, batch, completions, shared, beginning)
            rows = [list(completions[number]) for number in numbers]
            scores |= zip(numbers, _from_states(model, states, owners, rows, logprobs), strict=True)
    return [scores[number] for number in range(len(prompts))]


def _texts(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[_Text]:
    """What is read, in the order of its tokens, so that texts that begin alike are neighbours."""
    together: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        together.setdefault(tuple(prompt), []).append(number)
    texts = []
    for prompt, rows in together.items():
        ids, start = list(prompt), len(prompt) - 1
        if len(rows) == 1:
            ids += completions[rows[0]][:-1]
        texts.append(_Text(ids, rows, start))
    return sorted(texts, key=lambda text: text.ids)


def _with_common_beginning(texts: Sequence[_Text]) -> Iterator[tuple[list[_Text], int]]:
    """Groups of neighbouring texts with the number of tokens that all of a group begin with.

    A text joins the group before it as long as that saves more tokens than leaving the group as it is. The last token
    before a completion is never shared, since its state is needed for each text.
    """
    group: list[_Text] = []
    shared = 0
    for text in texts:
        if group:
            common = _common(group[-1].ids, text.ids, min(shared, text.start))
            if common >= SHARED and len(group) * common >= (len(group) - 1) * shared:
                group.append(text)
                shared = common
                continue
            yield group, shared if len(group) > 1 else 0
        group, shared = [text], text.start
    if group:
        yield group, shared if len(group) > 1 else 0


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    return next((place for place in range(most) if one[place] != other[place]), most)


def _tree_batches(
    texts: Sequence[_Text], completions: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[_Text]]:
    """Batches of similar length, bounded by their completions and by the tokens in the cache."""
    batch: list[_Text] = []
    rows = 0
    for text in sorted(texts, key=lambda text: -len(text.ids)):
        longest = len((batch or [text])[0].ids)
        # Completions of one token are read off the state of their prompt.
        own = len(text.rows) if any(len(completions[row]) > 1 for row in text.rows) else 1
        if batch and (rows + own > batch_size or (rows + own) * longest > TREE_TOKENS):
            yield batch
            batch, rows = [], 0
        batch.append(text)
        rows += own
    if batch:
        yield batch


def _states(
    model: Model,
    texts: Sequence[_Text],
    completions: Sequence[Sequence[int]],
    shared: int,
    beginning: KVCache | None,
) -> tuple[list[int], Tensor, Tensor]:
    """The completions of some texts, the states that predict their tokens, one after the other, and their owners."""
    device = model.device
    forks = [place for place, text in enumerate(texts) if len(text.rows) > 1]
    cache = None
    if beginning is not None:
        cache = copy.copy(beginning)
        cache.select(torch.zeros(len(texts), dtype=torch.long, device=device))
    elif any(len(completions[row]) > 1 for place in forks for row in texts[place].rows):
        cache = KVCache(model.config, len(texts), 0, dtype=model.embed_tokens.weight.dtype, device=device)
    hidden = _read(model, [text.ids[shared:] for text in texts], cache)
    pieces: dict[int, list[Tensor]] = {}
    for place, text in enumerate(texts):
        start, single = text.start - shared, len(text.rows) == 1
        for row in text.rows:
            end = start + (len(completions[row]) if single else 1)
            pieces[row] = [hidden[place, start:end]]
    branches = [(place, row) for place in forks for row in texts[place].rows if len(completions[row]) > 1]
    if branches and cache is not None:
        cache.select(torch.tensor([place for place, _ in branches], device=device))
        rest = [list(completions[row][:-1]) for _, row in branches]
        for (_, row), ids, states in zip(branches, rest, _read(model, rest, cache), strict=True):
            pieces[row].append(states[: len(ids)])
    numbers = list(pieces)
    owners = [owner for owner, row in enumerate(numbers) for _ in completions[row]]
    return (
        numbers,
        torch.cat([part for parts in pieces.values() for part in parts]),
        torch.tensor(owners, device=device),
    )


def _read(model: Model, texts: Sequence[Sequence[int]], cache: KVCache | None) -> Tensor:
    """The hidden states (B, T, hidden_size) of texts that a cache continues, padded on the right."""
    width = max(map(len, texts))
    rows = None if cache is None else cache.rows(padding=[width - len(ids) for ids in texts])
    return model.hidden_states(_padded(texts, model.device), cache=rows)


def _batches(
    model: Model,
    order: list[int],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    count: int,
) -> Iterator[list[int]]:
    """Batches of similar length; of equal length if the positional encoding depends on the longest row."""
    groups = [order]
    if depends_on_length(model.config.rope_scaling):
        lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
        ordered = sorted(order, key=lambda index: lengths[index])
        groups = [list(group) for _, group in groupby(ordered, key=lambda index: lengths[index])]
    for group in groups:
        for start in range(0, len(group), count):
            yield group[start : start + count]


def _score_batch(
    model: Model,
    rows: list[tuple[list[int], list[int]]],
    decoder_start: int | None,
    adapters: list[str | None] | None,
    count: int,
) -> list[CompletionScore]:
    if decoder_start is None:
        read = [[*prompt, *completion[:-1]] for prompt, completion in rows]
        starts = [len(prompt) - 1 for prompt, _ in rows]
        hidden = model.hidden_states(_padded(read, model.device), adapters=adapters)
    else:
        read = [[decoder_start, *completion[:-1]] for _, completion in rows]
        starts = [0] * len(rows)
        prompts = [prompt for prompt, _ in rows]
        segments = _padded([[1] * len(prompt) for prompt in prompts], model.device)
        hidden = model.hidden_states(
            _padded(prompts, model.device),
            segments=None if bool(segments.all()) else segments,
            decoder_input_ids=_padded(read, model.device),
            adapters=adapters,
        )
    owners = torch.tensor([row for row, (_, completion) in enumerate(rows) for _ in completion], device=model.device)
    places = [start + place for start, (_, ids) in zip(starts, rows, strict=True) for place in range(len(ids))]
    states = hidden[owners, torch.tensor(places, device=model.device)]
    return _from_states(model, states, owners, [completion for _, completion in rows], count)


def _from_states(
    model: Model, states: Tensor, owners: Tensor, completions: Sequence[list[int]], count: int
) -> list[CompletionScore]:
    """Scores of completions from the states (N, hidden_size) that predict their tokens, one after the other."""
    targets = torch.tensor([token for completion in completions for token in completion], device=model.device)
    chosen: list[float] = []
    greedy: list[bool] = []
    top: list[list[tuple[int, float]]] = []
    for start in range(0, len(states), STATES):
        part = slice(start, start + STATES)
        logits = model.lm_logits(states[part], owners[part]).float()
        values = logits.log_softmax(dim=-1)
        chosen += values.gather(-1, targets[part, None])[:, 0].tolist()
        greedy += (logits.argmax(dim=-1) == targets[part]).tolist()
        if count:
            best = values.topk(min(count, values.shape[-1]), dim=-1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top += [list(zip(*pair, strict=True)) for pair in pairs]
    if not all(abs(value) < float("inf") for value in chosen):
        raise QuatrainError(BROKEN)
    result, start = [], 0
    for completion in completions:
        part = slice(start, start + len(completion))
        result.append(CompletionScore(completion, chosen[part], all(greedy[part]), top[part]))
        start += len(completion)
    return result


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists of ids as one tensor, 0 on the right of shorter ones, where causal attention does not see it."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
