"""Distillation on texts: its parts against their formulas, and what a student cannot learn from."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import llama, random_model
from torch.nn import functional as F

from quatrain.alignment.distillation import TextDistillation
from quatrain.compression.pruning.structured import prune
from quatrain.core.errors import InputError
from quatrain.data.batches import TokenBatch
from quatrain.models.transformer.stack import Trace
from quatrain.training.objectives.base import Causal

IDS = torch.randint(0, 60, (4, 17), generator=torch.Generator().manual_seed(0))
LABELS = IDS[:, 1:].clone()
LABELS[0, 5:] = -100
BATCH = TokenBatch.of(IDS[:, :-1], LABELS)
TEACHER = random_model(llama(num_hidden_layers=4))


def student():  # type: ignore[no-untyped-def]
    return prune(copy.deepcopy(TEACHER).requires_grad_(True), [], layers=0.5, alternate=True)[0].train()


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_the_loss_is_its_formula(kind: str) -> None:
    model, mask = student(), LABELS != -100
    objective = TextDistillation(copy.deepcopy(TEACHER), kind=kind, temperature=2.0, weight=0.7, mixture=0.3)  # type: ignore[arg-type]
    total, weight, metrics = objective.loss(model, BATCH)
    own, other = (each(IDS[:, :-1])[0][mask].div(2).log_softmax(-1).double() for each in (model, TEACHER))
    mixed = torch.log(0.3 * other.exp() + 0.7 * own.exp())
    expected = {
        "forward": F.kl_div(own, other, log_target=True, reduction="sum"),
        "reverse": F.kl_div(other, own, log_target=True, reduction="sum"),
        "js": 0.3 * F.kl_div(mixed, other, log_target=True, reduction="sum")
        + 0.7 * F.kl_div(mixed, own, log_target=True, reduction="sum"),
    }[kind]
    plain = Causal().loss(model, BATCH)[0]
    torch.testing.assert_close(total.double(), 0.7 * 4 * expected + 0.3 * plain.double(), rtol=1e-4, atol=1e-3)
    assert weight == int(mask.sum()) and metrics.keys() == {"divergence", "cross_entropy"}
    total.backward()
    assert all(each.grad is None for each in objective.teacher.parameters())
    assert torch.equal(objective.loss(model.eval(), BATCH)[0], Causal().loss(model, BATCH)[0])


def test_hidden_states_and_attention_are_compared_layer_by_layer() -> None:
    model, mask = student(), LABELS != -100
    objective = TextDistillation(TEACHER, weight=0.0, hidden=1.0, attention=1.0)
    _, _, metrics = objective.loss(model, BATCH)
    own, other = Trace(), Trace()
    model(IDS[:, :-1], trace=own)
    TEACHER(IDS[:, :-1], trace=other)
    hidden = [
        1 - F.cosine_similarity(own.hidden_states[a], other.hidden_states[b], dim=-1) for a, b in ((1, 2), (2, 4))
    ]
    squared = [(own.attentions[a] - other.attentions[b]).square().sum(-1).mean(1) for a, b in ((0, 1), (1, 3))]
    for name, parts in (("hidden", hidden), ("attention", squared)):
        torch.testing.assert_close(metrics[name], torch.stack(parts).mean(0)[mask].sum())


def test_a_student_comes_nearer_to_its_teacher() -> None:
    model, objective = student(), TextDistillation(TEACHER, weight=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        total, weight, _ = objective.loss(model, BATCH)
        losses.append(float(total.detach()) / weight)
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("teacher", "options", "named"),
    [(llama(vocab_size=70), {}, "vocabulary"), (llama(hidden_size=64), {"hidden": 1.0}, "channels")],
)
def test_what_cannot_be_compared_is_refused(teacher: object, options: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        TextDistillation(random_model(teacher), **options).loss(student(), BATCH)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="divergence"):
        TextDistillation(TEACHER, kind="sideways")  # type: ignore[arg-type]
