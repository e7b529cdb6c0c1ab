"""`/v1/chat/completions`: OpenAI's chat completions (platform.openai.com/docs/api-reference/chat), with the further
fields that vLLM and its clients know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal

from pydantic import Field

from quatrain.generation.pictures import is_picture
from quatrain.generation.turns import Delta
from quatrain.serving.conversation import ChatJob, Event, Run, Service, Token, check_text
from quatrain.serving.errors import ApiError
from quatrain.serving.pictures import picture_part
from quatrain.serving.protocols.common import Form, SamplingForm, new_id
from quatrain.serving.protocols.events import EventStream, Json, sse, unless_gone

MOST_LOGPROBS = 20


class FunctionForm(Form):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolForm(Form):
    """A tool."""

    type: Literal["function"]
    function: FunctionForm


class CalledForm(Form):
    """The function of a call in a message; its arguments are JSON text or an object."""

    name: str
    arguments: str | dict[str, Any] | None = None


class CallForm(Form):
    """A call in a message."""

    id: str | None = None
    type: str = "function"
    function: CalledForm


class MessageForm(Form):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[CallForm] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def message(self, place: str) -> dict[str, Any]:
        """The message for the renderer. Raises ApiError for content that is neither text nor, of a user, a picture."""
        content = content_of(self.content, place) if self.role == "user" else text_of(self.content, place)
        result: dict[str, Any] = {"role": self.role, "content": content}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                check_text(value, f"{place}.{name}")
                result[name] = value
        if self.reasoning is not None:
            result.setdefault("reasoning_content", self.reasoning)
        if self.tool_calls:
            result["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        elif self.content is None and self.role != "assistant":
            raise ApiError(400, f"{place}.content: missing; give the text of the message.", param=place)
        return result


class StreamOptions(Form):
    """Options of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ChatForm(SamplingForm):
    """A request for the next turn of a conversation."""

    messages: list[MessageForm] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[ToolForm] | None = Field(None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionForm] | None = Field(None, max_length=128)
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None

    def job(self) -> ChatJob:
        """The request as a job. Raises ApiError."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options: only with stream: true.", param="stream_options")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs: only with logprobs: true.", param="top_logprobs")
        limits = {each for each in (self.max_tokens, self.max_completion_tokens) if each is not None}
        if len(limits) > 1 or limits == {0}:
            raise ApiError(400, "max_tokens: give it or max_completion_tokens, at least 1.", param="max_tokens")
        sampling = self.sampling(limits.pop() if limits else None)
        if self.logprobs:
            sampling.logprobs = self.top_logprobs or 0
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools or []]
        tools += [{"type": "function", "function": each.model_dump(exclude_none=True)} for each in self.functions or []]
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning_effort)
        return ChatJob(
            self.model,
            [message.message(f"messages.{place}") for place, message in enumerate(self.messages)],
            sampling,
            tools or None,
            tool_choice_of(self.tool_choice, tools),
            self.parallel_tool_calls is False,
            variables,
            bool(self.continue_final_message),
        )


def content_of(content: str | Sequence[dict[str, Any]] | None, place: str) -> str | list[dict[str, Any]]:
    """The content of a user's message: its text, or its parts if there are pictures. Raises ApiError for others."""
    if not isinstance(content, list) or not any(map(is_picture, content)):
        return text_of(content, place)
    return [
        picture_part(part, f"{place}.content.{number}")
        if is_picture(part)
        else {"type": "text", "text": text_of([part], f"{place}.content.{number}")}
        for number, part in enumerate(content)
    ]


def text_of(content: str | Sequence[dict[str, Any]] | None, place: str) -> str:
    """The text of a message's content: a text, or parts of text. Raises ApiError for other parts."""
    if isinstance(content, str) or content is None:
        check_text(content, f"{place}.content")
        return content or ""
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type", "text")
        text = part.get("refusal") if kind == "refusal" else part.get("text")
        if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
            raise ApiError(
                400,
                f"{place}.content.{number}: a part of type {str(kind)[:40]!r}; this model reads parts of text: "
                '{"type": "text", "text": …}.',
                param=f"{place}.content",
            )
        check_text(text, f"{place}.content.{number}")
        texts.append(text)
    return "".join(texts)


def tool_choice_of(choice: Any, tools: Sequence[Any]) -> str:
    """A tool choice as "auto", "none", "required" or the name of a tool. Raises ApiError."""
    if choice is None:
        return "auto"
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        choice = name if isinstance(name, str) else None
        if choice in ("auto", "none", "required"):
            choice = None
    elif choice not in ("auto", "none", "required"):
        choice = None
    if choice is None:
        raise ApiError(400, "tool_choice: must be auto, none, required, or name a function.", param="tool_choice")
    if not tools and choice not in ("auto", "none"):
        raise ApiError(400, "tool_choice: there are no tools.", param="tool_choice")
    return str(choice)


async def answer(service: Service, form: ChatForm, request: Any) -> Any:
    """The response to a request."""
    job, identifier = form.job(), new_id("chatcmpl-")
    if form.stream:
        usage = form.stream_options is not None and bool(form.stream_options.include_usage)
        events = _stream(service, job, identifier, usage)
        return EventStream(events, service.settings, lambda error: sse(error.body()) + sse("[DONE]"))
    return Json(await unless_gone(request, _whole(service, job, identifier)))


async def _whole(service: Service, job: ChatJob, identifier: str) -> dict[str, Any]:
    async with service.chat(job) as run:
        completions = await run.finished()
        choices = [
            {
                "index": index,
                "message": message_of([delta for event in events for delta in event.deltas]),
                "logprobs": _logprobs([token for event in events for token in event.tokens], run),
                "finish_reason": events[-1].finish,
            }
            | ({"token_ids": ids_of(events)} if job.sampling.token_ids else {})
            for index, events in enumerate(completions)
        ]
        head = _head(run, identifier, job, "chat.completion")
        return head | {"choices": choices, "usage": usage_of(run)}


async def _stream(service: Service, job: ChatJob, identifier: str, with_usage: bool) -> AsyncIterator[bytes]:
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(service.chat(job))
        head = _head(run, identifier, job, "chat.completion.chunk")
        more = {"usage": None} if with_usage else {}

        def chunk(
            index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None, ids: Sequence[int] = ()
        ) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            if job.sampling.token_ids:
                choice["token_ids"] = list(ids)
            return sse(head | {"choices": [choice]} | more)

        for index in range(run.count):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for events in run.events():
            for event in events:
                deltas: list[dict[str, Any]] = [delta_of(each) for each in event.deltas]
                logprobs = _logprobs(event.tokens, run) if event.tokens else None
                for place, delta in enumerate(deltas or [{}] * (logprobs is not None or len(event.ids) > 0)):
                    first = place == 0
                    yield chunk(event.index, delta, logprobs if first else None, ids=event.ids if first else ())
                if event.finish is not None:
                    yield chunk(event.index, {}, finish=event.finish)
        if with_usage:
            yield sse(head | {"choices": [], "usage": usage_of(run)})
        yield sse("[DONE]")


def _head(run: Run, identifier: str, job: ChatJob, kind: str) -> dict[str, Any]:
    model = job.model or run.service.registry.default
    return {"id": identifier, "object": kind, "created": run.created, "model": model}


def ids_of(events: Sequence[Event]) -> list[int]:
    """The ids of a completion's tokens."""
    return [token for event in events for token in event.ids]


def delta_of(delta: Delta) -> dict[str, Any]:
    """A delta in OpenAI's form."""
    if delta.kind == "content":
        return {"content": delta.text}
    if delta.kind == "reasoning":
        return {"reasoning_content": delta.text}
    if delta.call_id is not None:
        function = {"name": delta.name, "arguments": ""}
        return {"tool_calls": [{"index": delta.call, "id": delta.call_id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": delta.call, "function": {"arguments": delta.text}}]}


def message_of(deltas: Sequence[Delta]) -> dict[str, Any]:
    """The message that deltas make together, in OpenAI's form."""
    content = "".join(delta.text for delta in deltas if delta.kind == "content")
    reasoning = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
    calls = calls_of(deltas)
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not content else content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in calls
        ]
    return message


def calls_of(deltas: Sequence[Delta]) -> list[tuple[str, str, str]]:
    """The id, name and arguments of each tool call in deltas."""
    calls: dict[int, tuple[str, str, str]] = {}
    for delta in deltas:
        if delta.kind == "call":
            call_id, name, arguments = calls.get(delta.call, (delta.call_id or "", delta.name or "", ""))
            calls[delta.call] = call_id, name, arguments + delta.text
    return list(calls.values())


def usage_of(run: Run) -> dict[str, Any]:
    """The usage of a run in OpenAI's form."""
    prompt, completion, cached = run.usage()
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _logprobs(tokens: Sequence[Token], run: Run) -> dict[str, Any] | None:
    """Log-probabilities in OpenAI's form; None if they were not asked for."""
    if run.sampling.logprobs is None:
        return None

    def entry(token: Token) -> dict[str, Any]:
        return {"token": token.text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.bytes)}

    return {"content": [entry(token) | {"top_logprobs": [entry(each) for each in token.top]} for token in tokens]}
