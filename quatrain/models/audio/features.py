"""Log-mel features: from a waveform to what Whisper's encoder reads (Radford et al. 2022, arXiv 2212.04356).

The power spectrum of 25 ms windows, one each 10 ms, is summed into bands that are equal in width on the mel scale
(Slaney's Auditory Toolbox, 1998); logarithms are limited to 8 orders of magnitude below the loudest and scaled to about
-1 to 1. The settings are those of a model folder's `preprocessor_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import exists, read_json, user_path
from quatrain.core.wording import format_value

PREPROCESSOR = "preprocessor_config.json"
QUIETEST = 1e-10
"""The least energy of a band, so that silence has a logarithm."""
DYNAMIC_RANGE = 8.0
"""Powers of ten below the loudest band of a clip that are kept."""
MAX_FREQUENCY = 8000.0
"""The upper end of the highest band in Hz, whatever the sampling rate; that of Whisper."""

_LINEAR_STEP = 200.0 / 3
_LOG_START = 1000.0
_LOG_STEP = np.log(6.4) / 27


def _to_mel(hertz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale: linear up to 1000 Hz, logarithmic above."""
    above = _LOG_START / _LINEAR_STEP + np.log(np.maximum(hertz, _LOG_START) / _LOG_START) / _LOG_STEP
    return np.where(hertz < _LOG_START, hertz / _LINEAR_STEP, above)


def _to_hertz(mel: np.ndarray) -> np.ndarray:
    start = _LOG_START / _LINEAR_STEP
    return np.where(mel < start, mel * _LINEAR_STEP, _LOG_START * np.exp(_LOG_STEP * (mel - start)))


@cache
def mel_filters(bands: int, n_fft: int = 400, sampling_rate: int = 16_000) -> Tensor:
    """Triangular filters (bands, n_fft / 2 + 1) up to 8 kHz, each of area 1 (Slaney's normalization)."""
    edges = _to_hertz(np.linspace(_to_mel(np.array(0.0)), _to_mel(np.array(MAX_FREQUENCY)), bands + 2))
    frequencies = np.linspace(0, sampling_rate // 2, n_fft // 2 + 1)
    slopes = edges[:, None] - frequencies
    widths = np.diff(edges)[:, None]
    triangles = np.maximum(0.0, np.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]))
    return torch.from_numpy((triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32))


@dataclass(frozen=True)
class LogMel:
    """Computes features; the fields are the keys of `preprocessor_config.json`, with Whisper's defaults.

    Raises InputError, all problems at once, for values that cannot be used.
    """

    feature_size: int = 80
    """Mel bands."""
    sampling_rate: int = 16_000
    """Samples per second."""
    hop_length: int = 160
    """Samples from one frame to the next."""
    n_fft: int = 400
    """Samples of a window."""
    chunk_length: int = 30
    """Seconds of a clip; shorter sounds are padded with silence, longer ones are cut."""
    extra: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)
    """Further keys of the file, written back unchanged."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {format_value(getattr(self, name))}; must be a whole number from 1 to {most:,}"
            for name, most in LIMITS.items()
            if not isinstance(value := getattr(self, name), int) or isinstance(value, bool) or not 1 <= value <= most
        ]
        fixed = {"padding_value": 0.0, "dither": 0.0, "do_normalize": False}
        problems += [
            f"{name}: {format_value(self.extra[name])}; only {value} is supported"
            for name, value in fixed.items()
            if self.extra.get(name) not in (None, value)
        ]
        if not problems and self.hop_length > self.n_fft:
            problems.append(f"hop_length: {self.hop_length}; must be at most n_fft ({self.n_fft})")
        if problems:
            raise InputError(f"This {PREPROCESSOR} cannot be used for sound:", problems)

    @classmethod
    def load(cls, folder: str | Path) -> LogMel:
        """The settings of a model folder; those of Whisper where it has no `preprocessor_config.json`."""
        path = user_path(folder, "the model") / PREPROCESSOR
        if not exists(path):
            return cls()
        return cls.read(read_json(path))

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> LogMel:
        """The settings of a `preprocessor_config.json`."""
        own = {name: raw[name] for name in LIMITS if raw.get(name) is not None}
        return cls(**own, extra={key: value for key, value in raw.items() if key not in LIMITS})

    @property
    def fingerprint(self) -> str:
        """What identifies the features, for caches."""
        return " ".join(f"{name}={getattr(self, name)}" for name in LIMITS)

    def save(self, folder: str | Path) -> None:
        """Writes `preprocessor_config.json`, which transformers' WhisperFeatureExtractor reads."""
        fixed = {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "n_samples": self.num_samples,
            "nb_max_frames": self.num_frames,
        }
        own = {name: getattr(self, name) for name in LIMITS}
        write_json(Path(folder) / PREPROCESSOR, fixed | self.extra | own)

    @property
    def num_samples(self) -> int:
        """Samples of a clip."""
        return self.chunk_length * self.sampling_rate

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.num_samples // self.hop_length

    @property
    def frames_per_second(self) -> float:
        """Frames of one second."""
        return self.sampling_rate / self.hop_length

    def __call__(self, waveforms: Sequence[Any] | Any) -> Tensor:
        """Features (B, feature_size, num_frames) of mono waveforms at `sampling_rate`, each cut or padded to a clip.

        One waveform, an array of one dimension, gives a batch of one. Raises InputError for NaN, infinite values and
        other shapes.
        """
        single = hasattr(waveforms, "ndim") and waveforms.ndim == 1
        rows = [self._clip(row) for row in ([waveforms] if single else waveforms)]
        if not rows:
            raise InputError("There is no waveform to compute features of.")
        return self.features(torch.stack(rows))

    def features(self, waveforms: Tensor) -> Tensor:
        """Features (B, feature_size, samples / hop_length) of waveforms (B, samples) as they are."""
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(waveforms, self.n_fft, self.hop_length, window=window, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        energies = mel_filters(self.feature_size, self.n_fft, self.sampling_rate) @ power
        logarithms = energies.clamp(min=QUIETEST).log10()
        loudest = logarithms.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(logarithms, loudest - DYNAMIC_RANGE) + 4.0) / 4.0

    def _clip(self, waveform: Any) -> Tensor:
        samples = torch.as_tensor(waveform, dtype=torch.float32)
        if samples.dim() != 1:
            raise InputError(f"A waveform has shape {tuple(samples.shape)}; must have one dimension (mono).")
        samples = samples[: self.num_samples]
        if not bool(samples.isfinite().all()):
            raise InputError("A waveform contains NaN or infinite values; its file is damaged.")
        return torch.nn.functional.pad(samples, (0, self.num_samples - len(samples)))


LIMITS = {"feature_size": 1024, "sampling_rate": 768_000, "hop_length": 100_000, "n_fft": 100_000, "chunk_length": 600}
"""The keys that shape features, and their largest values."""
