"""Rewards: their weighted sum, what is broken is named, and each kind of a recipe."""

import threading

import numpy as np
import pytest
import torch

from quatrain.alignment.rewards import base, build, kinds
from quatrain.alignment.rewards.base import RewardContext, RewardError, TaskReward, WeightedRewards
from quatrain.core.errors import InputError
from quatrain.tasks.task import Score, Task


class Sums(Task):
    """Examples are pairs of a sum and its value; a value of None cannot be judged."""

    name, baseline_name = "sums", "nothing"

    def messages(self, example):
        return [{"role": "user", "content": example[0]}, {"role": "assistant", "content": str(example[1])}]

    def score(self, example, completion):
        if example[1] is None:
            return Score({"accuracy": 0.0}, "no reference", valid=False)
        return Score({"accuracy": float(completion.strip() == str(example[1]))})

    def baseline(self, examples):
        return ["0"] * len(examples)


SUMS = [("1 + 1", 2), ("2 + 3", 5), ("?", None)]


def constant(examples, completions):
    return [1.0] * len(completions)


def lengths(examples, completions):
    return torch.tensor([len(completion) for completion in completions])


def test_total_is_the_weighted_sum_and_the_unscorable_are_marked():
    rewards = WeightedRewards({"right": (TaskReward(Sums()), 2.0), "length": (lengths, -0.5)})
    scores = rewards.score(SUMS, ["2", "no", "5"])
    assert scores.total.dtype == torch.float32
    assert scores.total.tolist() == [1.5, -1.0, 0.0]
    assert scores.unscorable.tolist() == [False, False, True]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {"right": [1, 0, 0], "length": [1, 2, 1]}
    assert scores.constant == ()
    assert rewards(SUMS, ["2", "no", "5"]) == [1.5, -1.0, None]


def test_means_leave_out_what_could_not_be_judged():
    rewards = WeightedRewards({"right": (TaskReward(Sums()), 2.0), "length": (lengths, -0.5)})
    scores = rewards.score(SUMS, ["2", "no", "12345"])
    assert scores.mean(scores.total) == 0.25 and scores.mean(scores.parts["length"]) == 1.5
    assert scores.judged(scores.parts["length"]) == [1.0, 2.0, None]


def test_a_weight_that_overflows_is_named():
    with pytest.raises(RewardError, match=r'"length" makes the weighted sum inf; its weight is 1e\+308') as error:
        WeightedRewards({"length": (lengths, 1e308)}).score(SUMS[:2], ["a", "b"])
    assert error.value.index == 0


def test_constant_rewards_are_named():
    scores = WeightedRewards({"flat": (constant, 1.0), "length": (lengths, 1.0)}).score(SUMS[:2], ["a", "bb"])
    assert scores.constant == ("flat",)
    assert WeightedRewards({"flat": (constant, 1.0)}).score(SUMS[:1], ["a"]).constant == ()


def raises(examples, completions):
    raise KeyError("answer")


@pytest.mark.parametrize(
    ("reward", "index", "words"),
    [
        (lambda examples, completions: [1.0, float("nan")], 1, "nan"),
        (lambda examples, completions: np.array([np.inf, 0.0]), 0, "inf"),
        (lambda examples, completions: [1.0], None, "returned 1 scores for 2 completions"),
        (lambda examples, completions: torch.zeros(2, 1), None, r"shape \(2, 1\); must be \(2,\)"),
        (lambda examples, completions: 0.5, None, "must be a list of 2 numbers"),
        (lambda examples, completions: ["1", 0], 0, "not a number"),
        (lambda examples, completions: [0, [1]], 1, "not a number"),
        (lambda examples, completions: [0, 1e300], 1, r"returned 1e\+300; too large for float32"),
        (lambda examples, completions: [10**400, 0], 0, "returned inf"),
        (raises, None, "raised KeyError: 'answer'"),
    ],
)
def test_a_broken_reward_is_named_with_the_first_completion(reward, index, words):
    rewards = WeightedRewards({"length": (lengths, 1.0), "broken": (reward, 1.0)})
    with pytest.raises(RewardError, match=words) as error:
        rewards.score(SUMS[:2], ["first", "second"])
    assert error.value.part == "broken" and '"broken"' in str(error.value)
    assert error.value.index == index
    if index is not None:
        assert ("first", "second")[index] in str(error.value)


def test_a_reward_that_never_returns_is_named():
    release = threading.Event()

    def waits(examples, completions):
        release.wait()
        return [0.0] * len(completions)

    rewards = WeightedRewards({"slow": (waits, 1.0)}, timeout=0.05)
    with pytest.raises(RewardError, match=r'"slow" took longer than 0\.05 s'):
        rewards.score(SUMS[:1], ["a"])
    release.set()
    with pytest.raises(RewardError, match="raised KeyError"):
        WeightedRewards({"broken": (raises, 1.0)}, timeout=60).score(SUMS[:1], ["a"])


def test_no_reward_is_refused_and_a_task_needs_no_code():
    with pytest.raises(InputError, match="none"):
        WeightedRewards({})
    with pytest.raises(InputError, match="there is no task"):
        build((), RewardContext())
    assert build((), RewardContext(Sums())).score(SUMS, ["2", "2", "2"]).total.tolist() == [1, 0, 0]
    assert "task" in kinds() and "base" not in kinds()
    assert base.RewardContext(Sums()).reference(SUMS[0]) == "2"
