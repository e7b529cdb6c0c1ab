"""What is said in a recording, with times: the pipeline of Whisper models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.generation.transcription import SpeechOptions, Transcriber, Transcript
from quatrain.models.audio.features import LogMel
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction
from quatrain.tasks.pipelines.subject import engine_of


class AutomaticSpeechRecognition(Pipeline):
    """{"text", "chunks": [{"timestamp": (start, end), "text"}]} of a file, its content, or samples at 16 kHz.

    Recordings of any length are read in windows. Chunks are segments, or words with `timestamps="words"`. `language`,
    `duration` and `words_per_second` say more.
    """

    task = "automatic-speech-recognition"
    heads = ("seq2seq",)
    default_for: ClassVar[tuple[str, ...]] = ("seq2seq",)
    reads = "sound"
    recipes: ClassVar[tuple[str, ...]] = ("spoken-digits",)
    fields: ClassVar[tuple[Field, ...]] = (Field("audio", kind="file"),)
    Options: ClassVar[type[Settings]] = SpeechOptions

    @cached_property
    def transcriber(self) -> Transcriber:
        """The model with its features and tokens."""
        processor = self.subject.processor()
        if processor is not None and not isinstance(processor, LogMel):
            raise InputError("preprocessor_config.json describes pictures; a speech model needs a feature extractor.")
        return Transcriber(engine_of(self.subject), processor)

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: Any) -> list[Prediction]:
        return [Prediction(self._output(self.transcriber.transcribe(each["audio"], options))) for each in inputs]

    def _output(self, transcript: Transcript) -> dict[str, Any]:
        words = any(segment.words for segment in transcript.segments)
        parts = [word for segment in transcript.segments for word in segment.words] if words else transcript.segments
        chunks = [{"timestamp": (round(part.start, 2), round(part.end, 2)), "text": part.text} for part in parts]
        return {
            "text": transcript.text,
            "chunks": chunks,
            "language": transcript.language,
            "duration": round(transcript.duration, 3),
            "words_per_second": round(transcript.words_per_second, 3),
        }

    def refusal(self, inputs: Any, parameters: Mapping[str, Any]) -> str:
        """A server must not read its own files for whoever asks."""
        return "Recordings are files of the server's machine: use `quatrain predict` there."

    def line(self, text: str, value: Any) -> str:
        """Each chunk in a line, behind its times; of a recording without speech a remark."""
        if not value["chunks"]:
            return f"(no speech in {value['duration']:.1f} s)"
        return "\n".join(
            f"[{_clock(chunk['timestamp'][0])} - {_clock(chunk['timestamp'][1])}] {chunk['text'].strip()}"
            for chunk in value["chunks"]
        )


def _clock(seconds: float) -> str:
    """A time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:05.2f}" if hours else f"{minutes:02d}:{rest:05.2f}"
