"""Voice activity: which parts of a sound may be speech, from its level alone.

A recognizer that is given silence or a hum invents words. Speech is loud at times and quiet at times, because syllables
and pauses alternate; silence is quiet, and noise, tones and hums are level. No model is needed to tell these apart.
"""

from __future__ import annotations

import numpy as np

FRAME = 0.03
"""Seconds of a frame whose level is measured."""
QUIET = -60.0
"""Decibels below full scale under which a frame is silent."""
LEVEL_RANGE = 3.0
"""Decibels between the 5 % quietest and the 5 % loudest frames; a sound that varies less has no syllables."""
DEPTH = 40.0
"""Decibels below the loudest frames at which a frame is a pause."""
MARGIN = 0.2
"""Seconds that are added on both sides of an active part: consonants are quiet."""


def levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """The level of each frame in decibels of full scale; the last, shorter frame counts too."""
    size = max(int(FRAME * rate), 1)
    if not len(samples):
        return np.zeros(0)
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % size))
    counts = np.full(len(padded) // size, float(size))
    counts[-1] = size - (-len(samples) % size)
    power = np.square(padded).reshape(-1, size).sum(axis=1) / counts
    return 10.0 * np.log10(power + 1e-12)


def active_parts(samples: np.ndarray, rate: int) -> list[tuple[float, float]]:
    """The parts (start, end), in seconds, that may be speech; none for silence and for sounds of a constant level."""
    level = levels(samples, rate)
    if not len(level):
        return []
    loud = level[level > QUIET]
    heard = np.maximum(level, QUIET)
    if not len(loud) or (len(level) >= 10 and np.ptp(np.percentile(heard, (5, 95))) < LEVEL_RANGE):
        return []
    threshold = max(QUIET, float(np.percentile(level, 99)) - DEPTH)
    parts: list[tuple[float, float]] = []
    length = len(samples) / rate
    for place in np.flatnonzero(level > threshold):
        start, end = max(place * FRAME - MARGIN, 0.0), min((place + 1) * FRAME + MARGIN, length)
        if parts and start <= parts[-1][1]:
            parts[-1] = parts[-1][0], end
        else:
            parts.append((start, end))
    return parts


def is_active(parts: list[tuple[float, float]], start: float, end: float) -> bool:
    """Whether an active part overlaps the time from `start` to `end`."""
    return any(begin < end and start < stop for begin, stop in parts)
