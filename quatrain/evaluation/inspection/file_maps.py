"""What a model looks at in a file: the parts of a picture, or the sound that each word came from.

The model's family says what it reads, and `READERS` has the views of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.processors import FILE, find_processor
from quatrain.evaluation.inspection.subject import Subject
from quatrain.models.families import family_of

WIDEST_GRID = 16
"""The most columns of patches whose shares are written out."""
NAMED = 5


@dataclass(frozen=True)
class FileMaps:
    """The maps of one file: lines for a terminal, values for programs, and `draw`, which gives a PNG."""

    lines: list[str]
    record: dict[str, Any]
    draw: Callable[[], bytes]


def file_maps(subject: Subject, path: Path) -> FileMaps:
    """The maps of a picture or a recording.

    Raises InputError for a model that reads texts alone or has no processor, and for a file that it cannot read.
    """
    reads = family_of(subject.raw_config).features
    if reads not in READERS:
        raise InputError(
            f"--file {path}: {subject.name} reads texts alone; it must be a model of {' or '.join(READERS)}. "
            "Give it a text with --text"
        )
    processor = find_processor(subject.base)
    if processor is None:
        raise InputError(f"{subject.base}: has no {FILE}, which says how {reads} are prepared for the model.")
    return READERS[reads](subject, processor, path)


def _of_picture(subject: Subject, processor: Any, path: Path) -> FileMaps:
    """Attention rollout and the map of each layer over the patches of a picture."""
    from quatrain.evaluation.inspection.picture_attention import maps_picture, patch_maps

    pixels, rollout, layers = patch_maps(subject.model, processor, path)
    rows, columns = rollout.shape
    lines = [f"Attention rollout over {rows} x {columns} patches, in % of what the pooled state gets from the picture:"]
    if columns <= WIDEST_GRID:
        lines += ["", *("".join(f"{share * 100:6.1f}" for share in row) for row in rollout), ""]
    order = np.argsort(-rollout, axis=None, kind="stable")[:NAMED]
    places = [(int(place) // columns + 1, int(place) % columns + 1) for place in order]
    strongest = ", ".join(f"row {row} column {column}" for row, column in places)
    lines.append(f"The strongest: {strongest}")
    record = {"rollout": rollout.tolist(), "layers": [layer.tolist() for layer in layers]}
    return FileMaps(lines, record, lambda: maps_picture(pixels, rollout, layers, title=f"{subject.title}: {path.name}"))


def _of_sound(subject: Subject, processor: Any, path: Path) -> FileMaps:
    """The words of the first window with the sound that cross-attention says they came from."""
    from quatrain.data.sounds import waveform
    from quatrain.evaluation.inspection.sound_picture import word_picture
    from quatrain.generation.engine import Engine
    from quatrain.generation.transcription import Transcriber

    engine = Engine(subject.model, subject.tokenizer, target_tokenizer=subject.target_tokenizer)
    transcriber = Transcriber(engine, processor)
    words, weights = transcriber.word_map(path)
    samples = waveform(path, processor.sampling_rate)[: processor.num_samples]
    lines = ["Seconds of the sound that each word came from:", ""]
    lines += [f"{word.start:7.2f} {word.end:7.2f}  {word.text.strip()}" for word in words]
    record = [{"text": word.text, "start": round(word.start, 2), "end": round(word.end, 2)} for word in words]
    title = f"{subject.title}: {path.name}"
    return FileMaps(
        lines, {"words": record},
        lambda: word_picture(samples, processor.sampling_rate, words, weights, transcriber.step, title=title),
    )  # fmt: skip


READERS: dict[str, Callable[[Subject, Any, Path], FileMaps]] = {"pictures": _of_picture, "sound": _of_sound}
"""The view of a file by what a model's family reads."""
