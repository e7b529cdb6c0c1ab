"""Sequence to sequence: a target said after reading a source, for translation and summaries (Sutskever et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE, TokenBatch
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss
from quatrain.training.objectives.corruption import decoder_states, source_and_target, target_loss
from quatrain.training.objectives.texts import FieldReader, TextObjective, cut_to, frame, refuse


@dataclass(frozen=True)
class Seq2SeqExample:
    """A source and a target as ids, special tokens in both; `cut` tokens of them did not fit."""

    source: list[int]
    target: list[int]
    cut: int = 0

    def __len__(self) -> int:
        """Tokens that both coders read."""
        return len(self.source) + len(self.target)


class Seq2Seq(TextObjective):
    """Pairs of a source and a target, for an encoder-decoder.

    A record has `source` and `target`. `source_prefix` is put before each source, such as "translate English to
    French: " for T5. `target_tokenizer` is the decoder's where it has its own (Marian's). Targets end with the
    end token, also those that are cut to `max_target_length`. `label_smoothing` moves that share of each label to all
    tokens alike (Szegedy et al. 2016).
    """

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
        if max_target_length is not None and (not isinstance(max_target_length, int) or max_target_length < 4):
            problems.append(f"max_target_length: {max_target_length!r}; must be a whole number of at least 4")
        if self.target_tokenizer.eos_id is None:
            problems.append(
                "target_tokenizer: has no end token; targets must end with one, or nothing ends when generated"
            )
        refuse(problems, "Seq2Seq")

    def encode(self, record: Any, place: str = "this example") -> list[Seq2SeqExample]:
        """One example. Raises InputError for a record without source or target, or an empty one."""
        fields = FieldReader(record, place)
        source, target = fields.text("source"), fields.text("target")
        fields.check()
        read = self.read(self.source_prefix + source)
        before, after = frame(self.target_tokenizer)
        end = self.target_tokenizer.eos_id
        if end is not None and after[-1:] != [end]:
            after = [*after, end]
        limit = self.max_target_length
        kept, cut = cut_to(
            self.target_tokenizer.encode(target), None if limit is None else limit - len(before) - len(after)
        )
        return [Seq2SeqExample(read.ids, [*before, *kept, *after], read.cut + cut)]

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Sources (B, S) and targets as labels (B, T)."""
        pairs: list[Seq2SeqExample] = self.encoded(examples)
        sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
        return source_and_target(sources, targets, self.pad_id, limit=self.max_length, multiple=self.multiple)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the targets' tokens; the weight is their number."""
        if not self.label_smoothing:
            return target_loss(model, batch)
        learned = batch.labels != IGNORE
        wanted = batch.labels[learned]
        if bool((wanted >= model.config.vocab_size).any()):
            raise InputError(
                f"labels: {int(wanted.max())}; must be below the model's vocabulary of {model.config.vocab_size}: "
                "model and target tokenizer do not fit."
            )
        logits = model.lm_logits(decoder_states(model, batch)[learned]).float()
        chances = logits.log_softmax(-1)
        said = -chances.gather(-1, wanted[:, None])[:, 0]
        loss = (1 - self.label_smoothing) * said - self.label_smoothing * chances.mean(-1)
        return loss.sum(), wanted.numel(), {"plain_loss": said.detach().sum()}
