"""The arithmetic task: what is held out is never learned, in either order; answers are judged exactly."""

import pytest

from quatrain.core.errors import InputError
from quatrain.data.settings import DataSettings
from quatrain.runs.recipe import load
from quatrain.tasks.arithmetic.task import SPEC, Arithmetic, Sum
from quatrain.tasks.task import generating_names


def pairs(sums):
    return {frozenset((each.left, each.right)) for each in sums}


def test_held_out_sums_are_never_learned():
    task = Arithmetic(seed=3, examples=500, held_out=300)
    held, development = task.held_out["sums"], task.splits["development"]
    assert len(held) == len(development) == 300
    assert len(task.splits["train"]) == 500
    practice = task.splits["practice"]
    assert len(practice) == len({(each.left, each.right) for each in practice}) > 6500
    assert not pairs(held) & pairs(practice)
    assert not pairs(development) & (pairs(practice) | pairs(held))
    assert set(task.splits["train"]) <= set(practice)
    documents = set(task.documents())
    assert len(documents) == 500
    assert not any(f"{each.left}+{each.right}=" in text for each in held for text in documents)
    again = Arithmetic(seed=3, examples=500, held_out=300)
    assert again.splits == task.splits
    assert Arithmetic(seed=4, examples=500, held_out=300).held_out != task.held_out


def test_only_the_sum_itself_is_right():
    task, example = Arithmetic(held_out=10), Sum(58, 47)
    assert task.reward([example] * 6, ["105", " 105\n", "1050", "105 105", "", "58+47=105"]) == [1, 1, 0, 0, 0, 0]
    assert task.reference(example) == "105"
    assert task.question(example) == task.text_prompt(example) == "58+47="
    assert task.score(example, "104").detail == "58+47=105"
    answers = task.baseline(task.held_out["sums"])
    assert 0 < sum(task.reward(task.held_out["sums"], answers)) + 1 < 3


def test_recipes_name_the_task():
    assert generating_names() == ["arithmetic", "calculation", "database-answers"]
    assert SPEC.generates(DataSettings(task="arithmetic"))
    assert not SPEC.generates(DataSettings(database="shop"))
    with pytest.raises(InputError, match='"arithmetics"; must be one of arithmetic'):
        load("gpt-pretrain", ["data.source=none", "data.task=arithmetics"])
    with pytest.raises(InputError, match="must have exactly one of source, database and task"):
        load("gpt-pretrain", ["data.task=arithmetic"])
