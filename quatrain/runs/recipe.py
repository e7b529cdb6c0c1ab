"""A recipe: one TOML file that defines a run as a list of stages with typed settings.

`load` reads a shipped recipe by its name or any file by its path, applies overrides `a.b=c` and checks everything at
once, without importing torch. `dumps` writes a recipe with every default filled in; loading it again gives an equal
recipe.

Messages and overrides count stages from zero (`stage[1]`). An override may also name a stage by its kind:
`stage.pretrain.train.steps=100`. `quatrain.runs.stages` holds the kinds of stages.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.overrides import apply_overrides
from quatrain.core.reading import MAX_DEPTH, depth_of, parse_toml, read_text, user_path
from quatrain.core.settings import Listing, Problem, did_you_mean, parse, suggest
from quatrain.core.wording import format_value, printable
from quatrain.runs.dependent import adapt
from quatrain.runs.settings import UNMARKED_KEYS, RecipeSettings, StageSettings, to_dict
from quatrain.runs.stages import spec_of, specs
from quatrain.training.settings import TrainSettings

RECIPES = Path(__file__).parent / "recipes"

MAX_RECIPE_BYTES = 1_000_000

MAX_SHOWN = 200
"""Most characters of a line of TOML that a message shows."""

if TYPE_CHECKING:
    AnyStage = StageSettings
else:
    AnyStage = Annotated[Union[tuple(spec.settings for spec in specs().values())], Field(discriminator="kind")]  # noqa: UP007

UNMARKED_TABLES = ("name", "description", "next", "tracking", "energy")
"""Top-level keys that do not change results either."""


class Recipe(RecipeSettings):
    """Everything that a run does.

    `next` are hints on what to try afterwards; `{run}` in them is the run's folder, `{database}` its database.
    """

    stage: Listing[AnyStage] = Field(min_length=1, description="what to do, as [[stage]] tables, each with its kind")

    def conflicts(self) -> Iterator[Problem]:
        yield from self._data_conflicts()
        yield from self._order_conflicts()
        yield from self._length_conflicts()
        for index, stage in enumerate(self.stage):
            yield from spec_of(stage).conflicts(stage, self, index)

    def _data_conflicts(self) -> Iterator[Problem]:
        for index, stage in enumerate(self.stage):
            data = self.data_of(stage)
            if "data" in spec_of(stage).needs(stage, self) and data.source is None and not data.generates:
                yield Problem(
                    ("data",),
                    f"has neither source, database nor task, which stage[{index}] ({stage.kind}) needs; must have "
                    'exactly one, such as source = "my.txt"',
                    (("data", "source"), ("data", "database"), ("data", "task"), ("stage", index)),
                )
                return
            if data.task is not None:
                from quatrain.tasks.task import generating_names

                if data.task not in (names := generating_names()):
                    yield Problem(("data", "task"), f"{format_value(data.task)}; must be one of {', '.join(names)}")
                    return

    def _order_conflicts(self) -> Iterator[Problem]:
        """Stages that come before what they need, or after what forbids them."""
        has_model = self.model.folder is not None
        has_tokenizer = has_model or self.tokenizer.path is not None
        last: int | None = None
        related = (("tokenizer", "path"), ("model", "folder"))
        for index, stage in enumerate(self.stage):
            spec, kind, place = spec_of(stage), stage.kind, ("stage", index)
            needs = spec.needs(stage, self)
            if "tokenizer" in spec.produces and has_model:
                text = f"{kind} must come before the stages that make a model"
                if self.model.folder is not None:
                    text = f"{kind} must be left out: the model in {format_value(self.model.folder)} has its own"
                    text += f" (stage.{kind}=none)"
                yield Problem(place, text, related)
            if "tokenizer" in needs and not has_tokenizer and not has_model:
                text = f'{kind} needs a tokenizer; put a stage of kind = "tokenizer" before it, or set tokenizer.path'
                yield Problem(place, text, related)
            if "model" in needs and not has_model:
                text = f"{kind} needs a model; put a pretrain stage before it, or set model.folder"
                yield Problem(place, text, related)
            if "model" in spec.produces and last is not None:
                final = self.stage[last]
                yield Problem(place, f"{kind} cannot follow stage[{last}] ({final.kind}): {spec_of(final).final}")
            has_tokenizer = has_tokenizer or "tokenizer" in spec.produces
            has_model = has_model or ("model" in spec.produces and not spec.judges)
            if spec.final and last is None:
                last = index

    def _length_conflicts(self) -> Iterator[Problem]:
        """Sequences longer than the model reads, and batches smaller than one sequence."""
        longest = self.model.max_position_embeddings
        for index, stage in enumerate(self.stage):
            train = getattr(stage, "train", None)
            if not isinstance(train, TrainSettings) or not stage.batches_of_tokens:
                continue
            place = ("stage", index)
            context = self.context_of(stage)
            if self.model.folder is None and context > longest:
                yield Problem(
                    (*place, "context"),
                    f"{context}; must be at most model.max_position_embeddings = {longest}",
                    (("model", "max_position_embeddings"),),
                )
            elif self.model.folder is not None and getattr(stage, "context", None) is None:
                continue  # The length is that of the model in the folder, which is not read here.
            need = context * train.accumulation
            if train.batch_tokens < need:
                times = f" x accumulation = {train.accumulation}" if train.accumulation > 1 else ""
                yield Problem(
                    (*place, "train", "batch_tokens"),
                    f"{train.batch_tokens}; must be at least {need}: one sequence of {context} tokens{times}",
                    ((*place, "context"), (*place, "train", "accumulation"), ("model", "max_position_embeddings")),
                )


def recipe_names() -> list[str]:
    """The names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load(
    name_or_path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    say: Callable[[str], None] | None = None,
) -> Recipe:
    """Read a recipe and check it.

    `name_or_path` is the name of a shipped recipe or the path of a TOML file (anything with a folder or the suffix
    `.toml`). `overrides` are strings `a.b=c`, which take precedence over the recipe: keys that depend on an override
    are adapted (`quatrain.runs.dependent`), and `say` gets a line for each. Raises InputError with all problems at
    once.
    """
    raw, problems, places = apply_overrides(Recipe, raw_recipe(name_or_path), list(overrides))
    for line in adapt(raw, places):
        if say is not None:
            say(line)
    return parse(Recipe, raw, what=f"the recipe {_shown(name_or_path)}", more=problems)


def raw_recipe(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a shipped recipe or a file as they are written, not checked, with a name."""
    path = _find(name_or_path)
    raw = _read(path)
    raw.setdefault("name", path.stem)
    return raw


def loads(text: str, *, what: str = "the recipe") -> Recipe:
    """Check a recipe given as TOML text."""
    return parse(Recipe, _toml(text, what), what=what)


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML with every default filled in; `loads` gives an equal recipe."""
    import tomli_w

    return tomli_w.dumps(to_dict(recipe))


def changes(old: Recipe, new: Recipe) -> list[str]:
    """The differences between two recipes that change results, one line for each key: `seed: 0 -> 1`."""
    lines = []
    for index in range(max(len(old.stage), len(new.stage))):
        before = old.stage[index].kind if index < len(old.stage) else None
        after = new.stage[index].kind if index < len(new.stage) else None
        if before != after:
            lines.append(f"stage[{index}]: {before or 'nothing'} -> {after or 'nothing'}")
    skipped = {line.partition(":")[0] for line in lines}
    before_flat, after_flat = _flat(to_dict(old)), _flat(to_dict(new))
    for key in dict.fromkeys([*before_flat, *after_flat]):
        top = key.partition(".")[0]
        parts = {part.partition("[")[0] for part in key.split(".")}
        unmarked = top in UNMARKED_TABLES or parts & UNMARKED_KEYS
        if unmarked or top in skipped:
            continue
        if before_flat.get(key) != after_flat.get(key):
            lines.append(f"{key}: {_changed(before_flat, key)} -> {_changed(after_flat, key)}")
    return lines


def _changed(flat: Mapping[str, Any], key: str) -> str:
    return format_value(flat[key]) if key in flat else "not set"


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Flattens `{"a": {"b": 1}}` to `{"a.b": 1}`. Tables in lists are numbered; other lists stay whole."""
    if isinstance(value, Mapping):
        items = [(f"{place}.{key}" if place else key, item) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        items = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {place: value}
    return {key: leaf for name, item in items for key, leaf in _flat(item, name).items()}


def _shown(name_or_path: str | os.PathLike[str]) -> str:
    return format_value(os.fspath(name_or_path))


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a recipe. Raises InputError that lists the shipped recipes if there is none."""
    text = os.fspath(name_or_path)
    names = recipe_names()
    if text in names:
        return RECIPES / f"{text}.toml"
    path = user_path(text, "the recipe")
    if path.exists() and not path.is_dir():
        return path  # Pipes and devices are refused when they are read.
    if path.is_dir():
        message = f"{_shown(text)} is a folder; must be the name of a recipe or the path of a TOML file"
        if (path / "recipe.toml").is_file():
            message += f", such as {path / 'recipe.toml'}"
        raise InputError(message)
    near = suggest(path.stem, names)
    ordered = sorted(names, key=lambda name: name != near)
    message = f"{_shown(text)}: no such recipe{did_you_mean(path.stem, names)}"
    if path.suffix == ".toml" or len(path.parts) > 1:
        message = f"{_shown(text)}: no such file"
    raise InputError(
        f"{message}\nShipped recipes: {', '.join(ordered) or 'none'}. A recipe of your own is given by its path, "
        "such as my/recipe.toml."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, MAX_RECIPE_BYTES)
    except InputError as error:
        raise InputError(f"{error.message}; it must be a recipe in TOML, saved as UTF-8, of at most 1 MB") from error
    return _toml(text, str(path))


def _toml(text: str, what: str) -> dict[str, Any]:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        line = _error_line(message, text)
        lines = text.splitlines()
        shown = printable(lines[line - 1].strip())[:MAX_SHOWN] if lines else ""
        hint = f"\n    {shown}" if shown else ""
        raise InputError(f"{what}:{line}: no valid TOML: {printable(message)[:MAX_SHOWN]}{hint}") from error
    except (RecursionError, ValueError):
        # Nested too deeply, or a number with too many digits: these errors have no line.
        return parse_toml(text, what)
    if depth_of(value) > MAX_DEPTH:
        raise InputError(f"{what}: nested {depth_of(value):,} levels deep; at most {MAX_DEPTH} are read")
    return value


def _error_line(message: str, text: str) -> int:
    """The line that a message of tomllib names; the last one for "at end of document"."""
    _, found, rest = message.rpartition("at line ")
    number = rest.split(",")[0] if found else ""
    lines = max(1, len(text.splitlines()))
    return min(int(number), lines) if number.isdecimal() and len(number) < 10 else lines


__all__: Sequence[str] = ["Recipe", "changes", "dumps", "load", "loads", "raw_recipe", "recipe_names", "to_dict"]
