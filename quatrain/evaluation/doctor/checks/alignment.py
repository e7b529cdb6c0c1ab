"""Before the first step of alignment log-probabilities agree, the ratio is 1, the KL 0 and the loss ln 2."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch

from quatrain.alignment.dpo import DPO, PreferenceExample
from quatrain.alignment.policy import FrozenReference, completion_states, token_logprobs
from quatrain.alignment.rollouts import PolicyObjective, Prompt, Rollout, collate_rollouts
from quatrain.evaluation.doctor.check import LOGITS, Check, DoesNotApply, Finding, difference
from quatrain.evaluation.doctor.subject import ModelUnderTest
from quatrain.generation.params import SamplingParams

TEMPERATURE = 0.7
REMEDY = (
    "A step of PPO, GRPO or DPO would start from a wrong {what}, and learn from the difference. Do not align this "
    "model until the rows above hold; report its config.json."
)


def _rollouts(subject: ModelUnderTest) -> list[Rollout]:
    """Sampled completions with the log-probabilities of the engine."""
    subject.require_decoder("reinforcement learning here")
    prompts = [Prompt(row) for row in subject.rows]
    params = SamplingParams(
        temperature=TEMPERATURE, top_k=None, top_p=None, max_new_tokens=subject.new_tokens,
        logprobs_mode="temperature", seed=0,
    )  # fmt: skip
    completions = subject.engine.generate([list(prompt.ids) for prompt in prompts], params)
    return [
        Rollout(prompt.ids, completion.ids, sampler_logprobs=torch.tensor(completion.logprobs))
        for prompt, completion in zip(prompts, completions, strict=True)
        if completion.ids
    ]


def _sampler(subject: ModelUnderTest) -> Finding:
    rollouts = _rollouts(subject)
    batch = collate_rollouts(rollouts).to(subject.device)
    measured = PolicyObjective(temperature=TEMPERATURE).measure(subject.model, batch)
    mask = batch.labels != -100
    sampled = batch.sampler_logprobs
    found = math.inf if sampled is None else difference(measured["old_logprobs"][mask], sampled[mask])
    count = int(mask.sum())
    return Finding(found, f"{count} tokens of {len(rollouts)} completions", subject.logit_limit)


def _ratio(subject: ModelUnderTest) -> Finding:
    batch = collate_rollouts(_rollouts(subject)).to(subject.device)
    old = PolicyObjective(temperature=TEMPERATURE).measure(subject.model, batch)["old_logprobs"]
    with torch.enable_grad():
        states, labels, mask = completion_states(subject.model, batch)
        new = token_logprobs(subject.model, states, labels, TEMPERATURE)[0].detach()
    ratio = (new - old[mask]).exp()
    return Finding(difference(ratio, torch.ones_like(ratio)), f"{len(ratio)} tokens")


def _divergence(subject: ModelUnderTest) -> Finding:
    batch = collate_rollouts(_rollouts(subject)).to(subject.device)
    objective = PolicyObjective(temperature=TEMPERATURE, reference=FrozenReference(subject.model))
    measured = objective.measure(subject.model, batch)
    mask = batch.labels != -100
    found = difference(measured["old_logprobs"][mask], measured["reference_logprobs"][mask])
    return Finding(found, f"{int(mask.sum())} tokens, beside a frozen copy")


def _first_loss(subject: ModelUnderTest) -> Finding:
    subject.require_decoder("DPO")
    if subject.resolved.is_adapter or subject.resolved.adapters:
        raise DoesNotApply("the reference of an adapter is its base model, and this adapter has learned already")
    objective = DPO()
    examples = objective.add_references(subject.model, _pairs(subject.rows))
    with torch.no_grad():
        total, weight, _ = objective.loss(copy.copy(subject.model), objective.collate(examples).to(subject.device))
    found = abs(float(total) / float(weight) - math.log(2))
    return Finding(found, f"{len(examples)} pairs, ln 2 = {math.log(2):.6f}")


def _pairs(rows: Sequence[list[int]]) -> list[PreferenceExample]:
    """A prompt with two answers from each sample that is long enough."""
    long = [row for row in rows if len(row) >= 5] or [[*rows[0], *rows[0], *rows[0], *rows[0], *rows[0]]]
    return [
        PreferenceExample(row[: len(row) // 2], row[len(row) // 2 :], list(reversed(row[len(row) // 2 :])))
        for row in long
    ]


CHECKS = (
    Check(
        "rollouts", "rollout log-probabilities and recomputed ones", "nats", LOGITS,
        REMEDY.format(what="probability of each token"), _sampler,
    ),
    Check("ratio", "PPO's and GRPO's first ratio and 1", "ratio", LOGITS, REMEDY.format(what="ratio"), _ratio),
    Check("kl", "the first KL from the reference and 0", "nats", LOGITS, REMEDY.format(what="divergence"), _divergence),
    Check("dpo", "DPO's first loss and ln 2", "nats", LOGITS, REMEDY.format(what="reward"), _first_loss),
)  # fmt: skip
