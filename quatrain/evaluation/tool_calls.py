"""How well a model calls tools: on recorded dialogues, turn by turn, what it calls where the reference calls.

The idea of the Berkeley function-calling leaderboard (Patil et al. 2025) without execution: a call is right if its name
and all its arguments are those of the reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.agents.model import EngineModel, Form
from quatrain.core.errors import InputError
from quatrain.core.reading import parse_json
from quatrain.generation.engine import Engine, SamplingParams

MAX_NEW_TOKENS = 160
"""The most tokens of a turn."""


def measure_calls(
    engine: Engine,
    chats: Sequence[Sequence[Mapping[str, Any]]],
    params: SamplingParams | None = None,
    *,
    constrained: bool = True,
    limit: int | None = None,
) -> dict[str, float]:
    """Shares, over the turns of `chats` (`quatrain.data.records.Messages` with their tools) that call a tool:

    `called`: the model calls a tool; `valid`: its first call is one of a tool that is there, with arguments that are a
    JSON object of known names and all that are required; `name` and `arguments` are the reference's. `overcalled` is
    the share of calls at turns where the reference answers. `calls` and `answers` count both kinds of turns.
    Raises InputError where no dialogue calls a tool.
    """
    params = params or SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    model = EngineModel(engine, params)
    model.constrains = model.constrains and constrained
    found = {"called": 0, "valid": 0, "name": 0, "arguments": 0, "overcalled": 0}
    calls = answers = 0
    room = engine.model.config.context_length - params.max_new_tokens
    for messages in chats:
        tools = tools_of(messages)
        for place, message in enumerate(messages):
            before = [dict(each) for each in messages[:place]]
            if message["role"] != "assistant" or not tools or (model.count(before, tools) or 0) > room:
                continue
            if limit is not None and calls + answers >= limit:
                break
            turn = model.turn(before, Form(tools=tools))
            reference = next(iter(message.get("tool_calls") or ()), None)
            if reference is None:
                answers += 1
                found["overcalled"] += bool(turn.calls)
                continue
            calls += 1
            if turn.calls:
                for name, value in _judged(turn.calls[0], reference["function"], tools).items():
                    found[name] += value
    if not calls:
        raise InputError("No dialogue calls a tool at a turn that fits into the model's context.")
    shares = {name: found[name] / calls for name in ("called", "valid", "name", "arguments")}
    return shares | {"overcalled": found["overcalled"] / max(1, answers), "calls": calls, "answers": answers}


def tools_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools of a dialogue in OpenAI's form; names and schemas alone are wrapped."""
    tools: Any = getattr(messages, "tools", None) or []
    tools = parse_json(tools, "tools", list) if isinstance(tools, str) else tools
    return [each if "function" in each else {"type": "function", "function": each} for each in tools]


def _judged(call: Any, reference: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    wanted = reference.get("arguments") or {}
    wanted = json.loads(wanted) if isinstance(wanted, str) else wanted
    try:
        given = json.loads(call.arguments)
    except (ValueError, RecursionError):
        given = None
    schemas = {each["function"]["name"]: each["function"].get("parameters") or {} for each in tools}
    schema = schemas.get(call.name)
    valid = isinstance(given, dict) and schema is not None
    if valid and schema is not None and given is not None:
        known = schema.get("properties") or {}
        valid = set(given) <= set(known) and set(schema.get("required") or ()) <= set(given)
    right = call.name == reference["name"]
    return {"called": True, "valid": valid, "name": right, "arguments": right and given == wanted}
