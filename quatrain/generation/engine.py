"""The engine: prompts in, completions out. Chat, evaluation, rollouts and the server all generate through it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.processors import find_processor
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.config import GenerationConfig, read_generation_config
from quatrain.generation.params import SamplingParams
from quatrain.generation.pictures import PictureIds, check_reads, expanded, features_of, split_pictures
from quatrain.generation.requests import Completion, Request, SequenceState, TextChunk, digest_of, row_seeds
from quatrain.generation.runner import context_limit, has_encoder
from quatrain.generation.scheduler import Scheduler, Statistics
from quatrain.generation.scoring import CompletionScore, score_completions
from quatrain.generation.speculative import DraftModel, Proposer, check_rewinds
from quatrain.generation.states import make_runner
from quatrain.generation.text import TokenizerLike, special_token_id, stopped, token_ids_of
from quatrain.models.kernels.decode import NativeUse
from quatrain.models.transformer.config import CacheFormat
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.adapters.adapter_set import AdapterChoice
    from quatrain.loading.model import ResolvedModel

__all__ = ["Completion", "Engine", "Request", "SamplingParams", "Statistics", "TextChunk"]


class Engine:
    """Generates completions with one model and its tokenizer.

    The tokenizer is needed for text prompts, text output and stop strings; prompts of token ids work without one.
    `end_ids` end a completion; the default is the end ids of the model's configuration and generation settings plus the
    tokenizer's end-of-sequence and end-of-turn tokens. `settings` default to those of the model's files.

    An encoder-decoder reads the prompt with its encoder; its completion is everything that its decoder generates.
    `target_tokenizer` decodes completions if another tokenizer than that of the prompts does (Marian). For a model with
    several adapters, `adapter` is the default of prompts that name none. At most `max_rows` rows run at once, or
    as many as the `batch_size` of a call of `generate`.
    `native`: whether plain steps are decoded by native code (`quatrain.models.kernels.decode`); None measures, for
    large models; "compiled" also decodes small ones so, where the code is compiled already.
    `speculation` guesses tokens that the model then reads together (`generation.speculative`). `kv_cache` = "int8" or
    "int4" stores keys and values rounded: fewer bytes for a text, slightly other logits, often fewer tokens a second.

    `generate`, `chat` and `stream` run prompts to their ends. `submit` adds a request to those that run together, one
    token each per `step`; a request can be cancelled at any time. All of these may be called from several threads. What
    a request gives does not depend on the others.

    Raises InputError for a head that does not predict the next token, a decoder without a start token, or generation
    settings that are not supported.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: TokenizerLike | None = None,
        *,
        end_ids: Sequence[int] | None = None,
        settings: GenerationConfig | None = None,
        target_tokenizer: TokenizerLike | None = None,
        adapter: str | None = None,
        max_rows: int = 64,
        native: NativeUse = None,
        speculation: Proposer | None = None,
        kv_cache: CacheFormat | None = None,
    ):
        if model.config.head not in ("causal", "seq2seq"):
            kind, head = model.config.family, model.config.head
            raise InputError(
                f"This {kind} model has the head {head}, which does not predict the next token. Generating needs a "
                "causal or seq2seq head."
            )
        self.model, self.adapter = model.eval(), adapter
        self.has_encoder = has_encoder(model.config)
        settings = settings or read_generation_config(model)
        self.settings, self.rules, self.recommended = settings, settings.rules, settings.recommended
        if self.has_encoder and self.rules.decoder_start_token_id is None:
            raise InputError(
                "This encoder-decoder names no decoder_start_token_id and no bos_token_id, so its decoder cannot "
                "start. Give one in its generation_config.json."
            )
        self.tokenizer = tokenizer
        self.target_tokenizer = target_tokenizer or tokenizer
        self.processor: Any = None
        """What prepares pictures for the model (`quatrain.data.image_processor`), from the model's folder."""
        self.chooser = TokenChooser(self.rules, encoder_decoder=self.has_encoder, tokenizer=self.target_tokenizer)
        self.end_ids = sorted(set(end_ids)) if end_ids is not None else _end_ids(model, self.target_tokenizer)
        self.max_rows = max_rows
        if speculation is not None:
            check_rewinds(model)
            speculation.check(model, self.target_tokenizer)
        self.scheduler = Scheduler(
            make_runner(model, native=native, kv_cache=kv_cache),
            self.chooser,
            is_stopped=partial(_is_stopped, self.target_tokenizer),
            proposer=speculation,
            max_rows=max_rows,
        )
        self._stepping, self._submitted = threading.Lock(), threading.Condition()

    @classmethod
    def load(
        cls,
        model: str | Path | ResolvedModel,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        quantize: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        adapter: str | None = None,
        speculation: Proposer | str | Path | None = None,
        native: NativeUse = None,
        kv_cache: CacheFormat | None = None,
    ) -> Engine:
        """The engine of a model folder or hub id (plain, quantized, or an adapter), with its tokenizer and settings.

        `adapters` maps names to folders of adapters over the model, from which each prompt can choose; `adapter` is the
        default of prompts that name none. `quantize` as for `load_model`. `speculation` guesses tokens: a draft model's
        folder or hub id, or a `Proposer`. `native` and `kv_cache` as for `Engine`.
        """
        from quatrain.loading.model import ResolvedModel, load_model

        resolved = ResolvedModel.of(model)
        network, tokenizer = load_model(resolved, dtype=dtype, device=device, quantize=quantize)
        if isinstance(speculation, str | Path):
            draft, drafted = load_model(ResolvedModel.of(speculation), dtype=dtype, device=device, quantize=quantize)
            speculation = DraftModel(draft, drafted)
        options: dict[str, Any] = {"speculation": speculation, "native": native, "kv_cache": kv_cache}
        return cls.of(network, tokenizer, resolved, adapters=adapters, adapter=adapter, **options)

    @classmethod
    def of(
        cls,
        network: Model,
        tokenizer: Any,
        resolved: ResolvedModel,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        adapter: str | None = None,
        speculation: Proposer | None = None,
        native: NativeUse = None,
        kv_cache: CacheFormat | None = None,
    ) -> Engine:
        """The engine of a model that was loaded with its tokenizer from resolved folders; otherwise as `load`."""
        if adapters:
            from quatrain.adapters.adapter_set import AdapterSet

            tokenizer = AdapterSet.load(network, adapters).tokenizer or tokenizer
        target = resolved.tokenizer(target=True) if has_encoder(network.config) else None
        options: dict[str, Any] = {"speculation": speculation, "native": native, "kv_cache": kv_cache}
        engine = cls(network, tokenizer, target_tokenizer=target, adapter=adapter, **options)
        if network.config.frontend is not None:
            engine.processor = find_processor(resolved.base)
        engine._adapters(None, 1)
        return engine

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        *,
        batch_size: int = 64,
        truncate: bool = False,
        adapters: AdapterChoice = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """A completion for each prompt, in their order. Prompts are texts or lists of token ids; `with_pictures` makes
        those with pictures.

        Without `params`, the model's own settings apply. A completion also ends when the model's context is full
        (`remaining_tokens`). At most `batch_size` prompts run at once; each beam or sample counts as one. `truncate`
        shortens prompts that are too long.
        `adapters`: for a model with several, one name for all prompts or one for each; None is the base model.
        `seeds`: the seed of each prompt's noise; by default it follows from `params.seed`, the prompt's ids and the
        number of equal prompts before it.

        Raises InputError, with the counts, for prompts that do not fit into the model's context or into memory;
        QuatrainError if the model's logits are not finite.
        """
        params = params or self.recommended
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size: {format_value(batch_size)}; must be a whole number of at least 1")
        own = self._adapters(adapters, len(prompts))
        encoded = [self.encode(prompt, adapter) for prompt, adapter in zip(prompts, own, strict=True)]
        if truncate:
            encoded = [self.truncate(ids, params, adapter) for ids, adapter in zip(encoded, own, strict=True)]
        requests = self._requests(encoded, params, own, seeds)
        for request in requests:
            self._check_memory(request.sequences[0])
        self._run(sorted(requests, key=lambda request: len(request.sequences[0].prompt)), batch_size)
        return [request.result() for request in requests]

    def generate_from(
        self,
        features: torch.Tensor,
        params: SamplingParams | None = None,
        *,
        decoder_prompts: Sequence[Sequence[int]] | None = None,
        batch_size: int = 8,
    ) -> list[Completion]:
        """A completion for each of the features (B, …) that the encoder of this model reads: log-mel features of sound.

        decoder_prompts: what the decoder reads before it generates, for each input; the default is the start token. The
        encoder runs once for equal features of calls that follow each other. Raises InputError for a model whose
        encoder reads text, and for prompts that leave no room.
        """
        params = params or self.recommended
        if not self.has_encoder or self.model.config.frontend is None:
            raise InputError(f"features: the {self.model.config.family} model reads text; give prompts to `generate`.")
        start = [[self.rules.decoder_start_token_id]] * len(features) if decoder_prompts is None else decoder_prompts
        if len(start) != len(features):
            raise InputError(f"decoder_prompts: {len(start)} for {len(features)} inputs; give one for each.")
        prompts = [tuple(token_ids_of(prompt)) for prompt in start]
        limit, vocabulary = self.model.config.context_length, self.model.config.vocab_size
        problems = []
        for number, prompt in enumerate(prompts, 1):
            if not 0 < len(prompt) < limit:
                problems.append(f"decoder prompt {number}: {len(prompt)} tokens; must be 1 to {limit - 1}")
            elif max(prompt) >= vocabulary or min(prompt) < 0:
                problems.append(f"decoder prompt {number}: has a token that is not in the vocabulary of {vocabulary}")
        if problems:
            raise InputError("These decoder prompts cannot be read by the model:", problems)
        self.chooser.check(params, vocabulary)
        seed = params.seed if params.seed is not None else torch.Generator().seed()
        keys = [[*prompt, *digest_of(row)] for prompt, row in zip(prompts, features, strict=True)]
        samples = params.num_return_sequences if params.num_beams == 1 else 1
        seeds = iter(row_seeds([key for key in keys for _ in range(samples)], seed))
        params, ends = self._stops(params)
        requests = []
        for prompt, row in zip(prompts, features, strict=True):
            limited = min(params.max_new_tokens, limit - len(prompt))
            states = [
                SequenceState([], params, limited, next(seeds), ends, prompt, self.adapter, row) for _ in range(samples)
            ]
            requests.append(Request(states, self.target_tokenizer, self._advance))
            self._check_memory(states[0])
        self._run(requests, batch_size)
        return [request.result() for request in requests]

    def score(
        self,
        prompts: Sequence[str | Sequence[int]],
        completions: Sequence[str | Sequence[int]],
        *,
        logprobs: int = 0,
        batch_size: int = 64,
        adapters: AdapterChoice = None,
    ) -> list[CompletionScore]:
        """How likely each given completion is after its prompt, without generating.

        Texts are tokenized together with their prompt, as the model would read them: a completion is what its prompt
        does not already begin with. `logprobs` is the number of likeliest tokens that are returned with each id.
        Raises InputError, all problems at once, for an empty completion and for texts that the model cannot read.
        """
        if len(prompts) != len(completions):
            raise InputError(f"completions: {len(completions)} for {len(prompts)} prompts; give one for each.")
        own = self._adapters(adapters, len(prompts))
        pairs = [self._pair(*pair) for pair in zip(prompts, completions, own, strict=True)]
        limit, vocabulary, problems = context_limit(self.model), self.model.config.vocab_size, []
        for number, (prompt, completion) in enumerate(pairs, 1):
            length = max(len(prompt), len(completion)) if self.has_encoder else len(prompt) + len(completion) - 1
            if not completion:
                problems.append(f"completion {number}: empty; give at least one token")
            elif limit is not None and length > limit:
                problems.append(f"prompt {number}: {length} tokens with its completion; the model reads {limit}")
            for token in sorted({token for token in (*prompt, *completion) if not 0 <= token < vocabulary})[:1]:
                problems.append(f"prompt {number}: token {token} is not in the model's vocabulary of {vocabulary}")
        if problems:
            raise InputError("These completions cannot be scored by the model:", problems)
        with self._stepping:
            return score_completions(
                self.model,
                [prompt for prompt, _ in pairs],
                [completion for _, completion in pairs],
                decoder_start=self.rules.decoder_start_token_id if self.has_encoder else None,
                adapters=own,
                logprobs=logprobs,
                batch_size=batch_size,
            )

    def _pair(
        self, prompt: str | Sequence[int], completion: str | Sequence[int], adapter: str | None
    ) -> tuple[list[int], list[int]]:
        """The ids of a prompt and of its completion."""
        ids = self.encode(prompt, adapter)
        if not isinstance(completion, str):
            return ids, token_ids_of(completion)
        if self.has_encoder or not isinstance(prompt, str) or not prompt:
            if self.target_tokenizer is None:
                raise InputError(
                    "A text completion needs a tokenizer, and this engine has none. Give token ids instead."
                )
            return ids, self.target_tokenizer.encode(completion)
        whole = self.encode(prompt + completion, adapter)
        shared = 0
        while shared < min(len(ids), len(whole)) and ids[shared] == whole[shared]:
            shared += 1
        # The prompt's last tokens may be others together with the completion; one token must be left to read.
        shared = max(shared, 1)
        return whole[:shared], whole[shared:]

    def chat(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        batch_size: int = 64,
        adapters: AdapterChoice = None,
    ) -> list[Completion]:
        """The assistant's next turn in each conversation, a list of {"role", "content"} messages.

        `tools` apply to all conversations; `quatrain.data.records.Messages` carry their own.
        """
        own = self._adapters(adapters, len(conversations))
        prompts = [self.render(messages, tools, each) for messages, each in zip(conversations, own, strict=True)]
        return self.generate(prompts, params, batch_size=batch_size, adapters=own)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        adapter: str | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        continue_final: bool = False,
    ) -> list[int]:
        """The ids of a conversation up to the start of the assistant's turn, from the chat renderer.

        Pictures in the content of messages, {"type": "image", "image": …} or OpenAI's `image_url`, become those of
        `PictureIds`. `variables` are further inputs of the chat template. `continue_final`: the last message is the
        beginning of the assistant's turn, a text that the model continues.
        """
        from quatrain.data.records import Messages
        from quatrain.tokenizers.chat import render

        tokenizer: Any = self.tokenizer_of(adapter)
        if not getattr(tokenizer, "chat_templates", None):
            raise InputError("This model's tokenizer has no chat template: fine-tune it on chats, or give texts.")
        messages, pictures = split_pictures(messages)
        if pictures:
            check_reads(self.model.config)
        final = messages[-1] if continue_final and messages else None
        if final is not None and (final.get("role") != "assistant" or not isinstance(final.get("content"), str)):
            raise InputError("Only a text of the assistant can be continued: make it the last message.")
        if variables or final is not None:
            own = {**getattr(messages, "variables", {}), **(variables or {})}
            shown = messages[:-1] if final is not None else messages
            tools = tools if tools is not None else getattr(messages, "tools", None)
            documents = getattr(messages, "documents", None)
            messages = Messages(list(shown), documents=documents, variables=own)  # type: ignore[arg-type]
        rendered = render(tokenizer, messages, add_generation_prompt=True, tools=tools)
        ids: list[int] = rendered.ids
        if final is not None:
            ids = tokenizer.encode_with_offsets(rendered.text + final["content"])[0]
        return self.with_pictures(ids, pictures, adapter) if pictures else ids

    def with_pictures(
        self, prompt: str | Sequence[int], pictures: Sequence[Any] | torch.Tensor, adapter: str | None = None
    ) -> PictureIds:
        """A prompt with pictures, for a model that reads them, such as LLaVA.

        The prompt has the image token where each picture stands. Pictures are paths, `data:` URIs, bytes, arrays or
        Pillow images, or all of them prepared: features (N, C, H, W). Raises InputError for a model that reads text
        alone, another number of image tokens, and pictures that cannot be read.
        """
        check_reads(self.model.config)
        if isinstance(pictures, torch.Tensor):
            features = pictures
        elif self.processor is None:
            raise InputError(
                "The model has no preprocessor_config.json, which says how pictures are prepared: put it beside "
                "config.json, or set the engine's `processor`."
            )
        else:
            features = torch.from_numpy(self.processor(pictures))
        frontend: Any = self.model.config.frontend
        if tuple(features.shape[1:]) != frontend.input_shape:
            raise InputError(
                f"pictures: are prepared as {tuple(features.shape[1:])}; the model reads {frontend.input_shape}. Its "
                "preprocessor_config.json belongs to another model."
            )
        return expanded(self.encode(prompt, adapter), features, self.model.config)

    def check_chat(self, adapter: str | None = None) -> None:
        """Raises InputError if the chat template is missing or cannot render a user's message."""
        from quatrain.tokenizers.chat import check_template

        tokenizer = self.tokenizer_of(adapter)
        if tokenizer is None:
            raise InputError(
                "This model has no tokenizer, so it cannot read a conversation. Put its tokenizer.json beside its "
                "config.json."
            )
        check_template(cast(Any, tokenizer))

    def _adapters(self, adapters: AdapterChoice, count: int) -> list[str | None]:
        """The adapter of each prompt. Raises InputError, with near names, for names that the model does not have."""
        adapters = self.adapter if adapters is None else adapters
        own = [adapters] * count if adapters is None or isinstance(adapters, str) else list(adapters)
        if len(own) != count:
            raise InputError(f"adapters: {len(own)} for {count} prompts; give one, or one for each.")
        if self.model.adapter_set is not None:
            self.model.adapter_set.check_names(own)
        elif any(name is not None for name in own):
            raise InputError("adapters: this model has none to choose from; load it with Engine.load(…, adapters=…).")
        return own

    def tokenizer_of(self, adapter: str | None) -> TokenizerLike | None:
        """The tokenizer that an adapter was trained with: its chat template may differ from the base model's."""
        self._adapters([adapter], 1)
        member = None if adapter is None else self.model.adapter_set.members[adapter]
        return self.tokenizer if member is None or member.tokenizer is None else member.tokenizer

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        truncate: bool = False,
        adapter: str | None = None,
    ) -> Iterator[TextChunk]:
        """The completion of one prompt in pieces of text, as soon as they are final; joined they are its whole text.

        Unfinished characters and possible beginnings of a stop string are held back. The last piece, perhaps empty,
        carries the `completion`. A beam search is final only at its end and gives one piece. Raises as `generate` does,
        before the first piece.
        """
        params = params or self.recommended
        if params.num_return_sequences > 1:
            raise InputError(
                f"num_return_sequences: {params.num_return_sequences}; a stream is one completion; use generate, or "
                "several streams"
            )
        return self.submit(prompt, params, truncate=truncate, adapter=adapter)

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        truncate: bool = False,
        adapter: str | None = None,
    ) -> Request:
        """Adds a prompt to those that run together. The request is an iterator over the text of its completion.

        Raises as `generate` does, before anything runs; what happens later is raised by the request.
        """
        params = params or self.recommended
        own = self._adapters(adapter, 1)
        ids = self.encode(prompt, own[0])
        (request,) = self._requests([self.truncate(ids, params, own[0]) if truncate else ids], params, own)
        self._check_memory(request.sequences[0])
        self._submit(request)
        return request

    def _submit(self, request: Request) -> None:
        self.scheduler.submit(request.sequences)
        with self._submitted:
            self._submitted.notify_all()

    def step(self) -> bool:
        """Generates one token of every running request and starts waiting ones; returns whether there is more to do.

        One thread at a time steps; others wait for their turn.
        """
        with self._stepping:
            if not self.scheduler.is_idle:
                self.scheduler.step()
            return not self.scheduler.is_idle

    @contextmanager
    def paused(self) -> Iterator[Model]:
        """The model, for a caller who runs it directly: no step runs meanwhile."""
        with self._stepping:
            yield self.model

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until there is something to do, for a thread that steps; returns whether there is."""
        with self._submitted:
            return self._submitted.wait_for(lambda: not self.scheduler.is_idle, timeout)

    @property
    def statistics(self) -> Statistics:
        """What the engine has done and is doing: requests, tokens, speeds, cache hits."""
        return self.scheduler.current_statistics()

    def _advance(self, request: Request) -> None:
        """A step for somebody who waits for a request, unless another thread has finished it meanwhile.

        An error of the step is that of the requests that it has failed; whoever waits for another one goes on.
        """
        with self._stepping:
            if request.done:
                return
            failed = self.scheduler.statistics.failed
            try:
                self.scheduler.step()
            except Exception:
                if self.scheduler.statistics.failed == failed:
                    raise

    def _run(self, requests: Sequence[Request], rows: int) -> None:
        """Runs requests to their ends, of at most so many rows at once. Raises the first error of one of them."""
        waiting, running = list(reversed(requests)), list[Request]()
        try:
            while waiting or running:
                count = sum(map(_rows_of, running))
                while waiting and (not running or count + _rows_of(waiting[-1]) <= rows):
                    running.append(waiting.pop())
                    count += _rows_of(running[-1])
                    self._submit(running[-1])
                self.scheduler.max_rows = max(self.max_rows, count)
                self._advance(running[0])
                failed = next((request.error for request in running if request.error is not None), None)
                if failed is not None:
                    raise failed
                running = [request for request in running if not request.done]
        finally:
            self.scheduler.max_rows = self.max_rows
            for request in running:
                request.cancel()

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adapter: str | None = None,
    ) -> Iterator[TextChunk]:
        """`stream` for the assistant's next turn in a conversation."""
        (adapter,) = self._adapters(adapter, 1)
        return self.stream(self.render(messages, tools, adapter), params, adapter=adapter)

    def encode(self, prompt: str | Sequence[int], adapter: str | None = None) -> list[int]:
        """The ids that the model reads for a prompt: a text gets the tokenizer's special tokens, but an end token only
        for an encoder.

        Raises InputError for an empty prompt if no beginning token is known.
        """
        if isinstance(prompt, PictureIds):
            return prompt
        tokenizer = self.tokenizer_of(adapter)
        if not isinstance(prompt, str):
            ids = token_ids_of(prompt)
        elif tokenizer is None:
            raise InputError("A text prompt needs a tokenizer, and this engine has none. Give token ids instead.")
        else:
            ids = tokenizer.encode(prompt, special_tokens=True)
            added_end = ids[-1:] == [tokenizer.eos_id] and tokenizer.encode(prompt)[-1:] != ids[-1:]
            if added_end and not self.has_encoder:
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

    def truncate(self, ids: list[int], params: SamplingParams, adapter: str | None = None) -> list[int]:
        """A prompt's ids, shortened so that the prompt and `max_new_tokens` fit into the model's context.

        A decoder keeps the end of the prompt, and the beginning-of-sequence token if there is one; an encoder keeps the
        beginning, and the end token if there is one. A prompt with pictures is not shortened.
        """
        limit, config = context_limit(self.model, adapter), self.model.config
        if limit is None or isinstance(ids, PictureIds):
            return ids
        room = limit if self.has_encoder else max(1, limit - params.max_new_tokens)
        if len(ids) <= room:
            return ids
        if self.has_encoder:
            return ids[: room - 1] + ids[-1:] if ids[-1] in self.end_ids else ids[:room]
        kept = 1 if room > 1 and ids[0] in (config.bos_token_id, getattr(self.tokenizer, "bos_id", None)) else 0
        return ids[:kept] + ids[len(ids) - room + kept :]

    def check(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, adapters: AdapterChoice = None
    ) -> None:
        """Raises InputError, all problems at once, for prompts of token ids that `generate` would refuse."""
        own = self._adapters(adapters, len(prompts))
        encoded = [self.encode(ids, adapter) for ids, adapter in zip(prompts, own, strict=True)]
        for request in self._requests(encoded, params, own):
            self._check_memory(request.sequences[0])

    def _check_memory(self, sequence: SequenceState) -> None:
        """Raises InputError if a sequence alone does not fit in the device's memory."""
        self.scheduler.runner.check_memory(sequence)

    def remaining_tokens(self, ids: Sequence[int], adapter: str | None = None) -> int | None:
        """How many new tokens fit into the model's context after a prompt; None if the context has no limit."""
        limit = context_limit(self.model, adapter)
        return None if limit is None else max(limit - (1 if self.has_encoder else len(ids)), 0)

    def _requests(
        self,
        prompts: list[list[int]],
        params: SamplingParams,
        adapters: Sequence[str | None],
        own_seeds: Sequence[int] | None = None,
    ) -> list[Request]:
        """A request for each prompt. Raises InputError, all problems at once."""
        vocabulary, room = self.model.config.vocab_size, 0 if self.has_encoder else 1
        limits = [context_limit(self.model, adapter) for adapter in adapters]
        problems = [
            f"prompt {number}: {len(ids)} tokens; the model reads {limit}" + " and needs one for its answer" * room
            for number, (ids, limit) in enumerate(zip(prompts, limits, strict=True), 1)
            if limit is not None and len(ids) + room > limit
        ]
        problems += [
            f"prompt {number}: token {max(ids) if max(ids) >= vocabulary else min(ids)} is not in the model's "
            f"vocabulary of {vocabulary}; model and tokenizer do not fit"
            for number, ids in enumerate(prompts, 1)
            if max(ids) >= vocabulary or min(ids) < 0
        ]
        negative = self.encode(params.negative_prompt) if params.negative_prompt is not None else []
        least = min((limit for limit in limits if limit is not None), default=None)
        if least is not None and len(negative) + room > least:
            problems.append(
                f"negative_prompt: {len(negative)} tokens; the model reads {least} and needs one for its answer"
            )
        if params.penalty_alpha and not self.model.compares_hidden_states:
            kind = self.model.config.family
            problems.append(f"penalty_alpha: the hidden states of a {kind} model are not comparable vectors")
        longest = self.settings.max_length if params is self.recommended else None
        problems += [
            f"prompt {number}: {len(ids)} tokens; the model's settings allow max_length {longest}, its answer included"
            for number, ids in enumerate(prompts, 1)
            if longest is not None and len(ids) >= longest
        ]
        try:
            self.chooser.check(params, vocabulary)
        except InputError as error:
            if problems:
                raise InputError("These requests cannot be run:", [*problems, *error.problems]) from error
            raise
        if problems:
            raise InputError("These prompts cannot be read by the model:", problems)
        # Several samples of a prompt are those of the prompt given several times.
        samples = params.num_return_sequences if params.num_beams == 1 else 1
        seed = params.seed if params.seed is not None else torch.Generator().seed()
        if own_seeds is not None and len(own_seeds) != len(prompts) * samples:
            raise InputError(f"seeds: {len(own_seeds)} for {len(prompts) * samples} completions; give one for each.")
        pictures = [features_of(ids) for ids in prompts]
        keys = [ids if seen is None else [*ids, *digest_of(seen)] for ids, seen in zip(prompts, pictures, strict=True)]
        repeated = [key for key in keys for _ in range(samples)]
        seeds = iter(row_seeds(repeated, seed) if own_seeds is None else own_seeds)
        first = self.rules.decoder_start_token_id
        start = (first,) if self.has_encoder and first is not None else None
        params, ends = self._stops(params)
        if negative:
            params = replace(params, negative_prompt=tuple(negative))
        requests = []
        for ids, adapter, seen in zip(prompts, adapters, pictures, strict=True):
            own = [params.max_new_tokens if longest is None else longest - len(ids)]
            rooms = [self.remaining_tokens(each, adapter) for each in (ids, negative)]
            own += [room for room in rooms if room is not None]
            states = [
                SequenceState(ids, params, min(own), next(seeds), ends, start, adapter, seen) for _ in range(samples)
            ]
            requests.append(Request(states, self.target_tokenizer, self._advance))
        return requests

    def _stops(self, params: SamplingParams) -> tuple[SamplingParams, tuple[int, ...]]:
        """The parameters with all stop strings, and the end ids; a string that is a special token is one of those."""
        ends, strings = [*([] if params.ignore_eos else self.end_ids), *params.stop_token_ids], []
        stop = params.stop or (() if params.ignore_eos or params.constrained else self.rules.stop_strings)
        if stop and self.target_tokenizer is None:
            whose = "" if params.stop else " (stop_strings of the model's own settings)"
            raise InputError(f"Stop strings{whose} need a tokenizer, and this engine has none.")
        for string in stop:
            special = special_token_id(self.target_tokenizer, string) if self.target_tokenizer is not None else None
            strings += [string] if special is None else []
            ends += [] if special is None else [special]
        return replace(params, stop=tuple(strings)), tuple(dict.fromkeys(ends))


def _is_stopped(tokenizer: TokenizerLike | None, ids: list[int], params: SamplingParams) -> bool:
    """Whether the newest of a completion's ids has completed a stop string."""
    return tokenizer is not None and stopped(tokenizer, ids, params.stop)


def _rows_of(request: Request) -> int:
    """How many rows of the model a request takes."""
    return len(request.sequences) * request.sequences[0].params.rows


def _end_ids(model: Model, tokenizer: TokenizerLike | None) -> list[int]:
    found = set(tokenizer.stop_ids) if tokenizer is not None else set()
    for configured in (model.config.eos_token_id, (model.generation_config or {}).get("eos_token_id")):
        if configured is not None:
            found |= set(configured) if isinstance(configured, list) else {configured}
    return sorted(token for token in found if token is not None and token >= 0)
