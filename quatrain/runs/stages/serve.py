"""The serve stage: the final model answers over HTTP, as its users will ask it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Listing
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import StageSpec, deferred


class ServeStage(StageSettings):
    """Starts the server with the model that the earlier stages have left, asks it, and stops it.

    Results: `equal_share` of the answers that are those of the engine without a server, `answers_per_second` with
    `clients` at a time, and `p50_seconds` and `p95_seconds` of an answer. `prompts` are by default questions of the
    recipe's held-out sets, else `evaluate.prompts`.
    """

    kind: Literal["serve"] = "serve"
    prompts: Listing[str] = ()
    requests: int = Field(default=32, ge=1, le=100_000)
    clients: int = Field(default=4, ge=1, le=256)
    max_new_tokens: int = Field(default=32, ge=1, le=100_000)


def file_problems(settings: ServeStage, recipe: RecipeSettings) -> Iterator[str]:
    """The server is an extra."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        yield "serve: the server is not installed; pip install 'quatrain[serve]'"


SPEC = StageSpec(
    ServeStage,
    run=deferred("quatrain.runs.stages._serve:run"),
    needs=lambda settings, recipe: {"model"},
    file_problems=file_problems,
)
