"""`/v1/responses`: OpenAI's Responses (platform.openai.com/docs/api-reference/responses), without stored state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from quatrain.generation.turns import Delta
from quatrain.serving.conversation import ChatJob, Run, Service, check_text
from quatrain.serving.errors import ApiError
from quatrain.serving.protocols.chat import FunctionForm, content_of, text_of, tool_choice_of
from quatrain.serving.protocols.common import SamplingForm, new_id, response_format_fields, validated
from quatrain.serving.protocols.events import EventStream, Json, sse, unless_gone


class ResponsesForm(SamplingForm):
    """A request for the next turn of a conversation."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    reasoning: dict[str, Any] | None = None

    def job(self) -> ChatJob:
        """The request as a job. Raises ApiError."""
        if self.previous_response_id is not None:
            raise ApiError(
                400, "previous_response_id: this server stores nothing; send the whole conversation in input.",
                param="previous_response_id",
            )  # fmt: skip
        if self.background:
            raise ApiError(400, "background: not supported; this server stores nothing.", param="background")
        messages: list[dict[str, Any]] = []
        if self.instructions:
            check_text(self.instructions, "instructions")
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            check_text(self.input, "input")
            messages.append({"role": "user", "content": self.input})
        else:
            for place, item in enumerate(self.input):
                _add_item(messages, item, f"input.{place}")
        if not messages:
            raise ApiError(400, "input: empty; give at least one message.", param="input")
        sampling = self.sampling(self.max_output_tokens)
        if sampling.n != 1:
            raise ApiError(400, "n: a response has one answer; leave n out.", param="n")
        format = (self.text or {}).get("format")
        if isinstance(format, dict):
            sampling.fields |= response_format_fields(format)
        tools = [_tool(tool, place) for place, tool in enumerate(self.tools or [])]
        effort = (self.reasoning or {}).get("effort")
        return ChatJob(
            self.model, messages, sampling, tools or None, tool_choice_of(self.tool_choice, tools),
            self.parallel_tool_calls is False, {"reasoning_effort": effort} if isinstance(effort, str) else {},
        )  # fmt: skip


def _tool(tool: dict[str, Any], place: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(400, f"tools.{place}.type: only functions can be called here.", param="tools")
    return {"type": "function", "function": validated(tool, FunctionForm).model_dump(exclude_none=True)}


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], place: str) -> None:
    """Adds an item of the input to the messages. Raises ApiError."""
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") in ("user", "assistant", "system", "developer"):
        content = item.get("content")
        if not isinstance(content, str | list):
            raise ApiError(400, f"{place}.content: must be a text or a list of parts.", param=place)
        parts = [part if isinstance(part, dict) else {} for part in content] if isinstance(content, list) else content
        read = content_of if item["role"] == "user" else text_of
        messages.append({"role": item["role"], "content": read(parts, place)})
    elif kind == "function_call" and isinstance(item.get("name"), str):
        function = {"name": item["name"], "arguments": item.get("arguments") or "{}"}
        call = {"id": str(item.get("call_id", "")), "type": "function", "function": function}
        if messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        text = text_of(output if isinstance(output, str | list) else "", place)
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": text})
    elif kind != "reasoning":
        raise ApiError(400, f"{place}: an item of type {str(kind)[:40]!r} cannot be read here.", param="input")


async def answer(service: Service, form: ResponsesForm, request: Any) -> Any:
    """The response to a request."""
    job, identifier = form.job(), new_id("resp_")
    if form.stream:
        return EventStream(_stream(service, job, form, identifier), service.settings, _failed)
    return Json(await unless_gone(request, _whole(service, job, form, identifier)))


def _failed(error: ApiError) -> bytes:
    body = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    return sse(body, "error")


async def _whole(service: Service, job: ChatJob, form: ResponsesForm, identifier: str) -> dict[str, Any]:
    async with service.chat(job) as run:
        (events,) = await run.finished()
        items = _Items()
        for event in events:
            for delta in event.deltas:
                items.add(delta)
        items.end()
        return _response(run, form, identifier, items.done, events[-1].finish)


def _response(
    run: Run, form: ResponsesForm, identifier: str, output: Sequence[Any], finish: str | None
) -> dict[str, Any]:
    prompt, completion, cached = run.usage()
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
    status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
    return {
        "id": identifier,
        "object": "response",
        "created_at": run.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": form.instructions,
        "max_output_tokens": form.max_output_tokens,
        "model": form.model or run.service.registry.default,
        "output": list(output),
        "parallel_tool_calls": form.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": form.temperature,
        "top_p": form.top_p,
        "text": form.text or {"format": {"type": "text"}},
        "tool_choice": form.tool_choice or "auto",
        "tools": form.tools or [],
        "truncation": "disabled",
        "usage": None if finish is None else usage,
    }


@dataclass
class _Items:
    """The items of an answer while they are made; `add` and `end` return the events of a stream, without numbers."""

    done: list[dict[str, Any]] = field(default_factory=list)
    _kind: tuple[str, int] | None = None
    _item: dict[str, Any] = field(default_factory=dict)
    _text: str = ""

    def add(self, delta: Delta) -> list[dict[str, Any]]:
        """The events of a delta; one of another kind than the open item begins a new one."""
        events: list[dict[str, Any]] = []
        if self._kind != (delta.kind, delta.call):
            events += self.end() + self._begin(delta)
        if delta.text:
            self._text += delta.text
            events.append(self._place(delta.kind) | {"type": _TYPES[delta.kind][0], "delta": delta.text})
        return events

    def end(self) -> list[dict[str, Any]]:
        """The events of the end of the open item."""
        if self._kind is None:
            return []
        kind, item, text = self._kind[0], self._item, self._text
        place, events = self._place(kind), list[dict[str, Any]]()
        if kind == "call":
            item |= {"arguments": text}
            events.append(place | {"type": _TYPES[kind][1], "arguments": text, "name": item["name"]})
        else:
            part = _part(kind, text)
            item["content"] = [part]
            events.append(place | {"type": _TYPES[kind][1], "text": text})
            events.append(place | {"type": "response.content_part.done", "part": part})
        item["status"] = "completed"
        events.append({"type": "response.output_item.done", "output_index": len(self.done), "item": dict(item)})
        self.done.append(item)
        self._kind, self._item, self._text = None, {}, ""
        return events

    def _begin(self, delta: Delta) -> list[dict[str, Any]]:
        self._kind = delta.kind, delta.call
        if delta.kind == "call":
            self._item = {"type": "function_call", "id": new_id("fc_"), "call_id": f"call_{delta.call_id}"}
            self._item |= {"name": delta.name, "arguments": "", "status": "in_progress"}
        elif delta.kind == "reasoning":
            self._item = {"type": "reasoning", "id": new_id("rs_"), "summary": [], "content": []}
            self._item["status"] = "in_progress"
        else:
            self._item = {"type": "message", "id": new_id("msg_"), "role": "assistant", "content": []}
            self._item["status"] = "in_progress"
        added = {"type": "response.output_item.added", "output_index": len(self.done), "item": dict(self._item)}
        if delta.kind == "call":
            return [added]
        part = self._place(delta.kind) | {"type": "response.content_part.added", "part": _part(delta.kind, "")}
        return [added, part]

    def _place(self, kind: str) -> dict[str, Any]:
        place = {"item_id": self._item["id"], "output_index": len(self.done)}
        if kind == "content":
            return place | {"content_index": 0, "logprobs": []}
        return place | ({"content_index": 0} if kind == "reasoning" else {})


_TYPES = {
    "content": ("response.output_text.delta", "response.output_text.done"),
    "reasoning": ("response.reasoning_text.delta", "response.reasoning_text.done"),
    "call": ("response.function_call_arguments.delta", "response.function_call_arguments.done"),
}
"""The types of the events of each kind of delta: a piece, and the whole."""


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _stream(service: Service, job: ChatJob, form: ResponsesForm, identifier: str) -> AsyncIterator[bytes]:
    number = -1

    def event(body: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return sse(body | {"sequence_number": number}, body["type"])

    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(service.chat(job))
        begun = _response(run, form, identifier, [], None)
        yield event({"type": "response.created", "response": begun})
        yield event({"type": "response.in_progress", "response": begun})
        items, finish = _Items(), None
        async for events in run.events():
            for each in events:
                for delta in each.deltas:
                    for body in items.add(delta):
                        yield event(body)
                finish = each.finish or finish
        for body in items.end():
            yield event(body)
        kind = "response.incomplete" if finish == "length" else "response.completed"
        yield event({"type": kind, "response": _response(run, form, identifier, items.done, finish)})
