"""Templates: how an example becomes the text that a model completes.

A file of templates belongs to one kind of task (`templates/NAME.toml`, or a file of the user's). In a template,
`{name}` stands for a field of the example. Every example has `{input}` and `{output}`, which a file may name otherwise,
such as `{dialogue}` and `{summary}`; further fields are those of its record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.reading import parse_toml, read_text, user_path
from quatrain.core.settings import Listing, Problem, Settings, did_you_mean, parse
from quatrain.core.wording import format_value

FOLDER = Path(__file__).parent / "templates"
FIELD = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")
"""A field, or a doubled brace, which stands for itself."""
MAX_BYTES = 1_000_000


class Template(Settings):
    """The wording of one prompt.

    `prompt` is what stands for an example, `answer` what follows it in a shot. A model that continues a text reads
    `instruction`, the shots and the question, with `separator` between them and `lead` before each answer. A chat model
    reads the instruction as system message and the shots as turns. `extract` is a regular expression that finds the
    answer in a completion: its first group, or all of it, where it matches last. `stop` ends the completions of a model
    that continues a text (the separator by default).
    """

    name: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str = "{output}"
    instruction: str = ""
    lead: str = "\n"
    separator: str = Field(default="\n\n", min_length=1)
    extract: str | None = Field(default=None, min_length=1)
    stop: Listing[str] = ()
    source: str = Field(default="", description="where the wording comes from")

    def conflicts(self) -> Iterator[Problem]:
        if not names_in(self.prompt):
            yield Problem(("prompt",), f"{format_value(self.prompt)}; must have a field, such as {{input}}")
        if any(not text for text in self.stop):
            yield Problem(("stop",), "an empty string would end every completion at once; remove it")
        if self.extract is not None:
            try:
                groups = re.compile(self.extract).groups
            except re.error as error:
                yield Problem(("extract",), f"{format_value(self.extract)}; no regular expression: {error}")
            else:
                if groups > 1:
                    yield Problem(("extract",), f"{format_value(self.extract)}; must have at most one group")

    def find(self, completion: str) -> str | None:
        """The answer in a completion; None where `extract` does not match."""
        if self.extract is None:
            return completion.strip()
        found = list(re.finditer(self.extract, completion, re.IGNORECASE))
        return (found[-1].group(found[-1].re.groups) or "").strip() if found else None


class TemplateFile(Settings):
    """The templates of one kind of task.

    `input` and `output` are further names of an example's question and answer. `labels` gives a word for each answer of
    a task with few answers: `{"0" = "negative", "1" = "positive"}`; prompts show the words, and answers are read back.
    """

    description: str = ""
    input: str = Field(default="input", pattern=r"^[A-Za-z_]\w*$")
    output: str = Field(default="output", pattern=r"^[A-Za-z_]\w*$")
    labels: dict[str, str] = {}
    template: Listing[Template] = Field(min_length=1)

    def conflicts(self) -> Iterator[Problem]:
        words = list(self.labels.values())
        if any(not word.strip() for word in words) or len({word.casefold() for word in words}) < len(words):
            yield Problem(("labels",), "two labels have the same word, or one has none; each needs a word of its own")
        names = [template.name for template in self.template]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Problem(("template",), f"{format_value(name)}; two templates have this name")

    def named(self, name: str) -> Template:
        """The template of this name. Raises InputError that lists the names."""
        names = [template.name for template in self.template]
        if name not in names:
            raise InputError(
                f"template {format_value(name)}: unknown{did_you_mean(name, names)} Templates: {', '.join(names)}."
            )
        return self.template[names.index(name)]


def template_names() -> list[str]:
    """The names of the files of templates that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_templates(name_or_path: str | Path) -> TemplateFile:
    """The templates of a shipped file by its name, or of a TOML file. Raises InputError."""
    text = str(name_or_path)
    if text in template_names():
        return _shipped(text)
    path = user_path(text, "the templates")
    if not path.is_file():
        names = ", ".join(template_names())
        raise InputError(f"{format_value(text)}: no such file of templates. Shipped: {names}; or give a TOML file.")
    return parse(TemplateFile, parse_toml(read_text(path, MAX_BYTES), text), what=f"the templates {text}")


@cache
def _shipped(name: str) -> TemplateFile:
    return parse(TemplateFile, parse_toml((FOLDER / f"{name}.toml").read_text(encoding="utf-8"), name), what=name)


def names_in(text: str) -> list[str]:
    """The names of the fields in a template's text."""
    return [name for match in FIELD.finditer(text) if (name := match.group(1))]


def fill(text: str, fields: Mapping[str, Any]) -> str:
    """A template's text with the values of its fields. Raises InputError for a field that the example does not have."""
    missing = [name for name in dict.fromkeys(names_in(text)) if fields.get(name) is None]
    if missing:
        raise InputError(
            f"{format_value(text)}: the example has no {', '.join(missing)}. It has: {', '.join(fields)}. (A brace "
            "that stands for itself is written twice.)"
        )
    return FIELD.sub(lambda match: str(fields[match.group(1)]) if match.group(1) else match.group(0)[0], text)
