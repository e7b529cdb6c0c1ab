"""A language model's predictions at each position of a text, and the surprisal of the actual tokens.

A decoder predicts the token after each position. An encoder with a masked head predicts each masked token (Devlin et
al. 2018, arXiv 1810.04805) or, in a text without masks, each token in turn as if it alone were masked (Salazar et al.
2020, arXiv 1910.14659). An encoder-decoder predicts the decoder's next token, given the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.choices import HEADS
from quatrain.evaluation.inspection.tokens import Token, check_ids, token, tokens
from quatrain.models.transformer.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

ROWS = 64
"""Positions whose logits are computed at a time."""
MASKED_ROWS = 16
"""Rows per forward pass when each token is masked in turn."""


@dataclass(frozen=True)
class Candidate:
    """A likely token and its probability."""

    token: Token
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction at `position`: the most likely tokens, and the rank and probability of the actual token.

    `rank` 1 is the most likely token; `bits` is the surprisal, -log2 of the probability. All of these and `token` are
    None where there is no actual token: at a mask, and after the end. `entropy` is the distribution's, in bits.
    """

    position: int
    token: Token | None
    rank: int | None
    probability: float | None
    bits: float | None
    entropy: float
    candidates: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite surprisal is null."""
        fields = dict(self.__dict__)
        if self.bits is not None and not math.isfinite(self.bits):
            fields["bits"] = None
        fields["token"] = None if self.token is None else self.token.as_dict()
        fields["candidates"] = [
            {"id": each.token.id, "text": each.token.text, "probability": each.probability} for each in self.candidates
        ]
        return fields


@dataclass(frozen=True)
class Predictions:
    """All predictions for one text, in the order of the positions.

    kind: "next" (decoder), "masked", "each masked" (every token in turn) or "answer" (encoder-decoder).
    tokens: the tokens that the positions index: the text, or the decoder's output.
    """

    kind: str
    tokens: tuple[Token, ...]
    items: tuple[Prediction, ...]

    @property
    def mean_bits(self) -> float | None:
        """The mean surprisal of the actual tokens, in bits; None without actual tokens."""
        known = [item.bits for item in self.items if item.bits is not None]
        return sum(known) / len(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        mean = self.mean_bits
        mean = mean if mean is not None and math.isfinite(mean) else None
        return {"kind": self.kind, "mean_bits": mean, "positions": [item.as_dict() for item in self.items]}


def predictions(
    model: Model, tokenizer: Tokenizer, ids: Sequence[int], *, answer: Sequence[int] = (), top: int = 5
) -> Predictions:
    """The predictions of `model` at each position of the text `ids`, with the `top` most likely tokens.

    An encoder-decoder reads `ids` and predicts each token of `answer` and the token after it. `tokenizer` is the
    tokenizer of the output. Raises InputError for a model without a language head.
    """
    check_language_head(model.config)
    if top < 1:
        raise InputError(f"top: {top}; must be at least 1")
    limit = min(top, model.config.vocab_size)
    if model.encoder is not None:
        return _of_answer(model, tokenizer, list(ids), list(answer), limit)
    check_ids(ids, tokenizer, model.config)
    if model.config.architecture == "decoder":
        return _of_next(model, tokenizer, list(ids), limit)
    return _of_masks(model, tokenizer, list(ids), limit)


def check_language_head(config: ModelConfig) -> None:
    """Raises InputError for a model without a language head."""
    if config.head not in LANGUAGE_HEADS:
        raise InputError(
            f"This {config.family} model's head is {config.head!r}: it gives {HEADS.get(config.head, 'no tokens')}, so "
            "there is no next token to show. That needs a model with a language head "
            f"({', '.join(LANGUAGE_HEADS)}), such as the model that this one was trained from."
        )


def _of_next(model: Model, tokenizer: Tokenizer, ids: list[int], top: int) -> Predictions:
    hidden = _hidden(model, ids)
    places = range(1, len(ids) + 1)
    items = _items(model, tokenizer, hidden, places, [*ids[1:], None], top)
    return Predictions("next", tokens(tokenizer, ids), items)


def _of_answer(model: Model, tokenizer: Tokenizer, ids: list[int], answer: list[int], top: int) -> Predictions:
    start = decoder_start(model.config)
    decoder_ids = torch.tensor([[start, *answer]], device=model.device)
    with torch.no_grad():
        hidden = model.hidden_states(torch.tensor([ids], device=model.device), decoder_input_ids=decoder_ids)[0]
    items = _items(model, tokenizer, hidden, range(len(answer) + 1), [*answer, None], top)
    return Predictions("answer", tokens(tokenizer, answer), items)


def decoder_start(config: ModelConfig) -> int:
    """The decoder's start token. Raises InputError if the configuration has none."""
    if config.decoder_start_token_id is None:
        raise InputError("decoder_start_token_id: missing in config.json; the decoder needs it as its first token.")
    return config.decoder_start_token_id


def _of_masks(model: Model, tokenizer: Tokenizer, ids: list[int], top: int) -> Predictions:
    mask = tokenizer.mask_id
    if mask is None:
        raise InputError(
            "This tokenizer has no mask token, so nothing can be hidden. Name one as mask_token in "
            "tokenizer_config.json."
        )
    read = tokens(tokenizer, ids)
    if places := [place for place, each in enumerate(ids) if each == mask]:
        hidden = _hidden(model, ids)[places]
        return Predictions("masked", read, _items(model, tokenizer, hidden, places, [None] * len(places), top))
    places = [each.position for each in read if not each.special]
    if not places:
        raise InputError("The text has only special tokens, so there is nothing to mask.")
    items: list[Prediction] = []
    for start in range(0, len(places), MASKED_ROWS):
        some = places[start : start + MASKED_ROWS]
        rows = torch.tensor([ids] * len(some), device=model.device)
        numbers = torch.arange(len(some), device=model.device)
        rows[numbers, some] = mask
        with torch.no_grad():
            hidden = model.hidden_states(rows)[numbers, some]
        items += _items(model, tokenizer, hidden, some, [ids[place] for place in some], top)
    return Predictions("each masked", read, tuple(items))


def _hidden(model: Model, ids: list[int]) -> Tensor:
    """The last hidden states (T, hidden_size) of one text."""
    with torch.no_grad():
        return model.hidden_states(torch.tensor([ids], device=model.device))[0]


def _items(
    model: Model,
    tokenizer: Tokenizer,
    hidden: Tensor,
    places: Sequence[int],
    actual: Sequence[int | None],
    top: int,
) -> tuple[Prediction, ...]:
    """Predictions from hidden states (N, C) for these positions, compared with the actual tokens."""
    items: list[Prediction] = []
    for start in range(0, len(places), ROWS):
        with torch.no_grad():
            logs = model.lm_logits(hidden[start : start + ROWS]).float().log_softmax(-1).cpu()
        if bool(logs.isnan().any()):
            raise InputError("The model's logits are NaN: its weights are broken. Fetch or train it again.")
        best = logs.topk(top, dim=-1)
        entropies = torch.special.entr(logs.exp()).sum(-1) / math.log(2)
        for row, place in enumerate(places[start : start + ROWS]):
            candidates = tuple(
                Candidate(token(tokenizer, int(each)), math.exp(value))
                for each, value in zip(best.indices[row], best.values[row].tolist(), strict=True)
            )
            items.append(
                _prediction(tokenizer, logs[row], place, actual[start + row], float(entropies[row]), candidates)
            )
    return tuple(items)


def _prediction(
    tokenizer: Tokenizer,
    logs: Tensor,
    place: int,
    actual: int | None,
    entropy: float,
    candidates: tuple[Candidate, ...],
) -> Prediction:
    if actual is None:
        return Prediction(place, None, None, None, None, entropy, candidates)
    value = float(logs[actual])
    rank = 1 + int((logs > value).sum())
    bits = abs(value) / math.log(2)
    return Prediction(place, token(tokenizer, actual, place), rank, math.exp(value), bits, entropy, candidates)
