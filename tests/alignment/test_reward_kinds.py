"""The kinds of rewards that a recipe names: what each scores, and what is wrong in a recipe."""

import sqlite3
import sys

import pytest

from quatrain.agents.sandbox import Limits, run_all, run_code
from quatrain.alignment.rewards import AnyReward, build, kinds, name_problems
from quatrain.alignment.rewards.base import RewardContext, RewardError
from quatrain.alignment.rewards.repetition import repeated_share
from quatrain.alignment.rewards.unit_tests import code_of
from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings, parse

PATIENT = Limits(seconds=120)
"""For code that ends by itself, on a machine that may be busy."""


class Stage(Settings):
    rewards: Listing[AnyReward] = ()

    def conflicts(self):
        yield from name_problems(self.rewards)


def settings(*tables):
    return parse(Stage, {"rewards": list(tables)}).rewards


def scores(table, completions, examples=None, task=None):
    rewards = build(settings(table), RewardContext(task))
    return rewards(examples or [{}] * len(completions), completions)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"kind": "regex", "pattern": r"\d+"}, {"a 12 b 3": 1, "none": 0}),
        ({"kind": "regex", "pattern": "A.B", "ignore_case": True}, {"xa\nbx": 1, "ab": 0}),
        ({"kind": "regex", "pattern": r"\d+", "where": "whole"}, {" 12\n": 1, "12 a": 0}),
        ({"kind": "regex", "pattern": r"\d+", "most": 3}, {"1 2": 2, "1 2 3 4": 3, "": 0}),
        ({"kind": "length", "target": 4}, {"a b c d": 0, "a b": -0.5, "": -1, "a " * 40: -1}),
        ({"kind": "length", "target": 4, "unit": "characters"}, {"abcd": 0, "abcde": -0.25}),
        ({"kind": "length", "longest": 10, "buffer": 4, "unit": "characters"},
         {"": 0, "x" * 6: 0, "x" * 7: -0.25, "x" * 10: -1, "x" * 11: -1}),
        ({"kind": "length", "longest": 3}, {"a b c": 0, "a b c d": -1}),
        ({"kind": "format", "tags": ["think", "answer"]},
         {"<think>a\nb</think>\n <answer>c</answer>\n": 1, "<answer>c</answer><think>a</think>": 0,
          "<think></think><answer>c</answer>": 0, "<think>a</think><answer>c</answer> more": 0,
          "<think>a</think><answer>c</answer><answer>d</answer>": 0, "<think>a<answer>c</answer>": 0}),
        ({"kind": "format", "json_schema": {}}, {' {"a": [1]} ': 1, "{a}": 0, "[1] 2": 0, "": 0}),
        ({"kind": "repetition", "n": 1}, {"a b c": 0, "a A a a": -0.75, "": 0}),
        ({"kind": "repetition", "n": 2}, {"a b a b": -1 / 3, "a": 0}),
    ],
)  # fmt: skip
def test_rules(table, expected):
    assert scores(table, list(expected)) == pytest.approx(list(expected.values()))


def test_json_schema():
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    table = {"kind": "format", "json_schema": schema}
    assert scores(table, ['{"b": 1, "name": "x"}', '{"name": 1}', "{}", "no"]) == [1, 0, 0, 0]
    with pytest.raises(InputError, match="json_schema"):
        scores({"kind": "format", "json_schema": {"type": "nothing"}}, ["1"])


def test_exact_match():
    examples = [{"reference": "Paris"}, {"reference": 12}]
    assert scores({"kind": "exact"}, [" Paris\n", "12"], examples) == [1, 1]
    assert scores({"kind": "exact"}, ["paris", "12.0"], examples) == [0, 0]
    assert scores({"kind": "exact", "ignore_case": True}, ["PARIS", "1 2"], examples) == [1, 0]
    table = {"kind": "exact", "extract": "answer: (.*)", "field": "right"}
    examples = [{"right": "7"}] * 3
    assert scores(table, ["answer: 3\nno, answer: 7", "7", "answer: 8"], examples) == [0, 0, 0]
    table["extract"] = r"answer: (\d+)"
    assert scores(table, ["answer: 3\nno, answer: 7", "7", "answer: 8"], examples) == [1, 0, 0]
    with pytest.raises(RewardError, match='no field "right"'):
        scores(table, ["answer: 1"], [{}])


def test_sql_is_executed(tmp_path):
    with sqlite3.connect(tmp_path / "db.sqlite") as connection:
        connection.executescript("create table t (a, b); insert into t values (1, 'x'), (2, 'y');")
    table = {"kind": "sql", "database": str(tmp_path / "db.sqlite")}
    examples = [{"reference": "SELECT a FROM t WHERE b = 'y'"}] * 3 + [{"reference": "SELECT c FROM t"}]
    completions = ["```sql\nSELECT max(a) FROM t\n```", "SELECT min(a) FROM t", "DROP TABLE t", "SELECT a FROM t"]
    assert scores(table, completions, examples) == [1, 0, 0, None]


FUNCTIONS = """
def longer(examples, completions, *, than=0):
    return [float(len(text) > than) for text in completions]

number = 3
"""


def test_functions_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(FUNCTIONS)
    (tmp_path / "broken_rewards.py").write_text("import nothing_like_this")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    table = {"kind": "function", "function": "own_rewards:longer", "arguments": {"than": 2}}
    assert scores(table, ["ab", "abc"]) == [0, 1]
    table["function"] = str(tmp_path / "own_rewards.py") + ":longer"
    assert scores(table, ["ab", "abc"]) == [0, 1]
    for function, words in (
        ("own_rewards:none", "has no none"),
        ("own_rewards:number", "cannot call, number"),
        ("no_such_module_here:f", "cannot be imported"),
        ("broken_rewards:f", "nothing_like_this"),
        (str(tmp_path / "broken_rewards.py") + ":f", "nothing_like_this"),
        (str(tmp_path / "missing.py") + ":f", "not a file"),
    ):
        with pytest.raises(InputError, match=words):
            scores({"kind": "function", "function": function}, ["a"])


def test_problems_of_a_recipe_are_all_named():
    with pytest.raises(InputError) as caught:
        settings(
            {"kind": "regexp", "pattern": "a"},
            {"kind": "regex", "pattern": "("},
            {"kind": "length"},
            {"kind": "length", "target": 3, "buffer": 2, "name": "other"},
            {"kind": "format", "tags": ["<a>", "b", "b"]},
            {"kind": "function", "function": "nothing"},
            {"kind": "model", "folder": "x", "label": "a", "label_field": "b"},
        )
    (unknown,) = [problem for problem in caught.value.problems if "regexp" in problem]
    assert all(kind in unknown for kind in kinds()) and "did you mean regex?" in unknown
    with pytest.raises(InputError) as caught:
        settings(
            {"kind": "regex", "pattern": "("},
            {"kind": "regex", "pattern": "a", "where": "whole", "most": 2},
            {"kind": "length"},
            {"kind": "length", "target": 3, "buffer": 2, "name": "other"},
            {"kind": "format", "tags": ["<a>", "b", "b"]},
            {"kind": "function", "function": "nothing"},
            {"kind": "model", "folder": "x", "label": "a", "label_field": "b"},
        )
    text = "\n".join(caught.value.problems)
    for words in ("no valid regular expression", "matches once", "neither target nor longest", "only longest reads it",
                  '"<a>"', '"b" more than once', "module:name", "label_field", '"regex" more than once'):  # fmt: skip
        assert words in text


def test_weights_and_names_of_a_recipe():
    rewards = build(
        settings(
            {"kind": "regex", "pattern": "a", "weight": -2.0},
            {"kind": "regex", "pattern": "b", "name": "has_b"},
        ),
        RewardContext(),
    )
    scored = rewards.score([{}, {}], ["ab", "b"])
    assert scored.total.tolist() == [-1, 1] and list(scored.parts) == ["regex", "has_b"]
    assert scored.constant == ("has_b",)


def test_repeated_share():
    assert repeated_share("one two three four") == 0
    assert repeated_share("go on go on go on go on", 2) == pytest.approx(5 / 7)


def test_code_runs_in_a_process_of_its_own():
    result = run_code("def add(a, b):\n    return a + b", ["assert add(1, 2) == 3", "assert add(1, 1) == 3"], PATIENT)
    assert result.passed == (True, False) and result.error.startswith("AssertionError") and result.share == 0.5
    alone = "import os\nassert set(os.environ) <= {'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE'} and not os.listdir('.')"
    assert run_code(alone, ["1"], PATIENT).passed == (True,)
    network = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=5)"
    assert run_code(network, ["1"], PATIENT).error.split(":")[0] in ("OSError", "PermissionError")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("data = bytearray(10**10)", "MemoryError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "ended without a report"),
        ("open('large', 'wb').write(bytes(10**8))", ""),
    ],
)
def test_code_that_breaks_passes_nothing(code, error):
    result = run_code(code, ["True", "True"], PATIENT)
    assert result.passed == (False, False) and error in result.error


def test_code_that_never_ends_is_stopped():
    result = run_code("while True: pass", ["True"], Limits(seconds=0.2))
    assert result.passed == (False,) and result.error == "stopped after 0.2 s"


def test_unit_tests_reward():
    table = {"kind": "unit_tests", "seconds": 120.0, "workers": 2}
    examples = [{"tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}] * 2 + [
        {"tests": "assert add(1, 2) == 3"}
    ]
    good, wrong = "def add(a, b):\n    return a + b", "def add(a, b):\n    return 0"
    completions = [f"Here:\n```python\n{good}\n```\nDone.", wrong, wrong]
    assert scores(table, completions, examples) == [1, 0.5, 0]
    assert scores({**table, "all_or_nothing": True}, completions, examples) == [1, 0, 0]
    assert code_of("a\n```py\nx = 1\n```\nb\n```\ny = 2\n```") == "x = 1\ny = 2"
    assert [result.share for result in run_all([(good, ["add(1, 2)"]), ("", ["x"])], PATIENT)] == [1, 0]
