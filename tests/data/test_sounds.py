"""Sound files: every format, rate and number of channels gives the same samples; what is damaged is refused or told."""

import io

import numpy as np
import pytest

from quatrain.core.errors import InputError
from quatrain.data.sounds import SoundFile, SoundStream, read_sound, waveform

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'quatrain[audio]')")
soxr = pytest.importorskip("soxr", reason="soxr is not installed (pip install 'quatrain[audio]')")

TIME = np.arange(24_000) / 8000
TONE = (0.4 * np.sin(2 * np.pi * 220 * TIME) * (1 + np.sin(2 * np.pi * 3 * TIME)) / 2).astype(np.float32)


def encoded(samples=TONE, rate=8000, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV"} | options)
    return file.getvalue()


SUBTYPES = [{"subtype": "PCM_16"}, {"subtype": "PCM_U8"}, {"subtype": "FLOAT"}]


@pytest.mark.parametrize(
    "options", [*SUBTYPES, *({"format": each} for each in ("FLAC", "AIFF", "OGG", "MP3"))], ids=str
)
def test_every_format_gives_the_same_samples(options):
    read = read_sound(encoded(**options), 8000)
    assert read.dtype == np.float32
    lossy = options.get("format") in ("OGG", "MP3")
    assert np.corrcoef(read[: len(TONE)], TONE[: len(read)])[0, 1] > (0.98 if lossy else 0.999)


def test_channels_are_averaged_and_rates_converted():
    stereo = encoded(np.stack([TONE, np.zeros_like(TONE)], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_sound(stereo, 8000), TONE / 2, atol=1e-7)
    up = read_sound(encoded(subtype="FLOAT"), 16_000)
    assert len(up) == 2 * len(TONE)
    np.testing.assert_allclose(up, soxr.resample(TONE, 8000, 16_000), atol=1e-3)
    assert len(read_sound(encoded(rate=44_100), 16_000)) == pytest.approx(len(TONE) * 16 / 44.1, abs=2)


def test_a_name_does_not_decide_the_format(tmp_path):
    (tmp_path / "music.mp3").write_bytes(encoded(subtype="FLOAT"))
    np.testing.assert_array_equal(read_sound(tmp_path / "music.mp3", 8000), TONE)


def test_no_samples_are_no_error():
    assert len(read_sound(encoded(TONE[:0]), 16_000)) == 0


FLAC = encoded(np.random.default_rng(0).normal(0, 0.2, 200_000), format="FLAC")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: it has no bytes"),
        (b"There is no sound in this text.\n" * 9, "is not a sound file"),
        (encoded()[:40], "is not a sound file"),
        (FLAC[: len(FLAC) // 2], "is damaged after"),
        (encoded(np.full(9, np.nan, np.float32), subtype="FLOAT"), "NaN or infinite"),
    ],
    ids=["empty", "text", "header alone", "half a FLAC", "NaN"],
)
def test_what_is_no_sound_is_refused(content, words, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_sound(tmp_path / "a.wav", 16_000)
    assert "a.wav" in str(error.value)


def test_places_without_a_file_are_refused(tmp_path):
    for place, words in ((tmp_path, "is a folder"), (tmp_path / "no.wav", "does not exist")):
        with pytest.raises(InputError, match=words):
            read_sound(place, 16_000)


def test_a_cut_wav_is_read_as_far_as_it_goes(capsys):
    content = encoded(subtype="PCM_16")
    read = read_sound(content[: len(content) // 2], 8000)
    assert len(read) == pytest.approx(len(TONE) / 2, abs=20)
    assert "cut off; read as far as it goes (1.5 s)" in capsys.readouterr().err
    read_sound(content, 8000)
    assert capsys.readouterr().err == ""


def test_a_stream_reads_the_same_as_the_whole(tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, 300_000).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, 8000, subtype="FLOAT")
    whole = read_sound(tmp_path / "long.wav", 16_000)
    with SoundFile(tmp_path / "long.wav", 16_000) as file:
        assert file.duration == 37.5
        stream = SoundStream(file)
        for start in (0, 7, 7, 150_000, 500_000, 599_990, 700_000):
            np.testing.assert_allclose(stream.read(start, 100_000), whole[start : start + 100_000], atol=1e-6)
            assert len(stream._kept) < 100_000 + 3 * 65_536 + 200_000


def test_long_files_must_be_read_in_windows():
    with pytest.raises(InputError, match="3 s of sound; at most 2 s"):
        read_sound(encoded(), 8000, most=2)


def test_arrays_are_samples():
    np.testing.assert_allclose(waveform((TONE * 32768).astype(np.int16), 8000), TONE, atol=1e-4)
    np.testing.assert_allclose(waveform(np.stack([TONE, TONE], 1), 8000), TONE)
    for wrong in ("", None, np.array([["x"]]), np.array([np.inf])):
        with pytest.raises(InputError):
            waveform(wrong, 8000)
