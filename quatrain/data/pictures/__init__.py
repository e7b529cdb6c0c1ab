"""Sets of pictures: one module each, found by its place, and folders with a subfolder of pictures for each class.

A module has `load(seed) -> PictureSet`. Recipes name sets; `a + b` joins sets of the same task.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.core.wording import format_value
from quatrain.data.images import pictures_in
from quatrain.data.rows import RECORD_SUFFIXES

JOINED = " + "
SHARE = 0.2
"""The share of a folder without a test set that is held out."""


@dataclass(frozen=True)
class Question:
    """A question about a picture; `kind` groups questions whose answers are of one kind."""

    text: str
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture with what is said of it: its class, a caption, or questions with answers, by the set.

    `source` is what `read_image` takes: a path or pixels. `captions` are further texts that are true of it, and
    say less.
    """

    source: Any
    label: str = ""
    caption: str = ""
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    place: str = ""

    def __len__(self) -> int:
        """Batches are counted in pictures."""
        return 1


@dataclass(frozen=True)
class PictureSet:
    """Pictures to learn from, and those held out by the name of the set."""

    train: Sequence[Picture]
    held_out: dict[str, Sequence[Picture]] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the training pictures, sorted."""
        return tuple(sorted({picture.label for picture in self.train}))


def names() -> list[str]:
    """The sets that the package makes or knows."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load_pictures(source: str, seed: int = 0) -> PictureSet:
    """The pictures of a set's name, of a folder, of a file of questions, or of several joined by " + ".

    Of a folder without the subfolders `train` and `test`, a fifth of each class is held out, drawn by `seed`. Raises
    InputError for an unknown name, a folder without classes, and a test set with classes that the training lacks.
    """
    train: list[Picture] = []
    held_out: dict[str, Sequence[Picture]] = {}
    for name in (part.strip() for part in source.split(JOINED)):
        one = _one(name, seed)
        train += one.train
        held_out |= {key if key not in held_out else f"{name}: {key}": value for key, value in one.held_out.items()}
    joined = PictureSet(train, held_out)
    for key, pictures in held_out.items():
        if unknown := sorted({each.label for each in pictures} - set(joined.labels)):
            raise InputError(f"{source}: the set {key} has the classes {', '.join(unknown)}, which the training lacks")
    return joined


def _one(name: str, seed: int) -> PictureSet:
    if name in names():
        made: PictureSet = import_module(f"{__name__}.{name.replace('-', '_')}").load(seed)
        return made
    path = user_path(name, "the pictures")
    if path.is_file() and path.suffix.lower() in RECORD_SUFFIXES:
        read: PictureSet = import_module("quatrain.data.picture_records").load_records(path, seed)
        return read
    if not path.is_dir():
        raise InputError(
            f"images: {format_value(name)} is neither a folder nor one of {', '.join(names())}; name a folder with a "
            "subfolder of pictures for each class, or a file of rows with image, question and answer"
        )
    parts = [path / part for part in ("train", "test")]
    if all(part.is_dir() for part in parts):
        train, test = (_of_folder(part) for part in parts)
        return PictureSet(train, {path.name: test})
    pictures = _of_folder(path)
    held: set[int] = set()
    draw = np.random.default_rng(seed)
    for label in sorted({picture.label for picture in pictures}):
        places = [place for place, picture in enumerate(pictures) if picture.label == label]
        if len(places) < 2:
            raise InputError(f"{path / label}: has {len(places)} picture; must have one to learn from and one held out")
        held |= set(draw.permutation(places)[: max(1, round(len(places) * SHARE))].tolist())
    return apart(pictures, held, path.name)


def apart(pictures: Sequence[Picture], held: set[int], name: str) -> PictureSet:
    """The pictures at the places `held` as the set `name` that is held out, the others to learn from."""
    learned, kept = ([each for place, each in enumerate(pictures) if (place in held) == out] for out in (False, True))
    return PictureSet(learned, {name: kept})


def _of_folder(path: Path) -> list[Picture]:
    return [Picture(file, label, place=str(file)) for file, label in pictures_in(path)]
