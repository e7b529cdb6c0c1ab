"""Log-probabilities of given completions, in one forward pass: what multiple-choice suites and perplexities need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from quatrain.core.errors import QuatrainError
from quatrain.generation.filters import BROKEN
from quatrain.models.transformer.positions import depends_on_length
from quatrain.models.transformer.stack import Model

STATES = 1024
"""Hidden states whose logits are computed at once."""


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
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), len(completions[index])))
    scores: dict[int, CompletionScore] = {}
    for batch in _batches(model, order, prompts, completions, batch_size):
        rows = [(list(prompts[index]), list(completions[index])) for index in batch]
        own = None if adapters is None or model.adapter_set is None else [adapters[index] for index in batch]
        scores |= zip(batch, _score_batch(model, rows, decoder_start, own, logprobs), strict=True)
    return [scores[index] for index in range(len(prompts))]


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
    targets = torch.tensor([token for _, completion in rows for token in completion], device=model.device)
    owners = torch.tensor([row for row, (_, completion) in enumerate(rows) for _ in completion], device=model.device)
    places = [start + place for start, (_, ids) in zip(starts, rows, strict=True) for place in range(len(ids))]
    states = hidden[owners, torch.tensor(places, device=model.device)]
    chosen: list[float] = []
    greedy: list[bool] = []
    top: list[list[tuple[int, float]]] = []
    for start in range(0, len(states), STATES):
        part = slice(start, start + STATES)
        logits = model.lm_logits(states[part], owners[part]).float()
        values = logits.log_softmax(dim=-1)
        chosen += values.gather(-1, targets[part, None])[:, 0].tolist()
        greedy += (logits.argmax(dim=-1) == targets[part]).tolist()
        best = values.topk(min(count, values.shape[-1]), dim=-1)
        top += [list(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    if not all(abs(value) < float("inf") for value in chosen):
        raise QuatrainError(BROKEN)
    result, start = [], 0
    for _, completion in rows:
        part = slice(start, start + len(completion))
        best_tokens = top[part] if count else []
        result.append(CompletionScore(completion, chosen[part], all(greedy[part]), best_tokens))
        start += len(completion)
    return result


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists of ids as one tensor, 0 on the right of shorter ones, where causal attention does not see it."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
