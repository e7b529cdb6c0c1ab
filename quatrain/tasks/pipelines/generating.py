"""What the pipelines that generate text share: options by the names of transformers' `generate`, and the engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field as Key

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.params import SamplingParams
from quatrain.tasks.pipelines.base import Pipeline, Prediction
from quatrain.tasks.pipelines.subject import Subject, engine_of

DRAWN = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
"""Parameters of sampling."""


class GenerationOptions(Settings):
    """How text is generated; None keeps the model's own setting (`generation_config.json`).

    The names are those of transformers' `generate` and of `SamplingParams`, whose documentation has the details.
    """

    max_new_tokens: int | None = Key(None, ge=1)
    min_new_tokens: int | None = Key(None, ge=0)
    max_length: int | None = Key(None, ge=1)
    """The most tokens of prompt and answer together; of an encoder-decoder, of its answer with the start token."""
    min_length: int | None = Key(None, ge=0)
    """The fewest tokens, counted in the same way."""
    do_sample: bool | None = None
    """Whether tokens are drawn; None: where an option of sampling is given, or as the model's own settings say."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    top_h: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    num_beam_groups: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    diversity_penalty: float | None = None
    penalty_alpha: float | None = None
    num_return_sequences: int | None = Key(None, ge=1)
    """The number of texts for each input."""
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    stop: str | Listing[str] | None = None
    """Texts that end the answer and are not part of it."""
    stop_sequence: str | Listing[str] | None = None
    """Another name of `stop`."""
    bad_words: Listing[str] | None = None
    force_words: Listing[str] | None = None
    json_schema: Any = None
    regex: str | None = None
    grammar: str | None = None
    choice: Listing[str] | None = None
    prefix: str | None = None
    """What stands before each input, such as "summarize: "."""
    truncation: bool | Literal["do_not_truncate", "longest_first", "only_first"] = False
    """Shorten an input that exceeds the model's context, instead of an error; a warning says so."""
    clean_up_tokenization_spaces: bool | None = None
    """Accepted for transformers' sake: the tokenizer's own setting counts."""

    @property
    def truncates(self) -> bool:
        """Whether long inputs are shortened."""
        return self.truncation not in (False, "do_not_truncate")

    def params(self, engine: Engine, max_new_tokens: int) -> SamplingParams:
        """The model's own settings, changed by the options; `max_new_tokens` where neither says it."""
        return replace(engine.recommended, **self.fields(engine, max_new_tokens))

    def fields(self, engine: Engine, max_new_tokens: int) -> dict[str, Any]:
        """The fields of SamplingParams that the options change."""
        own, defaults = engine.recommended, SamplingParams()
        names = {field.name for field in fields(SamplingParams)}
        given = {name: getattr(self, name) for name in type(self).model_fields if name in names}
        given = {name: value for name, value in given.items() if value is not None}
        if self.stop_sequence is not None:
            given.setdefault("stop", self.stop_sequence)
        if engine.has_encoder:  # the start token of the decoder counts in the lengths
            if self.max_length is not None:
                given.setdefault("max_new_tokens", max(1, self.max_length - 1))
            if self.min_length:
                given.setdefault("min_new_tokens", max(0, self.min_length - 1))
        if "max_new_tokens" not in given and own.max_new_tokens == defaults.max_new_tokens:
            given["max_new_tokens"] = max_new_tokens
        greedy = {name: getattr(defaults, name) for name in DRAWN}
        if self.do_sample is False or (self.do_sample is None and given.get("num_beams", 1) > 1):
            # Contrastive search reads top_k, and a search does not draw, whatever the model's settings say.
            kept = {"top_k"} if given.get("penalty_alpha") else set()
            given = greedy | {name: value for name, value in given.items() if name not in DRAWN or name in kept}
        elif self.do_sample or given.keys() & set(DRAWN):
            given = {"num_beams": 1, "num_return_sequences": 1, "temperature": own.temperature or 1.0} | given
        return given


class GeneratingPipeline(Pipeline):
    """The base of pipelines that generate text through the engine."""

    new_tokens = 256
    """The most new tokens where neither an option nor the model's settings say it."""
    Options: ClassVar[type[Settings]] = GenerationOptions

    def __init__(self, subject: Subject, **options: Any):
        super().__init__(subject, **options)
        own = self.task_settings()
        self.defaults = {name: own[name] for name in own if name in self.Options.model_fields} | self.defaults

    def task_settings(self) -> Mapping[str, Any]:
        """Defaults of options that the model's files have for this task: `task_specific_params` of config.json."""
        tasks = self.subject.config_json.get("task_specific_params")
        own = tasks.get(self.name) if isinstance(tasks, Mapping) else None
        return own if isinstance(own, Mapping) else {}

    @cached_property
    def engine(self) -> Engine:
        """The engine of the model."""
        return engine_of(self.subject)

    @abstractmethod
    def prompt(self, given: Mapping[str, Any], options: Any) -> str | list[int]:
        """What the model reads of an input: a text, or token ids."""

    @abstractmethod
    def output(self, given: Mapping[str, Any], texts: Sequence[str], options: Any) -> Any:
        """The output for an input from the texts that the model has generated for it."""

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: Any) -> list[Prediction]:
        params = options.params(self.engine, self.new_tokens)
        ids, cut = self.encoded([self.prompt(each, options) for each in inputs], params, options)
        return [
            Prediction(self.output(each, [one.text for one in own], options), lost)
            for each, own, lost in zip(inputs, self.completed(ids, params, options), cut, strict=True)
        ]

    def encoded(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams, options: GenerationOptions
    ) -> tuple[list[list[int]], list[int]]:
        """The ids of prompts and how many were cut from each. Raises InputError where one is too long."""
        ids = [self.engine.encode(prompt) for prompt in prompts]
        if not options.truncates:
            return ids, [0] * len(ids)
        short = [self.engine.truncate(each, params) for each in ids]
        return short, [len(one) - len(other) for one, other in zip(ids, short, strict=True)]

    def completed(
        self, ids: Sequence[list[int]], params: SamplingParams, options: GenerationOptions
    ) -> list[list[Completion]]:
        """The completions of each prompt: one, or as many as `num_return_sequences`."""
        total = None if self.engine.has_encoder else options.max_length
        if total is not None and options.max_new_tokens is None:
            # `max_length` counts the prompt, so that prompts of different lengths have different parameters.
            groups: dict[int, list[int]] = {}
            for place, each in enumerate(ids):
                groups.setdefault(len(each), []).append(place)
            if too_long := [place + 1 for place, each in enumerate(ids) if len(each) >= total]:
                size = len(ids[too_long[0] - 1])
                raise InputError(f"max_length: {total}; prompt {too_long[0]} alone has {size} tokens")
            found: list[list[Completion]] = [[] for _ in ids]
            for length, places in groups.items():
                own = replace(params, max_new_tokens=total - length)
                for place, texts in zip(places, self._generate([ids[place] for place in places], own), strict=True):
                    found[place] = texts
            return found
        return self._generate(ids, params)

    def _generate(self, ids: Sequence[list[int]], params: SamplingParams) -> list[list[Completion]]:
        completions = self.engine.generate(ids, params, batch_size=max(self.batch_size, params.rows))
        return [[each, *each.alternatives] for each in completions]
