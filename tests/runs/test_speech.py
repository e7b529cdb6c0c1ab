"""The speech stage: a small Whisper from recordings in a folder or a ZIP file, and what is refused."""

import json
import zipfile

import numpy as np
import pytest
import transformers

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.data.recordings import read_recordings
from quatrain.models.audio.features import LogMel
from quatrain.runs.recipe import load
from quatrain.runs.runner import run
from quatrain.tasks.pipelines import pipeline

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'quatrain[audio]')")
pytest.importorskip("jiwer", reason="jiwer is not installed (pip install 'quatrain[eval]')")

RATE = 8000
TIME = np.arange(RATE // 2) / RATE
WORDS = {0: 200, 1: 700}
"""Spoken by a machine: each digit is a tone of its own that swells twice."""
SMALL = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2", "stage[0].num_mel_bins=16",
         "stage[0].train.epochs=none", "stage[0].train.steps=2", "stage[0].train.warmup_steps=1"]  # fmt: skip


def sound(digit, take):
    random = np.random.default_rng((digit, take))
    swell = np.sin(2 * np.pi * 2 * TIME) ** 2
    return 0.3 * swell * np.sin(2 * np.pi * WORDS[digit] * TIME) + random.normal(0, 0.001, len(TIME))


@pytest.fixture
def digits(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    for digit in WORDS:
        for take in range(4):
            soundfile.write(folder / f"{digit}_robot_{take}.wav", sound(digit, take), RATE)
    return folder


def test_the_stage_writes_a_model_that_transcribes_and_that_transformers_load(digits, tmp_path):
    recipe = load("spoken-digits", [*SMALL, f"data.source={digits}", "stage[0].held_out_takes=[0]"])
    folder = run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter()).folder
    result = json.loads((folder / "stages/01-speech/result.json").read_text())
    scores = result["scores"]["recordings held out"]
    assert set(scores) == {"accuracy", "wer", "cer", "count"} and scores["count"] == 2
    assert result["baselines"]["recordings held out"]["accuracy"] == 0.5 and result["classic"]["accuracy"] == 1
    model, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder / "model", output_loading_info=True
    )
    assert not any(info.values()) and model.config.max_source_positions == 50
    assert transformers.AutoFeatureExtractor.from_pretrained(folder / "model").chunk_length == 1
    said = pipeline(model=folder / "model")(str(digits / "0_robot_0.wav"))
    assert set(said) == {"text", "chunks", "language", "duration", "words_per_second"} and said["duration"] == 0.5


def test_it_learns_to_tell_two_words_apart(digits, tmp_path, capsys):
    more = ["stage[0].train.steps=60", "stage[0].train.warmup_steps=4", "stage[0].train.learning_rate=0.01",
            "stage[0].train.batch_tokens=600", "stage[0].train.dropout=0.0", "stage[0].shift=0",
            "stage[0].pitch=0"]  # fmt: skip
    recipe = load("spoken-digits", [*SMALL[:5], *more, f"data.source={digits}", "stage[0].held_out_takes=[0]"])
    folder = run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter()).folder
    result = json.loads((folder / "stages/01-speech/result.json").read_text())
    assert result["scores"]["recordings held out"]["accuracy"] == 1
    # The sound that a word came from, by the verb; it is drawn in a folder.
    sound_file, model = str(digits / f"{max(WORDS)}_robot_0.wav"), str(folder / "model")
    assert main(["inspect", model, "--file", sound_file, "--attention", str(tmp_path / "maps"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (word,) = found["words"]
    assert 0 <= word["start"] <= word["end"] <= 1 and word["text"]
    assert (tmp_path / "maps" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", model, "--file", str(tmp_path / "none.wav")]) == 2
    assert "none.wav" in capsys.readouterr().err


def test_recordings_have_their_texts_from_names_or_a_table(digits, tmp_path):
    named = read_recordings(digits, RATE)
    assert [(each.text, each.speaker, each.take) for each in named][:2] == [("zero", "robot", 0), ("zero", "robot", 1)]
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for file in digits.iterdir():
            archive.write(file, f"all/{file.name}")
    zipped = read_recordings(tmp_path / "digits.zip", RATE)
    assert [each.text for each in zipped] == [each.text for each in named]
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(zipped, named, strict=True))
    rows = "".join(f"{file.name},it is {file.name[0]}\n" for file in sorted(digits.iterdir()))
    (digits / "metadata.csv").write_text("file_name,text\n" + rows)
    assert {each.text for each in read_recordings(digits, RATE)} == {"it is 0", "it is 1"}


def test_recordings_that_cannot_be_used_are_all_named(digits, tmp_path):
    (digits / "3_robot_0.wav").write_text("no sound")
    soundfile.write(digits / "hello.wav", TIME, RATE)
    with pytest.raises(InputError) as error:
        read_recordings(digits, RATE)
    assert "2 recordings" in str(error.value) and "hello.wav: what is said" in str(error.value)
    for wrong, words in ((tmp_path / "no", "does not exist"), (digits / "hello.wav", "neither a folder nor a ZIP")):
        with pytest.raises(InputError, match=words):
            read_recordings(wrong, RATE)


def test_a_recipe_without_recordings_held_out_is_refused(digits, tmp_path):
    recipe = load("spoken-digits", [*SMALL, f"data.source={digits}", "stage[0].held_out_takes=[9]"])
    with pytest.raises(InputError, match=r"held_out_takes: \[9\].*takes \[0, 1, 2, 3\]"):
        run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter())
    with pytest.raises(InputError, match='a speech stage trains family = "whisper"'):
        load("spoken-digits", ["model.family=bart"])


def test_features_of_a_folder_are_those_of_the_stage():
    assert LogMel(feature_size=16, chunk_length=1).num_frames == 100
