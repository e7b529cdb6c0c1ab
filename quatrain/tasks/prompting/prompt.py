"""A prompt as a value, and as a file that keeps the scores it has had: `prompts/NAME.toml`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import Field

from quatrain.core.atomic import disk_errors, write_text
from quatrain.core.errors import InputError
from quatrain.core.reading import parse_toml, read_text, user_path
from quatrain.core.settings import Listing, Problem, Settings, parse
from quatrain.generation.decoding import Decoding
from quatrain.tasks.prompting.template import MAX_BYTES, Template, load_templates

Selection = Literal["random", "balanced", "similar", "bm25"]


class Prompt(Settings):
    """Everything that decides what a model reads for an example, and how its answer is taken.

    `selection` chooses the `shots`: "random" draws the same ones for every example, "balanced" as many of each answer,
    "similar" those whose embedding by `embedder` (a model folder) is nearest, "bm25" those with the rarest words in
    common. `too_long`: "drop" leaves shots out until a prompt fits into the model's context, "refuse" is an error.
    `style`: "chat" for turns, "text" for one text; "auto" asks the model. `samples` above 1 is self-consistency: the
    most frequent answer of so many samples (Wang et al. 2022, arXiv 2203.11171). `decide`: "text" generates the answer,
    "likelihood" takes the likeliest of the `labels`, "calibrated" the one that gains most over its likelihood after a
    question without content (Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021, arXiv 2104.08315).
    """

    name: str = Field(default="prompt", min_length=1)
    template: Template
    input: str = "input"
    output: str = "output"
    labels: dict[str, str] = {}
    shots: int = Field(default=0, ge=0, le=1000)
    selection: Selection = "random"
    embedder: str | None = Field(default=None, min_length=1, description="a folder of sentence embeddings")
    seed: int = Field(default=0, ge=0, lt=2**63)
    too_long: Literal["drop", "refuse"] = "drop"
    style: Literal["auto", "chat", "text"] = "auto"
    samples: int = Field(default=1, ge=1, le=1000)
    decide: Literal["text", "likelihood", "calibrated"] = "text"
    decoding: Decoding = Decoding()

    def conflicts(self) -> Iterator[Problem]:
        if self.samples > 1 and self.decoding.temperature == 0:
            yield Problem(
                ("samples",),
                f"{self.samples}; samples at temperature 0 are equal: set decoding.temperature, such as 0.7",
                (("decoding", "temperature"),),
            )
        if self.decide != "text" and not self.labels:
            yield Problem(("decide",), f'"{self.decide}"; needs labels, the answers to choose from', (("labels",),))
        if self.selection == "similar" and self.shots and self.embedder is None:
            yield Problem(
                ("selection",),
                '"similar"; needs embedder = FOLDER, a model of sentence embeddings; "bm25" needs none',
                (("embedder",),),
            )

    @property
    def label(self) -> str:
        """A short name for tables: template, shots and how they are chosen."""
        chosen = f" {self.selection}" if self.shots else ""
        votes = f", best of {self.samples} by vote" if self.samples > 1 else ""
        return f"{self.template.name}, {self.shots} shots{chosen}{votes}".replace(" 1 shots", " 1 shot")

    @property
    def hash(self) -> str:
        """A short hash of everything but the name."""
        values = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


class PromptScore(Settings):
    """A score that a prompt had: of which model, on which set, when, and its 95 % interval."""

    date: str
    model: str
    set: str
    metric: str
    value: float
    low: float
    high: float
    count: int = Field(ge=1)
    prompt: str = Field(default="", description="the hash of the prompt that was scored")


class PromptFile(Settings):
    """A prompt with its scores, oldest first."""

    prompt: Prompt
    score: Listing[PromptScore] = ()


def make_prompt(templates: str | Path, template: str, **settings: Any) -> Prompt:
    """The prompt of a named template, such as `make_prompt("sentiment", "plain", shots=4)`. Raises InputError."""
    file = load_templates(templates)
    chosen = file.named(template)
    given = {"input": file.input, "output": file.output, "labels": dict(file.labels), **settings}
    values = {"name": f"{Path(str(templates)).stem}-{chosen.name}", "template": chosen.model_dump(), **given}
    values = {key: value.model_dump() if isinstance(value, Settings) else value for key, value in values.items()}
    return parse(Prompt, values, what="the prompt")


def with_settings(prompt: Prompt, **settings: Any) -> Prompt:
    """The prompt with other settings, checked anew. Raises InputError."""
    values = {key: value.model_dump() if isinstance(value, Settings) else value for key, value in settings.items()}
    return parse(Prompt, prompt.model_dump() | values, what="the prompt")


def load_prompt(path: str | Path) -> PromptFile:
    """A prompt's file. Raises InputError."""
    place = user_path(path, "the prompt")
    if not place.is_file():
        raise InputError(f"{path}: no such file; a prompt is a TOML file, such as those that `quatrain prompt` writes")
    return parse(PromptFile, parse_toml(read_text(place, MAX_BYTES), str(path)), what=f"the prompt {path}")


def save_prompt(prompt: Prompt, path: str | Path, scores: tuple[PromptScore, ...] = ()) -> None:
    """Write a prompt's file; the scores that the file already has for this prompt stay, and `scores` are appended.

    Raises InputError for a file with another prompt.
    """
    import tomli_w

    place = user_path(path, "the prompt")
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / ".lock"):
        old: tuple[PromptScore, ...] = ()
        if place.exists():
            kept = load_prompt(place)
            if kept.prompt.hash != prompt.hash:
                raise InputError(f"{path} holds another prompt ({kept.prompt.label}); give another name")
            old = kept.score
        values = PromptFile(prompt=prompt, score=(*old, *scores)).model_dump(mode="json", exclude_none=True)
        write_text(place, tomli_w.dumps(values, multiline_strings=False))
