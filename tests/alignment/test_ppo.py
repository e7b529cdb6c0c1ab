"""PPO: its loss against a plain float64 loop, its first values, and the faults that others' users met."""

import math

import pytest
import torch
from online_setup import policy, ppo_setup, trainer_of
from quick_set import some

from quatrain.alignment.policy import ActorCritic, FrozenReference, ValueHead, ValueModel
from quatrain.alignment.ppo import PPO, PPOConfig
from quatrain.alignment.rollouts import Prompt, Rollout, RolloutPlan, collate_rollouts
from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX


def drawn(config=None, steps=0, **changes):
    """A module that has taken some steps, its objective, and a batch of rollouts of which it knows the old values."""
    module, objective, stream = ppo_setup(config=config, plan=RolloutPlan(5, 2), **changes)
    rollouts = stream.next()
    batch = objective.collate(rollouts)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss, weight, _ = objective.loss(module, batch)
        (loss / weight).backward()
        optimizer.step()
    return module, objective, rollouts, batch


def loss_by_hand(module, objective, rollouts):
    """PPO's loss in float64, one token after the other."""
    config, module = objective.config, module.double()
    total = {"loss": 0.0, "policy_loss": 0.0, "value_loss": 0.0, "policy_entropy": 0.0, "clip_fraction": 0}
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt, *rollout.ids]])
        hidden = module.policy.hidden_states(ids)[0]
        logits = module.policy.lm_logits(hidden) / objective.temperature
        for place, token in enumerate(rollout.ids):
            at = len(rollout.prompt) - 1 + place
            probabilities = logits[at].softmax(-1).tolist()
            old, advantage = float(rollout.old_logprobs[place]), float(rollout.advantages[place])
            ratio = probabilities[token] / math.exp(old)
            near = min(max(ratio, 1 - config.clip), 1 + config.clip)
            policy_loss = max(-advantage * ratio, -advantage * near)
            value, target = float(module.value.linear(hidden[at]).detach()), float(rollout.returns[place])
            old_value = float(rollout.values[place])
            near_value = old_value + min(max(value - old_value, -config.value_clip), config.value_clip)
            errors = [(value - target) ** 2, (near_value - target) ** 2]
            value_loss = max(errors) / 2 if config.value_clip else errors[0] / 2
            entropy = -sum(p * math.log(p) for p in probabilities)
            total["policy_loss"] += policy_loss
            total["value_loss"] += value_loss
            total["policy_entropy"] += entropy
            total["clip_fraction"] += policy_loss > -advantage * ratio
            total["loss"] += policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    module.float()
    return total


@pytest.mark.parametrize(
    "changes",
    [{}, {"entropy_coef": 0.3, "value_coef": 0.7}, {"clip": 0.02, "value_clip": 0.01}, {"value_clip": 0.0}],
    ids=str,
)
def test_the_loss_equals_a_float64_loop(changes):
    module, objective, rollouts, batch = drawn(PPOConfig(**changes), steps=2)
    with torch.no_grad():
        loss, weight, metrics = objective.loss(module, batch)
    expected = loss_by_hand(module, objective, rollouts)
    assert weight == sum(len(rollout.ids) for rollout in rollouts)
    assert float(loss) == pytest.approx(expected.pop("loss"), rel=1e-4, abs=1e-3)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-4, abs=1e-3), name
    assert expected["clip_fraction"] > 0


def test_the_first_values_are_exact():
    module, objective, _, batch = drawn()
    _, weight, metrics = objective.loss(module.train(), batch)
    mask = batch.labels != IGNORE_INDEX
    assert float(metrics["ratio"]) == weight == int(mask.sum())
    assert float(metrics["policy_loss"]) == -float(batch.advantages[mask].sum())
    assert torch.equal(batch.old_logprobs, batch.reference_logprobs)
    assert float(metrics["policy_kl"]) == 0


def test_the_score_is_on_the_last_token_and_each_token_pays_for_its_divergence():
    reference = FrozenReference(policy())
    objective = PPO(PPOConfig(kl_coef=0.5, missing_end_penalty=2.0), reference=reference)
    rollouts = [
        Rollout([1], [4, 5, 3], ended=True, score=1.0, old_logprobs=torch.tensor([-1.0, -2, -3])),
        Rollout([1, 2], [6], ended=False, score=4.0, old_logprobs=torch.tensor([-1.0])),
    ]
    rollouts[0].reference_logprobs = torch.tensor([-1.5, -1.0, -3.0])
    rollouts[1].reference_logprobs = torch.tensor([-3.0])
    for rollout in rollouts:
        rollout.values = torch.zeros(len(rollout.ids))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # More likely than under the reference costs, less likely gains.
    assert objective.token_rewards(rollouts, mask).tolist() == [[-0.25, 0.5, 1.0], [4.0 - 2.0 - 1.0, 0.0, 0.0]]
    objective.advantages(rollouts)
    assert [len(rollout.advantages) for rollout in rollouts] == [3, 1]
    assert rollouts[0].returns.tolist() == pytest.approx([-0.25 + 0.95 * (0.5 + 0.95), 0.5 + 0.95, 1.0])


def test_the_penalty_keeps_the_policy_near_the_reference():
    # Maximizing the divergence instead would carry the policy away from it.
    module, objective, stream = ppo_setup(
        policy(eos_token_id=None),
        PPOConfig(kl_coef=1.0, gamma=1.0),
        RolloutPlan(16, 2, minibatches=2, epochs=2, constant_phases=0),
        reward=lambda examples, texts: [0.0] * len(texts),
        prompts=[Prompt([7])],
        max_new_tokens=1,
        temperature=1.0,
    )
    objective.check_start = lambda module, batch: None
    reference = objective.reference.model
    with torch.no_grad():
        module.policy.lm_head.weight.add_(0.3 * torch.randn(60, 32, generator=torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def divergence():
        ids = torch.tensor([[7]])
        ours, theirs = (each(ids)[0][0, -1].log_softmax(-1) for each in (module.policy, reference))
        return float((ours.exp() * (ours - theirs)).sum())

    before = divergence()
    trainer_of(module, objective, stream, 40, learning_rate=1e-2).train()
    assert divergence() < 0.4 * before


@pytest.mark.parametrize("poison", [100.0, math.nan])
def test_padding_changes_nothing(poison):
    module, objective, rollouts, batch = drawn(steps=1)
    outside = batch.labels == IGNORE_INDEX
    names = ("advantages", "old_logprobs", "values", "returns", "reference_logprobs")
    poisoned = collate_rollouts(rollouts)
    for name in names:
        object.__setattr__(poisoned, name, getattr(batch, name).masked_fill(outside, poison))
    results = []
    for each in (batch, poisoned):
        module.zero_grad()
        loss, weight, metrics = objective.loss(module, each)
        loss.backward()
        results.append((float(loss.detach()), weight, metrics, module.policy.lm_head.weight.grad.clone()))
    assert results[0][:2] == results[1][:2] and torch.equal(results[0][3], results[1][3])
    assert {k: float(v) for k, v in results[0][2].items()} == {k: float(v) for k, v in results[1][2].items()}


def test_micro_batches_give_the_mean_over_the_tokens_of_the_step():
    losses = []
    for accumulation in (1, 2, 5):
        module, objective, stream = ppo_setup(plan=RolloutPlan(5, 2, accumulation=accumulation))
        log = []
        trainer_of(module, objective, stream, 3, log=log, learning_rate=1e-2).train()
        losses.append([(entry["loss"], entry["grad_norm"], entry["clip_fraction"]) for entry in log])
    for other in losses[1:]:
        for one, two in zip(losses[0], other, strict=True):
            assert one == pytest.approx(two, abs=2e-5)


def test_a_value_model_of_its_own_learns_apart_from_the_policy():
    model = policy()
    separate = ValueModel(model)
    config = PPOConfig(value_coef=1.0, kl_coef=0.0)
    plan = RolloutPlan(4, 2, minibatches=2, epochs=2, constant_phases=0)
    _, objective, stream = ppo_setup(model, config, plan, reward=lambda examples, texts: [2.0] * len(texts))
    module = stream.module = ActorCritic(model, separate)
    log = []
    trainer_of(module, objective, stream, 21, log=log, learning_rate=3e-3).train()
    values = [entry["value"] for entry in log if "value" in entry]
    assert log[0]["ratio"] == 1
    assert abs(values[-1] - 2) < 0.5 * abs(values[0] - 2)


def test_wrong_settings_are_named_together():
    with pytest.raises(InputError) as error:
        PPOConfig(clip=0.0, lam=1.1, kl_coef=-1.0, kl_target=3.0)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["clip", "lam", "kl_coef", "kl_target"]
    with pytest.raises(InputError, match="needs a reference"):
        PPO(PPOConfig())
    with pytest.raises(InputError, match="temperature"):
        PPO(PPOConfig(kl_coef=0.0), temperature=0.0)


def bandit(seed):
    """One prompt, one token, and a reward of 1 for token 9 alone: the share of 9 after training."""
    module, objective, stream = ppo_setup(
        policy(seed, eos_token_id=None),
        PPOConfig(kl_coef=0.0, value_coef=0.5),
        RolloutPlan(8, 4, minibatches=2, epochs=2),
        reward=lambda examples, texts: [float(text == chr(49)) for text in texts],
        prompts=[Prompt([7])],
        max_new_tokens=1,
        temperature=1.0,
    )
    trainer_of(module, objective, stream, 40, learning_rate=2e-2).train()
    with torch.no_grad():
        return float(module.policy(torch.tensor([[7]]))[0][0, -1].softmax(-1)[9])


@pytest.mark.parametrize("seed", some(range(5), [0]))
def test_a_bandit_is_solved(seed):
    assert bandit(seed) > 0.95


def test_the_value_head_starts_at_zero():
    head = ValueHead(8)
    assert head(None, torch.randn(3, 8), None).tolist() == [0, 0, 0]
