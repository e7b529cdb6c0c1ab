"""Spoken digits as pictures: the spectrogram of each recording of the Free Spoken Digit Dataset (Jackson et al. 2018).

Time runs to the right, pitch upwards, and louder is brighter. Takes 0 and 1 of every speaker are held out.
"""

from __future__ import annotations

import io
import wave
import zipfile

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data import catalog
from quatrain.data.images import pillow
from quatrain.data.pictures import Picture, PictureSet

SOURCE = "spoken-digits"
HELD_TAKES = ("0", "1")
WINDOW, HOP = 256, 64
"""Samples of a window and between two windows: 32 and 8 ms at 8 kHz."""
SIDE = 64
"""Pixels of a side."""
RANGE = 8.0
"""From the loudest to black, in nats."""


def load(seed: int = 0) -> PictureSet:
    """480 recordings to learn from, 120 held out. Raises InputError for an archive with other files."""
    train: list[Picture] = []
    held: list[Picture] = []
    with zipfile.ZipFile(catalog.fetch(SOURCE)) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(".wav"):
                continue
            digit, _, take = name.rpartition("/")[2].removesuffix(".wav").split("_")
            picture = Picture(spectrogram(_samples(archive.read(name), name)), digit, place=name)
            (held if take in HELD_TAKES else train).append(picture)
    return PictureSet(train, {"spoken digits": held})


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """The picture (64, 64) in bytes of samples (N): log magnitudes of windows, stretched to the sides."""
    padded = np.pad(samples, (WINDOW // 2, WINDOW))
    starts = np.arange(0, max(1, len(samples)), HOP)
    windows = np.stack([padded[start : start + WINDOW] for start in starts]) * np.hanning(WINDOW)
    loudness = np.log(np.abs(np.fft.rfft(windows, axis=1)).T[::-1] + 1e-9)
    pixels = ((loudness - loudness.max() + RANGE) / RANGE).clip(0, 1) * 255
    image = pillow()
    return np.asarray(image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE), image.Resampling.BILINEAR))


def _samples(data: bytes, name: str) -> np.ndarray:
    with wave.open(io.BytesIO(data)) as file:
        if file.getsampwidth() != 2 or file.getnchannels() != 1:
            raise InputError(f"{name}: must be mono with 16 bits")
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float64) / 32768
