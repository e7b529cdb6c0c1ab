"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290), an objective of the one trainer.

Options: label smoothing for noisy preferences (Mitchell 2023, "A note on DPO with noisy preferences"), and an added
likelihood loss on the chosen answers (RPO, Pang et al. 2024, arXiv 2404.19733).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample, pad
from quatrain.models.transformer.stack import Model


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt with a chosen and a rejected answer as token ids; answers end with the end token.

    The references are the log-probabilities of the answers (nats, summed over tokens) under the reference model.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    reference_chosen: float | None = None
    reference_rejected: float | None = None

    def __len__(self) -> int:
        """Tokens of the two rows of the example, padding included."""
        return 2 * (len(self.prompt) + max(len(self.chosen), len(self.rejected)))

    def rows(self) -> tuple[TokenExample, TokenExample]:
        """The chosen and the rejected text, with the tokens of the answer marked as learned."""
        first, second = (
            TokenExample([*self.prompt, *answer], [False] * len(self.prompt) + [True] * len(answer))
            for answer in (self.chosen, self.rejected)
        )
        return first, second


@dataclass(frozen=True)
class PreferenceBatch(TokenBatch):
    """B pairs as 2 B rows: `input_ids` and `labels` (2B, T), chosen rows first; `reference` (2B,) log-probabilities.

    Rows are padded on the right: attention is causal and padding has no label, so no mask is needed.
    """

    reference: Tensor = field(kw_only=True)


class DPO:
    """The loss -log sigmoid(beta h) of each pair; h is the model's gain in log-odds over the reference.

    `label_smoothing` is the assumed fraction of swapped pairs (below 0.5). `sft_weight` weights the mean loss per token
    of the chosen answer, which is added. Raises InputError for values out of range.
    """

    def __init__(self, *, beta: float = 0.1, label_smoothing: float = 0.0, sft_weight: float = 0.0, pad_id: int = 0):
        problems = []
        if not beta > 0:
            problems.append(f"beta: {beta}; must be above 0")
        if not 0 <= label_smoothing < 0.5:
            problems.append(f"label_smoothing: {label_smoothing}; must be at least 0 and below 0.5")
        if not sft_weight >= 0:
            problems.append(f"sft_weight: {sft_weight}; must be at least 0")
        if problems:
            raise InputError("DPO cannot be set up:", problems)
        self.beta, self.label_smoothing, self.sft_weight, self.pad_id = beta, label_smoothing, sft_weight, pad_id

    def collate(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        """Turn B pairs into 2 B rows. Raises ValueError for examples without reference log-probabilities."""
        if any(each.reference_chosen is None or each.reference_rejected is None for each in examples):
            raise ValueError("these examples have no reference log-probabilities; call reference_logprobs first")
        pairs = [example.rows() for example in examples]
        batch = pad([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs], self.pad_id)
        references = [e.reference_chosen for e in examples] + [e.reference_rejected for e in examples]
        return PreferenceBatch.of(
            batch.input_ids, batch.labels, reference=torch.tensor(references, dtype=torch.float32)
        )

    def loss(self, model: Model, batch: PreferenceBatch) -> tuple[Tensor, int, dict[str, float | Tensor]]:
        """The loss summed over pairs, their number, and sums of accuracy, margin and rewards (beta times the gain).

        For the reference model itself the loss is ln 2 per pair.
        """
        logprobs = answer_logprobs(model, batch.input_ids, batch.labels)
        chosen, rejected = (self.beta * (logprobs - batch.reference)).chunk(2)
        margin = chosen - rejected
        smoothing = self.label_smoothing
        losses = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
        metrics: dict[str, float | Tensor] = {
            "accuracy": (margin > 0).sum().detach(),
            "margin": margin.sum().detach(),
            "chosen_reward": chosen.sum().detach(),
            "rejected_reward": rejected.sum().detach(),
        }
        if self.sft_weight:
            count = len(chosen)
            lengths = (batch.labels[:count] != IGNORE_INDEX).sum(dim=1)
            likelihood = -logprobs[:count] / lengths
            losses = losses + self.sft_weight * likelihood
            metrics["sft_loss"] = likelihood.sum().detach()
        return losses.sum(), len(chosen), metrics


def answer_logprobs(model: Model, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's labelled tokens (B,), summed, in nats; input_ids and labels are (B, T)."""
    _, loss = model(input_ids, labels)
    return -loss.sum(dim=1)


def reference_logprobs(
    model: Model,
    examples: Sequence[PreferenceExample],
    *,
    batch_tokens: int = 16384,
    pad_id: int = 0,
) -> list[PreferenceExample]:
    """Add the log-probabilities of the answers under `model` to the examples, once, before the model is trained.

    Batches hold pairs of similar length, at most `batch_tokens` tokens. The model's training mode is restored.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]))
    done: dict[int, PreferenceExample] = {}
    device = model.device
    with torch.inference_mode():
        while order:
            longest = len(examples[order[-1]])
            chunk = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // longest)))]
            pairs = [examples[index].rows() for index in chunk]
            batch = pad([row for pair in pairs for row in pair], pad_id).to(device)
            logprobs = answer_logprobs(model, batch.input_ids, batch.labels).tolist()
            for place, index in enumerate(chunk):
                chosen, rejected = logprobs[2 * place : 2 * place + 2]
                done[index] = replace(examples[index], reference_chosen=chosen, reference_rejected=rejected)
    model.train(was_training)
    return [done[index] for index in range(len(examples))]
