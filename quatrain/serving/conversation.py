"""From a request of any protocol to the completions of a model: what all protocols share.

A protocol translates its request to a `ChatJob` or a `TextJob`, and the events of the `Run` to its answers. Streamed
and whole answers are built from the same events.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.reading import depth_of, lone_surrogate
from quatrain.generation.engine import Completion, Engine, Request, SamplingParams, TextChunk
from quatrain.generation.runner import context_limit
from quatrain.generation.text import find_stop, special_token_id
from quatrain.generation.turns import (
    THINK_START,
    Delta,
    ForcedParser,
    TurnParser,
    call_format,
    forced_schema,
    prepared_messages,
    turn_grammar,
)
from quatrain.retrieval.index import Index
from quatrain.serving.errors import ApiError
from quatrain.serving.labels import Labelling
from quatrain.serving.models import Loaded, ModelRegistry
from quatrain.serving.pictures import opened
from quatrain.serving.settings import ServerSettings
from quatrain.serving.worker import CompletionGroup
from quatrain.tasks.task import Database

MAX_DEPTH = 48
"""The deepest nesting of a JSON schema."""

MOST_ROWS = 64
"""The most rows of the model that one completion may take."""

INTERNAL_VARIABLES = frozenset(
    {
        *("messages", "conversation", "conversations", "tools", "documents", "add_generation_prompt", "tokenize"),
        *("chat_template", "template", "tokenizer", "mask", "continue_final_message", "return_dict", "truncation"),
        *(f"{role}_token" for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")),
        *("return_tensors", "padding", "max_length", "return_assistant_tokens_mask", "tokenizer_kwargs", "self"),
    }
)
"""Names that `chat_template_kwargs` cannot have: the arguments of a renderer."""

CONSTRAINTS = ("json_schema", "regex", "grammar", "choice")
"""Fields of SamplingParams that constrain the whole answer."""
NO_SEARCH: dict[str, Any] = {
    **{"num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "num_return_sequences": 1, "penalty_alpha": 0.0},
    **{"guidance_scale": 1.0, "negative_prompt": None, "force_words": ()},
}
"""Fields of SamplingParams that turn the searches of a model's own settings off: a request must ask for one."""
NOT_DRAWN: dict[str, Any] = {
    **{"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None, "typical_p": None, "epsilon_cutoff": None},
    **{"eta_cutoff": None, "top_h": None},
}
"""Fields of SamplingParams that turn sampling off."""


@dataclass
class Sampling:
    """How the completions of a request are chosen."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of SamplingParams that the client gave, without `max_new_tokens`."""
    max_tokens: int | None = None
    n: int = 1
    logprobs: int | None = None
    token_ids: bool = False
    """Whether the ids of the new tokens are asked for."""


@dataclass
class ChatJob:
    """A conversation whose next turn is asked for."""

    model: str | None
    messages: list[dict[str, Any]]
    sampling: Sampling
    tools: list[dict[str, Any]] | None = None
    """In OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}."""
    tool_choice: str = "auto"
    """"auto", "none", "required", or the name of a tool."""
    one_call: bool = False
    """Whether at most one tool may be called."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Further inputs of the chat template."""
    continue_final: bool = False
    """Whether the last message is the beginning of the answer."""

    @property
    def constrains_calls(self) -> bool:
        """Whether every tool is `strict` and the model may choose: calls are then JSON that fits a tool's schema."""
        strict = bool(self.tools) and all(tool["function"].get("strict") for tool in self.tools or ())
        return strict and self.tool_choice == "auto" and not any(map(self.sampling.fields.get, CONSTRAINTS))


@dataclass
class TextJob:
    """Texts, or lists of token ids, to continue."""

    model: str | None
    prompts: list[str | list[int]]
    sampling: Sampling


@dataclass
class Event:
    """News of the completion number `index`: deltas of its turn, the tokens that they took, and perhaps its end."""

    index: int
    deltas: list[Delta]
    tokens: list[Token]
    """With log-probabilities, if these are asked for."""
    ids: list[int]
    """If they are asked for: the ids of the tokens; an end token is none of them."""
    finish: str | None = None
    """"stop", "length", "tool_calls" or "cancelled"."""
    completion: Completion | None = None


@dataclass
class Token:
    """A token with its log-probability, in nats, and the likeliest ones at its place."""

    id: int
    text: str
    bytes: bytes
    logprob: float
    top: list[Token] = field(default_factory=list)


class Service:
    """What the routes work with: the models, the limits, and the threads that prepare requests."""

    def __init__(self, registry: ModelRegistry, settings: ServerSettings):
        self.registry, self.settings = registry, settings
        self.metrics = registry.metrics
        self.threads = ThreadPoolExecutor(4, "request")
        self.is_stopping = False
        self.database: Database | None = None
        """The database that the page's questions are answered from."""
        self.index: Index | None = None
        """The index that the page `/ask` answers from."""
        self.labelling: Labelling | None = None
        """The session of the page `/label`."""

    async def in_thread(self, function: Any, *arguments: Any) -> Any:
        """The result of a function that computes for a while."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    @asynccontextmanager
    async def chat(self, job: ChatJob) -> AsyncIterator[Run]:
        """The run of a conversation, which is cancelled at the end of the context. Raises ApiError and InputError."""
        if len(job.messages) > self.settings.max_messages:
            raise ApiError(
                400,
                f"{len(job.messages):,} messages; a request may have {self.settings.max_messages:,}.",
                param="messages",
            )
        if job.tools and job.tool_choice not in ("auto", "none"):
            name = None if job.tool_choice == "required" else job.tool_choice
            if name is not None and name not in {tool["function"]["name"] for tool in job.tools}:
                raise ApiError(400, f"tool_choice: no tool is named {name[:100]!r}.", param="tool_choice")
            job.sampling.fields["json_schema"] = forced_schema(job.tools, name)

        strict = job.constrains_calls

        def prepare(engine: Engine, adapter: str | None) -> list[list[int]]:
            form = call_format(_template_of(engine, adapter))
            if strict and form is not None:
                tokenizer: Any = engine.tokenizer_of(adapter)
                grammar = turn_grammar(job.tools or (), form, lambda mark: special_token_id(tokenizer, mark))
                job.sampling.fields["grammar"] = grammar
            return [rendered(job, engine, adapter, self.settings)]

        async with self._run(job.model, prepare, job.sampling, 1, "messages") as run:
            engine, adapter = run.loaded.engine, run.adapter
            parser = partial(_parser, job, engine, adapter, run.prompt_ids[0], strict=strict)
            run.parsers = [parser() for _ in range(job.sampling.n)]
            run.one_call = job.one_call
            yield run

    async def rendered(self, job: ChatJob) -> list[int]:
        """The ids of a conversation as the model would read it. Raises ApiError and InputError."""
        async with self.registry.use(job.model) as (loaded, adapter):
            ids: list[int] = await self.in_thread(rendered, job, loaded.engine, adapter, self.settings)
            return ids

    @asynccontextmanager
    async def complete(self, job: TextJob) -> AsyncIterator[Run]:
        """The run of texts; its completions are `n` of the first prompt, then `n` of the second, and so on."""

        def prepare(engine: Engine, adapter: str | None) -> list[list[int]]:
            for prompt in job.prompts:
                check_text(prompt, "prompt")
            return [engine.encode(prompt, adapter) for prompt in job.prompts]

        async with self._run(job.model, prepare, job.sampling, len(job.prompts), "prompt") as run:
            yield run

    @asynccontextmanager
    async def _run(
        self, model: str | None, prepare: Any, sampling: Sampling, prompts: int, param: str
    ) -> AsyncIterator[Run]:
        count = prompts * sampling.n
        if sampling.n > self.settings.max_n:
            raise ApiError(400, f"n: {sampling.n}; at most {self.settings.max_n} are allowed.", param="n")
        if (beams := sampling.fields.get("num_beams", 1)) > self.settings.max_n:
            raise ApiError(400, f"num_beams: {beams}; at most {self.settings.max_n} are allowed.", param="num_beams")
        if count > self.settings.max_prompts:
            raise ApiError(
                400,
                f"{prompts} prompts of {sampling.n} completions each; a request may ask for "
                f"{self.settings.max_prompts} completions.",
                param=param,
            )
        check_grammar(sampling.fields, self.settings.max_grammar)
        async with AsyncExitStack() as stack:
            loaded, adapter = await stack.enter_async_context(self.registry.use(model))
            worker = loaded.generator

            def start() -> tuple[list[list[int]], list[Request]]:
                encoded = prepare(loaded.engine, adapter)
                if sampling.logprobs is not None:
                    token_bytes(loaded.engine, 0)  # Builds the table of all tokens, which takes a while.
                params = sampling_params(loaded.engine, adapter, encoded, sampling, self.settings, param)
                return encoded, worker.submit(encoded, params, sampling.n, adapter)

            worker.reserve(count)
            try:
                encoded, requests = await self.in_thread(start)
                group = worker.follow(requests)
            finally:
                worker.release(count)
            stack.callback(group.cancel)
            yield Run(self, loaded, adapter, encoded, group, sampling)


class Run:
    """The completions of one request."""

    def __init__(
        self,
        service: Service,
        loaded: Loaded,
        adapter: str | None,
        prompt_ids: list[list[int]],
        group: CompletionGroup,
        sampling: Sampling,
    ):
        self.service, self.loaded, self.adapter, self.prompt_ids = service, loaded, adapter, prompt_ids
        self.group, self.sampling = group, sampling
        self.parsers: list[TurnParser | ForcedParser] = []
        self.one_call = False
        self.created = int(time.time())
        self._given: dict[int, int] = {}
        self._deadline = asyncio.get_running_loop().time() + service.settings.request_seconds

    @property
    def count(self) -> int:
        """The number of completions."""
        return len(self.group.requests)

    async def events(self) -> AsyncIterator[list[Event]]:
        """The events of all completions, as soon as they are known. Raises ApiError after `request_seconds`."""
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    pieces = await self.group.next()
            except TimeoutError as error:
                seconds = self.service.settings.request_seconds
                raise ApiError(504, f"The request took longer than the {seconds:g} s that are allowed.") from error
            if not pieces:
                return
            events = [self._event(index, piece) for index, piece in pieces]
            for event in events:
                if event.finish == "cancelled":
                    raise ApiError(503, "The server is shutting down.", headers={"Retry-After": "10"})
            yield events

    async def finished(self) -> list[list[Event]]:
        """All events of each completion."""
        result: list[list[Event]] = [[] for _ in range(self.count)]
        async for events in self.events():
            for event in events:
                result[event.index].append(event)
        return result

    def usage(self) -> tuple[int, int, int]:
        """Tokens of the prompts, of the completions so far, and those of the prompts that were in the cache."""
        completion = sum(len(request.sequences[0].ids) for request in self.group.requests)
        step = self.sampling.n
        return sum(self.group.prompt_tokens[::step]), completion, min(sum(self.group.cached_tokens[::step]), 1 << 62)

    def stop_text(self, completion: Completion, index: int) -> str | None:
        """The stop string that ended a completion, if one did."""
        sequence = self.group.requests[index].sequences[0]
        tokenizer = self.loaded.engine.target_tokenizer
        given = self.sampling.fields.get("stop") or ()
        if completion.finish_reason != "stop" or not given or tokenizer is None:
            return None
        text = tokenizer.decode(sequence.ids, skip_special_tokens=False)
        ends = {place: string for string in given if (place := find_stop(text, [string])) is not None}
        return ends[min(ends)] if ends else None

    def _event(self, index: int, piece: TextChunk) -> Event:
        completion, sequence = piece.completion, self.group.requests[index].sequences[0]
        start = self._given.get(index, 0)
        end = self._given[index] = max(start, piece.end - (completion is not None and sequence.ended))
        ids = sequence.ids[start:end] if self.sampling.token_ids else []
        tokens: list[Token] = []
        if self.sampling.logprobs is not None:
            engine, rows = self.loaded.engine, (sequence.ids, sequence.logprobs, sequence.top_logprobs)
            # Completions of texts show the end token, as OpenAI's: lm-eval counts on one token after an echo.
            end = end if self.parsers else max(start, piece.end)
            tokens = [token_of(engine, *row) for row in zip(*(each[start:end] for each in rows), strict=True)]
        finish = None if completion is None else completion.finish_reason
        if not self.parsers:
            return Event(index, [Delta("content", str(piece))] if piece else [], tokens, ids, finish, completion)
        parser = self.parsers[index]
        deltas = parser.feed(str(piece)) + (parser.finish() if completion is not None else [])
        if self.one_call:
            deltas = [delta for delta in deltas if delta.kind != "call" or delta.call == 0]
        if finish == "stop" and parser.calls:
            finish = "tool_calls"
        return Event(index, deltas, tokens, ids, finish, completion)


def rendered(job: ChatJob, engine: Engine, adapter: str | None, settings: ServerSettings) -> list[int]:
    """The ids of a conversation up to the start of the answer. Raises ApiError and InputError."""
    messages = opened(job.messages, engine.model.config, settings)
    return engine.render(
        prepared_messages(messages, _template_of(engine, adapter)),
        job.tools if job.tool_choice != "none" else None,
        adapter,
        variables=_checked_variables(job.variables, engine.tokenizer_of(adapter)),
        continue_final=job.continue_final,
    )


def token_of(engine: Engine, token: int, logprob: float, top: Sequence[tuple[int, float]] = ()) -> Token:
    """A token with its text and bytes, and those of the likeliest tokens at its place."""
    piece = token_bytes(engine, token)
    return Token(token, piece.decode("utf-8", "replace"), piece, logprob, [token_of(engine, *each) for each in top])


def token_bytes(engine: Engine, token: int) -> bytes:
    """The bytes that a token adds to a text; for a special token, those of its name."""
    tokenizer: Any = engine.target_tokenizer
    if tokenizer is None:
        return b""
    try:
        pieces = engine.chooser.vocabulary.pieces
    except InputError:
        pieces = []
    if token < len(pieces) and pieces[token]:
        return pieces[token]
    return str(tokenizer.decode([token], skip_special_tokens=False)).encode("utf-8", "replace")


def sampling_params(
    engine: Engine,
    adapter: str | None,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    settings: ServerSettings,
    param: str,
) -> SamplingParams:
    """The parameters of a request: the model's own settings, changed by what the client gave.

    Raises ApiError if the prompt and the completion do not fit into the model's context, with both counts.
    """
    own = replace(engine.recommended, **NO_SEARCH)
    asked = sampling.max_tokens
    if asked is not None and asked > settings.max_tokens:
        raise ApiError(400, f"max_tokens: {asked:,}; this server allows {settings.max_tokens:,}.", param="max_tokens")
    limit = context_limit(engine.model, adapter)
    for prompt in prompts:
        room, new = engine.remaining_tokens(prompt, adapter), asked or 1
        if limit is not None and room is not None and room < new:
            total = new if engine.has_encoder else len(prompt) + new
            raise ApiError(
                400,
                f"The model's context has {limit:,} tokens. You asked for {total:,}: {len(prompt):,} in the {param} "
                f"and {new:,} for the completion. Shorten one of them.",
                param=param,
                code="context_length_exceeded",
            )
    default = own.max_new_tokens if own.max_new_tokens != SamplingParams().max_new_tokens else settings.max_tokens
    fields = {"max_new_tokens": asked if asked is not None else min(default, settings.max_tokens), **sampling.fields}
    if sampling.logprobs is not None:
        fields["logprobs"] = sampling.logprobs
    if fields.get("num_beams", 1) > 1 or fields.get("penalty_alpha"):
        fields = NOT_DRAWN | fields  # A search does not draw, whatever the model's settings say.
    params = replace(own, **fields)
    if params.rows > MOST_ROWS:
        raise ApiError(
            400, f"top_k: {params.rows:,}; contrastive search compares at most {MOST_ROWS} tokens here.", param="top_k"
        )
    return params


def check_grammar(fields: Mapping[str, Any], most: int) -> None:
    """Raises ApiError for a schema, an expression or a grammar that is too large or nested too deeply."""
    schema = fields.get("json_schema")
    for name in ("json_schema", "regex", "grammar"):
        value = fields.get(name)
        size = 0 if value is None else len(value) if isinstance(value, str) else len(json.dumps(value))
        if size > most:
            raise ApiError(400, f"{name}: {size:,} characters; at most {most:,} are allowed.", param=name)
    if schema is not None and depth_of(schema) > MAX_DEPTH:
        raise ApiError(
            400, f"json_schema: nested {depth_of(schema)} levels deep; at most {MAX_DEPTH} are allowed.",
            param="response_format",
        )  # fmt: skip


def check_text(value: Any, where: str) -> None:
    """Raises ApiError for a text with half of a character, which no tokenizer reads."""
    fault = lone_surrogate(value) if isinstance(value, str) else None
    if fault is not None:
        raise ApiError(400, f"{where}: {fault}", param=where)


def _checked_variables(variables: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Variables of a chat template from the client. Raises ApiError for names that the renderer itself uses."""
    internal = INTERNAL_VARIABLES | set(getattr(tokenizer, "special_tokens_map", ()))
    wrong = sorted(name for name in variables if name in internal or not name.isidentifier() or name.startswith("_"))
    if wrong:
        names = ", ".join(name[:50] for name in wrong[:10])
        raise ApiError(400, f"chat_template_kwargs: {names} cannot be set.", param="chat_template_kwargs")
    return dict(variables)


def _template_of(engine: Engine, adapter: str | None) -> str:
    tokenizer: Any = engine.tokenizer_of(adapter)
    return getattr(tokenizer, "chat_template", None) or ""


def _parser(
    job: ChatJob, engine: Engine, adapter: str | None, prompt: Sequence[int], *, strict: bool = False
) -> TurnParser | ForcedParser:
    if job.tools and job.tool_choice not in ("auto", "none"):
        return ForcedParser(None if job.tool_choice == "required" else job.tool_choice)
    template = _template_of(engine, adapter)
    constrained = not strict and any(job.sampling.fields.get(name) for name in CONSTRAINTS)
    tokenizer: Any = engine.tokenizer_of(adapter)
    end = tokenizer.decode(prompt[-16:], skip_special_tokens=False).rstrip()
    reads_calls = bool(job.tools) and job.tool_choice == "auto" and not constrained
    return TurnParser(
        call_format(template) if reads_calls else None,
        reasons=THINK_START in template and not constrained,
        is_reasoning=end.endswith(THINK_START) and not job.continue_final,
        names=[tool["function"]["name"] for tool in job.tools or ()],
    )
