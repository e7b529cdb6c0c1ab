"""The logit lens: what a model would predict if each layer were its last (nostalgebraist 2020, "interpreting GPT").

The hidden state after each layer passes the final norm and the head. Early layers of many models are not in the basis
of the head, so that their readings mean little (Belrose et al. 2023, arXiv 2303.08112).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.predictions import Candidate, check_language_head, decoder_start
from quatrain.evaluation.inspection.tokens import Token, check_ids, token, tokens
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

MOST_CELLS = 40_000
"""Most readings, layers times positions, of one text."""


@dataclass(frozen=True)
class Reading:
    """A layer's prediction at a position: the likeliest tokens, the entropy in bits, and the right token's place.

    `probability` and `rank` (1 is the likeliest) are those of the right token, None where there is none.
    """

    candidates: tuple[Candidate, ...]
    entropy: float
    probability: float | None
    rank: int | None

    def as_dict(self) -> dict[str, Any]:
        likeliest = [{"id": c.token.id, "text": c.token.text, "probability": c.probability} for c in self.candidates]
        own = {"entropy": self.entropy, "probability": self.probability, "rank": self.rank}
        return own | {"candidates": likeliest}


@dataclass(frozen=True)
class LogitLens:
    """The readings of a text: `readings[layer][position]`, from the embedding (layer 0) to the last layer.

    read: the tokens that the model reads. right: the token to predict at each position, or None. An encoder predicts
    the token of a position itself, a decoder the one after it.
    """

    read: tuple[Token, ...]
    right: tuple[Token | None, ...]
    readings: tuple[tuple[Reading, ...], ...]

    def layer_name(self, layer: int) -> str:
        """The name of a row."""
        return "embedding" if layer == 0 else f"layer {layer}"

    def mean_probability(self, layer: int) -> float | None:
        """The mean probability of the right tokens after a layer; None without right tokens."""
        known = [each.probability for each in self.readings[layer] if each.probability is not None]
        return sum(known) / len(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "right": [None if each is None else each.id for each in self.right],
            "layers": [
                {"name": self.layer_name(number), "positions": [each.as_dict() for each in row]}
                for number, row in enumerate(self.readings)
            ],
        }


@torch.no_grad()
def logit_lens(
    model: Model, tokenizer: Tokenizer, ids: Sequence[int], *, answer: Sequence[int] = (), top: int = 5
) -> LogitLens:
    """The readings of every layer for the text `ids`; of an encoder-decoder's decoder for `answer` after it.

    `tokenizer` is the tokenizer of the output. The last row equals the model's own predictions. Raises InputError for a
    model without a language head, and for a text with too many positions.
    """
    check_language_head(model.config)
    if top < 1:
        raise InputError(f"top: {top}; must be at least 1")
    rows, trace = model.config.num_hidden_layers + 1, Trace()
    length = len(ids) if model.encoder is None else len(answer) + 1
    if rows * length > MOST_CELLS:
        raise InputError(
            f"{length:,} tokens in {rows} rows are {rows * length:,} readings; at most {MOST_CELLS:,} are shown. "
            "Shorten the text."
        )
    batch = torch.tensor([list(ids)], device=model.device)
    if model.encoder is None:
        check_ids(ids, tokenizer, model.config)
        model.hidden_states(batch, trace=trace)
        read, shifted = list(ids), model.config.architecture == "decoder"
    else:
        read, shifted = [decoder_start(model.config), *answer], True
        model.hidden_states(batch, decoder_input_ids=torch.tensor([read], device=model.device), trace=trace)
    actual: list[int | None] = [*read[1:], None] if shifted else list(read)
    count = min(top, model.config.vocab_size)
    readings = tuple(
        _row(tokenizer, lens_logits(model, state, last=number == rows - 1)[0], actual, count)
        for number, state in enumerate(trace.hidden_states[-rows:])
    )
    right = tuple(None if each is None else token(tokenizer, each, place) for place, each in enumerate(actual))
    return LogitLens(tokens(tokenizer, read), right, readings)


def lens_logits(model: Model, state: Tensor, *, last: bool) -> Tensor:
    """The logits (B, T, V) of a layer's output (B, T, hidden_size); the `last` one has passed the final norm."""
    if not last:
        state = state if model.norm is None else model.norm(state)
        state = state if model.project_out is None else model.project_out(state)
    return model.lm_logits(state).float()


def _row(tokenizer: Tokenizer, logits: Tensor, actual: Sequence[int | None], top: int) -> tuple[Reading, ...]:
    logs = logits.log_softmax(-1).cpu()
    if bool(logs.isnan().any()):
        raise InputError("The model's logits are NaN: its weights are broken. Fetch or train it again.")
    best = logs.topk(top, dim=-1)
    entropies = (torch.special.entr(logs.exp()).sum(-1) / math.log(2)).tolist()
    readings = []
    for place, wanted in enumerate(actual):
        likeliest = tuple(
            Candidate(token(tokenizer, int(each)), math.exp(value))
            for each, value in zip(best.indices[place], best.values[place].tolist(), strict=True)
        )
        value = None if wanted is None else float(logs[place, wanted])
        rank = None if value is None else 1 + int((logs[place] > value).sum())
        readings.append(Reading(likeliest, entropies[place], None if value is None else math.exp(value), rank))
    return tuple(readings)
