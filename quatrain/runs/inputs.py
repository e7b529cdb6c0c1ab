"""The files that a recipe reads: checks that they exist, and marks that identify their content.

Only the user's own files are checked: catalog sources are pinned by their checksums.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from quatrain.core import tracking
from quatrain.core.errors import InputError
from quatrain.core.reading import exists, user_path
from quatrain.core.settings import did_you_mean, suggest
from quatrain.core.wording import format_value
from quatrain.data import sources
from quatrain.data.settings import DataSettings
from quatrain.data.sources import PREFIX as HUB
from quatrain.data.sources import parallel_names, source_names
from quatrain.models.run_folder import model_of_run
from quatrain.runs.recipe import recipe_names
from quatrain.runs.settings import RecipeSettings
from quatrain.runs.stages import spec_of

HASHED_BYTES = 64 * 1024 * 1024
"""Larger files are identified by their size and modification time."""

OWN_DATABASES = ("shop",)
"""Values of `data.database` that name a generated database."""


def input_paths(recipe: RecipeSettings) -> dict[str, Path]:
    """Maps keys of the recipe to the user's files and folders that they name."""
    folder = recipe.model.folder
    named: dict[str, str | None] = {
        "tokenizer.path": recipe.tokenizer.path,
        "model.folder": None if folder is None or is_of_hub(folder) else folder,
        "evaluate.questions": recipe.evaluate.questions,
    }
    for place, data in _data_places(recipe).items():
        for key, source in _sources(data).items():
            sides = _sides(source)
            for number, side in enumerate(sides):
                named[f"{place}.{key}" + (f"[{number}]" if len(sides) > 1 else "")] = side if is_path(side) else None
        named[f"{place}.database"] = data.database if data.database not in OWN_DATABASES else None
        named[f"{place}.preferences"] = data.preferences
    for index, stage in enumerate(recipe.stage):
        for place, model in stage.model_folders().items():
            named[f"stage[{index}].{place}"] = None if is_of_hub(model) else model
    return {key: user_path(value, key) for key, value in named.items() if value}


def is_of_hub(folder: str) -> bool:
    """Whether the folder of a model is the id of a Hugging Face model, owner/name, rather than a local path."""
    from quatrain.models.hub import is_hub_id

    owner, slash, name = folder.partition("/")
    return bool(slash) and "/" not in name and not exists(owner) and is_hub_id(folder)


def beginning(recipe: RecipeSettings) -> Path | None:
    """The folder that `model.folder` names. A model of the Hugging Face hub is downloaded if it is not cached."""
    folder = recipe.model.folder
    if folder is None:
        return None
    if is_of_hub(folder):
        from quatrain.models.hub import resolve

        return resolve(folder)
    return Path(folder).expanduser()


def _data_places(recipe: RecipeSettings) -> dict[str, DataSettings]:
    places = {"data": recipe.data}
    for index, stage in enumerate(recipe.stage):
        places |= {f"stage[{index}].{place}": data for place, data in stage.datasets().items()}
    return places


def _sources(data: DataSettings) -> dict[str, str | None]:
    return {"source": data.source, "dev": data.dev, "test": data.test, "databases": data.databases}


def _sides(source: str | None) -> tuple[str, ...]:
    """The files that a source names: itself, the two of `train.{en,de}`, or those of `a.jsonl + b.jsonl`."""
    return () if not source else parallel_names(source) or source_names(source)


def left_out(recipe: RecipeSettings) -> list[str]:
    """Files in the recipe's data folders that are not read, one line for each kind of file."""
    lines = []
    for source in dict.fromkeys(each for data in _data_places(recipe).values() for each in _folders(data)):
        lines += [f"{source}: {line}" for line in sources.skipped_files(source).lines(source)]
    return lines


def _folders(data: DataSettings) -> list[str]:
    return [side for source in (data.source, data.dev, data.test) for side in _sides(source) if is_path(side)]


def _unknown_sources(recipe: RecipeSettings) -> list[str]:
    """Problems of sources that are neither a file nor a name of the catalog."""
    from quatrain.data import catalog

    problems = []
    for place, data in _data_places(recipe).items():
        for key, named in _sources(data).items():
            for source in _sides(named):
                if source.startswith(HUB) or is_path(source) or catalog.find(source) is not None:
                    continue
                near = did_you_mean(source, list(catalog.CATALOG))
                problems.append(f"{place}.{key}: {format_value(source)} is not a file; must be {_expected(key)}{near}")
    return problems


def is_path(source: str) -> bool:
    """Whether a source is a path: it exists, or it cannot be the name of a catalog entry."""
    from quatrain.data import catalog

    there = exists(source)
    if source.startswith(HUB) or (not there and catalog.find(source) is not None):
        return False
    return there or os.sep in source or "/" in source or Path(source).suffix != "" or source.startswith((".", "~"))


def check_inputs(recipe: RecipeSettings) -> None:
    """Raise InputError that names every file of the recipe that is missing or of the wrong kind."""
    problems = _unknown_sources(recipe)
    for stage in recipe.stage:
        problems += [each for each in spec_of(stage).file_problems(stage, recipe) if each not in problems]
    problems += tracking.missing(recipe.tracking)
    for key, path in input_paths(recipe).items():
        problem = _problem(key, path)
        if problem:
            problems.append(f'{key}: "{path}" {problem}')
    if problems:
        raise InputError("the recipe names files that cannot be used:", problems)


def _problem(key: str, path: Path) -> str | None:
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            return f"is neither a file nor a folder; must be {_expected(key)}"
        if not path.exists():
            near = _near(path)
            maker = _recipe_of(path)
            made = f"; `quatrain run {maker}` makes it" if maker and key.endswith("folder") else ""
            return f"does not exist{near}; must be {_expected(key)}{made}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if key.endswith(("database", "preferences")) and path.is_dir():
        return f"is a folder; must be {_expected(key)}"
    if key == "model.folder" and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        of_run = model_of_run(path) if (path / "model").is_dir() else None
        return "has no config.json; must be a model folder" + (f", such as {of_run} of this run" if of_run else "")
    if path.is_file() and path.stat().st_size == 0:
        return f"is empty; must be {_expected(key)}"
    if path.is_file() and not os.access(path, os.R_OK):
        return "cannot be read: you have no permission"
    return None


def _expected(key: str) -> str:
    last = key.rpartition(".")[2].partition("[")[0]
    return {
        "dev": "a file or folder of data, or a name that `quatrain data list` shows",
        "test": "a file or folder of data, or a name that `quatrain data list` shows",
        "source": "a file or folder of data, a name that `quatrain data list` shows, or hf:owner/name",
        "database": '"shop", or a SQLite file',
        "databases": "a folder, a .zip or a file of SQLite databases",
        "preferences": "a file of preference pairs",
        "path": "a tokenizer.json or the folder of one",
        "folder": "a model folder",
        "embedder": "a model folder of sentence embeddings",
        "templates": "a TOML file of templates",
    }[last]


def _recipe_of(path: Path) -> str | None:
    """The shipped recipe whose run would write this model folder."""
    names = path.parts[-3:]
    return names[1] if len(names) == 3 and names[2] == "model" and names[1] in recipe_names() else None


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    try:
        near = suggest(path.name, (item.name for item in path.parent.iterdir()))
    except OSError:
        return ""
    return f" (did you mean {path.parent / near}?)" if near else ""


def input_marks(recipe: RecipeSettings, before: Mapping[str, str] | None = None) -> dict[str, str]:
    """Maps keys of the recipe to marks of the files' content. A file that is gone keeps its mark of `before`."""
    marks = {}
    for key, path in input_paths(recipe).items():
        try:
            mark: str | None = _mark(path)
        except OSError:
            mark = (before or {}).get(key)
        if mark is not None:
            marks[key] = mark
    return marks


def _mark(path: Path) -> str:
    """A hash of a file's content, or of the names, sizes and times in a folder."""
    digest = hashlib.sha256()
    if path.is_dir():
        for item in sorted(path.rglob("*")):
            if item.is_file():
                stat = item.stat()
                digest.update(f"{item.relative_to(path).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return f"folder:{digest.hexdigest()[:32]}"
    stat = path.stat()
    if stat.st_size > HASHED_BYTES:
        return f"size:{stat.st_size}:{stat.st_mtime_ns}"
    digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()[:32]}"
