"""Replaced-token detection (Clark et al. 2020, ELECTRA, arXiv 2003.10555).

A generator, a masked language model, fills the masks of a text with tokens that it finds likely. The model learns for
every token whether it is the text's own or the generator's. The generator is fixed here, and trained before: the
paper's two-stage training, in which the model may start from the generator's weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, Seeds, check_head, forward, generators, inputs_of
from quatrain.training.objectives.masked import Masked


class ReplacedTokens(Masked):
    """Detects the tokens that a `generator` has put in the place of masked ones.

    `mask_ratio` of a row's tokens become masks, all of them the mask token, and each is replaced with a token drawn
    from the generator's distribution at `temperature`; where the draw is the original token, it counts as original.
    Raises InputError for a generator that is no masked language model of the tokenizer's vocabulary.
    """

    likelihood = ""

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Model,
        *,
        mask_ratio: float = 0.15,
        temperature: float = 1.0,
        whole_word_masking: bool = False,
        max_length: int | None = None,
    ):
        super().__init__(
            tokenizer,
            mask_ratio=mask_ratio,
            mask=1.0,
            random=0.0,
            whole_word_masking=whole_word_masking,
            max_length=max_length,
        )
        check_head(generator, "masked")
        if generator.config.vocab_size < tokenizer.vocab_size:
            raise InputError(
                f"generator: its vocabulary has {generator.config.vocab_size} tokens, the tokenizer "
                f"{tokenizer.vocab_size}; take a generator that was trained with this tokenizer."
            )
        self.generator, self.temperature = generator.requires_grad_(False).eval(), temperature

    def collate(self, examples: Any, *, seed: Seeds = 0) -> TokenBatch:
        """Masked rows (B, T); the labels are the original tokens (B, T) and a uniform draw for each of them (B, T)."""
        batch = super().collate(examples, seed=seed)
        rows, width = batch.labels.shape
        draws = torch.zeros(rows, width, dtype=torch.float64)
        for row, own in enumerate(generators(seed, rows)):
            draws[row] = torch.from_numpy(own.spawn(1)[0].random(width))
        return TokenBatch.of(
            batch.input_ids, (batch.labels, draws), segments=batch.segments, token_types=batch.token_types
        )

    @torch.no_grad()
    def corrupted(self, batch: TokenBatch) -> tuple[TokenBatch, Tensor]:
        """The batch with the generator's tokens for the masks, and the labels: 1 for a replaced token, -100 padding."""
        original, draws = batch.labels
        masked = original != IGNORE_INDEX
        generator = self.generator.to(device=batch.input_ids.device)
        hidden = generator.hidden_states(**inputs_of(generator, batch))[masked]
        logits = generator.lm_logits(hidden)[:, : self.tokenizer.vocab_size].float() / self.temperature
        reached = logits.softmax(-1).double().cumsum(-1)
        tokens = torch.searchsorted(reached, (draws[masked] * reached[:, -1])[:, None], right=True)[:, 0]
        ids = batch.input_ids.clone()
        ids[masked] = tokens.clamp(max=reached.shape[1] - 1)
        labels = (masked & (ids != original)).long()
        if batch.segments is not None:
            labels = labels.masked_fill(batch.segments == 0, IGNORE_INDEX)
        return TokenBatch.of(ids, labels, segments=batch.segments, token_types=batch.token_types), labels

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Binary cross-entropy in nats, summed over the tokens; the weight is their number.

        Metrics: `accuracy`; `replaced`, the share of replaced tokens, so that 1 - `replaced` is the accuracy of calling
        every token original; `found`, the share of all tokens that were replaced and are recognized.
        """
        check_head(model, "replaced_tokens")
        corrupted, labels = self.corrupted(batch)
        logits, losses = forward(model, corrupted, labels)
        known, says = labels != IGNORE_INDEX, logits.detach() > 0
        metrics: dict[str, float | Tensor] = {
            "accuracy": (known & (says == (labels == 1))).sum(),
            "replaced": (labels == 1).sum(),
            "found": (says & (labels == 1)).sum(),
        }
        return losses.sum(), int(known.sum()), metrics

    def evaluation_metrics(self, model: Any, batch: TokenBatch) -> dict[str, float]:
        """No more than the metrics of `loss`."""
        return {}
