"""A model's vocabulary made larger or smaller: rows of its embedding, and of its head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.transformer.stack import Model


@torch.no_grad()
def resize_vocabulary(model: Model, size: int) -> list[int]:
    """Gives the embedding and the head `size` rows, in place; returns the ids that are new.

    A new row is the mean of those there were, so that what the model says of the old tokens hardly changes (Hewitt
    2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Rows are cut off at the end. What learned goes on
    doing so. Raises InputError for fewer than one row, and for a head under an adapter.
    """
    before = model.config.vocab_size
    head = model.lm_head
    if size < 1:
        raise InputError(f"a vocabulary of {size} tokens; must be at least 1")
    if head is not None and not isinstance(head, nn.Linear):
        raise InputError("The head is under an adapter; change the vocabulary before one is put on it.")
    if size == before:
        return []
    tied = head is not None and head.weight is model.embed_tokens.weight
    model.embed_tokens.weight = _resized(model.embed_tokens.weight, size)
    model.embed_tokens.num_embeddings = size
    if head is not None:
        head.weight = model.embed_tokens.weight if tied else _resized(head.weight, size)
        head.out_features = size
        if head.bias is not None:
            head.bias = _resized(head.bias, size)
    if model.logits_bias is not None:
        bias: Any = model.logits_bias
        model.logits_bias = _rows(bias[0], size)[None]
    model.config = model.config.replace(vocab_size=size)
    return list(range(before, size))


def is_tied(model: Model) -> bool:
    """Whether the head has no matrix of its own but says by the embedding."""
    return model.lm_head is not None and model.config.tie_word_embeddings


def untie_obstacle(model: Model) -> str | None:
    """Why the head of a tied model cannot get a matrix of its own; None where it can, or has one."""
    kind = get_family(model.config.family)
    if not is_tied(model) or (model.encoder is None and "tie_word_embeddings" not in {**kind.fixed, **kind.required}):
        return None
    return f"a {kind.name} ties the embedding and the head in its files, so that neither can learn without the other"


@torch.no_grad()
def untie(model: Model) -> None:
    """Gives the head of a tied model a matrix of its own, a copy of the embedding's; one that has it stays as it is.

    Raises InputError for a family whose files cannot say so.
    """
    if not is_tied(model):
        return
    if reason := untie_obstacle(model):
        raise InputError(f"The embedding and the head cannot be two: {reason}.")
    head: Any = getattr(model.lm_head, "base", model.lm_head)  # an adapter may be over it
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config = model.config.replace(tie_word_embeddings=False)
    model.untied_after_load = True


def _resized(parameter: Tensor, size: int) -> nn.Parameter:
    return nn.Parameter(_rows(parameter.detach(), size), requires_grad=parameter.requires_grad)


def _rows(values: Tensor, size: int) -> Tensor:
    """The first `size` rows, followed by means of all there are."""
    more = size - values.shape[0]
    if more <= 0:
        return values[:size].clone()
    mean = values.float().mean(0, keepdim=True).to(values.dtype)
    return torch.cat((values, mean.expand(more, *values.shape[1:])))
