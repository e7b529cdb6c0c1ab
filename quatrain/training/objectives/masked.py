"""Masked language modelling, optionally with next-sentence prediction (Devlin et al. 2018, arXiv 1810.04805).

Of the selected tokens, 80 % become the mask token, 10 % a random token, and 10 % stay. Masks are drawn anew each time
a text is seen (dynamic masking of RoBERTa, Liu et al. 2019, arXiv 1907.11692).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.data.batches import IGNORE_INDEX, TokenBatch, stack
from quatrain.models.transformer.heads import label_loss, pool
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, Seeds, check_head, check_number, config_of, generators, inputs_of
from quatrain.training.objectives.corruption import CorruptionObjective, language_loss
from quatrain.training.objectives.pairs import sentence_pairs
from quatrain.training.objectives.texts import EncodedText, refuse


class Masked(CorruptionObjective):
    """Masks tokens and predicts them from the context on both sides.

    `mask_ratio` of a row's tokens are selected: exactly that many, as in BERT, and at least one. A fraction `mask` of
    them becomes the mask token and a fraction `random` a random token that is not special; the rest stay.
    `whole_word_masking` selects whole words. Special tokens and padding are never selected.

    With `next_sentence_prediction`, `prepare` makes pairs of sentences from documents, and the model needs the head
    `pretraining`. So that accumulation does not change the loss, a pair's sentence loss is weighted by its number of
    masked tokens; with equal numbers the loss is the sum of both means, as in BERT.
    """

    likelihood = "masked_loss"

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        mask_ratio: float = 0.15,
        mask: float = 0.8,
        random: float = 0.1,
        whole_word_masking: bool = False,
        next_sentence_prediction: bool = False,
        max_length: int | None = None,
    ):
        super().__init__(tokenizer, max_length=max_length)
        problems = check_number("mask_ratio", mask_ratio, 0, 1, above=True)
        problems += check_number("mask", mask, 0, 1) + check_number("random", random, 0, 1)
        if not problems and mask + random > 1 + 1e-9:
            problems.append(f"mask + random: {mask} + {random}; must be at most 1, the rest of the tokens stay")
        if next_sentence_prediction and max_length is None:
            problems.append("max_length: missing; pairs of sentences are built to fill it")
        refuse(problems, "Masked")
        self.mask_ratio, self.mask, self.random = mask_ratio, mask, random
        self.whole_word_masking, self.next_sentence_prediction = whole_word_masking, next_sentence_prediction
        self.mask_id = self.required_token(tokenizer.mask_id, "mask")
        ordinary = set(tokenizer.backend.get_vocab(with_added_tokens=True).values()) - tokenizer.special_ids
        self.choices = np.array(sorted(ordinary), dtype=np.int64)

    def prepare(self, records: Iterable[Any], *, seed: int = 0) -> tuple[list[Any], list[str]]:
        """Rows of the texts; with `next_sentence_prediction` pairs drawn from `seed`.

        A document is a record with `text`, or with `sentences`, a list of texts. Raises InputError naming every wrong
        record.
        """
        if not self.next_sentence_prediction:
            return super().prepare(records)
        return sentence_pairs(self.tokenizer, records, max_length=self.max_length or 0, seed=seed)

    def hide(self, ids: Sequence[int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A masked row (T,) and its labels (T,): the original tokens at selected positions, -100 elsewhere."""
        row = np.array(ids, dtype=np.int64)
        chosen = self._selected(ids, generator)
        labels = np.full(len(row), IGNORE_INDEX, dtype=np.int64)
        labels[chosen] = row[chosen]
        fate = generator.random(len(chosen))
        others = generator.choice(self.choices, len(chosen))
        replaced = np.where(fate < self.mask + self.random, others, row[chosen])
        row[chosen] = np.where(fate < self.mask, self.mask_id, replaced)
        return row, labels

    def _selected(self, ids: Sequence[int], generator: np.random.Generator) -> np.ndarray:
        special = self.special(ids)
        free = np.flatnonzero(~special)
        count = max(1, round(len(free) * self.mask_ratio))
        if not len(free):
            return free
        if not self.whole_word_masking:
            return generator.permutation(free)[:count]
        words = [span for span in self.words.spans(ids) if not special[span[0]]]
        taken: list[int] = []
        for number in generator.permutation(len(words)):
            start, end = words[number]
            # As in BERT, a word that would exceed the count is skipped in favor of a shorter one.
            if not taken or len(taken) + end - start <= count:
                taken.extend(range(start, end))
        return np.array(taken, dtype=np.int64)

    def collate(self, examples: Any, *, seed: Seeds = 0) -> TokenBatch:
        """Masked rows (B, T) with labels (B, T); with `next_sentence_prediction` labels are the pair (B, T), (B)."""
        if self.next_sentence_prediction:
            pairs: list[EncodedText] = self.encoded(examples)
        else:
            pairs = [EncodedText(self.framed(row)) for row in self.rows(examples)]
        drawn = [self.hide(pair.ids, one) for pair, one in zip(pairs, generators(seed, len(pairs)), strict=True)]
        batch = self.batch(
            [EncodedText(row.tolist(), pair.token_types) for pair, (row, _) in zip(pairs, drawn, strict=True)], None
        )
        labels: Any = stack(
            [row.tolist() for _, row in drawn], IGNORE_INDEX, multiple=self.multiple, limit=self.max_length
        )
        if self.next_sentence_prediction:
            labels = (labels, torch.tensor([pair.label for pair in pairs]))
        return TokenBatch.of(batch.input_ids, labels, segments=batch.segments, token_types=batch.token_types)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the masked tokens, and their number.

        With `next_sentence_prediction` the weighted sentence loss is added; see the class.
        """
        check_head(model, "pretraining" if self.next_sentence_prediction else "masked")
        hidden = model.hidden_states(**inputs_of(model, batch))
        if not self.next_sentence_prediction:
            return language_loss(model, hidden, batch.labels)
        masked, follows = batch.labels
        total, weight, _ = language_loss(model, hidden, masked)
        scores = model.score(_pooled(model, hidden, batch))
        times = (masked != IGNORE_INDEX).sum(1)
        sentence_loss = (times * label_loss(scores, follows, "single_label")).sum()
        right = (times * (scores.detach().argmax(-1) == follows)).sum()
        metrics: dict[str, float | Tensor] = {
            "masked_loss": total.detach(),
            "next_sentence_loss": sentence_loss.detach(),
            "next_sentence_accuracy": right,
        }
        return total + sentence_loss, weight, metrics

    @torch.no_grad()
    def evaluation_metrics(self, model: Any, batch: TokenBatch) -> dict[str, float]:
        """The number of masked tokens that are predicted correctly."""
        labels = batch.labels[0] if self.next_sentence_prediction else batch.labels
        masked = labels != IGNORE_INDEX
        predicted = model.lm_logits(model.hidden_states(**inputs_of(model, batch))[masked]).argmax(-1)
        return {"accuracy": float((predicted == labels[masked]).sum())}


def _pooled(model: Any, hidden: Tensor, batch: TokenBatch) -> Tensor:
    pooled = pool(hidden, config_of(model), batch.input_ids, batch.segments)
    return pooled if model.pooler is None else model.pooler(pooled)
