"""Implementation of the speech stage."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.recordings import Recording, read_recordings
from quatrain.evaluation.classics import mean_feature_classifier
from quatrain.evaluation.metrics.speech import error_rates, normalized_speech
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.models.audio.features import LogMel
from quatrain.models.audio.frontend import FRAMES_PER_VECTOR, SoundFrontend
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.runs.plain_training import train_examples
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.speech import SpeechStage
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives.speech import SpeechExample, Transcription

START, END = "<|startoftranscript|>", "<|endoftext|>"
SET = "recordings held out"
SAMPLES = 12
LONGEST_TEXT = 448
"""Positions of the decoder, as in Whisper."""


@dataclass
class Job:
    """What a stage trains with."""

    learned: list[Recording]
    held_out: list[Recording]
    features: LogMel
    tokenizer: Tokenizer
    model: Model
    objective: Transcription

    def examples(self, recordings: Sequence[Recording]) -> list[SpeechExample]:
        """Features and ids of recordings."""
        end = self.tokenizer.eos_id
        ends = () if end is None else (end,)
        return [
            SpeechExample(self.features(each.samples)[0], (*self.tokenizer.encode(each.text), *ends))
            for each in recordings
        ]


def run(settings: SpeechStage, context: StageContext) -> StageResult:
    """Trains the model, writes `model/`, and measures it on the recordings held out."""
    job = make(settings, context)
    learned = job.examples(job.learned)
    result = train_examples(job.model, job.objective, learned, settings.train, context, size=job.features.num_frames)
    shutil.rmtree(context.model_folder, ignore_errors=True)
    model_folder.save(job.model, context.model_folder)
    job.tokenizer.save(context.model_folder)
    job.features.save(context.model_folder)
    measure(job, result)
    context.reporter.score(SET, result.scores[SET], result.baselines[SET])  # type: ignore[index]
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: SpeechStage, context: StageContext) -> str:
    """What `quatrain check` says, after the recordings were read."""
    job = make(settings, context)
    seconds = sum(len(each.samples) for each in job.learned) / job.features.sampling_rate
    return (
        f"{len(job.learned):,} recordings ({seconds:,.0f} s) to learn, {len(job.held_out):,} held out; "
        f"{job.model.num_parameters():,} parameters; steps not measured"
    )


def make(settings: SpeechStage, context: StageContext) -> Job:
    """Recordings, features, a tokenizer of the characters of the texts, and a fresh model."""
    features = LogMel(feature_size=settings.num_mel_bins, chunk_length=settings.seconds)
    learned, held_out = recordings_of(settings, context, features.sampling_rate)
    texts = sorted({each.text for each in (*learned, *held_out)})
    tokenizer = Tokenizer.train(texts, kind="char", eos=END, pad=None, special_tokens=(START,))
    start = tokenizer.token_to_id(START)
    frontend = SoundFrontend(settings.num_mel_bins, features.num_frames // FRAMES_PER_VECTOR)
    tokens: dict[str, Any] = {"bos_token_id": start, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}
    config = context.recipe.model.config(
        tokenizer.vocab_size, decoder_start_token_id=start, dropout=settings.train.dropout, **tokens
    )
    model = Model(config.replace(frontend=frontend)).initialize(context.seed)
    model.generation_config = tokens | {"decoder_start_token_id": start, "max_length": config.max_position_embeddings}
    objective = Transcription(
        masked_bands=settings.masked_bands,
        masked_frames=settings.masked_frames,
        shift=settings.shift,
        pitch=settings.pitch,
        tempo=settings.tempo,
    )
    return Job(learned, held_out, features, tokenizer, model, objective)


def recordings_of(settings: SpeechStage, context: StageContext, rate: int) -> tuple[list[Recording], list[Recording]]:
    """The recordings to learn from and those held out. Raises InputError if one part is empty."""
    data = context.recipe.data_of(settings)
    recordings = context.shared.setdefault(f"recordings:{data.source}:{rate}", read_recordings(str(data.source), rate))
    if settings.held_out_takes:
        held = [each.take in settings.held_out_takes for each in recordings]
    else:
        order = np.random.default_rng(context.seed).permutation(len(recordings))
        chosen = set(order[: max(1, round(data.validation * len(recordings)))].tolist())
        held = [number in chosen for number in range(len(recordings))]
    parts = [[each for each, out in zip(recordings, held, strict=True) if out == part] for part in (False, True)]
    if not all(parts):
        takes = sorted({each.take for each in recordings if each.take is not None})
        raise InputError(
            f"held_out_takes: {list(settings.held_out_takes)}; {len(parts[0])} recordings are left to learn from, and "
            f"{len(parts[1])} are held out. The recordings have the takes {takes or 'none'}."
        )
    return parts[0], parts[1]


def measure(job: Job, result: StageResult) -> None:
    """Scores of the recordings held out, beside the most frequent text and logistic regression of mean features."""
    import torch

    engine = Engine(job.model, job.tokenizer)
    rows = torch.cat([job.features(each.samples) for each in job.held_out])
    longest = max(len(job.tokenizer.encode(each.text)) for each in job.learned) + 4
    found = engine.generate_from(rows, SamplingParams(longest), batch_size=32)
    said, told = [each.text for each in found], [each.text for each in job.held_out]
    frequent = Counter(each.text for each in job.learned).most_common(1)[0][0]
    result.scores = {SET: scores(said, told) | {"count": float(len(told))}}
    result.baselines = {SET: {"name": f"always {frequent!r}"} | scores([frequent] * len(told), told)}
    texts = [each.text for each in job.learned]
    try:
        classic = mean_feature_classifier(
            [job.features(each.samples)[0].numpy() for each in job.learned], texts, list(rows.numpy())
        )
        known = scores(classic, told)
        result.extra["classic"] = {"name": "mean and deviation of each band, logistic regression"} | known
        result.notes.append(f"Logistic regression on means and deviations of the bands: {known['accuracy']:.1%} right.")
    except InputError as error:
        result.notes.append(error.message)
    result.samples = [
        {"set": SET, "prompt": recording.name, "reference": recording.text, "output": text,
         "correct": normalized_speech(text) == normalized_speech(recording.text)}
        for recording, text in zip(job.held_out[:SAMPLES], said, strict=False)
    ]  # fmt: skip
    speakers = sorted({each.speaker for each in job.held_out} - {""})
    if speakers:
        result.extra["figures"] = [by_speaker(job.held_out, said, speakers)]


def scores(said: Sequence[str], told: Sequence[str]) -> dict[str, float]:
    """The share of texts that are right, and the error rates of words and characters."""
    right = [normalized_speech(one) == normalized_speech(other) for one, other in zip(said, told, strict=True)]
    return {"accuracy": float(np.mean(right))} | error_rates(said, told)


def by_speaker(recordings: Sequence[Recording], said: Sequence[str], speakers: Sequence[str]) -> dict[str, Any]:
    """A figure: the share of texts that are right for each speaker."""
    bars = []
    for speaker in speakers:
        right = [text == each.text for each, text in zip(recordings, said, strict=True) if each.speaker == speaker]
        bars.append({"label": speaker, "value": float(np.mean(right)), "text": f"{np.mean(right):.0%}"})
    return {"kind": "bars", "title": "Right by speaker", "note": "Recordings held out.", "bars": bars}
