"""Log-mel features equal the published filters and transformers' extractor; voice activity tells speech from hum."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.models.audio.activity import active_parts, is_active, levels
from quatrain.models.audio.features import LogMel, mel_filters

DATA = Path(os.environ.get("QUATRAIN_DATA", "/nonexistent")) / "audio"
NOISE = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)


@pytest.mark.parametrize("bands", [80, 128])
def test_filters_are_the_published_ones(bands):
    if not DATA.is_dir():
        pytest.skip("QUATRAIN_DATA is not set")
    with np.load(DATA / "whisper_mel_filters.npz") as published:
        np.testing.assert_allclose(mel_filters(bands).numpy(), published[f"mel_{bands}"], atol=1e-8, rtol=0)


SETTINGS = [
    {},
    {"chunk_length": 1},
    {"feature_size": 40, "chunk_length": 2, "hop_length": 80, "n_fft": 256, "sampling_rate": 8000},
]


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("own", SETTINGS, ids=["whisper", "short", "other sizes"])
def test_features_are_those_of_transformers(own, tmp_path):
    theirs = transformers.WhisperFeatureExtractor(**own)
    theirs.save_pretrained(tmp_path)
    ours = LogMel.load(tmp_path)
    sounds = [NOISE, NOISE[:777], np.zeros(500, np.float32), np.zeros(0, np.float32)]
    sounds.append(np.tile(NOISE, 3)[: ours.num_samples + 99])
    for sound in sounds:
        expected = theirs(sound, sampling_rate=ours.sampling_rate, return_tensors="pt").input_features
        torch.testing.assert_close(ours(sound), expected, atol=1e-5, rtol=0)
    assert ours(sounds).shape == (5, ours.feature_size, ours.num_frames)


def test_settings_are_written_as_they_were_read(tmp_path):
    transformers.WhisperFeatureExtractor(feature_size=40).save_pretrained(tmp_path / "theirs")
    ours = LogMel.load(tmp_path / "theirs")
    ours.save(tmp_path)
    back = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path)
    assert back.to_dict() == transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "theirs").to_dict()
    assert LogMel.load(tmp_path) == ours and LogMel.load(tmp_path / "nothing") == LogMel()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"feature_size": 0, "hop_length": "x"}, ("feature_size: 0", "hop_length")),
        ({"hop_length": 800}, ("hop_length: 800; must be at most n_fft",)),
        ({"dither": 0.1}, ("dither: 0.1; only 0.0",)),
        ([1], ("must",)),
    ],
)
def test_wrong_settings_are_named(content, words, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        LogMel.load(tmp_path)
    assert all(word in str(error.value) for word in words)


def test_damaged_waveforms_are_refused():
    with pytest.raises(InputError, match="NaN or infinite"):
        LogMel()(np.array([0.0, np.nan], np.float32))
    with pytest.raises(InputError, match="one dimension"):
        LogMel()([np.zeros((2, 3), np.float32)])


def test_only_what_rises_and_falls_is_active():
    rate, time = 8000, np.arange(8000 * 3) / 8000
    noise = np.random.default_rng(1).normal(0, 0.05, len(time))
    for sound in (np.zeros(0), np.zeros(24_000), noise, 0.3 * np.sin(2 * np.pi * 100 * time), noise * 1e-4):
        assert active_parts(sound, rate) == []
    syllables = noise * (np.sin(2 * np.pi * 2 * time) > 0) * (time > 1) * (time < 2)
    parts = active_parts(syllables + 1e-5 * noise, rate)
    assert len(parts) == 1 and parts[0][0] == pytest.approx(0.8, abs=0.1) and parts[0][1] == pytest.approx(2, abs=0.3)
    assert is_active(parts, 1.5, 1.6) and not is_active(parts, 2.5, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5000), st.floats(1e-3, 1.0), st.integers(0, 9))
def test_levels_are_decibels_and_parts_lie_within_the_sound(count, size, seed):
    samples = np.random.default_rng(seed).normal(0, size, count)
    level = levels(samples, 8000)
    assert len(level) == -(-count // 240)
    if count >= 240:
        assert level[0] == pytest.approx(20 * np.log10(np.sqrt(np.mean(samples[:240] ** 2))), abs=0.5)
    parts = active_parts(samples, 8000)
    edges = [edge for part in parts for edge in part]
    assert edges == sorted(edges) and all(0 <= edge <= count / 8000 for edge in edges)
