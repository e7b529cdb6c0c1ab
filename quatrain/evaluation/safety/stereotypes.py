"""Stereotype pairs: which of two sentences that differ in a group does a model find likelier?

CrowS-Pairs (Nangia et al. 2020, arXiv 2010.00133). A masked model is scored by the pseudo-log-likelihood (Salazar et
al. 2020, arXiv 1910.14659) of the tokens that both sentences share, each masked in turn; a causal model by the
log-likelihood of the sentence. A model without preference has 50 %.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

ROWS = 32
"""Masked copies of a sentence that are read together."""


def sentence_scores(model: Model, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
    """The scores in nats of both sentences of each pair; only their order within a pair means something.

    Raises InputError for a model that gives sentences no likelihood, and for sentences longer than its context.
    """
    head = model.config.head
    if head not in ("causal", "masked"):
        raise InputError(f"Sentences need a causal or masked language model; this one has the head {head}.")
    if head == "masked" and tokenizer.mask_id is None:
        raise InputError("This tokenizer has no mask token, so no pseudo-log-likelihood can be computed.")
    encoded = [tuple(tokenizer.encode(text, special_tokens=True) for text in pair) for pair in pairs]
    limit = model.config.context_length if model.config.has_position_limit else None
    problems = [
        f"pair {number}: {max(map(len, pair))} tokens; the model reads {limit}"
        for number, pair in enumerate(encoded, 1)
        if limit is not None and max(map(len, pair)) > limit
    ]
    problems += [f"pair {number}: a sentence is empty" for number, pair in enumerate(encoded, 1) if not all(pair)]
    if problems:
        raise InputError("These pairs cannot be scored:", problems[:20])
    if head == "causal":
        return [(_likelihood(model, one), _likelihood(model, other)) for one, other in encoded]
    return [_pseudo_likelihoods(model, tokenizer, one, other) for one, other in encoded]


@torch.no_grad()
def _likelihood(model: Model, ids: Sequence[int]) -> float:
    """The log-likelihood of all tokens but the first, which nothing predicts."""
    if len(ids) < 2:
        return 0.0
    row = torch.tensor([list(ids)], device=model.device)
    logs = model.lm_logits(model.hidden_states(row)[:, :-1]).float().log_softmax(-1)
    return float(logs.gather(-1, row[:, 1:, None]).double().sum())


def _pseudo_likelihoods(
    model: Model, tokenizer: Tokenizer, one: Sequence[int], other: Sequence[int]
) -> tuple[float, float]:
    """The pseudo-log-likelihoods of the tokens that both sentences share, in each of them."""
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    special = tokenizer.special_ids
    first = [at for block in blocks for at in range(block.a, block.a + block.size) if one[at] not in special]
    second = [at for block in blocks for at in range(block.b, block.b + block.size) if other[at] not in special]
    return _masked_sum(model, tokenizer, one, first), _masked_sum(model, tokenizer, other, second)


@torch.no_grad()
def _masked_sum(model: Model, tokenizer: Tokenizer, ids: Sequence[int], places: Sequence[int]) -> float:
    """The sum of the log-probabilities of the tokens at `places`, each with a mask in its place."""
    total = 0.0
    for start in range(0, len(places), ROWS):
        some = torch.tensor(places[start : start + ROWS])
        rows = torch.tensor([list(ids)] * len(some))
        numbers = torch.arange(len(some))
        wanted = rows[numbers, some].clone()
        rows[numbers, some] = int(tokenizer.mask_id or 0)
        hidden = model.hidden_states(rows.to(model.device))[numbers, some]
        logs = model.lm_logits(hidden).float().log_softmax(-1).cpu()
        total += float(logs.gather(-1, wanted[:, None]).double().sum())
    return total
