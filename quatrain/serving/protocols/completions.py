"""`/v1/completions`: OpenAI's completions of texts, with `echo` and its log-probabilities, which lm-eval reads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from pydantic import Field

from quatrain.generation.engine import Engine
from quatrain.serving.conversation import Run, Service, TextJob, Token, check_text, token_of
from quatrain.serving.errors import ApiError
from quatrain.serving.protocols.chat import StreamOptions, ids_of, usage_of
from quatrain.serving.protocols.common import SamplingForm, new_id
from quatrain.serving.protocols.events import EventStream, Json, sse, unless_gone

MAX_TOKENS = 16
"""The new tokens of a completion that asks for no number, as OpenAI's."""
MOST_LOGPROBS = 20
SCORED_TOKENS = 2048
"""The most tokens of prompts that are scored at once, unless one prompt is longer."""


class CompletionForm(SamplingForm):
    """A request to continue texts or lists of token ids."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(union_mode="left_to_right")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def job(self) -> TextJob:
        """The request as a job. Raises ApiError."""
        if self.suffix:
            raise ApiError(400, "suffix: not supported; leave it out.", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(400, "best_of: must equal n; completions are not ranked.", param="best_of")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options: only with stream: true.", param="stream_options")
        if self.stream and self.echo and self.logprobs is not None:
            raise ApiError(400, "echo: with logprobs only without stream.", param="echo")
        sampling = self.sampling(MAX_TOKENS if self.max_tokens is None else self.max_tokens)
        sampling.logprobs = self.logprobs
        prompts = self.prompts()
        if not prompts:
            raise ApiError(400, "prompt: empty; give at least one.", param="prompt")
        if sampling.max_tokens == 0 and not (self.echo and not self.stream):
            raise ApiError(400, "max_tokens: 0 is only possible with echo and without stream.", param="max_tokens")
        return TextJob(self.model, prompts, sampling)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or a list of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(each, int) for each in self.prompt) and self.prompt:
            return [list(self.prompt)]  # type: ignore[arg-type]
        return list(self.prompt)  # type: ignore[arg-type]


async def answer(service: Service, form: CompletionForm, request: Any) -> Any:
    """The response to a request."""
    job, identifier = form.job(), new_id("cmpl-")
    if form.stream:
        usage = form.stream_options is not None and bool(form.stream_options.include_usage)
        events = _stream(service, job, identifier, usage, bool(form.echo))
        return EventStream(events, service.settings, lambda error: sse(error.body()) + sse("[DONE]"))
    return Json(await unless_gone(request, _whole(service, job, identifier, bool(form.echo))))


async def _whole(service: Service, job: TextJob, identifier: str, echo: bool) -> dict[str, Any]:
    if job.sampling.max_tokens == 0:
        return await _echo_alone(service, job, identifier)
    async with service.complete(job) as run:
        completions = await run.finished()
        choices, scored = [], list[list[Token]]()
        if echo and job.sampling.logprobs is not None:
            scored = await _scored(service, run.loaded.engine, run.prompt_ids, job.sampling.logprobs, run.adapter)
        for index, events in enumerate(completions):
            place = index // job.sampling.n
            text = "".join(delta.text for event in events for delta in event.deltas)
            tokens = [token for event in events for token in event.tokens]
            before = _text(run.loaded.engine, job.prompts[place], run.prompt_ids[place]) if echo else ""
            choices.append(
                {
                    "index": index,
                    "text": before + text,
                    "logprobs": _logprobs([*(scored[place] if scored else []), *tokens], job.sampling.logprobs),
                    "finish_reason": events[-1].finish,
                }
                | ({"token_ids": ids_of(events)} if job.sampling.token_ids else {})
            )
        return _head(run, identifier, job) | {"choices": choices, "usage": usage_of(run)}


async def _echo_alone(service: Service, job: TextJob, identifier: str) -> dict[str, Any]:
    """The prompts with their log-probabilities, without a completion."""
    if len(job.prompts) > service.settings.max_prompts:
        raise ApiError(
            400, f"{len(job.prompts)} prompts; a request may have {service.settings.max_prompts}.", param="prompt"
        )
    async with service.registry.use(job.model) as (loaded, adapter):
        engine, prompts, scored = loaded.engine, list[list[int]](), list[list[Token]]()
        for prompt in job.prompts:
            check_text(prompt, "prompt")
            prompts.append(await service.in_thread(engine.encode, prompt, adapter))
        if job.sampling.logprobs is not None:
            scored = await _scored(service, engine, prompts, job.sampling.logprobs, adapter)
        choices = [
            {
                "index": index, "text": _text(engine, job.prompts[index], ids), "finish_reason": "length",
                "logprobs": _logprobs(scored[index] if scored else [], job.sampling.logprobs),
            }
            for index, ids in enumerate(prompts)
        ]  # fmt: skip
    count = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    model = job.model or service.registry.default
    head = {"id": identifier, "object": "text_completion", "created": int(time.time()), "model": model}
    return head | {"choices": choices, "usage": usage}


def _text(engine: Engine, prompt: str | list[int], ids: Sequence[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "" if engine.tokenizer is None else engine.tokenizer.decode(ids)


async def _scored(
    service: Service, engine: Engine, prompts: Sequence[list[int]], count: int, adapter: str | None
) -> list[list[Token]]:
    """The tokens of each prompt with their log-probabilities; the first one of a prompt has none."""
    result = [[token_of(engine, ids[0], float("nan"))] for ids in prompts]
    longer = sorted((index for index, ids in enumerate(prompts) if len(ids) > 1), key=lambda index: len(prompts[index]))
    while longer:
        # The engine steps between two batches, so that others do not wait for all prompts.
        size = max(1, SCORED_TOKENS // len(prompts[longer[-1]]))
        batch, longer = longer[-size:], longer[:-size]
        parts = [[prompts[index][:1] for index in batch], [prompts[index][1:] for index in batch]]
        scores = await service.in_thread(partial(engine.score, *parts, logprobs=count, adapters=adapter))
        for index, score in zip(batch, scores, strict=True):
            tops = score.top_logprobs or [[] for _ in score.ids]
            result[index] += [token_of(engine, *each) for each in zip(score.ids, score.logprobs, tops, strict=True)]
    return result


async def _stream(
    service: Service, job: TextJob, identifier: str, with_usage: bool, echo: bool
) -> AsyncIterator[bytes]:
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(service.complete(job))
        head, more = _head(run, identifier, job), {"usage": None} if with_usage else {}
        offsets = [0] * run.count

        def chunk(
            index: int, text: str, logprobs: Any = None, finish: str | None = None, ids: Sequence[int] = ()
        ) -> bytes:
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
            if job.sampling.token_ids:
                choice["token_ids"] = list(ids)
            return sse(head | {"choices": [choice]} | more)

        if echo:
            for index in range(run.count):
                place = index // job.sampling.n
                yield chunk(index, _text(run.loaded.engine, job.prompts[place], run.prompt_ids[place]))
        async for events in run.events():
            for event in events:
                text = "".join(delta.text for delta in event.deltas)
                logprobs = _logprobs(event.tokens, job.sampling.logprobs, offsets[event.index])
                offsets[event.index] += sum(len(token.text) for token in event.tokens)
                if text or event.tokens or event.ids or event.finish is not None:
                    yield chunk(event.index, text, logprobs if event.tokens else None, event.finish, event.ids)
        if with_usage:
            yield sse(head | {"choices": [], "usage": usage_of(run)})
        yield sse("[DONE]")


def _head(run: Run, identifier: str, job: TextJob) -> dict[str, Any]:
    model = job.model or run.service.registry.default
    return {"id": identifier, "object": "text_completion", "created": run.created, "model": model}


def _logprobs(tokens: Sequence[Token], count: int | None, offset: int = 0) -> dict[str, Any] | None:
    """Log-probabilities in the form of OpenAI's completions; None if they were not asked for."""
    if count is None:
        return None
    known = list(tokens)
    offsets = []
    for token in known:
        offsets.append(offset)
        offset += len(token.text)
    values = [None if token.logprob != token.logprob else max(token.logprob, -9999.0) for token in known]
    top = [
        None if value is None else {each.text: max(each.logprob, -9999.0) for each in reversed(token.top)}
        for token, value in zip(known, values, strict=True)
    ]
    return {
        "tokens": [token.text for token in known],
        "token_logprobs": values,
        "top_logprobs": top,
        "text_offset": offsets,
    }
