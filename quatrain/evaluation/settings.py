"""Settings of evaluation: what is scored and sampled after each stage that trains a model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quatrain.core.settings import Listing, Settings


class EvaluateSettings(Settings):
    """Scores `examples` examples of each held-out set, and samples each prompt at each temperature.

    `questions` are those of people to `data.database`: a JSONL file of records with `question` and `query`, or with the
    list of `accepted` statements. They are only scored. Of these, up to five times `examples` are.
    """

    examples: int = Field(default=200, ge=1)
    questions: str | None = Field(
        default=None, min_length=1, description="a JSONL file of people's questions to data.database, only scored"
    )
    prompts: Listing[str] = ()
    temperatures: Listing[Annotated[float, Field(ge=0, le=10)]] = (0.8,)
    max_new_tokens: int = Field(default=120, ge=1)
    tools: Listing[str] = Field(default=(), description='tools that answers may call, such as "calculator"')
    max_calls: int = Field(default=1, ge=1, description="calls of tools in an answer")

    @property
    def people(self) -> int:
        """The most questions by people that are scored: there are few, and each counts."""
        return 5 * self.examples
