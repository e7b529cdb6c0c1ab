"""A curation recipe: sources, steps in order, and the form of the result. One TOML file, checked at once.

name = "mine"

[[source]]
path = "crawl.jsonl.gz"
licence = "ODC-BY"

[[step]]
kind = "gopher_quality"
min_words = 30
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.overrides import apply_overrides
from quatrain.core.reading import parse_toml, read_text, user_path
from quatrain.core.settings import Listing, Problem, Settings, parse
from quatrain.core.wording import format_value
from quatrain.data import catalog
from quatrain.data.curation.step import StepSettings
from quatrain.data.curation.steps import steps

RECIPES = Path(__file__).parent / "recipes"

if TYPE_CHECKING:
    AnySettings = StepSettings
else:
    AnySettings = Annotated[Union[tuple(step.Settings for step in steps().values())], Field(discriminator="kind")]  # noqa: UP007


class SourceSettings(Settings):
    """A source of documents.

    `documents` says what a document of a plain text file is: the file, a line, or a block between empty lines. A row of
    JSON lines, CSV, Parquet and the like is a document; `column` holds its text. A page of a MediaWiki dump (.xml) and
    an HTML file are documents too. `weight` is for the step mix.
    """

    path: str = Field(min_length=1, description="a file, a folder, a catalog name, or hf:owner/name")
    name: str | None = Field(default=None, min_length=1, max_length=60, description="by default the path's")
    column: str = Field(default="text", min_length=1)
    documents: Literal["file", "line", "block"] = "file"
    licence: str | None = Field(default=None, min_length=1, description="by default the catalog's")
    weight: float | None = Field(default=None, gt=0)

    @property
    def title(self) -> str:
        """The name of the source in the funnel and in the data card."""
        return self.name or Path(self.path.removeprefix("hf:")).name.partition(".")[0] or self.path

    @property
    def stated_licence(self) -> str:
        """The licence that the recipe or the catalog states."""
        entry = catalog.find(self.path)
        return self.licence or ("not stated" if entry is None else entry.licence)


class OutputSettings(Settings):
    """The form of the result. `removed`: the removed documents are written too, with the step and the reason."""

    format: Literal["jsonl", "parquet"] = "jsonl"
    compression: Literal["none", "gzip"] = Field(default="none", description="of JSON lines; Parquet has zstd")
    removed: bool = False


class CurationRecipe(Settings):
    """Everything that decides the result. `unit_megabytes` of input are one unit of work and become one shard."""

    name: str = Field(default="curated", min_length=1, max_length=100)
    description: str = ""
    seed: int = Field(default=0, ge=0)
    unit_megabytes: float = Field(default=64, gt=0, le=4096)
    max_characters: int = Field(default=5_000_000, ge=100, le=100_000_000, description="longer documents are refused")
    tokenizer: str | None = Field(default=None, min_length=1, description="counts tokens by it; else by words")
    source: Listing[SourceSettings] = Field(min_length=1, description="where the documents are, as [[source]] tables")
    step: Listing[AnySettings] = Field(default=(), description="what to do, as [[step]] tables, each with its kind")
    output: OutputSettings = OutputSettings()

    def conflicts(self) -> Iterator[Problem]:
        titles = [source.title for source in self.source]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            yield Problem(("source",), f"{', '.join(twice)} more than once; give each source a name of its own")
        if self.output.format == "parquet" and self.output.compression != "none":
            yield Problem(("output", "compression"), '"gzip"; Parquet files are compressed by zstd: leave it out')
        for index, step in enumerate(self.step):
            for name in step.needs_weights(self.source):
                yield Problem(("step", index), f"{step.kind} needs a weight for the source {format_value(name)}")


def recipe_names() -> list[str]:
    """The names of the curation recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load(name_or_path: str, overrides: Iterable[str] = (), *, sources: Iterable[str] = ()) -> CurationRecipe:
    """Reads a shipped recipe by its name or any by its path, with overrides such as `step.length.min_words=50`.

    `sources` are paths that replace the recipe's sources. Raises InputError with all problems at once.
    """
    path = RECIPES / f"{name_or_path}.toml"
    if name_or_path not in recipe_names():
        path = user_path(name_or_path, "the curation recipe")
        if not path.is_file():
            shipped = ", ".join(recipe_names())
            raise InputError(f"{format_value(name_or_path)}: no such file, and no shipped curation recipe: {shipped}")
    raw = parse_toml(read_text(path), str(path))
    raw.setdefault("name", path.stem)
    if given := [{"path": each} for each in sources]:
        raw["source"] = given
    changed, problems, _ = apply_overrides(CurationRecipe, raw, list(overrides))
    return parse(CurationRecipe, changed, what=f"the curation recipe {format_value(str(name_or_path))}", more=problems)


def to_dict(recipe: CurationRecipe) -> dict[str, Any]:
    """The recipe with every default, as TOML can hold it."""
    value: dict[str, Any] = _without_none(recipe.model_dump(mode="json"))
    return value


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
