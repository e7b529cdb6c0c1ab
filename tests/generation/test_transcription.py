"""From sound to text: real weights transcribe Kennedy, times rise over long recordings, silence yields nothing."""

import io
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_whisper import FIRST, theirs
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter
from whisper_weights import whisper_folder

from quatrain.core.errors import InputError
from quatrain.data.sounds import read_sound
from quatrain.evaluation.inspection.sound_picture import word_picture
from quatrain.evaluation.metrics import error_rates
from quatrain.generation.alignment import median_filter, warp
from quatrain.generation.engine import Engine
from quatrain.generation.timestamps import TimestampRules, split_segments
from quatrain.generation.transcription import (
    SpeechOptions,
    Transcriber,
    Transcript,
    compression_ratio,
    split_words,
)
from quatrain.models.audio.features import LogMel
from quatrain.tasks.pipelines import pipeline

JFK = Path(os.environ.get("QUATRAIN_DATA", "/nonexistent")) / "audio/jfk.wav"
TEXT = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country"


@pytest.fixture(scope="module")
def recognize():
    if not JFK.is_file():
        pytest.skip("QUATRAIN_DATA is not set: no shared data")
    pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'quatrain[audio]')")
    return pipeline(model=whisper_folder())


@pytest.fixture(scope="module")
def jfk(recognize):
    return read_sound(JFK, 16_000)


@pytest.mark.slow
def test_real_weights_transcribe_a_president(recognize, jfk):
    transcript = recognize.transcriber.transcribe(JFK, SpeechOptions(timestamps="words"))
    assert error_rates([transcript.text], [TEXT]) == {"wer": 0, "cer": 0}
    assert transcript.language == "en" and transcript.duration == 11 and transcript.words_per_second == 2
    words = [word for segment in transcript.segments for word in segment.words]
    assert [word.text.strip(" .,") for word in words] == TEXT.split()
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= 11
    # The pauses of the speech lie before "ask", which follows the louder half.
    assert 3 < words[5].start + (words[5].end - words[5].start) < 4.5 and 7.5 < words[14].start < 9
    tokens = [token for segment in transcript.segments for token in segment.tokens]
    model = transformers.WhisperForConditionalGeneration.from_pretrained(whisper_folder(), dtype=torch.float32)
    features = recognize.transcriber.features(jfk)
    (expected,) = model.generate(input_features=features, return_timestamps=True).tolist()
    assert tokens == [token for token in expected if token not in (50256, 50257)]
    assert recognize.line("", recognize.transcriber and recognize._output(transcript)).startswith("[00:00.00 - ")


@pytest.mark.slow
def test_times_rise_over_95_seconds(recognize, jfk):
    long = np.tile(jfk, 9)[: 95 * 16_000]  # A text that repeats itself is right here.
    seen = []
    transcript = Transcript()
    for segment in recognize.transcriber.stream(long, SpeechOptions(compression_threshold=3), into=transcript):
        seen.append(segment)
    times = [time for segment in seen for time in (segment.start, segment.end)]
    assert times == sorted(times) and times[-1] <= 95 and times[-1] > 85 and len(seen) > 8
    assert transcript.duration == 95
    text = "".join(segment.text for segment in seen)
    assert error_rates([text], [" ".join([TEXT] * 9)])["wer"] < 0.2
    for one, other in pairwise(seen):
        assert one.end <= other.start + 1e-9


@pytest.mark.slow
def test_other_formats_give_the_same_text_and_silence_after_it_adds_nothing(recognize, jfk, tmp_path):
    import soundfile
    import soxr

    telephone = soxr.resample(jfk, 16_000, 8000)
    quiet = np.concatenate([telephone, np.zeros(8000 * 25, np.float32)])
    soundfile.write(tmp_path / "a.wav", np.stack([quiet, quiet], axis=1), 8000)
    found = recognize(str(tmp_path / "a.wav"), timestamps="none")
    assert error_rates([found["text"]], [TEXT])["wer"] < 0.1
    words, weights = recognize.transcriber.word_map(jfk)
    assert [word.text.strip(" .,") for word in words] == TEXT.split() and weights.shape == (22, 550)
    picture = word_picture(jfk, 16_000, words, weights, recognize.transcriber.step, title="jfk.wav")
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


# Without real weights


class Words:
    """A tokenizer whose tokens are letters."""

    stop_ids: frozenset[int] = frozenset()

    def encode(self, text, special_tokens=False):
        return [ord(letter) % 60 for letter in text]

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(f"w{token}" for token in ids)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from quatrain.models.io import model_folder

    folder = tmp_path_factory.mktemp("tiny")
    theirs().save_pretrained(folder)
    return Transcriber(Engine(model_folder.load(folder), Words()), LogMel(feature_size=16, chunk_length=1))


SPEECH = np.sin(np.arange(16_000 * 3) / 40) * (np.sin(np.arange(16_000 * 3) / 2500) > 0) * 0.3


def test_silence_noise_and_hums_yield_nothing(tiny, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 40_000)
    for sound in (np.zeros(0), np.zeros(40_000), noise, np.sin(np.arange(40_000) / 20)):
        transcript = tiny.transcribe(sound.astype(np.float32))
        assert transcript.segments == [] and transcript.text == "" and transcript.words_per_second == 0
    soundfile = pytest.importorskip("soundfile")
    for rate, seconds in ((8000, 0), (8000, 3600)):
        with soundfile.SoundFile(tmp_path / "still.wav", "w", rate, 1) as file:
            for _ in range(seconds // 60):
                file.write(np.zeros(60 * rate, np.float32))
        transcript = tiny.transcribe(tmp_path / "still.wav")
        assert transcript.segments == [] and transcript.duration == seconds


@pytest.mark.parametrize("times", ["none", "segments", "words"])
def test_segments_of_any_model_rise_and_lie_within_the_sound(tiny, times):
    options = SpeechOptions(timestamps=times, temperatures=(0.0, 0.5), language="de", compression_threshold=9)
    transcript = tiny.transcribe(SPEECH.astype(np.float32), options)
    edges = [time for segment in transcript.segments for time in (segment.start, segment.end)]
    assert edges and edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= 3 + 1e-9
    words = [word for segment in transcript.segments for word in segment.words]
    assert bool(words) == (times == "words")
    inner = [time for word in words for time in (word.start, word.end)]
    assert inner == sorted(inner)
    record = transcript.record()
    assert record["language"] == "de" and record["segments"][0]["text"] and record["duration"] == 3


def test_a_language_is_heard_and_texts_below_the_thresholds_are_tried_again(tiny):
    sound = SPEECH[:16_000].astype(np.float32)
    assert tiny.transcribe(sound, SpeechOptions(temperatures=(0.0,))).language in ("en", "de")
    warm = tiny.transcribe(
        sound, SpeechOptions(temperatures=(0.0, 0.7), logprob_threshold=0.0, no_speech_threshold=1.0)
    )
    assert {segment.temperature for segment in warm.segments} <= {0.0, 0.7}
    dropped = tiny.transcribe(sound, SpeechOptions(logprob_threshold=0.0, no_speech_threshold=0.0))
    assert dropped.segments == []


def test_options_that_do_not_fit_are_all_told(tiny):
    with pytest.raises(InputError) as error:
        tiny.transcribe(SPEECH, SpeechOptions(language="fr", temperatures=(-1.0,)))
    assert "'fr'; must be one of de, en" in str(error.value).replace('"', "'") and "temperatures" in str(error.value)
    with pytest.raises(InputError, match="describes 80 bands"):
        Transcriber(tiny.engine, LogMel())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=9), st.integers(0, 99))
def test_timestamp_rules_are_those_of_transformers(new, seed):
    config = theirs().generation_config
    prompt = [61, 62, 65]
    process = WhisperTimeStampLogitsProcessor(config, begin_index=len(prompt))
    logits = torch.randn(121, generator=torch.Generator().manual_seed(seed)) * 3
    expected = process(torch.tensor([[*prompt, *new]]), logits[None])[0]
    found = TimestampRules(FIRST, 60, len(prompt), 10)([*prompt, *new], logits.clone())
    assert torch.equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 99))
def test_warping_and_smoothing_are_those_of_transformers(rows, columns, seed):
    cost = np.random.default_rng(seed).normal(size=(rows, columns))
    for one, other in zip(warp(cost), _dynamic_time_warping(cost), strict=True):
        assert np.array_equal(one, other)
    values = torch.from_numpy(cost)[None]
    torch.testing.assert_close(median_filter(values, 7), _median_filter(values, 7))


def test_compression_is_that_of_transformers():
    for tokens in ([5] * 40, list(range(40)), [50_000, 7]):
        kind = transformers.WhisperForConditionalGeneration
        expected = kind._retrieve_compression_ratio(torch.tensor(tokens), 51_865)
        assert compression_ratio(tokens, 51_865) == expected
    assert compression_ratio([], 100) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 150), max_size=12))
def test_segments_lie_within_the_window_and_the_next_one_moves_on(ids):
    segments, moved = split_segments(ids, 100, 50)
    assert all(0 <= each.start <= each.end and each.tokens for each in segments)
    assert sum(len(each.tokens) for each in segments) <= len(ids)
    if segments and all(token >= 100 or token < 100 for token in ids):
        assert moved >= 0


def test_two_timestamps_side_by_side_end_a_segment():
    assert [(each.start, each.end) for each in split_segments([100, 7, 110, 110, 8, 120], 100, 50)[0]] == [
        (0, 10),
        (10, 20),
    ]
    segments, moved = split_segments([100, 7, 110, 110, 8], 100, 50)
    assert [(each.start, each.end) for each in segments] == [(0, 10)] and moved == 10
    assert split_segments([7, 8], 100, 50)[0][0].end == 50 and split_segments([100], 100, 50) == ([], 50)


def test_words_are_tokens_up_to_the_next_space():
    pieces = [" ask", " not", ".", " wh", "at", "�", "�"]
    decode = lambda ids: "".join(pieces[token] for token in ids)  # noqa: E731
    assert split_words([0, 1, 2, 3, 4], decode) == [[0], [1, 2], [3, 4]]
    assert split_words([0, 5, 6], decode) == [[0], [5, 6]]
    signs = ["我", "们", "。"]
    assert split_words([0, 1, 2], lambda ids: "".join(signs[token] for token in ids), "zh") == [[0], [1, 2]]


def test_a_cut_stream_of_a_file_is_the_same_as_its_samples(tiny):
    soundfile = pytest.importorskip("soundfile")
    content = io.BytesIO()
    soundfile.write(content, SPEECH, 16_000, format="WAV", subtype="FLOAT")
    options = SpeechOptions(language="en", temperatures=(0.0,))
    of_file = tiny.transcribe(content.getvalue(), options)
    assert of_file == tiny.transcribe(SPEECH.astype(np.float32), options)
