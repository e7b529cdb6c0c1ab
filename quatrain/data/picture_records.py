"""Files of questions about pictures: rows with `image`, `question` and `answer`, or with LLaVA's `conversations`.

Paths of pictures are relative to the file's folder. `kind` groups questions, `caption` says what is in the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.pictures import SHARE, Picture, PictureSet, Question, apart
from quatrain.data.rows import read_records

SHOWN = 5
"""Faults of rows that a message names."""
SPEAKERS = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer"}


def load_records(path: Path, seed: int = 0) -> PictureSet:
    """The pictures of a file with their questions; a fifth of the pictures is held out, drawn by `seed`.

    Raises InputError, with the first faults, for rows without a picture that exists, a question or an answer, and for
    fewer than two pictures.
    """
    questions: dict[str, list[Question]] = {}
    captions: dict[str, str] = {}
    faults: list[str] = []
    for row in read_records(path):
        value: Any = row.value
        fault = row.fault or ("" if isinstance(value, Mapping) else "must be an object with fields")
        image = "" if fault else value.get("image")
        found = [] if fault else list(_questions(value))
        if not fault and (not isinstance(image, str) or not (path.parent / image).is_file()):
            fault = f"image: {format_value(image, 80)}; must be the path of a picture, relative to {path.parent}"
        elif not fault and not found:
            fault = "must have a question and an answer, or conversations with both"
        if fault:
            faults.append(f"{row.place}: {fault}")
            continue
        questions.setdefault(image, []).extend(found)
        if isinstance(caption := value.get("caption"), str):
            captions[image] = caption
    if faults:
        more = [f"and {len(faults) - SHOWN:,} more"] if len(faults) > SHOWN else []
        raise InputError(f"{path}: rows cannot be read:", [*faults[:SHOWN], *more])
    if len(questions) < 2:
        raise InputError(f"{path}: has {len(questions)} pictures; must have one to learn from and one held out")
    pictures = [
        Picture(path.parent / image, caption=captions.get(image, ""), questions=tuple(own), place=image)
        for image, own in questions.items()
    ]
    order = np.random.default_rng(seed).permutation(len(pictures))
    held = set(order[: max(1, round(len(pictures) * SHARE))].tolist())
    return apart(pictures, held, path.stem)


def _questions(row: Mapping[str, Any]) -> Iterator[Question]:
    """The questions of a row with their answers."""
    kind = str(row.get("kind") or "")
    turns = row.get("conversations")
    if not isinstance(turns, list):
        turns = [{"from": "human", "value": row.get("question")}, {"from": "gpt", "value": row.get("answer")}]
    asked = ""
    for turn in turns:
        role = SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
        text = turn.get("value") if isinstance(turn, Mapping) else None
        text = text.replace("<image>", "").strip() if isinstance(text, str) else ""
        if role == "question":
            asked = text
        elif role == "answer" and asked and text:
            yield Question(asked, text, kind)
            asked = ""
