"""Windows of sensor readings: from a CSV file, or generated accelerometer traces of human activities.

The generated traces have activities of two kinds. Standing, walking, running and stairs repeat a pattern: any second of
them tells which it is. The last two share all their movements, sitting down and standing up, and differ in their
order alone.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.core.wording import format_value

RATE = 25.0
"""Generated readings in a second."""
GRAVITY = 9.81
LOCAL = ("standing", "walking", "running", "stairs")
"""Activities that a short stretch shows."""
ORDERED = ("sit down, stand up", "stand up, sit down")
"""Activities that only the order of two distant movements tells apart."""
ACTIVITIES = LOCAL + ORDERED
MAX_ROWS = 5_000_000


@dataclass(frozen=True)
class SeriesWindow:
    """Readings (T, C) and their label."""

    values: np.ndarray
    label: str

    def __len__(self) -> int:
        return len(self.values)


def generate(count: int, *, seed: int, length: int = 128) -> list[SeriesWindow]:
    """`count` windows of three axes, their activities in turns, each drawn from (seed, number).

    Raises InputError for windows that are too short for two movements.
    """
    if length < 64:
        raise InputError(f"window: {length}; must be at least 64 readings: two movements have to fit in.")
    return [
        SeriesWindow(_trace(ACTIVITIES[number % len(ACTIVITIES)], np.random.default_rng((seed, number)), length),
                     ACTIVITIES[number % len(ACTIVITIES)])
        for number in range(count)
    ]  # fmt: skip


def _trace(activity: str, random: np.random.Generator, length: int) -> np.ndarray:
    """One window: gravity, the movement, a tilt of the sensor and noise."""
    time = np.arange(length) / RATE
    trace = np.zeros((length, 3))
    steps = {"walking": (1.8, 2.5), "running": (2.8, 7.0), "stairs": (1.5, 3.5)}
    if activity in steps:
        frequency, strength = (value * random.uniform(0.9, 1.1) for value in steps[activity])
        phase = random.uniform(0, 2 * np.pi)
        turn = 2 * np.pi * frequency * time + phase
        trace[:, 2] += strength * (np.sin(turn) + 0.4 * np.sin(2 * turn))
        trace[:, 0] += 0.5 * strength * np.sin(turn / 2)
        if activity == "stairs":
            trace[:, 1] += 1.5 * np.maximum(0, np.sin(turn / 2)) ** 3
    if activity in ORDERED:
        moves = [-1.0, 1.0] if activity == ORDERED[0] else [1.0, -1.0]
        places = random.uniform(0.12, 0.3), random.uniform(0.65, 0.85)
        for move, place in zip(moves, places, strict=True):
            centre, width = place * length / RATE, 0.35
            bump = (time - centre) / width
            # The body accelerates and brakes: the second half of a movement mirrors the first.
            trace[:, 2] += -move * 9.0 * bump * np.exp(-(bump**2))
            trace[:, 1] += 2.0 * np.exp(-(bump**2))
    tilt = random.normal(0, 0.08, 2)
    trace[:, 0] += GRAVITY * np.sin(tilt[0])
    trace[:, 1] += GRAVITY * np.sin(tilt[1])
    trace[:, 2] += GRAVITY * np.cos(tilt[0]) * np.cos(tilt[1])
    return (trace + random.normal(0, 0.35, trace.shape)).astype(np.float32)


def read_csv(path: str | Path, *, length: int, stride: int | None = None) -> list[SeriesWindow]:
    """Windows of a CSV file with a header: a column `label`, optionally `series` (a window never spans two), numbers.

    A window has `length` rows of one label, and starts `stride` rows after the last one (by default half a window).
    Raises InputError that names the wrong rows.
    """
    file = user_path(path, "data.source")
    stride = stride or max(1, length // 2)
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV in UTF-8 ({error}).") from error
    if not rows:
        raise InputError(f"{path}: has no rows below its header.")
    if len(rows) > MAX_ROWS:
        raise InputError(f"{path}: {len(rows):,} rows; at most {MAX_ROWS:,} are read. Split the file.")
    columns = [name for name in rows[0] if name not in ("label", "series")]
    if "label" not in rows[0] or not columns or None in columns:
        raise InputError(f"{path}: has the columns {', '.join(map(str, rows[0]))}; needs label and columns of numbers.")
    values, problems = np.empty((len(rows), len(columns)), dtype=np.float32), []
    for number, row in enumerate(rows):
        try:
            values[number] = [float(row[name]) for name in columns]
        except (TypeError, ValueError):
            wrong = next(name for name in columns if not _is_number(row[name]))
            problems.append(f"line {number + 2}: {wrong}: {format_value(row[wrong])}; must be a number")
    if problems:
        raise InputError(f"{path}: these rows cannot be read:", problems[:20])
    if not np.isfinite(values).all():
        line = int(np.flatnonzero(~np.isfinite(values).all(1))[0]) + 2
        raise InputError(f"{path}: line {line}: NaN or infinity; remove the row, or fill it in.")
    keys = [(row.get("series"), row["label"]) for row in rows]
    return _windows(values, keys, length, stride, str(path))


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return text is not None


def _windows(
    values: np.ndarray, keys: Sequence[tuple[str | None, str]], length: int, stride: int, name: str
) -> list[SeriesWindow]:
    """Windows within stretches of equal keys. Raises InputError if no stretch is long enough."""
    windows, start = [], 0
    for end in range(1, len(keys) + 1):
        if end < len(keys) and keys[end] == keys[start]:
            continue
        windows += [
            SeriesWindow(values[begin : begin + length], keys[start][1])
            for begin in range(start, end - length + 1, stride)
        ]
        start = end
    if not windows:
        raise InputError(f"{name}: no stretch of one label has {length} rows; make the window smaller.")
    return windows
