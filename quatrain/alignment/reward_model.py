"""Reward models: a score for an answer, learned from pairs of which people preferred one.

The probability that an answer is preferred is the sigmoid of the difference of two scores (Bradley & Terry 1952), so
the loss of a pair is -log sigmoid(r(chosen) - r(rejected)) (Ouyang et al. 2022, arXiv 2203.02155). A margin says by how
much the chosen answer is better (Touvron et al. 2023, arXiv 2307.09288, section 3.2.2). Differences leave the level of
the scores open; centring holds it near 0 (Eisenstein et al. 2023, arXiv 2312.09244).

The model has one label in the head `sequence_classification`, as transformers stores reward models. A decoder's score
is read at the last token of the answer, its end token; an encoder's where the family pools.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.alignment.policy import evaluating
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.batches import TokenBatch, stack, text_segments
from quatrain.data.corpus import DataParts
from quatrain.data.messages import content_text
from quatrain.data.preference_summary import shorter_is_chosen
from quatrain.data.records import Row
from quatrain.evaluation.metrics.objectives import batches_of
from quatrain.models.transformer.stack import Model
from quatrain.tasks.answer_reader import AnswerReader
from quatrain.tasks.records import RecordTask
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, check_head, check_number, config_of, inputs_of
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, refuse
from quatrain.training.settings import TaskSettings

LABELS = ("LABEL_0",)
"""The name of the score, as transformers calls it."""

SHORTER, LONGER = "the shorter answer wins", "the longer answer wins"

BINS = 10
"""Bins of equal width of the reliability diagram, from probability 0.5 to 1."""


@dataclass(frozen=True)
class RewardExample:
    """A pair of encoded conversations that differ in the last answer, and by how much the chosen one is better."""

    chosen: EncodedText
    rejected: EncodedText
    margin: float = 0.0

    def __len__(self) -> int:
        """Tokens of the two rows of the example, padding included."""
        return 2 * max(len(self.chosen), len(self.rejected))

    @property
    def cut(self) -> int:
        """The tokens that did not fit."""
        return self.chosen.cut + self.rejected.cut


@dataclass(frozen=True)
class RewardBatch(TokenBatch):
    """B pairs as 2 B rows `input_ids` (2B, T), chosen rows first; `lengths` (2B,) without padding, `margins` (B,)."""

    lengths: Tensor = field(kw_only=True)
    margins: Tensor = field(kw_only=True)


class PairwiseReward(TextObjective):
    """The loss -log sigmoid(r(chosen) - r(rejected) - margin) of each pair, r being the model's score.

    A record has `prompt`, `chosen` and `rejected`, lists of messages, and perhaps `margin`.
    `center_rewards_coefficient` weighs the added term (r(chosen) + r(rejected))². The weight of the loss is the number
    of pairs.
    """

    head = "sequence_classification"

    def __init__(self, tokenizer: Tokenizer, *, max_length: int | None = None, center_rewards_coefficient: float = 0.0):
        super().__init__(tokenizer, max_length=max_length)
        refuse(check_number("center_rewards_coefficient", center_rewards_coefficient), "PairwiseReward")
        self.center = center_rewards_coefficient
        self.reader = AnswerReader(tokenizer, max_length)

    def encode(self, record: Any, place: str = "this example") -> list[RewardExample]:
        """One example. Raises InputError that names the missing or wrong fields."""
        fields = FieldReader(record, place)
        prompt, chosen, rejected = (fields.raw(name) for name in ("prompt", "chosen", "rejected"))
        margin = fields.record.get("margin")
        number = isinstance(margin, int | float) and not isinstance(margin, bool) and math.isfinite(margin)
        if margin is not None and not number:
            fields.fault(f"margin: {format_value(margin)}; must be a number")
        fields.check()
        try:
            first, second = self.reader.read(prompt, (chosen, rejected))
        except InputError as error:
            raise InputError(error.message, [f"{place}: {error.message}"]) from error
        return [RewardExample(first, second, float(margin or 0.0))]

    def describe_target(self, example: RewardExample) -> str:
        return "first chosen, then rejected" + (f", margin: {example.margin:g}" if example.margin else "")

    def collate(self, examples: Sequence[Any]) -> RewardBatch:
        """Turn B pairs into 2 B rows."""
        pairs: list[RewardExample] = self.encoded(examples)
        rows = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
        return RewardBatch(
            **vars(self.batch(rows, None)),
            lengths=torch.tensor([len(row) for row in rows]),
            margins=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        )

    def loss(self, model: Any, batch: RewardBatch) -> Loss:
        """The loss summed over pairs, their number, and sums of accuracy, margin and the two rewards."""
        chosen, rejected = self._rewards(model, batch).chunk(2)
        margin = chosen - rejected
        losses = -F.logsigmoid(margin - batch.margins)
        if self.center:
            losses = losses + self.center * (chosen + rejected).square()
        metrics: dict[str, float | Tensor] = {
            "accuracy": _wins(margin.detach()).sum(),
            "margin": margin.detach().sum(),
            "chosen_reward": chosen.detach().sum(),
            "rejected_reward": rejected.detach().sum(),
        }
        return losses.sum(), len(margin), metrics

    def _rewards(self, model: Any, batch: RewardBatch) -> Tensor:
        config = check_head(model, self.head)
        if config.num_labels != 1:
            raise InputError(f"labels: {config.num_labels}; a reward model has one, its score: labels={LABELS}.")
        return row_logits(model, batch, batch.lengths)[:, 0]

    @torch.no_grad()
    def predict(self, model: Any, batch: RewardBatch) -> list[float]:
        """r(chosen) - r(rejected) of each pair."""
        chosen, rejected = self._rewards(model, batch).chunk(2)
        return (chosen - rejected).tolist()

    def references(self, examples: Sequence[RewardExample]) -> list[float]:
        """1 for each pair: the chosen answer wins."""
        return [1.0] * len(examples)

    def scores(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        """The share of pairs whose chosen answer wins; a tie counts half."""
        return {"accuracy": float(_wins(torch.tensor(predictions, dtype=torch.float64)).double().mean())}

    def details(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
        """How well the probabilities are calibrated (`calibration`)."""
        return {"calibration": calibration(predictions)}


def row_logits(model: Any, batch: TokenBatch, lengths: Tensor) -> Tensor:
    """The logits (B, L) in float32 of rows (B, T) that have `lengths` (B,) tokens before their padding.

    A decoder's are read at the last of these tokens, whatever their ids: neither an end token inside the row nor a
    padding token that equals the end token moves it. Nothing is computed from the padding, so no mask is needed.
    """
    inputs, config = inputs_of(model, batch), config_of(model)
    if config.architecture != "decoder" or config.pooling != "last":
        return model(**inputs)[0].float()
    # Families whose padding takes no positions need to know where it is.
    segments = None if config.padding_positions == "counted" else batch.segments
    hidden = model.hidden_states(inputs["input_ids"], segments=segments)
    ends = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return model.head(ends[:, None], input_ids=inputs["input_ids"][:, :1])[0].float()


@torch.inference_mode()
def score_rows(model: Model, rows: Sequence[EncodedText], pad_id: int, batch_tokens: int = 16_384) -> Tensor:
    """The logits (N, L) in float32, on the CPU, of encoded texts, in batches of similar lengths.

    A batch has at most `batch_tokens` tokens, padding included. The model's training mode is restored.
    """
    logits = torch.zeros(len(rows), model.config.num_labels)
    with evaluating(model):
        for places in batches_of(rows, batch_tokens) if len(rows) else []:
            batch, lengths = padded([rows[place] for place in places], pad_id)
            logits[places] = row_logits(model, batch.to(model.device), lengths.to(model.device)).cpu()
    return logits


def padded(rows: Sequence[EncodedText], pad_id: int) -> tuple[TokenBatch, Tensor]:
    """Rows as a batch (B, T) without labels, padded on the right, and their lengths (B,)."""
    ids = [row.ids for row in rows]
    input_ids = stack(ids, pad_id)
    types = None
    if any(row.token_types is not None for row in rows):
        types = stack([row.token_types or [0] * len(row) for row in rows], 0)
    batch = TokenBatch.of(input_ids, None, segments=text_segments(ids, input_ids.shape[1]), token_types=types)
    return batch, torch.tensor([len(row) for row in rows])


def _wins(margins: Tensor) -> Tensor:
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def calibration(margins: Sequence[float]) -> dict[str, Any]:
    """How the probability of the preferred answer agrees with how often it really is the chosen one.

    Of each margin r(chosen) - r(rejected) the model prefers one side with probability p = sigmoid(|margin|). `bins` of
    equal width from 0.5 to 1 hold the count, the mean p and the share of pairs in which the preferred answer is the
    chosen one; `ece`, the expected calibration error (Guo et al. 2017, arXiv 1706.04599), is the mean distance of the
    two, weighted by the counts.
    """
    values = torch.tensor(list(margins), dtype=torch.float64)
    confidence, right = values.abs().sigmoid(), _wins(values).double()
    places = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        inside = places == number
        count = int(inside.sum())
        if count:
            mean, share = float(confidence[inside].mean()), float(right[inside].mean())
            error += count / len(values) * abs(mean - share)
            low = 0.5 + number / (2 * BINS)
            bins.append({"from": low, "to": low + 0.5 / BINS, "count": count, "confidence": mean, "accuracy": share})
    return {"ece": error, "bins": bins}


class RewardTask(RecordTask):
    """Pairs of answers of which people preferred one; a model scores each answer.

    The dumb baseline prefers the shorter answer, or the longer one where that wins more often in the training pairs.
    """

    name = "reward"
    format = "preference"
    head = "sequence_classification"
    baseline_name = "the shorter or the longer answer, whichever wins in training"

    @classmethod
    def make_objective(
        cls, settings: TaskSettings, tokenizer: Tokenizer, format: str, labels: Sequence[str], limit: int
    ) -> PairwiseReward:
        center = getattr(settings, "center_rewards_coefficient", 0.0)
        return PairwiseReward(tokenizer, max_length=limit, center_rewards_coefficient=center)

    @classmethod
    def head_options(cls, labels: Sequence[str]) -> dict[str, Any]:
        return {"labels": LABELS, "problem_type": "regression"}

    def read(self, data: DataParts, part: str) -> Iterator[Row]:
        """The pairs of a part of the data without those whose two answers are equal; `notes` say how many these are."""
        equal = 0
        for row in super().read(data, part):
            if row.fault is None and row.value["chosen"] == row.value["rejected"]:
                equal += 1
            else:
                yield row
        if equal:
            note = f"{data.name(part)}: {equal:,} pairs with two equal answers are left out"
            self.notes += [note] if note not in self.notes else []

    def question(self, example: Row) -> str:
        prompt, chosen, rejected = (
            "\n".join(content_text(message) for message in example.value[name])
            for name in ("prompt", "chosen", "rejected")
        )
        return f"{prompt}\n\nA: {chosen}\n\nB: {rejected}"

    def reference(self, example: Row) -> str:
        return "A is better"

    def prediction_text(self, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
        margin = float(predictions[0])
        return f"{'A' if margin > 0 else 'B'} is better, with probability {1 / (1 + math.exp(-abs(margin))):.0%}"

    def parse(self, completion: str) -> float:
        return float(completion)

    def group(self, example: Row) -> str:
        """The prompt: pairs of one prompt are all held out or all not."""
        return repr(list(example.value["prompt"])) if example.fault is None else example.place

    def baseline(self, examples: Sequence[Row]) -> list[str]:
        """The margin 1, 0 or -1 of each pair, by the lengths of its answers in characters."""
        counted = length_baselines(self.counted(examples))
        sign = 1 if counted[SHORTER] >= counted[LONGER] else -1
        return [str(sign * (2 * _shorter(row) - 1)) for row in examples]


def length_baselines(records: Sequence[Row]) -> dict[str, float]:
    """The accuracy of preferring the shorter answer, and of the longer one, on these pairs; a tie counts half."""
    shorter = sum(map(_shorter, records)) / max(1, len(records))
    return {SHORTER: shorter, LONGER: 1 - shorter}


def _shorter(record: Row) -> float:
    """The score of "the shorter answer wins" on a pair, whose lengths are in characters."""
    lengths = (sum(len(content_text(message)) for message in record.value[name]) for name in ("chosen", "rejected"))
    return shorter_is_chosen(*lengths)
