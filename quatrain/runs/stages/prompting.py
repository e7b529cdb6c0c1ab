"""The prompting stage: compares prompts and generation settings on a task, and finds the best of a few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.settings import Listing, Problem, Settings
from quatrain.data.settings import DataSettings
from quatrain.generation.decoding import Decoding
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Need, StageContext, StageSpec, deferred

Selection = Literal["random", "balanced", "similar", "bm25"]


class PromptSettings(Settings):
    """One prompt of a comparison: a template of the stage's file, with shots."""

    template: str = Field(min_length=1)
    shots: int = Field(default=0, ge=0, le=1000)
    selection: Selection = "random"
    samples: int = Field(default=1, ge=1, le=1000)


class SearchSettings(Settings):
    """A search over every combination, on development examples. Without `templates` it takes all of the file."""

    templates: Listing[str] = ()
    shots: Listing[int] = (0, 2, 4)
    selections: Listing[Selection] = ("random", "balanced")
    examples: int = Field(default=100, ge=1, description="development examples that each prompt is scored on")

    def conflicts(self) -> Iterator[Problem]:
        if not self.shots or not self.selections or any(count < 0 for count in self.shots):
            yield Problem(("shots",), "shots and selections must name at least one, and no shots below 0")


class PromptingStage(StageSettings):
    """Prompts the model of the earlier stages, of `model.folder` or of `model.endpoint`; trains nothing.

    `prompts` are scored side by side on the held-out sets, `decodings` with the first of them. `search` scores its
    combinations on development examples, and the best one, once, on the held-out sets. `templates` is a file of
    templates or the name of a shipped one. `embedder` is the model folder for the selection "similar".
    """

    kind: Literal["prompting"] = "prompting"
    data: DataSettings | None = None
    templates: str = Field(default="plain", min_length=1)
    prompts: Listing[PromptSettings] = ()
    decoding: Decoding = Decoding()
    decodings: Listing[Decoding] = ()
    search: SearchSettings | None = None
    style: Literal["auto", "chat", "text"] = "auto"
    decide: Literal["text", "likelihood", "calibrated"] = "text"
    too_long: Literal["drop", "refuse"] = "drop"
    embedder: str | None = Field(default=None, min_length=1, description="a folder of sentence embeddings")

    def model_folders(self) -> dict[str, str]:
        """The embedder, and templates of the user's own: what the stage reads besides its data."""
        files = {"embedder": self.embedder, "templates": self.templates}
        return {name: path for name, path in files.items() if path and (name == "embedder" or path.endswith(".toml"))}

    def conflicts(self) -> Iterator[Problem]:
        if not self.prompts and self.search is None:
            yield Problem((), 'has neither prompts nor search; name prompts = [{ template = "plain" }], or a search')
        if self.decodings and not self.prompts:
            yield Problem(("decodings",), "are compared with the first of prompts, and there is none", (("prompts",),))


def needs(settings: PromptingStage, recipe: RecipeSettings) -> set[Need]:
    """Data, and a model, unless an endpoint has one."""
    return {"data"} if recipe.model.endpoint is not None else {"data", "model"}


def skipped(settings: PromptingStage, context: StageContext) -> str:
    """Why the preflight does not prepare the stage."""
    return "Skipped: this stage prompts the model during the run, and trains nothing."


SPEC = StageSpec(
    PromptingStage,
    run=deferred("quatrain.runs.stages._prompting:run"),
    needs=needs,
    prepare=skipped,
)
