"""The sentences of the questions, from `frames.toml`: by family of shapes, those of training and the held-out ones."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Frames:
    """The sentences for one kind of question, with slots such as `{np}`; `frames.toml` explains them."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def _read() -> dict[str, Frames]:
    with Path(__file__).with_name("frames.toml").open("rb") as file:
        return {
            name: Frames(tuple(parts["train"]), tuple(parts["held_out"])) for name, parts in tomllib.load(file).items()
        }


FRAMES: dict[str, Frames] = _read()
