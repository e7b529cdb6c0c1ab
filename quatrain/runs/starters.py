"""A recipe of one's own from three answers: what for, which data, how large.

Every goal names a shipped recipe to start from. A new recipe has the same stages, the user's data in the place of the
example data, and the size that was asked for. `starter` returns TOML text that `quatrain check` accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean
from quatrain.core.wording import format_value
from quatrain.runs.inputs import check_inputs, is_path
from quatrain.runs.recipe import loads, raw_recipe

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Goal:
    """What a model is for. `data` says what a file of the user's own must hold; `key` is its key of `[data]`."""

    purpose: str
    recipe: str
    data: str
    key: str = "source"


GOALS: dict[str, Goal] = {
    "text": Goal(
        "write text in the style of a text", "sherlock", "a text file, or a folder of .txt .md .jsonl .csv .parquet"
    ),
    "database": Goal("answer questions about a SQLite database", "quickstart", "a SQLite file", key="database"),
    "classify": Goal("sort texts into classes", "topic", "a .csv or .jsonl file with columns text and label"),
    "tag": Goal("label the words of a text, such as names", "ner", "a .conll file: a word and its tag on each line"),
    "answer": Goal(
        "find the words of a text that answer a question", "qa", "a SQuAD .json file, or question, context, answers"
    ),
    "translate": Goal(
        "translate sentences", "translate", "two files of the same lines, train.{en,de}, or pairs of source and target"
    ),
    "summarize": Goal("summarize texts", "summarize", "a .csv or .jsonl file with columns document and summary"),
    "embed": Goal("turn sentences into vectors for search", "embed", "a .jsonl file of pairs of texts of one meaning"),
    "instruct": Goal(
        "follow instructions and chat", "instruct", "a .jsonl file of messages, or of instruction and output"
    ),
    "prefer": Goal("prefer the answers that people prefer", "dpo", "a .jsonl file of prompt, chosen and rejected"),
}
"""The goals that `starter` knows, in the order in which they are offered."""


@dataclass(frozen=True)
class Size:
    """How a recipe's model and training are scaled; `description` says so."""

    description: str
    width: float
    depth: float
    steps: float


SIZES: dict[str, Size] = {
    "small": Size("a first look: half the width and depth, a quarter of the steps", 0.5, 0.5, 0.25),
    "medium": Size("as the shipped recipe: minutes on two cores", 1, 1, 1),
    "large": Size("twice the width and depth, four times the steps: hours on two cores", 2, 2, 4),
}
"""The sizes that `starter` knows, smallest first."""

WIDTHS = ("hidden_size", "intermediate_size")
COUNTS_OF_STEPS = ("steps", "evaluate_every", "sample_every")


def example_data(goal: str) -> str:
    """The data of the shipped recipe of a goal."""
    known = _choice("goal", goal, GOALS)
    return str(raw_recipe(known.recipe)["data"][known.key])


def starter(name: str, goal: str, *, data: str | None = None, size: str = "medium") -> str:
    """The text of a recipe called `name` for a goal of `GOALS` and a size of `SIZES`.

    `data` is a path, a name of the catalog or hf:owner/name; None keeps the example data of the shipped recipe. Raises
    InputError for an unknown goal or size, for an invalid name, and for data that is not there.
    """
    import tomli_w

    known, scale = _choice("goal", goal, GOALS), _choice("size", size, SIZES)
    raw = raw_recipe(known.recipe)
    given = raw["data"][known.key]
    if data is not None and data != given:
        for key in ("dev", "test"):  # those of the example data
            raw["data"].pop(key, None)
        raw["data"][known.key] = given = data
    next_steps = [line for line in raw.pop("next", ()) if not line.startswith("quatrain run ")]
    head = {"name": name, "description": f"{known.purpose[:1].upper()}{known.purpose[1:]}, from {given}"}
    _scale(raw, scale)
    text = _comment(known, size, given) + tomli_w.dumps(raw | head | {"next": next_steps})
    check_inputs(loads(text, what=f"the recipe {format_value(name)}"))
    return text


def _choice(what: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    if name not in choices:
        allowed = ", ".join(choices)
        raise InputError(f"{what}: {format_value(name)}; must be one of {allowed}{did_you_mean(name, list(choices))}")
    return choices[name]


def _comment(goal: Goal, size: str, data: str) -> str:
    """The lines at the top of the file."""
    lines = [
        f"Written by `quatrain new` from the shipped recipe `{goal.recipe}`, size {size}.",
        "`quatrain check` with this file shows what each stage will train on, its memory and its time;",
        "with --toml it prints every setting with its default.",
    ]
    if goal.recipe == "sherlock" and is_path(data):
        lines.append("Change evaluate.prompts to beginnings that fit your text.")
    return "".join(f"# {line}\n" for line in lines) + "\n"


def _scale(raw: dict[str, Any], size: Size) -> None:
    """Scale the model's shape and the number of steps. Epochs stay: more of them would memorize the data."""
    model = raw.get("model", {})
    for key in WIDTHS:
        if key in model:
            model[key] = round(model[key] * size.width)
    if "num_hidden_layers" in model:
        model["num_hidden_layers"] = max(1, round(model["num_hidden_layers"] * size.depth))
    if size.width > 1 and "num_attention_heads" in model:
        model["num_attention_heads"] = round(model["num_attention_heads"] * size.width)
    for stage in raw["stage"]:
        train = stage.get("train", {})
        if "steps" not in train:
            continue
        for key in COUNTS_OF_STEPS:
            if key in train:
                train[key] = max(1, round(train[key] * size.steps))


def file_name(goal: str) -> Path:
    """The file that a recipe for a goal is written to where no other is named."""
    return Path(f"my-{goal}.toml")
