"""Resizes the vocabulary of a model, and unties its head from the embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.transformer.stack import Model


@torch.no_grad()
def resize_vocabulary(model: Model, size: int) -> list[int]:
    """Resizes embedding and head to `size` tokens, in place; returns the new token ids.

    Each new row is the mean of the existing rows, which hardly changes the probabilities of the old tokens (Hewitt
    2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html). A smaller size removes the last rows. Parameters
    stay trainable or frozen. Raises InputError for a size below 1, and for a head with an adapter.
    """
    before = model.config.vocab_size
    head = model.lm_head
    if size < 1:
        raise InputError(f"vocabulary size: {size}; must be at least 1")
    if head is not None and not isinstance(head, nn.Linear):
        raise InputError("The head has an adapter. Resize the vocabulary before adding adapters.")
    if size == before:
        return []
    if model.layer_embedding is not None:
        table = model.layer_embedding.table
        table.weight = _resized(table.weight, size)
        table.num_embeddings = size
        model.config = model.config.replace(layer_vocab_size=size)
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
    """Whether the head shares its matrix with the embedding."""
    return model.lm_head is not None and model.config.tie_word_embeddings


def untie_obstacle(model: Model) -> str | None:
    """Why the head of a tied model cannot be untied, or None if it can or is not tied."""
    family = get_family(model.config.family)
    if not is_tied(model) or (
        model.encoder is None and "tie_word_embeddings" not in {**family.fixed, **family.required}
    ):
        return None
    return f"{family.name} files always tie the head to the embedding, so the two cannot be trained apart"


@torch.no_grad()
def untie(model: Model) -> None:
    """Gives the head of a tied model its own matrix, a copy of the embedding; does nothing if it is not tied.

    Raises InputError for families whose files always tie the head.
    """
    if not is_tied(model):
        return
    if reason := untie_obstacle(model):
        raise InputError(f"The head cannot be untied from the embedding: {reason}.")
    head: Any = getattr(model.lm_head, "base", model.lm_head)  # Without its adapter, if it has one.
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config = model.config.replace(tie_word_embeddings=False)
    model.untied_after_load = True


def _resized(parameter: Tensor, size: int) -> nn.Parameter:
    return nn.Parameter(_rows(parameter.detach(), size), requires_grad=parameter.requires_grad)


def _rows(values: Tensor, size: int) -> Tensor:
    """The first `size` rows; missing rows are the mean of the existing ones."""
    missing = size - values.shape[0]
    if missing <= 0:
        return values[:size].clone()
    mean = values.float().mean(0, keepdim=True).to(values.dtype)
    return torch.cat((values, mean.expand(missing, *values.shape[1:])))
