"""The retrieval stage: makes an index, and measures ways to cut and to rank on questions with and without answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from quatrain.core.reading import exists
from quatrain.core.settings import Listing, Problem, Settings, did_you_mean
from quatrain.retrieval.chunkers import ChunkSettings
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import StageContext, StageSpec, deferred


class ComparedSettings(Settings):
    """One way to cut and to rank. `rerank` is the folder of a cross-encoder."""

    chunks: ChunkSettings = ChunkSettings()
    retriever: str = "hybrid"
    rerank: str | None = Field(default=None, min_length=1)

    def conflicts(self) -> Iterator[Problem]:
        from quatrain.retrieval.retrievers import RETRIEVERS  # NumPy, which a recipe without retrieval does not need

        if self.retriever not in RETRIEVERS:
            near = did_you_mean(self.retriever, list(RETRIEVERS))
            yield Problem(("retriever",), f"{self.retriever!r}; must be one of {', '.join(RETRIEVERS)}{near}")


class RetrievalStage(StageSettings):
    """Makes the index of `source`: a folder, a file or a name of the catalog; trains nothing.

    Where the source has the columns question and answer, each way in `compared` is measured on `questions` of them, and
    on as many whose topic is left out of the documents; the index for use has all documents. Of other sources only the
    index is made. `dense` as for `quatrain index`.

    """

    kind: Literal["retrieval"] = "retrieval"
    source: str = Field(min_length=1, description="a folder, a file, or a name of the catalog such as medquad")
    chunks: ChunkSettings = ChunkSettings()
    dense: Listing[str] = ("lsa",)
    language: str = "english"
    compared: Listing[ComparedSettings] = ()
    questions: int = Field(default=200, ge=1, le=100_000)
    columns: dict[str, str] = Field(default_factory=dict)

    def model_folders(self) -> dict[str, str]:
        """The documents and models that the stage reads."""
        named = {"source": self.source, **{f"dense[{number}]": each for number, each in enumerate(self.dense)}}
        named |= {f"compared[{number}].rerank": each.rerank or "" for number, each in enumerate(self.compared)}
        return {place: name for place, name in named.items() if name and exists(name)}


def conflicts(settings: RetrievalStage, recipe: RecipeSettings, index: int) -> Iterator[Problem]:
    """Rankings by vectors without any."""
    for number, each in enumerate(settings.compared):
        if each.retriever != "bm25" and not settings.dense:
            yield Problem(("compared", number, "retriever"), f'{each.retriever} needs vectors; name dense = ["lsa"]')


def skipped(settings: RetrievalStage, context: StageContext) -> str:
    """Why the preflight does not prepare the stage."""
    return "Skipped: this stage reads documents and trains nothing."


SPEC = StageSpec(
    RetrievalStage,
    run=deferred("quatrain.runs.stages._retrieval:run"),
    prepare=skipped,
    conflicts=conflicts,
)
