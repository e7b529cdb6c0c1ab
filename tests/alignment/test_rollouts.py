"""Rollouts: their log-probabilities are those of the trainer, under every way to sample; endings; state; faults."""

import contextlib
import json
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from online_setup import PROMPTS, Letters, params, policy, ppo_setup, sampler_of, trainer_of, varied

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.alignment.policy import BaseReference, completion_states, spread
from quatrain.alignment.ppo import PPOConfig
from quatrain.alignment.rewards.base import RewardError
from quatrain.alignment.rollouts import Prompt, Rollout, RolloutPlan, balanced, collate_rollouts, distinct, repetition
from quatrain.core.errors import InputError, QuatrainError
from quatrain.data.batches import IGNORE_INDEX
from quatrain.generation.engine import Engine
from quatrain.training.chunked_loss import chunking, token_logprobs

WAYS = {
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 1.7},
    "top-p": {"temperature": 0.9, "top_p": 0.6},
    "top-k": {"temperature": 1.3, "top_k": 4, "min_p": 0.05},
    "stop string": {"temperature": 1.0, "stop": ("AB", "C")},
    "short": {"temperature": 1.0, "max_new_tokens": 2},
    "ended by hand": {"temperature": 1.0, "stop_token_ids": (11, 12, 13)},
}


@pytest.mark.parametrize("way", WAYS)
def test_recomputed_log_probabilities_equal_the_rollouts(way):
    model = policy()
    sampler = sampler_of(model, samples=6, **WAYS[way])
    rollouts = sampler.draw(0, range(5))
    batch = collate_rollouts(rollouts)
    states, labels, mask = completion_states(model.train(), batch)
    recomputed, _ = token_logprobs(model, states, labels, sampler.params.temperature)
    torch.testing.assert_close(recomputed, batch.sampler_logprobs[mask], atol=1e-5, rtol=0)
    ends = {rollout.ended for rollout in rollouts}
    assert ends == {True, False} or way in ("short", "stop string", "ended by hand")
    # Each label is the token of its completion, none of them padding or prompt.
    for row, rollout in enumerate(rollouts):
        assert batch.labels[row][batch.labels[row] != IGNORE_INDEX].tolist() == rollout.ids


def test_filtered_log_probabilities_would_not_be_the_policy():
    # The distribution after top-p is another one: its ratio to the full softmax is not 1 at the start.
    rollouts = sampler_of(policy(), temperature=0.9, top_p=0.6).draw(0, range(5))
    engine = Engine(policy(), Letters())
    filtered = engine.generate(
        [list(each.prompt) for each in rollouts], params(temperature=0.9, top_p=0.6, logprobs_mode="processed", seed=0)
    )
    whole = engine.generate([list(each.prompt) for each in rollouts], params(temperature=0.9, top_p=0.6, seed=0))
    assert [each.ids for each in filtered] == [each.ids for each in whole]
    assert all(sum(a.logprobs) > sum(b.logprobs) + 0.1 for a, b in zip(filtered, whole, strict=True))


def test_several_end_tokens_are_not_truncation_and_one_in_the_prompt_is_no_end():
    prompts = [Prompt([7, 3, 5, 8]), Prompt([3])]
    rollouts = sampler_of(policy(), prompts=prompts, samples=40, temperature=1.5).draw(0, range(2))
    last = {rollout.ids[-1] for rollout in rollouts if rollout.ended}
    assert {3, 5} <= last
    for rollout in rollouts:
        assert rollout.ended == (rollout.ids[-1] in (3, 5))
        assert rollout.ended or len(rollout.ids) == 12
        assert not any(token in (3, 5) for token in rollout.ids[:-1])


def test_a_completion_depends_on_its_own_seed_alone():
    whole = sampler_of(policy()).draw(2, range(5))
    alone = [rollout for draw in (3, 1) for rollout in sampler_of(policy()).draw(2, [draw])]
    assert [each.ids for each in alone] == [each.ids for each in whole[6:8] + whole[2:4]]
    other = sampler_of(policy()).draw(3, range(5))
    assert [each.ids for each in other] != [each.ids for each in whole]
    assert len({tuple(each.ids) for each in sampler_of(policy(), prompts=[PROMPTS[0]], samples=4).draw(0, [0, 1])}) > 4


def test_every_prompt_is_drawn_once_in_a_pass():
    sampler = sampler_of(policy())
    assert sorted(map(sampler.prompt_number, range(5))) == [0, 1, 2, 3, 4]
    assert sorted(map(sampler.prompt_number, range(5, 10))) == [0, 1, 2, 3, 4]
    assert list(map(sampler.prompt_number, range(5))) == list(map(sampler_of(policy()).prompt_number, range(5)))


def test_chunked_log_probabilities_and_their_gradients():
    model = policy()
    batch = collate_rollouts(sampler_of(model, samples=4).draw(0, range(5)))
    results = []
    for mode in (True, False):
        model.zero_grad()
        with chunking(mode):
            states, labels, _ = completion_states(model, batch)
            logprobs, entropy = token_logprobs(model, states, labels, 0.7, entropy="learned")
        (logprobs.sum() + 2 * entropy.sum()).backward()
        results.append((logprobs.detach(), entropy.detach(), model.lm_head.weight.grad.clone()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_token_without_probability_makes_no_nan():
    model = policy()
    states, labels, mask = completion_states(model, collate_rollouts(sampler_of(model).draw(0, range(2))))

    class Masked:
        config = model.config

        def lm_logits(self, states, owners=None):
            logits = model.lm_logits(states)
            impossible = torch.ones(60, dtype=torch.bool).index_fill(0, labels, False)
            return logits.masked_fill(impossible, float("-inf"))

    states = states.detach().requires_grad_()
    logprobs, entropy = token_logprobs(Masked(), states, labels, entropy="learned")
    (logprobs.sum() + entropy.sum()).backward()
    assert entropy.isfinite().all() and states.grad.isfinite().all()
    assert spread(entropy, mask)[~mask].eq(0).all()


def test_the_base_under_an_adapter_is_the_reference():
    model = policy()
    batch = collate_rollouts(sampler_of(model).draw(0, range(5)))
    states, labels, mask = completion_states(model, batch)
    expected = spread(token_logprobs(model, states, labels, 0.7)[0], mask).detach()
    apply_adapter(model, AdapterSettings(rank=2, alpha=4.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.add_(0.3)
    assert torch.equal(BaseReference(model).logprobs(batch, 0.7), expected)
    states, labels, _ = completion_states(model, batch)
    assert not torch.allclose(token_logprobs(model, states, labels, 0.7)[0], expected[mask], atol=1e-2)


def test_rollouts_use_the_current_weights():
    model = policy()
    sampler = sampler_of(model, samples=3)
    before = sampler.draw(0, range(5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    after = sampler.draw(0, range(5))
    changed = policy()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.3)
    fresh = sampler_of(changed, samples=3).draw(0, range(5))
    assert [each.ids for each in after] == [each.ids for each in fresh] != [each.ids for each in before]
    for one, other in zip(after, fresh, strict=True):
        assert torch.equal(one.sampler_logprobs, other.sampler_logprobs)


# The stream


def test_micro_batches_divide_every_rollout_once_an_epoch():
    plan = RolloutPlan(5, 3, minibatches=2, epochs=3, accumulation=3)
    lengths = [5] * 15
    batches = plan.micro_batches(lengths, 7, 0)
    assert len(batches) == 18 and plan.steps == 6
    for epoch in range(3):
        assert sorted(np.concatenate(batches[6 * epoch : 6 * epoch + 6]).tolist()) == list(range(15))
    assert batches[:6] != batches[6:12] and batches != plan.micro_batches(lengths, 7, 1)
    with pytest.raises(InputError, match="fewer of these"):
        RolloutPlan(2, 2, minibatches=5)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(1, 6))
def test_micro_batches_of_a_step_are_of_similar_lengths(lengths, parts):
    parts = min(parts, len(lengths))
    batches = balanced(lengths, parts)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert len(batches) == parts and all(batches)

    def largest(batches):
        return max(len(batch) * -(-max(lengths[place] for place in batch) // 8) for batch in batches)

    in_order = np.array_split(np.arange(len(lengths)), parts)
    by_length = np.array_split(np.argsort(lengths), parts)
    assert largest(batches) <= min(largest(in_order), largest(by_length))


def test_metrics_and_samples_are_written(tmp_path):
    # Long prompts, which the engine still has in its cache from before the weights changed.
    prompts = [Prompt([*[7] * 20, 10 + number], example=number) for number in range(5)]
    module, objective, stream = ppo_setup(folder=tmp_path, prompts=prompts)
    log = []
    trainer_of(module, objective, stream, 9, log=log).train()
    phases = [entry for entry in log if "reward" in entry]
    assert [entry["step"] for entry in phases] == [1, 5, 9]
    names = {
        "reward",
        "reward/r",
        "constant/r",
        "reward_std",
        "kl",
        "entropy",
        "completion_length",
        "repetition",
        "ended_fraction",
    }
    assert names | {"unscorable", "sampler_gap", "rollout_seconds", "scoring_seconds"} <= set(phases[0])
    assert phases[0]["kl"] == 0 and phases[0]["ratio"] == 1 and phases[1]["kl"] != 0
    assert all(entry["sampler_gap"] < 1e-5 for entry in phases)
    records = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 4, 8]
    assert len(records[0]["scores"]) == 8 and any(sample["completion"] for sample in records[0]["samples"])


@pytest.mark.parametrize("stop", [2, 4, 5, 7])
def test_a_resumed_run_is_exact(tmp_path, stop):
    def run(steps, folder, every=1):
        config = PPOConfig(kl_target=0.01, kl_horizon=20)  # The coefficient is part of the state.
        module, objective, stream = ppo_setup(config=config, folder=tmp_path)
        log = []
        trainer = trainer_of(module, objective, stream, 9, folder=folder, log=log, checkpoint_every=every)
        step = trainer.step

        def ending():
            if trainer.steps_done == steps:
                raise KeyboardInterrupt
            step()

        trainer.step = ending
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train()
        return module, log

    whole, log = run(9, None)
    run(stop, tmp_path / "checkpoints")
    resumed, tail = run(9, tmp_path / "checkpoints")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    timed = ("seconds", "per_second")
    for one, other in zip(log[-len(tail) :], tail, strict=True):
        assert {k: v for k, v in one.items() if not k.endswith(timed)} == {
            k: v for k, v in other.items() if not k.endswith(timed)
        }
    assert [json.loads(line)["phase"] for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()] == [0, 1, 2]


def broken(kind):
    def reward(examples, completions):
        if kind == "raises":
            raise ValueError("no such column")
        if kind == "hangs":
            threading.Event().wait()
        return {"constant": [0.5] * len(completions), "nan": [math.nan] * len(completions), "shape": [0.5]}[kind]

    return reward


@pytest.mark.parametrize("kind", ["nan", "shape", "raises", "hangs", "constant"])
def test_a_broken_reward_stops_the_run_with_its_rollouts(tmp_path, kind):
    module, objective, stream = ppo_setup(folder=tmp_path, reward=broken(kind))
    stream.sampler.rewards.timeout = 0.01 if kind == "hangs" else None
    with pytest.raises(RewardError, match=r'"r".*failed-rollouts\.jsonl'):
        trainer_of(module, objective, stream, 40).train()
    assert stream.phase == (4 if kind == "constant" else 0)
    saved = [json.loads(line) for line in (tmp_path / "failed-rollouts.jsonl").read_text().splitlines()]
    assert len(saved) == 8 and any(record["completion"] for record in saved)


def test_unscorable_rollouts_are_not_learned():
    def reward(examples, completions):
        return [None if example == 2 else 1.0 for example in examples]

    _, objective, stream = ppo_setup(reward=reward, plan=RolloutPlan(5, 2))
    rollouts = stream.next()
    unscorable = [rollout for rollout in rollouts if rollout.unscorable]
    assert len(unscorable) == 2 and stream.take_metrics()["unscorable"] == pytest.approx(0.2)
    batch = objective.collate(rollouts)
    for row, rollout in enumerate(rollouts):
        assert bool((batch.labels[row] != IGNORE_INDEX).any()) != rollout.unscorable


def test_groups_that_are_not_kept_are_drawn_again():
    _, objective, stream = ppo_setup(plan=RolloutPlan(3, 2, attempts=4))
    objective.keeps = lambda group: group[0].score != group[1].score
    stream.next()
    metrics = stream.take_metrics()
    groups = [stream.rollouts[start : start + 2] for start in (0, 2, 4)]
    assert metrics["attempts"] > 1 and metrics["groups_dropped"] > 0
    assert all(objective.keeps(group) for group in groups)
    assert [each.group for each in stream.rollouts] == [0, 0, 1, 1, 2, 2]


def test_a_start_that_differs_stops_the_run():
    _, objective, stream = ppo_setup()
    with torch.no_grad():
        objective.reference.model.lm_head.weight.mul_(1.1)
    with pytest.raises(QuatrainError, match="Before the first step the KL is not 0"):
        stream.next()
    _, objective, stream = ppo_setup()
    measure = objective.measure
    objective.measure = lambda module, batch: {k: v * 1.01 for k, v in measure(module, batch).items()}
    with pytest.raises(QuatrainError, match="Before the first step the ratio is not 1"):
        stream.next()


def test_distinct_pairs_are_counted_over_all_completions():
    assert distinct([[1, 2, 3], [1, 2, 4], [5]]) == 3 / 4 and distinct([[1], []]) == 1.0


def test_repetition_counts_sequences_of_three():
    assert repetition([1, 2]) == 0 and repetition([1, 2, 3, 4]) == 0
    assert repetition([1, 1, 1, 1, 1]) == pytest.approx(2 / 3)


def test_a_batch_aligns_columns_with_the_tokens():
    first = Rollout([1, 2, 3], [4, 5], advantages=torch.tensor([1.0, 2.0]), old_logprobs=torch.tensor([-1.0, -2.0]))
    second = Rollout([6], [7], ended=True, score=2.0, advantages=torch.tensor([9.0]), old_logprobs=torch.tensor([-3.0]))
    batch = collate_rollouts([first, second], pad_id=0)
    assert batch.labels[:, :4].tolist() == [[-100, -100, 4, 5], [7, -100, -100, -100]]
    assert batch.advantages[:, :4].tolist() == [[0, 0, 1, 2], [9, 0, 0, 0]]
    assert batch.rewards.tolist() == [0, 2] and batch.ended.tolist() == [False, True]
    assert batch.values is None and batch.reference_logprobs is None
    assert varied([1], ["ab"]) == [5]


def test_padding_with_the_end_token_keeps_the_end_label():
    rollouts = sampler_of(policy(), samples=6).draw(0, range(5))
    one, other = collate_rollouts(rollouts, pad_id=0), collate_rollouts(rollouts, pad_id=3)
    assert torch.equal(one.labels, other.labels)
    ended = [row for row, rollout in enumerate(rollouts) if rollout.ended]
    assert ended
    for row in ended:
        assert one.labels[row][one.labels[row] != IGNORE_INDEX][-1] in (3, 5)


def test_the_start_holds_in_bfloat16_too():
    module, objective, stream = ppo_setup()
    log = []
    trainer_of(module, objective, stream, 6, log=log, precision="bfloat16").train()
    phases = [entry for entry in log if "reward" in entry]
    assert phases[0]["ratio"] == 1 and phases[0]["kl"] == 0 and all(entry["sampler_gap"] < 0.3 for entry in phases)
    assert module.policy.lm_head.weight.dtype == torch.float32
