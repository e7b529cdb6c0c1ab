"""Reads sound files: any format of libsndfile (WAV, FLAC, OGG, MP3, …) to mono samples at the rate that a model needs.

A file is recognized by its content, not by its name, and read block by block, so that an hour takes no more memory than
a minute. Channels are averaged; soxr resamples. Needs the extra `audio` (soundfile, soxr).
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.reading import open_regular, user_path
from quatrain.core.wording import format_value, write_text

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".m4a", ".wma")
"""Endings of sound files; of the last two, libsndfile reads none, and the message says how to convert them."""
BLOCK = 1 << 16
"""Samples of each channel that are read at once."""
MAX_CHANNELS = 64
_RATES = (1_000, 768_000)
_OPEN_ENDED = (0, 0xFFFFFFFF)
"""Sizes in the header of a WAV file that was written without knowing its length."""


def libraries() -> tuple[Any, Any]:
    """The modules soundfile and soxr. Raises InputError that says how to install them."""
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: libsndfile itself is missing.
        raise InputError(
            f"Reading sound needs soundfile and soxr ({error}). Install them with: pip install 'quatrain[audio]'"
        ) from error
    return soundfile, soxr


class SoundFile:
    """A sound file that is read from its beginning to its end, as mono float32 samples at `rate`.

    `duration` is its length in seconds, as the header says until it was read; `truncated`: whether samples are missing.
    Raises InputError for what is no sound file, and for one that is damaged.
    """

    def __init__(self, source: str | Path | bytes, rate: int):
        self._soundfile, self._soxr = libraries()
        self.name = "the sound" if isinstance(source, bytes) else str(source)
        self._handle: Any = io.BytesIO(source) if isinstance(source, bytes) else open_regular(user_path(source))
        self.rate = rate
        head = self._handle.read(12)
        size = self._handle.seek(0, io.SEEK_END)
        self._handle.seek(0)
        if not size:
            self.close()
            raise InputError(f"{self.name} is empty: it has no bytes")
        self.truncated = _is_cut(head, size)
        try:
            self._file = self._soundfile.SoundFile(self._handle)
        except (self._soundfile.LibsndfileError, RuntimeError) as error:
            self.close()
            raise InputError(f"{self.name} is not a sound file that can be read ({_reason(error)}). {HINT}") from error
        self.native_rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        if not _RATES[0] <= self.native_rate <= _RATES[1] or self.channels > MAX_CHANNELS:
            self.close()
            raise InputError(
                f"{self.name} claims {self.native_rate:,} samples per second in {self.channels} channels; "
                f"{_RATES[0]:,} to {_RATES[1]:,} in at most {MAX_CHANNELS} are read. Its header is damaged."
            )
        self.duration = max(int(self._file.frames), 0) / self.native_rate

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if getattr(self, "_file", None) is not None:
            self._file.close()
        self._handle.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples, in blocks."""
        resampler = None
        if self.native_rate != self.rate:
            resampler = self._soxr.ResampleStream(self.native_rate, self.rate, 1, dtype="float32")
        read = 0
        while True:
            try:
                block = self._file.read(BLOCK, dtype="float32", always_2d=True)
            except (self._soundfile.LibsndfileError, RuntimeError) as error:
                raise InputError(
                    f"{self.name} is damaged after {read / self.native_rate:.1f} s: {_reason(error)}"
                ) from error
            read += len(block)
            mono = block[:, 0] if self.channels == 1 else block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise InputError(f"{self.name} is damaged: it has samples that are NaN or infinite")
            last = len(block) < BLOCK
            if resampler is not None:
                mono = resampler.resample_chunk(np.ascontiguousarray(mono), last=last)
            if len(mono):
                yield mono
            if last:
                break
        self.truncated = self.truncated or read < int(self._file.frames)
        self.duration = read / self.native_rate


class SoundStream:
    """A window that moves forward over a sound file: `read(start, count)` with starts that never fall.

    Only the samples from the last start on are in memory.
    """

    def __init__(self, file: SoundFile):
        self.file, self._blocks = file, file.blocks()
        self._first, self._kept, self._ended = 0, np.zeros(0, np.float32), False

    def read(self, start: int, count: int) -> np.ndarray:
        """The samples from `start` on: `count`, or fewer at the end of the file."""
        parts, length = [self._kept], len(self._kept)
        while not self._ended and self._first + length < start + count:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                break
            parts.append(block)
            length += len(block)
            if self._first + length <= start:  # All of it lies before the window.
                self._first, parts, length = self._first + length, [np.zeros(0, np.float32)], 0
        self._kept = np.concatenate(parts) if len(parts) > 1 else parts[0]
        passed = min(max(start - self._first, 0), len(self._kept))
        self._first, self._kept = self._first + passed, self._kept[passed:]
        return self._kept[:count]


def read_sound(source: str | Path | bytes, rate: int, *, most: float = 3600.0) -> np.ndarray:
    """All samples of a sound file, or of its content, as mono float32 at `rate`.

    Raises InputError for one of more than `most` seconds, which has to be read in windows. A file that ends before its
    header says is read as far as it goes, and standard error says so.
    """
    with SoundFile(source, rate) as file:
        if file.duration > most:
            raise InputError(f"{file.name} has {file.duration:,.0f} s of sound; at most {most:,.0f} s are read at once")
        blocks = list(file.blocks())
        warn_if_cut(file)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def warn_if_cut(file: SoundFile) -> None:
    """Says on standard error if a file that was read ends before its header says."""
    if file.truncated:
        write_text(sys.stderr, f"{file.name}: the file is cut off; read as far as it goes ({file.duration:.1f} s)\n")


def waveform(value: Any, rate: int) -> np.ndarray:
    """Mono samples at `rate` of a file's path or content, or of an array that already has this rate.

    An array of shape (samples,) is taken as it is, one of shape (samples, channels) is averaged. Raises InputError for
    other values.
    """
    if isinstance(value, str | Path | bytes):
        return read_sound(value, rate)
    array = np.asarray(value)
    if array.dtype.kind == "i":
        array = array / float(np.iinfo(array.dtype).max + 1)
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise InputError(f"sound: {format_value(value)}; must be a file, its bytes, or an array of samples")
    array = array.mean(axis=1) if array.ndim == 2 else array
    if not np.isfinite(array).all():
        raise InputError("sound: has samples that are NaN or infinite")
    return array.astype(np.float32)


def _is_cut(head: bytes, size: int) -> bool:
    """Whether the header of a WAV file names more bytes than the file has."""
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return False
    (named,) = struct.unpack("<I", head[4:8])
    return named not in _OPEN_ENDED and named + 8 > size + 1


def _reason(error: Exception) -> str:
    text = str(error).removeprefix("Error opening ")
    return text.rpartition(": ")[2].strip().rstrip(".") or type(error).__name__


HINT = "Readable are WAV, FLAC, OGG, MP3, AIFF and others of libsndfile; `ffmpeg -i FILE out.wav` converts the rest."
