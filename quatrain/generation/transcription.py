"""From sound to text with times: a Whisper model over a recording of any length, through the one engine.

The recording is read in windows of the model's length (30 s). Each window's text is generated after the text before it
as context, from low to higher temperatures until the text is likely and does not repeat itself (Radford et al. 2022,
arXiv 2212.04356, section 4.5); the next window starts where the last whole segment ended. Windows without voice
activity are skipped, and so are texts that are unlikely where the model itself expects no speech.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field as Key

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings
from quatrain.core.wording import format_names, format_value
from quatrain.data.sounds import SoundFile, SoundStream, waveform
from quatrain.generation.alignment import Alignment, align
from quatrain.generation.engine import Engine
from quatrain.generation.params import MAX_LOGPROBS, SamplingParams
from quatrain.generation.requests import Completion
from quatrain.generation.timestamps import TimestampRules, TokenSegment, split_segments
from quatrain.models.audio.activity import active_parts, is_active
from quatrain.models.audio.features import LogMel
from quatrain.models.audio.frontend import FRAMES_PER_VECTOR

UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages that put no spaces between words; each character is a word there."""


class SpeechOptions(Settings):
    """How speech is transcribed. The thresholds and their defaults are those of Whisper."""

    language: str | None = None
    """A code such as "de"; None: what the model hears in the first window, English for an English-only model."""
    translate: bool = False
    """Write English, whatever is spoken."""
    timestamps: Literal["none", "segments", "words"] | None = None
    """None: of segments, where the model has timestamp tokens."""
    temperatures: Listing[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Tried in this order until a text passes both thresholds."""
    compression_threshold: float = 1.35
    """A text whose token bytes compress better than this repeats itself."""
    logprob_threshold: float = -1.0
    """A text with a lower mean log-probability, in nats per token, is unlikely."""
    no_speech_threshold: float = Key(default=0.6, ge=0.0, le=1.0)
    """An unlikely text is dropped where the model's probability of no speech is above this."""
    condition_on_previous: bool = True
    """Whether a window's text continues that of the window before."""
    initial_prompt: str | None = None
    """A text that is read as if it stood before the recording: names, or a style."""
    num_beams: int = Key(default=1, ge=1)
    """Beams of the search at temperature 0."""
    voice_activity: bool = True
    """Whether parts without voice activity are skipped."""
    seed: int = 0


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A part of a transcript, with its times in seconds."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    logprob: float = 0.0
    """Mean log-probability of the tokens of its window, in nats."""
    no_speech: float = 0.0
    """The model's probability that its window contains no speech."""
    words: tuple[Word, ...] = ()


@dataclass
class Transcript:
    """What was said, with times that never fall."""

    segments: list[Segment] = field(default_factory=list)
    language: str | None = None
    duration: float = 0.0
    """Seconds of sound."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def words_per_second(self) -> float:
        """Words of the text for each second of sound."""
        return len(self.text.split()) / self.duration if self.duration else 0.0

    def record(self) -> dict[str, Any]:
        """The transcript as a JSON object."""
        segments = [
            {key: value for key, value in asdict(each).items() if key != "words" or value} for each in self.segments
        ]
        return {
            "text": self.text,
            "language": self.language,
            "duration": self.duration,
            "words_per_second": self.words_per_second,
            "segments": segments,
        }


@dataclass(frozen=True)
class SpeechTokens:
    """The tokens of a Whisper model that are no text, from its `generation_config.json`.

    A model that was trained without timestamps or languages has a start token alone.
    """

    start: int
    end: int
    no_timestamps: int | None = None
    previous: int | None = None
    """Stands before the text of earlier windows."""
    languages: dict[str, int] = field(default_factory=dict)
    transcribe: int | None = None
    translate: int | None = None
    max_initial: int | None = None
    heads: tuple[tuple[int, int], ...] = ()
    """Heads whose attention follows the sound."""

    @classmethod
    def of(cls, engine: Engine) -> SpeechTokens:
        """The tokens of an engine's model. Raises InputError for an end token that is missing."""
        raw = engine.model.generation_config or {}
        if not engine.end_ids or engine.rules.decoder_start_token_id is None:
            raise InputError("The model names no end token (eos_token_id) or no decoder_start_token_id.")
        tasks = raw.get("task_to_id") or {}
        languages = {str(name).strip("<|>"): int(token) for name, token in (raw.get("lang_to_id") or {}).items()}
        steps = raw.get("max_initial_timestamp_index")
        numbers = {name: raw.get(name) for name in ("no_timestamps_token_id", "prev_sot_token_id")}
        if wrong := [name for name, value in numbers.items() if value is not None and not isinstance(value, int)]:
            raise InputError("generation_config.json:", [f"{name}: must be a token id" for name in wrong])
        return cls(
            engine.rules.decoder_start_token_id,
            engine.end_ids[0],
            numbers["no_timestamps_token_id"],
            numbers["prev_sot_token_id"],
            languages if raw.get("is_multilingual", bool(languages)) else {},
            tasks.get("transcribe"),
            tasks.get("translate"),
            steps if isinstance(steps, int) else None,
            tuple((int(layer), int(head)) for layer, head in raw.get("alignment_heads") or ()),
        )

    @property
    def no_speech(self) -> int | None:
        """The token whose probability after the start token is that of no speech."""
        return None if self.no_timestamps is None else self.no_timestamps - 1


@dataclass
class _Window:
    """A window while it is transcribed."""

    features: torch.Tensor
    prompt: list[int]
    """What the decoder reads before the text."""
    no_speech: float


class Transcriber:
    """Transcribes with an engine of a model whose encoder reads sound.

    Raises InputError for a model that does not, or without a tokenizer, and for features of another shape.
    """

    def __init__(self, engine: Engine, features: LogMel | None = None):
        self.engine, self.features = engine, features or LogMel()
        frontend: Any = engine.model.config.frontend
        bands = getattr(frontend, "num_mel_bins", None)
        if bands is None or engine.target_tokenizer is None:
            raise InputError(
                "Transcribing needs a model whose encoder reads sound, such as Whisper, and its tokenizer."
            )
        self.tokenizer: Any = engine.target_tokenizer
        vectors = self.features.num_frames // FRAMES_PER_VECTOR
        if bands != self.features.feature_size or vectors > frontend.max_positions:
            raise InputError(
                f"preprocessor_config.json describes {self.features.feature_size} bands and {vectors} vectors of a "
                f"window; the model reads {bands} bands and {frontend.max_positions} vectors."
            )
        self.tokens = SpeechTokens.of(engine)
        self.step = self.features.chunk_length / vectors
        """Seconds of a step of the timestamps: one vector of the encoder."""
        self.steps = vectors

    def transcribe(self, sound: str | Path | bytes | np.ndarray, options: SpeechOptions | None = None) -> Transcript:
        """The transcript of a file, its content, or samples at the model's rate. A file is read window by window."""
        transcript = Transcript()
        for segment in self.stream(sound, options, into=transcript):
            transcript.segments.append(segment)
        return transcript

    def stream(
        self,
        sound: str | Path | bytes | np.ndarray,
        options: SpeechOptions | None = None,
        *,
        into: Transcript | None = None,
    ) -> Iterator[Segment]:
        """The segments of a recording, each as soon as its window is done. `into` gets language and duration."""
        options, transcript = options or SpeechOptions(), into if into is not None else Transcript()
        self._check(options)
        if not isinstance(sound, str | Path | bytes):
            samples = waveform(sound, self.features.sampling_rate)
            transcript.duration = len(samples) / self.features.sampling_rate
            yield from self._segments(lambda start, count: samples[start : start + count], options, transcript)
            return
        from quatrain.data.sounds import warn_if_cut

        with SoundFile(sound, self.features.sampling_rate) as file:
            transcript.duration = file.duration
            yield from self._segments(SoundStream(file).read, options, transcript)
            transcript.duration = file.duration
            warn_if_cut(file)

    def _check(self, options: SpeechOptions) -> None:
        """Raises InputError for options that the model cannot follow."""
        problems, tokens = [], self.tokens
        if options.language is not None and options.language not in (tokens.languages or ("en",)):
            known = format_names(sorted(tokens.languages), 30) or "en (an English-only model)"
            problems.append(f"language: {format_value(options.language)}; must be one of {known}")
        if options.translate and tokens.translate is None:
            problems.append("translate: this model has no token for translation; it writes what is spoken")
        if options.timestamps == "segments" and tokens.no_timestamps is None:
            problems.append("timestamps: this model has no timestamp tokens; give none or words")
        if not options.temperatures or any(not 0 <= each < 10 for each in options.temperatures):
            problems.append("temperatures: must be at least one number, each from 0 to below 10")
        if problems:
            raise InputError("These options do not fit the model:", problems)

    def _segments(self, read: Any, options: SpeechOptions, transcript: Transcript) -> Iterator[Segment]:
        rate, hop = self.features.sampling_rate, self.features.hop_length
        per_step, place, context, last = hop * FRAMES_PER_VECTOR, 0, list[int](), 0.0
        transcript.language = options.language or (None if self.tokens.languages else "en")
        before = [] if options.initial_prompt is None else self.tokenizer.encode(" " + options.initial_prompt.strip())
        while len(samples := read(place * per_step, self.features.num_samples)):
            steps = min(math.ceil(len(samples) / per_step), self.steps)
            offset = place * self.step
            parts = active_parts(samples, rate) if options.voice_activity else [(0.0, math.inf)]
            if not parts:
                place, context = place + steps, []
                continue
            window = self._window(self.features(samples)[0], [*before, *context], options, transcript)
            completion, temperature = self._generate(window, options)
            logprob = float(np.mean(completion.logprobs)) if completion.logprobs else 0.0
            if window.no_speech > options.no_speech_threshold and logprob < options.logprob_threshold:
                place += steps
                continue
            found, moved = self._split(completion, steps, options)
            found = [each for each in found if is_active(parts, each.start * self.step, each.end * self.step)]
            words = self._words(window, found, steps, transcript.language) if options.timestamps == "words" else None
            for number, each in enumerate(found):
                start = max(last, offset + each.start * self.step)
                last = max(start, min(offset + each.end * self.step, offset + len(samples) / rate))
                own = () if words is None else tuple(_moved(word, offset, start, last) for word in words[number])
                text = self._text(each.tokens)
                yield Segment(start, last, text, each.tokens, temperature, logprob, window.no_speech, own)
                context += each.tokens
            if not options.condition_on_previous or temperature > 0.5:
                context = []
            place += moved or steps

    def _window(
        self, features: torch.Tensor, context: Sequence[int], options: SpeechOptions, transcript: Transcript
    ) -> _Window:
        """The features and the decoder's prompt; hears the language and whether there is speech."""
        tokens, limit = self.tokens, self.engine.model.config.context_length // 2 - 1
        prompt = [tokens.previous, *context[-limit:]] if context and tokens.previous is not None else []
        prompt.append(tokens.start)
        no_speech = 0.0
        if tokens.no_speech is not None:
            wanted = min(MAX_LOGPROBS, self.engine.model.config.vocab_size)
            (heard,) = self.engine.generate_from(
                features[None], SamplingParams(1, logprobs=wanted), decoder_prompts=[prompt]
            )
            logprobs = dict(heard.top_logprobs[0])
            no_speech = math.exp(logprobs.get(tokens.no_speech, -math.inf))
            if tokens.languages and transcript.language is None:
                by_token = {token: name for name, token in tokens.languages.items()}
                transcript.language = by_token[max(by_token, key=lambda token: logprobs.get(token, -math.inf))]
        if tokens.languages and transcript.language is not None:
            prompt.append(tokens.languages[transcript.language])
            task = tokens.translate if options.translate else tokens.transcribe
            prompt += [] if task is None else [task]
        if tokens.no_timestamps is not None and options.timestamps == "none":
            prompt.append(tokens.no_timestamps)
        return _Window(features, prompt, no_speech)

    def _generate(self, window: _Window, options: SpeechOptions) -> tuple[Completion, float]:
        """The first text, by rising temperature, that is likely and does not repeat itself; else the likeliest one."""
        tokens = self.tokens
        rules: tuple[TimestampRules, ...] = ()
        if tokens.no_timestamps is not None and options.timestamps != "none":
            first = tokens.no_timestamps + 1
            rules = (TimestampRules(first, tokens.end, len(window.prompt), tokens.max_initial),)
        most = max(self.engine.recommended.max_new_tokens, self.engine.model.config.context_length)
        params = SamplingParams(most, logits_processors=rules, seed=options.seed)
        vocabulary = self.engine.model.config.vocab_size
        tried: list[tuple[float, Completion, float]] = []
        for temperature in options.temperatures:
            beams = options.num_beams if temperature == 0 else 1
            own = replace(params, temperature=temperature, num_beams=beams)
            (found,) = self.engine.generate_from(window.features[None], own, decoder_prompts=[window.prompt])
            logprob = float(np.mean(found.logprobs)) if found.logprobs else 0.0
            repeats = compression_ratio(found.ids, vocabulary) > options.compression_threshold
            unlikely = logprob < options.logprob_threshold
            if (not repeats and not unlikely) or (unlikely and window.no_speech > options.no_speech_threshold):
                return found, temperature
            tried.append((logprob, found, temperature))
        _, found, temperature = max(tried, key=lambda each: each[0])
        return found, temperature

    def _split(self, completion: Completion, steps: int, options: SpeechOptions) -> tuple[list[TokenSegment], int]:
        """The segments of a window's text, and the steps to the next window."""
        ids = [token for token in completion.ids if token not in self.engine.end_ids]
        if self.tokens.no_timestamps is None or options.timestamps == "none":
            return ([TokenSegment(0, steps, tuple(ids))] if ids else []), steps
        return split_segments(ids, self.tokens.no_timestamps + 1, steps)

    def _text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without timestamps and other special ones."""
        return str(self.tokenizer.decode([token for token in tokens if token < self._first_special]))

    @property
    def _first_special(self) -> int:
        return min(self.tokens.end, self.tokens.start)

    def align(
        self, window_features: torch.Tensor, prompt: Sequence[int], tokens: Sequence[int], steps: int
    ) -> Alignment:
        """Aligns text tokens with the sound of one window."""
        with self.engine.paused() as model:
            return align(model, window_features, prompt, tokens, self.tokens.end, self.tokens.heads or None, steps)

    def word_map(
        self, sound: str | Path | bytes | np.ndarray, options: SpeechOptions | None = None
    ) -> tuple[list[Word], torch.Tensor]:
        """The words of the first window with their times, and which sound each came from.

        The weights (words, vectors) are the smoothed cross-attention of a word's tokens, averaged; a vector is `step`
        seconds. Raises InputError where nothing is said.
        """
        options = replace_options(options, timestamps="words")
        samples = waveform(sound, self.features.sampling_rate)[: self.features.num_samples]
        window = self._window(self.features(samples)[0], [], options, Transcript(language=options.language or "en"))
        completion, _ = self._generate(window, options)
        ids = [token for token in completion.ids if token < self._first_special]
        if not ids:
            raise InputError("sound: the model hears no words in it.")
        steps = min(math.ceil(len(samples) / (self.features.hop_length * FRAMES_PER_VECTOR)), self.steps)
        alignment = self._alignment(window, ids, steps)
        words, rows, first = [], [], 0
        for group in split_words(ids, self.tokenizer.decode, options.language):
            last = first + len(group)
            span = alignment.times[first] * self.step, alignment.times[last] * self.step
            words.append(Word(self.tokenizer.decode(group), *span))
            rows.append(alignment.weights[first:last].mean(0))
            first = last
        return words, torch.stack(rows)

    def _alignment(self, window: _Window, ids: Sequence[int], steps: int) -> Alignment:
        """How text tokens of a window lie in time; the context before the start token is left out."""
        place = len(window.prompt) - window.prompt[::-1].index(self.tokens.start) - 1
        prompt = window.prompt[place:]
        if self.tokens.no_timestamps is not None and self.tokens.no_timestamps not in prompt:
            prompt = [*prompt, self.tokens.no_timestamps]
        return self.align(window.features, prompt, ids, steps)

    def _words(
        self, window: _Window, segments: Sequence[TokenSegment], steps: int, language: str | None
    ) -> list[list[Word]]:
        """The words of each segment, with times in seconds from the beginning of the window."""
        texts = [[token for token in each.tokens if token < self._first_special] for each in segments]
        flat = [token for each in texts for token in each]
        if not flat:
            return [[] for _ in segments]
        times = self._alignment(window, flat, steps).times
        result, first = [], 0
        for each in texts:
            words = []
            for group in split_words(each, self.tokenizer.decode, language):
                span = times[first], times[first + len(group)]
                words.append(Word(self.tokenizer.decode(group), span[0] * self.step, span[1] * self.step))
                first += len(group)
            result.append(words)
        return result


def replace_options(options: SpeechOptions | None, **changes: Any) -> SpeechOptions:
    """Options with some changed."""
    return (options or SpeechOptions()).model_copy(update=changes)


def _moved(word: Word, offset: float, start: float, end: float) -> Word:
    """A word with times of the recording, within its segment."""
    begin = min(max(offset + word.start, start), end)
    return Word(word.text, begin, min(max(offset + word.end, begin), end))


def split_words(tokens: Sequence[int], decode: Any, language: str | None = None) -> list[list[int]]:
    """Tokens in groups of one word each; in languages without spaces, of one character.

    A group ends only where its text is whole characters. Punctuation belongs to the word before it.
    """
    groups: list[list[int]] = []
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = decode(pending)
        if "�" in text:
            continue
        begins = text.startswith((" ", "\n")) or not groups
        if language in UNSPACED and any(character.isalnum() for character in text):
            begins = True
        if begins:
            groups.append(pending)
        else:
            groups[-1] = [*groups[-1], *pending]
        pending = []
    if pending:
        groups.append(pending)
    return groups


def compression_ratio(tokens: Sequence[int], vocab_size: int) -> float:
    """How many times smaller zlib makes the tokens, as in transformers; a text that repeats itself has a high ratio."""
    size = int(math.log2(vocab_size) / 8) + 1
    content = b"".join(int(token).to_bytes(size, "little") for token in tokens)
    return len(content) / len(zlib.compress(content)) if content else 0.0
