"""Sequence to sequence: generate a target from a source, as in translation (Sutskever et al. 2014, arXiv 1409.3215)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, check_number
from quatrain.training.objectives.corruption import decoder_states, source_and_target, target_loss
from quatrain.training.objectives.texts import FieldReader, TextObjective, cut_to, frame, refuse


@dataclass(frozen=True)
class Seq2SeqExample:
    """Ids of source and target with special tokens; `cut` counts the tokens that did not fit."""

    source: list[int]
    target: list[int]
    cut: int = 0

    def __len__(self) -> int:
        """Tokens of source and target."""
        return len(self.source) + len(self.target)


class Seq2Seq(TextObjective):
    """Pairs of source and target for an encoder-decoder.

    A record has `source` and `target`. `source_prefix` is put before each source, such as "translate English to
    French: " for T5. `target_tokenizer` is for models whose decoder has its own tokenizer (Marian). Targets end with
    the end token, even when cut to `max_target_length`. `label_smoothing` spreads that fraction of each label evenly
    over all tokens (Szegedy et al. 2016).
    """

    likelihood = "plain_loss"

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        target_tokenizer: Tokenizer | None = None,
        source_prefix: str = "",
        max_length: int | None = None,
        max_target_length: int | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__(tokenizer, max_length=max_length)
        self.target_tokenizer, self.source_prefix = target_tokenizer or tokenizer, source_prefix
        self.max_target_length = max_length if max_target_length is None else max_target_length
        self.label_smoothing = label_smoothing
        problems = []
        if not 0 <= label_smoothing < 1:
            problems.append(f"label_smoothing: {label_smoothing}; must be at least 0 and below 1")
        if max_target_length is not None:
            problems += check_number("max_target_length", max_target_length, 4, integer=True)
        if self.target_tokenizer.eos_id is None:
            problems.append("target_tokenizer: has no end token; without one, generation would never stop")
        refuse(problems, "Seq2Seq")

    def encode(self, record: Any, place: str = "this example") -> list[Seq2SeqExample]:
        """One example. Raises InputError for a record with a missing or empty source or target."""
        fields = FieldReader(record, place)
        source, target = fields.text("source"), fields.text("target")
        fields.check()
        encoded = self.read(self.source_prefix + source)
        before, after = frame(self.target_tokenizer)
        end = self.target_tokenizer.eos_id
        if end is not None and after[-1:] != [end]:
            after = [*after, end]
        limit = self.max_target_length
        kept, cut = cut_to(
            self.target_tokenizer.encode(target), None if limit is None else limit - len(before) - len(after)
        )
        return [Seq2SeqExample(encoded.ids, [*before, *kept, *after], encoded.cut + cut)]

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Sources (B, S), with the targets as labels (B, T)."""
        pairs: list[Seq2SeqExample] = self.encoded(examples)
        sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
        return source_and_target(sources, targets, self.pad_id, limit=self.max_length, multiple=self.multiple)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the target tokens; the weight is their number."""
        if not self.label_smoothing:
            return target_loss(model, batch)
        learned = batch.labels != IGNORE_INDEX
        targets = batch.labels[learned]
        if bool((targets >= model.config.vocab_size).any()):
            raise InputError(
                f"labels: {int(targets.max())}; must be below the model's vocabulary of {model.config.vocab_size}: "
                "the target tokenizer does not belong to this model."
            )
        logits = model.lm_logits(decoder_states(model, batch)[learned]).float()
        logprobs = logits.log_softmax(-1)
        plain = -logprobs.gather(-1, targets[:, None])[:, 0]
        loss = (1 - self.label_smoothing) * plain - self.label_smoothing * logprobs.mean(-1)
        return loss.sum(), targets.numel(), {"plain_loss": plain.detach().sum()}
