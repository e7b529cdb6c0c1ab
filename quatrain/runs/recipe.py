"""A recipe: one TOML file that says what to do, in stages, as typed settings.

`load` reads a shipped recipe by its name or any file by its path, applies `a.b=c` overrides and checks
everything at once, before anything heavy is imported. `dumps` writes a recipe with every default filled
in, such that loading it again gives an equal recipe.

Stages are counted from zero in places and overrides (`stage[1]`), as lists are in TOML libraries; an
override may also name a stage by its kind: `stage.pretrain.train.steps=100`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from quatrain.alignment.settings import DPOStage
from quatrain.compression.settings import FLOAT_ONLY_FAMILIES, QuantizeStage
from quatrain.core.errors import InputError
from quatrain.core.overrides import apply_overrides
from quatrain.core.reading import MAX_DEPTH, depth_of, parse_toml, read_text, user_path
from quatrain.core.settings import Listing, Problem, Settings, did_you_mean, parse, quote, suggest
from quatrain.core.wording import printable
from quatrain.data.settings import DataSettings, TokenizerSettings, TokenizerStage
from quatrain.evaluation.settings import EvaluateSettings, EvaluateStage
from quatrain.models.transformer.settings import ModelSettings, families_of
from quatrain.runs.dependent import adapt
from quatrain.training.settings import TASKS, FinetuneStage, PretrainStage

RECIPES = Path(__file__).parent / "recipes"

MAX_RECIPE_BYTES = 1_000_000

MOST_SHOWN = 200
"""Characters of a line of TOML that a message shows."""

Stage = Annotated[
    TokenizerStage | PretrainStage | FinetuneStage | DPOStage | QuantizeStage | EvaluateStage,
    Field(discriminator="kind"),
]

LEARNING_KINDS = ("pretrain", "finetune", "dpo")
MODEL_KINDS = (*LEARNING_KINDS, "quantize")

UNQUANTIZABLE = (
    "whose files fuse or transpose its linear layers, for which the formats of quantized folders have no place; leave "
    'the stage out, or choose family = "llama"'
)

UNMARKED_KEYS = frozenset({"log_every", "checkpoint_every", "parallel", "device"})
"""Keys that change what is seen of a run, or where it runs, and not what it makes."""

UNMARKED_TABLES = ("name", "description", "next", "tracking")
"""Keys of the recipe itself that change as little."""


class Recipe(Settings):
    """Everything that a run does.

    `next` holds what to try afterwards; `{run}` in it is the run's folder, `{database}` the database of its questions.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$",
        description="a name for the run's folder: letters, digits, _, - and ., at most 100",
    )
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    stage: Listing[Stage] = Field(min_length=1, description="what to do, as [[stage]] tables, each with its kind")
    evaluate: EvaluateSettings = EvaluateSettings()
    tracking: Listing[Literal["tensorboard", "trackio", "wandb"]] = ()
    next: Listing[str] = ()

    def data_of(self, stage: Settings) -> DataSettings:
        """The data of a stage: its own, or the recipe's."""
        own: DataSettings | None = getattr(stage, "data", None)
        return own or self.data

    def context_of(self, stage: Settings) -> int:
        """Tokens of one training sequence of a stage: its own `context`, or the model's longest."""
        own: int | None = getattr(stage, "context", None)
        return own or self.model.max_position_embeddings

    def conflicts(self) -> Iterator[Problem]:
        yield from self._data_conflicts()
        yield from self._order_conflicts()
        yield from self._length_conflicts()
        yield from self._objective_conflicts()

    def _data_conflicts(self) -> Iterator[Problem]:
        for index, stage in enumerate(self.stage):
            if stage.kind not in ("tokenizer", *LEARNING_KINDS) or getattr(stage, "tasks", None):
                continue
            takes_tokenizer = stage.kind == "tokenizer" and self.tokenizer.path is not None
            data = self.data_of(stage)
            has_pairs = stage.kind == "dpo" and data.preferences is not None
            if data.source is None and data.database is None and not takes_tokenizer and not has_pairs:
                yield Problem(
                    ("data",),
                    f"has neither source nor database, which stage[{index}] ({stage.kind}) needs; must have exactly "
                    'one, such as source = "my.txt"',
                    (("data", "source"), ("data", "database"), ("stage", index)),
                )
                return
        for index, stage in enumerate(self.stage):
            data = self.data_of(stage)
            if stage.kind == "dpo" and data.source and not data.database and not data.preferences:
                yield Problem(
                    ("stage", index),
                    "dpo needs data.database, whose answers are judged by execution, or data.preferences, a file of "
                    f"pairs; data.source = {quote(data.source)} has neither",
                    (("data", "source"), ("data", "database"), ("data", "preferences")),
                )

    def _order_conflicts(self) -> Iterator[Problem]:
        has_tokenizer = self.tokenizer.path is not None or self.model.folder is not None
        has_model = self.model.folder is not None
        quantized: int | None = None
        also = (("tokenizer", "path"), ("model", "folder"))
        for index, stage in enumerate(self.stage):
            place = ("stage", index)
            kind = stage.kind
            if kind == "tokenizer":
                if has_model:
                    text = "tokenizer must come before the stages that make a model"
                    if self.model.folder is not None:
                        text = f"tokenizer must be left out: the model in {quote(self.model.folder)} has its own"
                        text += " (stage.tokenizer=none)"
                    yield Problem(place, text, also)
                has_tokenizer = True
                continue
            if kind == "pretrain" and not has_tokenizer:
                text = 'pretrain needs a tokenizer; put a stage of kind = "tokenizer" before it, or set tokenizer.path'
                yield Problem(place, text, also)
            learns_fresh = kind == "pretrain" or (kind == "finetune" and stage.objective != "chat")  # type: ignore[union-attr]
            if not learns_fresh and not has_model:
                text = f"{kind} needs a model; put a pretrain stage before it, or set model.folder"
                yield Problem(place, text, also)
            if learns_fresh and kind == "finetune" and not has_model and not has_tokenizer:
                text = 'finetune needs a tokenizer; put a stage of kind = "tokenizer" before it, or set tokenizer.path'
                yield Problem(place, text, also)
            if kind in MODEL_KINDS:
                has_model = True
            if quantized is not None and kind in MODEL_KINDS:
                text = f"{kind} cannot follow stage[{quantized}] (quantize): a quantized model no longer learns"
                yield Problem(place, text)
            if kind == "quantize" and quantized is None:
                quantized = index
                if self.model.folder is None and self.model.family in FLOAT_ONLY_FAMILIES:
                    text = f"quantize cannot follow model.family = {quote(self.model.family)}, {UNQUANTIZABLE}"
                    yield Problem(place, text, (("model", "family"),))

    def _objective_conflicts(self) -> Iterator[Problem]:
        """Objectives that the family has no head for, or that a database has no data for."""
        for index, stage in enumerate(self.stage):
            objective = getattr(stage, "objective", "dpo" if stage.kind == "dpo" else None)
            if objective is None:
                continue
            place = ("stage", index, "objective") if stage.kind != "dpo" else ("stage", index)
            families = families_of(objective)
            if self.model.folder is None and self.model.family not in families:
                named = ", ".join(families)
                text = f"{quote(objective)}; no model of family = {quote(self.model.family)} does it, only {named}"
                yield Problem(place, text, (("model", "family"),))
            if objective in TASKS and self.data_of(stage).database is not None:
                text = f"{quote(objective)}; it learns from data.source, and a database has chats and texts alone"
                yield Problem(place, text, (("data", "database"),))

    def _length_conflicts(self) -> Iterator[Problem]:
        longest = self.model.max_position_embeddings
        for index, stage in enumerate(self.stage):
            if stage.kind not in LEARNING_KINDS:
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
                continue  # the folder's own length decides, which is not known here
            train = stage.train  # type: ignore[union-attr]
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

    `name_or_path` is the name of a shipped recipe or the path of a TOML file (anything with a folder or
    the ending `.toml`); `overrides` are `a.b=c` texts. What they say wins over what the recipe itself says: keys that
    depend on it are adapted (`quatrain.runs.dependent`), and `say` is given a line for each. Raises InputError with
    every problem at once.
    """
    path = _find(name_or_path)
    raw = _read(path)
    raw.setdefault("name", path.stem)
    raw, problems, places = apply_overrides(Recipe, raw, list(overrides))
    for line in adapt(raw, places):
        if say is not None:
            say(line)
    return parse(Recipe, raw, what=f"the recipe {_shown(name_or_path)}", more=problems)


def loads(text: str, *, what: str = "the recipe") -> Recipe:
    """Check a recipe given as TOML text."""
    return parse(Recipe, _toml(text, what), what=what)


def to_dict(recipe: Settings) -> dict[str, Any]:
    """Plain TOML values with every default filled in; keys without a value are left out."""
    return _plain(recipe.model_dump(exclude_none=True))


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML, every default filled in; `loads` of it gives an equal recipe."""
    import tomli_w

    return tomli_w.dumps(to_dict(recipe))


def changes(old: Recipe, new: Recipe) -> list[str]:
    """What differs between two recipes as far as results go, a line a key: `seed: 0 -> 1`."""
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
        unmarked = top in UNMARKED_TABLES or key.rpartition(".")[2] in UNMARKED_KEYS
        if unmarked or top in skipped:
            continue
        if before_flat.get(key) != after_flat.get(key):
            lines.append(f"{key}: {_changed(before_flat, key)} -> {_changed(after_flat, key)}")
    return lines


def _changed(flat: Mapping[str, Any], key: str) -> str:
    return quote(flat[key]) if key in flat else "not set"


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`, tables in lists by their number, other lists whole."""
    if isinstance(value, Mapping):
        items = [(f"{place}.{key}" if place else key, item) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        items = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {place: value}
    return {key: leaf for name, item in items for key, leaf in _flat(item, name).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _shown(name_or_path: str | os.PathLike[str]) -> str:
    return quote(os.fspath(name_or_path))


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a recipe; raise InputError that lists the shipped ones where there is none."""
    text = os.fspath(name_or_path)
    names = recipe_names()
    if text in names:
        return RECIPES / f"{text}.toml"
    path = user_path(text, "the recipe")
    if path.exists() and not path.is_dir():
        return path  # a pipe or a device is refused where it is read
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
        found = printable(lines[line - 1].strip())[:MOST_SHOWN] if lines else ""
        hint = f"\n    {found}" if found else ""
        raise InputError(f"{what}:{line}: no valid TOML: {printable(message)[:MOST_SHOWN]}{hint}") from error
    except (RecursionError, ValueError):
        # nested too deeply, or a number with more digits than are read; said without a line
        return parse_toml(text, what)
    if depth_of(value) > MAX_DEPTH:
        raise InputError(f"{what}: nested {depth_of(value):,} levels deep; at most {MAX_DEPTH} are read")
    return value


def _error_line(message: str, text: str) -> int:
    """The line that a message of tomllib speaks of; the last one for "at end of document"."""
    _, found, rest = message.rpartition("at line ")
    number = rest.split(",")[0] if found else ""
    lines = max(1, len(text.splitlines()))
    return min(int(number), lines) if number.isdecimal() and len(number) < 10 else lines


__all__: Sequence[str] = ["Recipe", "changes", "dumps", "load", "loads", "recipe_names", "to_dict"]
