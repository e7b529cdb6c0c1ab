"""The form of a completion as a reward: tags in a given order, or JSON that a schema allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from quatrain.alignment.rewards.base import Reward, RewardContext, RewardSettings
from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.reading import parse_json
from quatrain.core.settings import Listing, Problem
from quatrain.core.wording import format_value

TAG = r"[A-Za-z][\w.:-]*"


class FormatReward(RewardSettings):
    """1 for a completion that has the form, 0 for others.

    `tags = ["think", "answer"]`: exactly <think>…</think> and then <answer>…</answer>, each once and not empty, with
    nothing but white space around them. `json_schema`: the whole completion is one JSON value that the schema allows
    (draft 2020-12, through the library jsonschema of the extra `constrain`); the schema {} allows any value.
    """

    kind: Literal["format"] = "format"
    tags: Listing[str] = ()
    json_schema: dict[str, Any] | None = Field(default=None, description="a JSON schema, as a table")

    def conflicts(self) -> Iterator[Problem]:
        if bool(self.tags) == (self.json_schema is not None):
            have = "has both tags and json_schema" if self.tags else "has neither tags nor json_schema"
            yield Problem((), f'{have}; must have exactly one, such as tags = ["answer"]')
        for index, tag in enumerate(self.tags):
            if not re.fullmatch(TAG, tag):
                yield Problem(("tags", index), f"{format_value(tag)}; must be a name such as think, without <>")
            elif tag in self.tags[:index]:
                yield Problem(("tags", index), f"{format_value(tag)} more than once; each tag comes once")

    def build(self, context: RewardContext) -> Reward:
        fits = self._tagged() if self.tags else self._json()

        def reward(examples: Sequence[Any], completions: Sequence[str]) -> list[float]:
            return [float(fits(completion)) for completion in completions]

        return reward

    def _tagged(self) -> Callable[[str], bool]:
        marks = "|".join(f"</?{re.escape(tag)}>" for tag in self.tags)
        inside = rf"\s*(?:(?!{marks})\S)(?:(?!{marks}).)*"
        parts = r"\s*".join(f"<{re.escape(tag)}>{inside}</{re.escape(tag)}>" for tag in self.tags)
        pattern = re.compile(rf"\s*{parts}\s*", re.DOTALL)
        return lambda completion: pattern.fullmatch(completion) is not None

    def _json(self) -> Callable[[str], bool]:
        check = _schema(self.json_schema) if self.json_schema else lambda value: True

        def fits(completion: str) -> bool:
            try:
                value = parse_json(completion, "the completion", Any)
            except InputError:
                return False
            return check(value)

        return fits


def _schema(schema: dict[str, Any]) -> Callable[[Any], bool]:
    """Whether a schema allows a value. Raises InputError for a schema that is none, and without the library."""
    with require("rewards: json_schema", "jsonschema", "constrain"):
        import jsonschema
    validator = jsonschema.Draft202012Validator
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(f"rewards: json_schema: {error.message}") from error
    valid: Callable[[Any], bool] = validator(schema).is_valid
    return valid


SETTINGS = FormatReward
