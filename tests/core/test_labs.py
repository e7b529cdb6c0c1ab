"""Checks of exercises: right, wrong, not answered, and answers that nobody expected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.core.labs import at_size, check


@pytest.mark.parametrize(
    ("answer", "expected", "says"),
    [
        (3, 3, "right."),
        (3.00001, 3, "right."),
        ([1, 2], np.array([1.0, 2.0]), "right."),
        (torch.tensor([1.0, 2.0], requires_grad=True), [1, 2], "right."),
        (True, torch.tensor(True), "right."),
        (["a", "b"], ("a", "b"), "right."),
        ("yes", "yes", "right."),
        ({"a": 1}, {"a": 1}, "right."),
        ("anything", lambda text: text.startswith("any"), "right."),
        (4, 3, "wrong: your answer is 4. Hint: count"),
        ([[1, 2]], [1, 2], "wrong: your answer has the shape (1, 2) and needs (2,). Hint: count"),
        ("no", "yes", "wrong: your answer is no. Hint: count"),
        (["a"], ["b"], "wrong: your answer is ['a']. Hint: count"),
        ("three", 3, "wrong: your answer is three. Hint: count"),
        (float("nan"), 3, "wrong: your answer is nan. Hint: count"),
        (3, lambda text: text.startswith("any"), "wrong: this answer cannot be checked (AttributeError: "),
        ([[1], [1, 2]], [1, 2], "wrong: your answer is [[1], [1, 2]] and needs the shape (2,). Hint: count"),
        ("no", {"a": 1}, "wrong: your answer is no. Hint: count"),
        (None, 3, "not answered yet."),
    ],
)
def test_answers_are_judged(answer, expected, says, capsys):
    check(1, answer, expected, hint="count")
    printed = capsys.readouterr().out
    assert printed.startswith(f"Exercise 1: {says}") and says.startswith("wrong") == ("Hint" in printed)


def test_a_long_wrong_answer_is_cut(capsys):
    check("2b", list(range(1000)), [1], hint="look")
    check("2b", "x" * 1000, "y", hint="look")
    assert all(len(line) < 300 and line.startswith("Exercise 2b") for line in capsys.readouterr().out.splitlines())


def test_sizes_follow_the_environment(monkeypatch):
    monkeypatch.delenv("QUATRAIN_LAB", raising=False)
    assert at_size(100, 2) == 100
    monkeypatch.setenv("QUATRAIN_LAB", "small")
    assert at_size(100, 2) == 2
    monkeypatch.setenv("QUATRAIN_LAB", "tiny")
    with pytest.raises(InputError, match="QUATRAIN_LAB=tiny: must be full or small"):
        at_size(100, 2)
