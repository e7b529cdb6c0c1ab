"""`/v1/messages`: Anthropic's Messages (docs.anthropic.com/en/api/messages)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from quatrain.generation.turns import Delta
from quatrain.serving.conversation import ChatJob, Event, Run, Sampling, Service, check_text
from quatrain.serving.errors import ApiError
from quatrain.serving.pictures import picture_part
from quatrain.serving.protocols.chat import calls_of
from quatrain.serving.protocols.common import Form, checked_stop, new_id
from quatrain.serving.protocols.events import EventStream, Json, sse, unless_gone

PING = sse({"type": "ping"}, "ping")


class MessageForm(Form):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class ToolForm(Form):
    """A tool that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any] | None = None

    def function(self) -> dict[str, Any]:
        """The tool in OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {name: value for name, value in function.items() if value is not None}


class MessagesForm(Form):
    """A request for the next turn of a conversation."""

    model: str | None = None
    messages: list[MessageForm] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = None
    tools: list[ToolForm] | None = Field(None, max_length=128)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def job(self) -> ChatJob:
        """The request as a job. Raises ApiError."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system, "system")})
        for place, message in enumerate(self.messages):
            messages += _messages(message, f"messages.{place}")
        names = ("temperature", "top_p", "top_k")
        fields = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if stop := checked_stop(self.stop_sequences):
            fields["stop"] = stop
        tools = [{"type": "function", "function": tool.function()} for tool in self.tools or []]
        last = messages[-1]
        continues = last["role"] == "assistant" and not last.get("tool_calls")
        choice = self.tool_choice or {}
        variables = {} if self.thinking is None else {"enable_thinking": self.thinking.get("type") == "enabled"}
        return ChatJob(
            self.model, messages, Sampling(fields, self.max_tokens), tools or None, _choice(choice, tools),
            bool(choice.get("disable_parallel_tool_use")), variables, continues,
        )  # fmt: skip


def _choice(choice: dict[str, Any], tools: Sequence[Any]) -> str:
    kinds = {None: "auto", "auto": "auto", "none": "none", "any": "required"}
    kind = choice.get("type")
    if kind == "tool" and isinstance(choice.get("name"), str) and tools:
        return str(choice["name"])
    if kind not in kinds or (kind == "any" and not tools):
        raise ApiError(400, "tool_choice: must be auto, any, none, or name a tool.", param="tool_choice")
    return kinds[kind]


def _messages(message: MessageForm, place: str) -> list[dict[str, Any]]:
    """The messages of one of Anthropic's: results of tools are messages of their own."""
    if isinstance(message.content, str):
        check_text(message.content, place)
        return [{"role": message.role, "content": message.content}]
    result: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    pictures: list[dict[str, Any]] = []
    for number, block in enumerate(message.content):
        where, kind = f"{place}.content.{number}", block.get("type")
        if kind == "text":
            texts.append(_text([block], where))
        elif kind == "tool_use" and message.role == "assistant" and isinstance(block.get("name"), str):
            function = {"name": block["name"], "arguments": block.get("input") or {}}
            calls.append({"id": str(block.get("id", "")), "type": "function", "function": function})
        elif kind == "tool_result" and message.role == "user":
            text = _text(block.get("content") or "", where)
            result.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text})
        elif kind == "image" and message.role == "user":
            pictures.append(_picture(block.get("source"), where))
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            reasoning.append(block["thinking"])
        elif kind != "redacted_thinking":
            raise ApiError(400, f"{where}: a block of type {str(kind)[:40]!r} cannot be read here.", param=where)
    if texts or calls or pictures or not result:
        text = "".join(texts)
        content = [*pictures, {"type": "text", "text": text}] if pictures else text
        own: dict[str, Any] = {"role": message.role, "content": content}
        own |= {"tool_calls": calls} if calls else {}
        own |= {"reasoning_content": "".join(reasoning)} if reasoning else {}
        result.append(own)
    return result


def _picture(source: Any, where: str) -> dict[str, Any]:
    """A picture of Anthropic's form as one of OpenAI's. Raises ApiError."""
    source = source if isinstance(source, dict) else {}
    if source.get("type") == "url":
        return picture_part({"image_url": source.get("url")}, where)
    kind, data = source.get("media_type"), source.get("data")
    if source.get("type") != "base64" or not isinstance(kind, str) or not isinstance(data, str):
        raise ApiError(400, f"{where}.source: must have type base64, media_type and data.", param=where)
    return picture_part({"image_url": f"data:{kind};base64,{data}"}, where)


def _text(content: str | list[dict[str, Any]], where: str) -> str:
    if isinstance(content, str):
        check_text(content, where)
        return content
    texts = [block.get("text") for block in content if isinstance(block, dict) and block.get("type") == "text"]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, f"{where}: must be text, or blocks of type text.", param=where)
    check_text("".join(map(str, texts)), where)
    return "".join(map(str, texts))


async def answer(service: Service, form: MessagesForm, request: Any) -> Any:
    """The response to a request."""
    if form.max_tokens is None:
        raise ApiError(400, "max_tokens: missing; give the most new tokens.", param="max_tokens")
    job, identifier = form.job(), new_id("msg_")
    if form.stream:
        events = _stream(service, job, identifier)
        return EventStream(events, service.settings, lambda error: sse(error.anthropic_body(), "error"), PING)
    return Json(await unless_gone(request, _whole(service, job, identifier)))


async def count_tokens(service: Service, form: MessagesForm) -> Any:
    """The number of tokens of a conversation."""
    return Json({"input_tokens": len(await service.rendered(form.job()))})


async def _whole(service: Service, job: ChatJob, identifier: str) -> dict[str, Any]:
    async with service.chat(job) as run:
        (events,) = await run.finished()
        deltas = [delta for event in events for delta in event.deltas]
        content: list[dict[str, Any]] = []
        if reasoning := "".join(delta.text for delta in deltas if delta.kind == "reasoning"):
            content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
        if text := "".join(delta.text for delta in deltas if delta.kind == "content"):
            content.append({"type": "text", "text": text})
        for call_id, name, arguments in calls_of(deltas):
            content.append({"type": "tool_use", "id": f"toolu_{call_id}", "name": name, "input": _object(arguments)})
        return _head(run, identifier, job) | {"content": content} | _end(run, events[-1]) | {"usage": _usage(run)}


@dataclass
class _Block:
    """The block of a stream that is open."""

    index: int = -1
    kind: tuple[str, int] | None = None


async def _stream(service: Service, job: ChatJob, identifier: str) -> AsyncIterator[bytes]:
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(service.chat(job))
        message = _head(run, identifier, job) | {"content": [], "stop_reason": None, "stop_sequence": None}
        usage = _usage(run) | {"output_tokens": 0}
        yield sse({"type": "message_start", "message": message | {"usage": usage}}, "message_start")
        block, last = _Block(), None
        async for events in run.events():
            for event in events:
                for delta in event.deltas:
                    for each in _of_delta(block, delta):
                        yield each
                last = event
        if block.kind is not None:
            yield _stop(block)
        if last is not None:
            usage = {"output_tokens": _usage(run)["output_tokens"]}
            yield sse({"type": "message_delta", "delta": _end(run, last), "usage": usage}, "message_delta")
        yield sse({"type": "message_stop"}, "message_stop")


def _of_delta(block: _Block, delta: Delta) -> list[bytes]:
    """The events of a delta; a delta of another kind than the open block begins a new one."""
    starts: dict[str, dict[str, Any]] = {
        "content": {"type": "text", "text": ""},
        "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
        "call": {"type": "tool_use", "id": f"toolu_{delta.call_id}", "name": delta.name, "input": {}},
    }
    parts = {
        "content": {"type": "text_delta", "text": delta.text},
        "reasoning": {"type": "thinking_delta", "thinking": delta.text},
        "call": {"type": "input_json_delta", "partial_json": delta.text},
    }
    result = []
    if block.kind != (delta.kind, delta.call):
        result += [_stop(block)] if block.kind is not None else []
        block.index, block.kind = block.index + 1, (delta.kind, delta.call)
        start = {"type": "content_block_start", "index": block.index, "content_block": starts[delta.kind]}
        result.append(sse(start, "content_block_start"))
    if delta.text:
        body = {"type": "content_block_delta", "index": block.index, "delta": parts[delta.kind]}
        result.append(sse(body, "content_block_delta"))
    return result


def _stop(block: _Block) -> bytes:
    return sse({"type": "content_block_stop", "index": block.index}, "content_block_stop")


def _head(run: Run, identifier: str, job: ChatJob) -> dict[str, Any]:
    model = job.model or run.service.registry.default
    return {"id": identifier, "type": "message", "role": "assistant", "model": model}


def _end(run: Run, event: Event) -> dict[str, Any]:
    """Why the turn ended, in Anthropic's words."""
    stop = None if event.completion is None else run.stop_text(event.completion, event.index)
    reasons = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "stop_sequence" if stop else "end_turn"}
    return {"stop_reason": reasons.get(event.finish or "", "end_turn"), "stop_sequence": stop}


def _usage(run: Run) -> dict[str, Any]:
    prompt, completion, cached = run.usage()
    return {"input_tokens": prompt - cached, "output_tokens": completion, "cache_read_input_tokens": cached}


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return {}  # Cut by the limit of tokens.
