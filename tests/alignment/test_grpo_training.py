"""GRPO and its kin on rollouts: invariants, padding, micro-batches, resume, and a bandit with a known optimum."""

import contextlib
import math

import pytest
import torch
from online_setup import policy, sampler_of, varied
from tiny_models import llama, random_model

from quatrain.alignment.best_of_n import RejectionSampling, best_of_n
from quatrain.alignment.distillation import OnPolicyDistillation, divergence
from quatrain.alignment.grpo import GRPO
from quatrain.alignment.policy import FrozenReference
from quatrain.alignment.rollouts import Prompt, Rollout, RolloutPlan, RolloutStream, collate_rollouts
from quatrain.alignment.variants import VARIANTS, variant
from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.models.io import model_folder
from quatrain.training.settings import TrainSettings
from quatrain.training.trainer import Hooks, Trainer


def setup(objective=None, plan=None, model=None, reward=varied, folder=None, **changes):
    """A model, an objective and the stream of its rollouts."""
    model = model or policy()
    plan = plan or RolloutPlan(4, 3, minibatches=2, epochs=2, accumulation=2)
    sampler = sampler_of(model, reward, samples=plan.samples, **changes)
    objective = objective or GRPO(limit=12, temperature=sampler.params.temperature)
    return model, objective, RolloutStream(model, objective, sampler, plan, folder=folder)


def trainer_of(model, objective, stream, steps, *, folder=None, log=None, **changes):
    values = {"learning_rate": 3e-3, "warmup_steps": 0, "schedule": "constant", "precision": "float32", "log_every": 1}
    values |= {"accumulation": stream.plan.accumulation, "steps": steps}
    hooks = Hooks(
        save=lambda place: model_folder.save(model, place),
        load=lambda place: model.load_state_dict(model_folder.load(place).state_dict()),
        log=(log if log is not None else []).append,
    )
    settings = TrainSettings(**values | changes)
    return Trainer(model, objective, stream, settings, steps=steps, seed=3, folder=folder, hooks=hooks)


def drawn(name="grpo", steps=1, **knobs):
    """A model after some steps, with rollouts that an older one has drawn, and their batch."""
    model = policy()
    reference = FrozenReference(random_model(model.config, 9, 0.1)) if knobs.get("kl_coef") else None
    objective = GRPO(variant(name, **knobs), limit=12, temperature=0.7, reference=reference)
    _, _, stream = setup(objective, model=model)
    stream.objective.check_start = lambda *_: None
    rollouts = [each for _ in range(4) for each in stream.next()]
    for _ in range(steps):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model, objective, rollouts, objective.collate(rollouts)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_step_has_ratio_1_and_kl_0(name):
    model = policy()
    objective = GRPO(variant(name, kl_coef=0.1), limit=12, temperature=0.7, reference=FrozenReference(model))
    log = []
    trainer_of(*setup(objective, model=model, plan=RolloutPlan(4, 3, accumulation=2)), 1, log=log).train()
    assert log[0]["ratio"] == pytest.approx(1, abs=1e-6)
    assert log[0]["kl"] == log[0]["clip_fraction"] == 0
    assert log[0]["sampler_gap"] < 1e-5
    assert 0 <= log[0]["groups_without_spread"] <= 1


@pytest.mark.parametrize("poison", [100.0, math.nan])
@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo", "rloo"])
def test_padding_changes_nothing(name, poison):
    model, objective, rollouts, batch = drawn(name, kl_coef=0.1, kl_in="loss", correction="token_truncate")
    outside = batch.labels == IGNORE_INDEX
    poisoned = collate_rollouts(rollouts, pad_id=11)
    for column in ("advantages", "old_logprobs", "sampler_logprobs", "reference_logprobs"):
        object.__setattr__(poisoned, column, getattr(batch, column).masked_fill(outside, poison))
    results = []
    for each in (batch, poisoned):
        model.zero_grad()
        loss, weight, _ = objective.loss(model, each)
        loss.backward()
        results.append((float(loss.detach()), weight, model.lm_head.weight.grad.clone()))
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "gspo", "rloo"])
def test_micro_batches_of_the_trainer_give_one_mean(name):
    logs = []
    for accumulation in (1, 3):
        objective, log = GRPO(name, limit=12, temperature=0.7), []
        plan = RolloutPlan(4, 3, accumulation=accumulation)
        trainer_of(*setup(objective, plan=plan), 2, log=log, learning_rate=1e-2).train()
        logs.append([(entry["loss"], entry["grad_norm"], entry["ratio"], entry["reward"]) for entry in log])
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=2e-5)


def test_unscorable_and_truncated_completions_do_not_count():
    objective = GRPO(variant("dr_grpo", mask_truncated=True), limit=4)
    rollouts = [Rollout([1], [2, 3], ended=True, score=score, group=0) for score in (1.0, 0.0, 0.5)]
    rollouts[0].unscorable, rollouts[1].ended = True, False
    metrics = objective.advantages(rollouts)
    assert [float(each.advantages[0]) for each in rollouts] == [0.0, -0.25, 0.25]
    assert [each.learned for each in rollouts] == [True, False, True]
    assert metrics == {"groups_without_spread": 0.0, "truncated_left_out": 1.0}


def test_overlong_completions_lose_reward():
    objective = GRPO(variant("dapo", scale="none"), limit=10)
    rollouts = [Rollout([1], [2] * length, score=1.0) for length in (8, 9, 10)]
    objective.advantages(rollouts)
    assert [round(float(each.advantages[0]), 6) for each in rollouts] == [0.5, 0.0, -0.5]


def test_the_divergence_of_the_reward():
    """RLOO pays for log p - log q of a whole completion before its baseline."""
    settings = variant("rloo", kl_coef=0.5)
    objective = GRPO(settings, limit=4, reference=FrozenReference(policy()))
    rollouts = [Rollout([1], [2, 3], score=1.0, old_logprobs=torch.tensor([-1.0, -1.0]),
                        reference_logprobs=torch.tensor([-1.0 - gap, -1.0])) for gap in (0.0, 2.0)]  # fmt: skip
    objective.advantages(rollouts)
    assert [float(each.advantages[0]) for each in rollouts] == [1.0, -1.0]
    with pytest.raises(InputError, match="needs a reference"):
        GRPO(settings, limit=4)


def test_dynamic_sampling_keeps_groups_with_spread():
    equal = [Rollout([1], [2], score=1.0), Rollout([1], [2], score=1.0), Rollout([1], [2], score=0.0, unscorable=True)]
    spread = [Rollout([1], [2], score=1.0), Rollout([1], [2], score=0.0)]
    dapo, grpo = GRPO("dapo", limit=4), GRPO("grpo", limit=4)
    assert (dapo.keeps(equal), dapo.keeps(spread), grpo.keeps(equal)) == (False, True, True)
    calls = []

    def reward(examples, texts):
        calls.append(len(texts))
        return [float(example > 2 and place % 2) for place, example in enumerate(examples)]

    log = []
    plan = RolloutPlan(3, 2, attempts=4)
    objective = GRPO(variant("dapo", overlong_buffer=0.0), limit=12, temperature=0.7)
    trainer_of(*setup(objective, plan=plan, reward=reward), 1, log=log).train()
    assert log[0]["groups_without_spread"] == 0 < log[0]["groups_dropped"]
    assert len(calls) == log[0]["attempts"] > 1


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_is_exact(tmp_path, stop):
    def run(steps, folder):
        model = policy()
        objective = GRPO(variant("dapo", kl_coef=0.05), limit=12, temperature=0.7, reference=FrozenReference(model))
        plan = RolloutPlan(4, 3, minibatches=2, epochs=2, accumulation=2, attempts=2)
        trainer = trainer_of(*setup(objective, plan=plan, model=model), 8, folder=folder, checkpoint_every=1)
        step = trainer.step

        def ending():
            if trainer.steps_done == steps:
                raise KeyboardInterrupt
            step()

        trainer.step = ending
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train()
        return model

    whole = run(8, None)
    run(stop, tmp_path)
    resumed = run(8, tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_one_step_per_phase_needs_no_second_pass():
    """The old policy is then the current one: the same weights as with log-probabilities measured in every phase."""
    weights, logs = [], []
    for measures in (None, lambda plan: True):
        objective, log = GRPO("grpo", limit=12, temperature=0.7), []
        objective.measures = measures or objective.measures
        model, _, stream = setup(objective, plan=RolloutPlan(4, 3, accumulation=2))
        trainer_of(model, objective, stream, 3, log=log).train()
        weights.append(model.state_dict())
        logs.append(log)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert ["sampler_gap" in entry for entry in logs[0]] == [True, False, False]
    assert ["sampler_gap" in entry for entry in logs[1]] == [True] * 3
    assert all(entry["entropy"] > 0 for entry in logs[0])


def bandit(name, seed):
    """One prompt, one token, and a reward of 1 for token 9 alone: the share of 9 after training."""
    model, objective, stream = setup(
        GRPO(name, limit=1),
        RolloutPlan(8, 4, minibatches=2, epochs=1),
        policy(seed, eos_token_id=None),
        lambda examples, texts: [float(text == chr(49)) for text in texts],
        prompts=[Prompt([7])],
        max_new_tokens=1,
        temperature=1.0,
    )
    trainer_of(model, objective, stream, 40, learning_rate=2e-2).train()
    with torch.no_grad():
        return float(model(torch.tensor([[7]]))[0][0, -1].softmax(-1)[9])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_bandit_is_solved(name, seed):
    assert bandit(name, seed) > 0.95


def test_rejection_sampling_learns_the_best_of_its_own():
    objective = RejectionSampling(threshold=1.0, per_prompt=1)
    rollouts = [
        Rollout([1], [2], ended=True, score=1.0, group=0, sampler_logprobs=torch.tensor([-2.0])),
        Rollout([1], [3], ended=True, score=1.0, group=0, sampler_logprobs=torch.tensor([-1.0])),
        Rollout([1], [4], ended=True, score=0.0, group=0, sampler_logprobs=torch.tensor([-1.0])),
        Rollout([5], [4], ended=False, score=1.0, group=1, sampler_logprobs=torch.tensor([-1.0])),
        Rollout([5], [6], ended=True, score=1.0, group=1, unscorable=True, sampler_logprobs=torch.tensor([-1.0])),
    ]
    metrics = objective.advantages(rollouts)
    assert [each.learned for each in rollouts] == [False, True, False, False, False]
    assert metrics == {"accepted": 0.4, "learned": 1.0, "reward_best": 1.0}
    batch = objective.collate(rollouts)
    assert batch.labels[batch.labels != IGNORE_INDEX].tolist() == [3]
    model = policy()
    loss, weight, _ = objective.loss(model, batch)
    expected = model(torch.tensor([[1]]))[0][0, -1].log_softmax(-1)[3]
    assert weight == 1
    assert float(loss.detach()) == pytest.approx(-float(expected.detach()), rel=1e-5)
    relative = RejectionSampling(per_prompt=5)
    relative.advantages(rollouts)
    assert [each.learned for each in rollouts] == [True, True, False, False, False]
    empty, weight, _ = objective.loss(model, RejectionSampling().collate(rollouts[2:3]))
    empty.backward()
    assert weight == 0
    with pytest.raises(InputError, match="per_prompt"):
        RejectionSampling(per_prompt=0)


def test_rejection_sampling_solves_a_bandit():
    model, objective, stream = setup(
        RejectionSampling(threshold=1.0),
        RolloutPlan(16, 8),
        policy(0, eos_token_id=9),
        lambda examples, texts: [float(not text) for text in texts],
        prompts=[Prompt([7])],
        max_new_tokens=1,
        temperature=1.0,
    )
    trainer_of(model, objective, stream, 30, learning_rate=3e-2).train()
    with torch.no_grad():
        assert float(model(torch.tensor([[7]]))[0][0, -1].softmax(-1)[9]) > 0.9


def test_best_of_n_beats_one_sample():
    sampler = sampler_of(policy())
    prompts = [Prompt([7, 8, 9][:count], example=count) for count in (1, 2, 3)]
    result = best_of_n(sampler.engine, prompts, sampler.rewards, sampler.params, samples=6, seed=4)
    assert [each.number for each in result.completions] == [0, 1, 2]
    assert result.best > result.mean
    one = best_of_n(sampler.engine, prompts, sampler.rewards, sampler.params, samples=1, seed=4)
    assert one.best == one.mean
    with pytest.raises(InputError, match="samples: 0"):
        best_of_n(sampler.engine, prompts, sampler.rewards, sampler.params, samples=0)


@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("js", 0.3), ("js", 0.5)])
def test_divergences_equal_trl(kind, beta):
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 6, 20, generator=generator, requires_grad=True)
    teacher = torch.randn(1, 6, 20, generator=generator)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, torch.ones(1, 6, dtype=torch.long), beta=beta)
    (expected,) = torch.autograd.grad(theirs, student)
    ours = divergence(student[0], teacher[0], kind, beta or 0.5).mean()
    (gradient,) = torch.autograd.grad(ours, student)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_impossible_tokens_make_no_nan():
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    for kind in ("reverse", "forward", "js"):
        value = divergence(logits, torch.tensor([[1.0, 0.0, -math.inf]]), kind)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert float(value.detach()) > 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["reverse", "forward", "js"])
def test_distillation_moves_the_student_to_its_teacher(kind):
    teacher, student = policy(5), policy(0)
    objective = OnPolicyDistillation(teacher, kind=kind, temperature=0.7)
    log = []
    trainer_of(*setup(objective, model=student, plan=RolloutPlan(5, 4)), 25, log=log, learning_rate=2e-2).train()
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    same = OnPolicyDistillation(student, kind=kind)
    batch = collate_rollouts([Rollout([7], [8, 9], score=0.0)])
    assert float(same.loss(student, batch)[0].detach()) == pytest.approx(0, abs=1e-6)


def test_wrong_settings_and_a_teacher_of_another_vocabulary_are_refused():
    with pytest.raises(InputError) as caught:
        OnPolicyDistillation(policy(), kind="kl", mixture=1.0)
    assert len(caught.value.problems) == 2
    objective = OnPolicyDistillation(random_model(llama(vocab_size=70)), temperature=0.7)
    with pytest.raises(InputError, match="the student's"):
        trainer_of(*setup(objective), 1).train()
