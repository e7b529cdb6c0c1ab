"""Reasoning and tool calls read from text, whatever the pieces in which it arrives."""

from __future__ import annotations

import json
import random

import pytest

from quatrain.generation.turns import Delta, ForcedParser, TurnParser, call_format, forced_schema
from quatrain.tokenizers.templates import TEMPLATES

HERMES = [
    ("plain text", "plain text", "", []),
    (
        '<tool_call>\n{"name": "f", "arguments": {"a": "}</tool_call>"}}\n</tool_call>',
        "",
        "",
        [("f", {"a": "}</tool_call>"})],
    ),
    ('before\n<tool_call>{"name": "f", "arguments": {}}</tool_call>', "before", "", [("f", {})]),
    ('<tool_call>{"arguments": {"x": [1, {"y": 2}]}, "name": "g"}</tool_call>', "", "", [("g", {"x": [1, {"y": 2}]})]),
    (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>'
        '\n{"name": "g", "arguments": {"b": 2}}\n</tool_call>',
        "",
        "",
        [("f", {"a": 1}), ("g", {"b": 2})],
    ),
    ("<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", "", []),
    ("a < b <tool> <tool_cal", "a < b <tool> <tool_cal", "", []),
    ("<think>\nhm < x\n</think>\n\nanswer", "answer", "hm < x", []),
    (
        '<think>hm</think><tool_call>{"name": "f", "arguments": {"t": "\\"\\\\"}}</tool_call>',
        "",
        "hm",
        [("f", {"t": '"\\'})],
    ),
    ("<think>cut off", "", "cut off", []),
    ("<thin", "<thin", "", []),
    ("", "", "", []),
]


def joined(deltas: list[Delta]) -> tuple[str, str, list[tuple[str, str]]]:
    """The content, the reasoning and the calls of deltas, whose order of pieces is checked."""
    content = "".join(delta.text for delta in deltas if delta.kind == "content")
    reasoning = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if delta.kind == "call" and delta.call_id is not None:
            assert delta.call == len(calls) and delta.text == "" and delta.name and len(delta.call_id) == 9
            calls.append((delta.name, ""))
        elif delta.kind == "call":
            calls[delta.call] = calls[delta.call][0], calls[delta.call][1] + delta.text
    return content, reasoning, calls


def pieces_of(text: str, seed: int) -> list[str]:
    """A text in pieces: whole, by characters, or of random lengths."""
    if seed == 0:
        return [text]
    generator, pieces = random.Random(seed), []
    while text:
        size = 1 if seed == 1 else generator.randint(1, 7)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("text, content, reasoning, calls", HERMES)
def test_hermes(text: str, content: str, reasoning: str, calls: list[tuple[str, object]]) -> None:
    for seed in range(20):
        parser = TurnParser("hermes", reasons=True)
        deltas = [delta for piece in pieces_of(text, seed) for delta in parser.feed(piece)] + parser.finish()
        got_content, got_reasoning, got_calls = joined(deltas)
        assert (got_content, got_reasoning) == (content, reasoning), seed
        assert [(name, json.loads(arguments)) for name, arguments in got_calls] == calls
        assert parser.calls == len(calls)


@pytest.mark.parametrize(
    "format, text, content, calls",
    [
        ("llama", '{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
        ("llama", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
        (
            "llama",
            '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"b": "x"}}',
            "",
            [("f", {}), ("g", {"b": "x"})],
        ),
        ("llama", '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
        ("llama", '{"just": "json"}', '{"just": "json"}', []),
        ("llama", "Hello {there}", "Hello {there}", []),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
            "",
            [("f", {"a": 1}), ("g", {})],
        ),
        ("mistral", '[{"name": "f", "arguments": {"a": 1}}]', "", [("f", {"a": 1})]),
        ("mistral", "[1] is a list", "[1] is a list", []),
    ],
)
def test_bare_calls(format: str, text: str, content: str, calls: list[tuple[str, object]]) -> None:
    for seed in range(12):
        parser = TurnParser(format, names=["f", "g"])  # type: ignore[arg-type]
        deltas = [delta for piece in pieces_of(text, seed) for delta in parser.feed(piece)] + parser.finish()
        got_content, _, got_calls = joined(deltas)
        assert got_content == content and [(name, json.loads(arguments)) for name, arguments in got_calls] == calls


def test_arguments_arrive_while_they_are_written() -> None:
    parser = TurnParser("hermes")
    parser.feed('<tool_call>{"name": "f", "arguments": ')
    assert [delta.text for delta in parser.feed('{"a": "lo')] == ["", '{"a": "lo']
    assert [delta.text for delta in parser.feed("ng")] == ["ng"]


def test_reasoning_that_the_prompt_has_opened() -> None:
    parser = TurnParser(None, reasons=True, is_reasoning=True)
    assert joined(parser.feed("hm</think>\n\nyes") + parser.finish())[:2] == ("yes", "hm")


def test_forced_calls() -> None:
    for name, text in (("f", '{"a": 1}'), (None, '{"name": "f", "arguments": {"a": 1}}')):
        parser = ForcedParser(name)
        deltas = [delta for piece in pieces_of(text, 1) for delta in parser.feed(piece)] + parser.finish()
        (call,) = joined(deltas)[2]
        assert call[0] == "f" and json.loads(call[1]) == {"a": 1} and parser.calls == 1
    tools = [{"type": "function", "function": {"name": each}} for each in ("f", "g")]
    assert [each["properties"]["name"]["const"] for each in forced_schema(tools, None)["anyOf"]] == ["f", "g"]


def test_forced_calls_have_the_arguments_of_the_function_alone() -> None:
    """As pydantic writes a schema, it does not forbid other properties; a model would add its own."""
    inner = {"type": "object", "properties": {"if": {"type": "string"}}}
    schema = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "$defs": {"City": inner}}

    def forced(parameters: dict[str, object]) -> object:
        return forced_schema([{"function": {"name": "f", "parameters": parameters}}], "f")

    assert forced(inner | {"properties": {"a": {}}}) == inner | {"properties": {"a": {}}, "additionalProperties": False}
    nested = inner | {"properties": {"properties": inner | {"properties": {"a": {"type": "string"}}}}}
    closed = forced(nested)
    assert json.dumps(closed).count('"additionalProperties": false') == 2
    for kept in (
        inner | {"additionalProperties": {"type": "integer"}},
        {"type": "object"},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    ):
        assert forced(kept) == kept
    assert json.dumps(forced(schema)).count('"additionalProperties": false') == 2


def test_formats_of_templates() -> None:
    assert call_format(TEMPLATES["chatml"]) == "hermes" and call_format(TEMPLATES["llama-3"]) == "llama"
    assert call_format(TEMPLATES["gemma"]) is None and call_format("{{ '[TOOL_CALLS]' }}") == "mistral"
