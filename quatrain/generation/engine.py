"""The engine: prompts in, completions out. Chat, evaluation, rollouts and the server all generate through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from quatrain.core.errors import InputError
from quatrain.core.reading import shown
from quatrain.generation.beam import BeamSearch
from quatrain.generation.constraints import Constraint, constraints
from quatrain.generation.decoding import Decoding, Stream, row_seeds
from quatrain.generation.logits import SamplingParams
from quatrain.generation.reader import context, encodes
from quatrain.generation.settings import Settings, read_settings
from quatrain.generation.text import Codec, Growing, find_stop, special_id, stopped, whole_ids
from quatrain.models.transformer.rotary_scaling import depends_on_length
from quatrain.models.transformer.stack import Model
from quatrain.planning.limits import check_generation

if TYPE_CHECKING:
    from quatrain.adapters.adapter_set import Choice

__all__ = ["Completion", "Engine", "Piece", "SamplingParams"]


@dataclass
class Completion:
    """What the model said. `ids` holds the end token where there was one; `text` neither it nor a stop string."""

    text: str
    ids: list[int]
    finish_reason: str
    """"stop" (an end token or stop string) or "length" (max_new_tokens, or the model's context is full)."""
    logprobs: list[float]
    """Natural log-probability of each id under the model itself, before temperature and the other processors."""
    score: float | None = None
    """Of a beam search: what its hypotheses are ordered by, their log-probability / length ** length_penalty."""
    alternatives: list[Completion] = field(default_factory=list)
    """Of a beam search with num_return_sequences above 1: the next best hypotheses, best first."""


class Piece(str):
    """A piece of streamed text; the last one carries the finished completion."""

    completion: Completion | None = None


class Engine:
    """Generates with one model and its tokenizer.

    A tokenizer is needed for text prompts, for text out and for stop strings; prompts of ids do without one (None).
    `end_ids` are the ids that end a completion: by default those of the model's configuration and
    generation settings, the tokenizer's end token and its end of turn. `settings` are by default those that the model
    brought along from its files.

    An encoder-decoder reads the prompt with its encoder; the completion is all that its decoder says. Raises
    InputError for a head that says no next token, a decoder without a start token, or settings that are not offered
    here. `target_tokenizer` is that of what the model says, where it is another than that of what it reads (Marian).
    `adapter` is the one that prompts go through which name none, of a model with several.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Codec | None = None,
        *,
        end_ids: Sequence[int] | None = None,
        settings: Settings | None = None,
        target_tokenizer: Codec | None = None,
        adapter: str | None = None,
    ):
        if model.config.head not in ("causal", "seq2seq"):
            kind, head = model.config.family, model.config.head
            raise InputError(
                f"This {kind} model has the head {head}, which does not say the next token. Generating needs a causal "
                "or seq2seq head."
            )
        self.model, self.adapter = model.eval(), adapter
        self.encodes = encodes(model.config)
        settings = settings or read_settings(model)
        self.settings, self.rules, self.recommended = settings, settings.rules, settings.recommended
        if self.encodes and self.rules.decoder_start_token_id is None:
            raise InputError(
                "This encoder-decoder names no decoder_start_token_id and no bos_token_id, so its decoder cannot "
                "begin. Give one in its generation_config.json."
            )
        self.tokenizer = tokenizer
        self.target_tokenizer = target_tokenizer or tokenizer
        self.end_ids = sorted(set(end_ids)) if end_ids is not None else _end_ids(model, self.target_tokenizer)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        quantize: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        adapter: str | None = None,
    ) -> Engine:
        """The engine of a model folder or hub id, plain, quantized or adapter, with its tokenizer and settings.

        `adapters` are folders of adapters over the model, by names that prompts choose from; `adapter` is the one of
        prompts that name none. `quantize` as for `load_model`.
        """
        from quatrain.loading.model import load_model
        from quatrain.models.hub import resolve
        from quatrain.tokenizers.tokenizer import Tokenizer

        folder = resolve(model)
        network, tokenizer = load_model(folder, dtype=dtype, device=device, quantize=quantize)
        if adapters:
            from quatrain.adapters.adapter_set import AdapterSet

            tokenizer = AdapterSet.load(network, adapters).tokenizer or tokenizer
        target = Tokenizer.find(folder, target=True) if encodes(network.config) else None
        engine = cls(network, tokenizer, target_tokenizer=target, adapter=adapter)
        engine._adapters(None, 1)
        return engine

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        *,
        batch_size: int = 64,
        truncate: bool = False,
        adapters: Choice = None,
    ) -> list[Completion]:
        """A completion for each prompt, in their order. Prompts are texts or token ids.

        Without `params`, the model's own settings decide. A completion ends where the model's context is full, however
        many tokens `max_new_tokens` still allows (`room` says how many there are). Prompts are run in batches of
        similar length, `batch_size` rows of the model at once (each beam is one). `truncate` cuts prompts that are too
        long (`fitting`).
        `adapters`: of a model with several (`load`), the one of all prompts or of each; None is the base alone.
        Raises InputError, with the counts, where prompts leave no room in the model's context or a batch none in the
        machine's memory; QuatrainError where the model's logits are not finite.
        """
        params = params or self.recommended
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size: {shown(batch_size)}; must be a whole number of at least 1")
        own = self._adapters(adapters, len(prompts))
        encoded = [self.encode(prompt, adapter) for prompt, adapter in zip(prompts, own, strict=True)]
        streams = self._streams([self.fitting(ids, params) for ids in encoded] if truncate else encoded, params, own)
        params, end_ids = self._stops(params)
        batches = list(self._batches(streams, max(batch_size // params.num_beams, 1)))
        for batch in batches:
            self._check_memory(batch, params.num_beams)
        for batch in batches:
            self._run(batch, params, end_ids)
        return [self._completion(stream, params) for stream in streams]

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 64,
        adapters: Choice = None,
    ) -> list[Completion]:
        """The assistant's next turn in each conversation, a list of {"role", "content"} messages.

        `tools` are those of all conversations; `quatrain.data.records.Messages` bring their own.
        """
        own = self._adapters(adapters, len(conversations))
        prompts = [self.render(messages, tools, each) for messages, each in zip(conversations, own, strict=True)]
        return self.generate(prompts, params, batch_size=batch_size, adapters=own)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        adapter: str | None = None,
    ) -> list[int]:
        """The ids of a conversation up to where the assistant speaks, through the one chat renderer."""
        from quatrain.tokenizers.chat import render

        tokenizer: Any = self._tokenizer_of(adapter)
        if not getattr(tokenizer, "chat_templates", None):
            raise InputError("This model's tokenizer has no chat template: fine-tune it on chats, or give texts.")
        return render(tokenizer, messages, add_generation_prompt=True, tools=tools).ids

    def check_chat(self, adapter: str | None = None) -> None:
        """Raises InputError where the chat template is missing, or cannot write what a user says."""
        from quatrain.tokenizers.chat import check_template

        check_template(cast(Any, self._tokenizer_of(adapter)))

    def _adapters(self, adapters: Choice, count: int) -> list[str | None]:
        """The adapter of each prompt. Raises InputError, with near names, for those that the model has not."""
        adapters = self.adapter if adapters is None else adapters
        own = [adapters] * count if adapters is None or isinstance(adapters, str) else list(adapters)
        if len(own) != count:
            raise InputError(f"adapters: {len(own)} for {count} prompts; give one, or one for each.")
        if self.model.adapter_set is not None:
            self.model.adapter_set.check(own)
        elif any(name is not None for name in own):
            raise InputError("adapters: this model has none to choose from; load it with Engine.load(…, adapters=…).")
        return own

    def _tokenizer_of(self, adapter: str | None) -> Codec | None:
        """The tokenizer that an adapter was taught with, its chat template above all."""
        member = None if adapter is None else self.model.adapter_set.members[adapter]
        return self.tokenizer if member is None or member.tokenizer is None else member.tokenizer

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        truncate: bool = False,
        adapter: str | None = None,
    ) -> Iterator[Piece]:
        """The completion of one prompt in pieces of text as they are certain; joined they are its whole text.

        Unfinished characters and possible beginnings of a stop string are held back. The last piece, perhaps empty,
        has the `completion`; a beam search is certain of nothing before its end and gives one piece. Raises as
        `generate` does, before the first piece.
        """
        params = params or self.recommended
        own = self._adapters(adapter, 1)
        ids = self.encode(prompt, own[0])
        (stream,) = self._streams([self.fitting(ids, params) if truncate else ids], params, own)
        params, end_ids = self._stops(params)
        self._check_memory([stream], params.num_beams)
        return self._pieces(stream, params, end_ids)

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adapter: str | None = None,
    ) -> Iterator[Piece]:
        """`stream` for the assistant's next turn in a conversation."""
        (adapter,) = self._adapters(adapter, 1)
        return self.stream(self.render(messages, tools, adapter), params, adapter=adapter)

    def encode(self, prompt: str | Sequence[int], adapter: str | None = None) -> list[int]:
        """The ids the model is given for a prompt: text with the tokenizer's own beginning, and its end for an encoder.

        Raises InputError for an empty prompt where no beginning token is known.
        """
        tokenizer = self._tokenizer_of(adapter)
        if not isinstance(prompt, str):
            ids = whole_ids(prompt)
        elif tokenizer is None:
            raise InputError("A text prompt needs a tokenizer, and this engine has none. Give token ids instead.")
        else:
            ids = tokenizer.encode(prompt, special_tokens=True)
            added_end = ids[-1:] == [tokenizer.eos_id] and tokenizer.encode(prompt)[-1:] != ids[-1:]
            if added_end and not self.encodes:
                ids = ids[:-1]
        if ids:
            return ids
        for token in (
            getattr(tokenizer, "bos_id", None),
            self.settings.bos_token_id,
            self.model.config.bos_token_id,
            getattr(tokenizer, "eos_id", None),
        ):
            if token is not None:
                return [token]
        raise InputError("The prompt is empty and the tokenizer has no beginning token: give at least one token.")

    def fitting(self, ids: list[int], params: SamplingParams) -> list[int]:
        """A prompt's ids, cut where the model could not read them and still say `max_new_tokens`.

        A decoder keeps what is nearest to its answer, behind the beginning token where there is one; an encoder keeps
        the beginning, before the end token where there is one.
        """
        limit, config = context(self.model), self.model.config
        if limit is None:
            return ids
        room = limit if self.encodes else max(1, limit - params.max_new_tokens)
        if len(ids) <= room:
            return ids
        if self.encodes:
            return ids[: room - 1] + ids[-1:] if ids[-1] in self.end_ids else ids[:room]
        kept = 1 if room > 1 and ids[0] in (config.bos_token_id, getattr(self.tokenizer, "bos_id", None)) else 0
        return ids[:kept] + ids[len(ids) - room + kept :]

    def _check_memory(self, batch: Sequence[Stream], beams: int) -> None:
        """Raise InputError if a batch does not fit in the device's memory."""
        model = self.model
        check_generation(
            model.config,
            prompts=len(batch),
            beams=beams,
            prompt_tokens=max(len(stream.prompt) for stream in batch),
            new_tokens=max(stream.limit for stream in batch),
            virtual_tokens=0 if model.prompt is None else model.prompt.length,
            item_bytes=model.embed_tokens.weight.element_size(),
            device=model.device,
        )

    def room(self, ids: Sequence[int]) -> int | None:
        """How many new tokens the model's context has room for after a prompt's ids; None where it has no end."""
        limit = context(self.model)
        return None if limit is None else max(limit - (1 if self.encodes else len(ids)), 0)

    def _streams(
        self, prompts: list[list[int]], params: SamplingParams, adapters: Sequence[str | None]
    ) -> list[Stream]:
        limit, vocabulary = context(self.model), self.model.config.vocab_size
        room = 0 if self.encodes else 1
        problems = [
            f"prompt {number}: {len(ids)} tokens; the model reads {limit}" + " and needs one for its answer" * room
            for number, ids in enumerate(prompts, 1)
            if limit is not None and len(ids) + room > limit
        ]
        problems += [
            f"prompt {number}: token {max(ids) if max(ids) >= vocabulary else min(ids)} is not in the model's "
            f"vocabulary of {vocabulary}; model and tokenizer do not fit"
            for number, ids in enumerate(prompts, 1)
            if max(ids) >= vocabulary or min(ids) < 0
        ]
        longest = self.settings.max_length if params is self.recommended else None
        problems += [
            f"prompt {number}: {len(ids)} tokens; the model's settings allow max_length {longest}, its answer included"
            for number, ids in enumerate(prompts, 1)
            if longest is not None and len(ids) >= longest
        ]
        if problems:
            raise InputError("These prompts cannot be read by the model:", problems)
        seed = params.seed if params.seed is not None else torch.Generator().seed()
        rooms = [
            [params.max_new_tokens if longest is None else longest - len(ids), *([] if room is None else [room])]
            for ids in prompts
            for room in [self.room(ids)]
        ]
        return [
            Stream(ids, min(room), row_seed, adapter=adapter)
            for ids, room, row_seed, adapter in zip(prompts, rooms, row_seeds(prompts, seed), adapters, strict=True)
        ]

    def _batches(self, streams: list[Stream], count: int) -> Iterator[list[Stream]]:
        """Batches of similar length, or of equal length where the longest row would change how the others are read."""
        ordered = sorted(streams, key=lambda stream: len(stream.prompt))
        groups: list[list[Stream]] = [ordered]
        if depends_on_length(self.model.config.rope_scaling):
            groups = [list(group) for _, group in groupby(ordered, key=lambda stream: len(stream.prompt))]
        for group in groups:
            for start in range(0, len(group), count):
                yield group[start : start + count]

    def _stops(self, params: SamplingParams) -> tuple[SamplingParams, torch.Tensor]:
        """The parameters with all stop strings, and the end ids; a string that is a special token is one of those."""
        ends, strings = list(self.end_ids), []
        stop = params.stop or (() if params.ignore_eos else self.rules.stop_strings)
        if stop and self.target_tokenizer is None:
            whose = "" if params.stop else " (stop_strings of the model's own settings)"
            raise InputError(f"Stop strings{whose} need a tokenizer, and this engine has none.")
        for string in stop:
            special = special_id(self.target_tokenizer, string) if self.target_tokenizer is not None else None
            strings += [string] if special is None else []
            ends += [] if special is None else [special]
        return replace(params, stop=tuple(strings)), torch.tensor(ends, dtype=torch.long, device=self.model.device)

    @torch.inference_mode()
    def _run(self, streams: list[Stream], params: SamplingParams, end_ids: torch.Tensor) -> None:
        if params.num_beams > 1:
            check = self._is_stopped(params) if params.stop else None
            BeamSearch(self.model, streams, params, end_ids, stopped=check, **self._rules(params, end_ids)).run()
            return
        decoding = Decoding(self.model, streams, params, end_ids, **self._rules(params, end_ids))
        while decoding.active:
            self._step(decoding, params)

    def _rules(self, params: SamplingParams, end_ids: torch.Tensor) -> dict[str, Any]:
        ends = end_ids[:0] if params.ignore_eos else end_ids
        chain: list[Constraint] = constraints(self.rules, params, ends, encoder_decoder=self.encodes)
        return {"constraints": chain, "start_id": self.rules.decoder_start_token_id}

    def _is_stopped(self, params: SamplingParams) -> Callable[[list[int]], bool]:
        """Whether the newest of a completion's ids has completed a stop string."""
        tokenizer = self.target_tokenizer
        if tokenizer is None:
            return lambda ids: False
        return lambda ids: stopped(tokenizer, ids, params.stop)

    def _step(self, decoding: Decoding, params: SamplingParams) -> None:
        grown = decoding.step()
        if params.stop:
            is_stopped = self._is_stopped(params)
            for stream in grown:
                if is_stopped(stream.ids):
                    stream.finished = "stop"

    def _completion(self, stream: Stream, params: SamplingParams) -> Completion:
        said = stream.ids[:-1] if stream.ended else stream.ids
        text = self.target_tokenizer.decode(said) if self.target_tokenizer is not None else ""
        return Completion(
            text[: find_stop(text, params.stop)],
            stream.ids,
            stream.finished or "length",
            stream.logprobs,
            stream.score,
            [self._completion(other, params) for other in stream.alternatives],
        )

    def _pieces(self, stream: Stream, params: SamplingParams, end_ids: torch.Tensor) -> Iterator[Piece]:
        growing = Growing(self.target_tokenizer, params.stop)
        if params.num_beams > 1:
            self._run([stream], params, end_ids)
        else:
            with torch.inference_mode():
                decoding = Decoding(self.model, [stream], params, end_ids, **self._rules(params, end_ids))
            while stream.finished is None:
                self._step(decoding, params)
                if stream.finished is None and (more := growing.more(stream.ids)):
                    yield Piece(more)
        completion = self._completion(stream, params)
        last = Piece(completion.text[growing.shown :])
        last.completion = completion
        yield last


def _end_ids(model: Model, tokenizer: Codec | None) -> list[int]:
    found = set(tokenizer.stop_ids) if tokenizer is not None else set()
    for configured in (model.config.eos_token_id, (model.generation or {}).get("eos_token_id")):
        if configured is not None:
            found |= set(configured) if isinstance(configured, list) else {configured}
    return sorted(token for token in found if token is not None and token >= 0)
