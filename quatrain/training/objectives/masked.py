"""Masked language modelling, with next sentences on request (Devlin et al. 2018, arXiv 1810.04805).

Of the tokens that are chosen, four in five become the mask, one in ten another token, and one in ten stay. Masks are
drawn anew each time that a text is seen (RoBERTa's dynamic masking, Liu et al. 2019, arXiv 1907.11692).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.data.batches import IGNORE, TokenBatch, stack
from quatrain.models.transformer.heads import label_loss, pool
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, Seeds, check_head, config_of, generators, share
from quatrain.training.objectives.corruption import CorruptionObjective, language_loss
from quatrain.training.objectives.pairs import sentence_pairs
from quatrain.training.objectives.texts import EncodedText, refuse


class Masked(CorruptionObjective):
    """Hides tokens and learns them from both sides.

    `share` of a row's tokens are chosen, at least one: exactly that many as BERT does, not on average. Of them `mask`
    become the mask token and `random` another token of the vocabulary that is not special; the rest stay. With
    `whole_word_masking` words are chosen whole. Special tokens and padding are never chosen.

    With `next_sentence_prediction` examples are pairs made by `prepare` from records of documents, and the model has
    the head `pretraining`. So that accumulation changes nothing, a pair's second loss counts as many times as it has
    hidden tokens: where all have equally many, the loss is the sum of both means, BERT's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        share: float = 0.15,
        mask: float = 0.8,
        random: float = 0.1,
        whole_word_masking: bool = False,
        next_sentence_prediction: bool = False,
        max_length: int | None = None,
    ):
        super().__init__(tokenizer, max_length=max_length)
        problems = _shares(share, mask, random)
        if next_sentence_prediction and max_length is None:
            problems.append("max_length: missing; pairs of sentences are made to fill it")
        refuse(problems, "Masked")
        self.share, self.mask, self.random = share, mask, random
        self.whole_word_masking, self.next_sentence_prediction = whole_word_masking, next_sentence_prediction
        self.mask_id = self.needed_token(tokenizer.mask_id, "mask")
        known = set(tokenizer.backend.get_vocab(with_added_tokens=True).values()) - tokenizer.special_ids
        self.choices = np.array(sorted(known), dtype=np.int64)

    def prepare(self, records: Iterable[Any], *, seed: int = 0) -> tuple[list[Any], list[str]]:
        """Rows of the texts; with `next_sentence_prediction` pairs drawn from `seed`.

        A document is a record with `text`, or with `sentences`, a list of texts. Raises InputError naming every wrong
        record.
        """
        if not self.next_sentence_prediction:
            return super().prepare(records)
        return sentence_pairs(self.tokenizer, records, max_length=self.max_length or 0, seed=seed)

    def hide(self, ids: Sequence[int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A row (T,) with tokens hidden, and its labels (T,): the tokens that were chosen, -100 elsewhere."""
        row = np.array(ids, dtype=np.int64)
        chosen = self._chosen(ids, generator)
        labels = np.full(len(row), IGNORE, dtype=np.int64)
        labels[chosen] = row[chosen]
        fate = generator.random(len(chosen))
        others = generator.choice(self.choices, len(chosen))
        replaced = np.where(fate < self.mask + self.random, others, row[chosen])
        row[chosen] = np.where(fate < self.mask, self.mask_id, replaced)
        return row, labels

    def _chosen(self, ids: Sequence[int], generator: np.random.Generator) -> np.ndarray:
        special = self.special(ids)
        free = np.flatnonzero(~special)
        count = max(1, round(len(free) * self.share))
        if not len(free):
            return free
        if not self.whole_word_masking:
            return generator.permutation(free)[:count]
        words = [span for span in self.words.spans(ids) if not special[span[0]]]
        taken: list[int] = []
        for number in generator.permutation(len(words)):
            start, end = words[number]
            # As BERT: a word that would be too much is left for a shorter one.
            if not taken or len(taken) + end - start <= count:
                taken.extend(range(start, end))
        return np.array(taken, dtype=np.int64)

    def collate(self, examples: Any, *, seed: Seeds = 0) -> TokenBatch:
        """Rows (B, T) with tokens hidden and labels (B, T), with `next_sentence_prediction` the pair (B, T), (B)."""
        if self.next_sentence_prediction:
            pairs: list[EncodedText] = self.encoded(examples)
        else:
            pairs = [EncodedText(self.framed(row)) for row in self.rows(examples)]
        drawn = [self.hide(pair.ids, one) for pair, one in zip(pairs, generators(seed, len(pairs)), strict=True)]
        batch = self.batch(
            [EncodedText(row.tolist(), pair.token_types) for pair, (row, _) in zip(pairs, drawn, strict=True)], None
        )
        labels: Any = stack([row.tolist() for _, row in drawn], IGNORE, multiple=self.multiple, limit=self.max_length)
        if self.next_sentence_prediction:
            labels = (labels, torch.tensor([pair.label for pair in pairs]))
        return TokenBatch.of(batch.input_ids, labels, segments=batch.segments, token_types=batch.token_types)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats summed over the hidden tokens, and their number.

        With `next_sentence_prediction`, the second loss is added as the class says.
        """
        check_head(model, "pretraining" if self.next_sentence_prediction else "masked")
        hidden = _states(model, batch)
        if not self.next_sentence_prediction:
            return language_loss(model, hidden, batch.labels)
        masked, follows = batch.labels
        total, weight, _ = language_loss(model, hidden, masked)
        scores = model.score(_pooled(model, hidden, batch))
        times = (masked != IGNORE).sum(1)
        told = (times * label_loss(scores, follows, "single")).sum()
        right = (times * (scores.detach().argmax(-1) == follows)).sum()
        metrics: dict[str, float | Tensor] = {
            "masked_loss": total.detach(),
            "next_sentence_loss": told.detach(),
            "next_sentence_accuracy": right,
        }
        return total + told, weight, metrics

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[int]:
        """The likeliest token for each hidden one, row by row, as `batch.labels` has them."""
        labels = batch.labels[0] if self.next_sentence_prediction else batch.labels
        return model.lm_logits(_states(model, batch)[labels != IGNORE]).argmax(-1).tolist()


def _states(model: Any, batch: TokenBatch) -> Tensor:
    inputs = dict(batch.inputs)
    if config_of(model).type_vocab_size < 2:
        inputs.pop("token_types", None)
    return model.hidden_states(**inputs)


def _pooled(model: Any, hidden: Tensor, batch: TokenBatch) -> Tensor:
    pooled = pool(hidden, config_of(model), batch.input_ids, batch.segments)
    return pooled if model.pooler is None else model.pooler(pooled)


def _shares(chosen: float, mask: float, random: float) -> list[str]:
    problems = share("share", chosen) + share("mask", mask, above=False) + share("random", random, above=False)
    if not problems and mask + random > 1 + 1e-9:
        problems.append(f"mask + random: {mask} + {random}; must be at most 1, the rest of the tokens stay")
    return problems
