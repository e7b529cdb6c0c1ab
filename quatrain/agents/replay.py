"""Replays a recorded run: the loop runs again with the recorded turns and results, and must do the same.

Nothing is executed and no model is asked. That every prompt, decision and stop comes out equal shows that the record
holds all that the run depended on; where the code has changed since, the first difference is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.agents.conversation import Conversation
from quatrain.agents.loop import SHOWN, Agent, AgentSettings, Decision
from quatrain.agents.model import Call, Form, Message, Turn
from quatrain.agents.permission import Permission
from quatrain.agents.recorder import Budget, Event, Record, digest
from quatrain.agents.styles import PYTHON
from quatrain.agents.tool import Tool, ToolResult
from quatrain.core.errors import QuatrainError
from quatrain.core.wording import format_value

IGNORED = ("time", "quatrain")
"""Fields that differ from run to run."""


class ReplayError(QuatrainError):
    """A run does not come out as it was recorded."""


class RecordedModel:
    """Gives the turns of a record. Raises ReplayError for a prompt that is not the recorded one."""

    def __init__(self, record: Record):
        start = record.start
        self.name, self.calls_tools, self.context = str(start["model"]), bool(start["calls_tools"]), start["context"]
        self._turns = list(record.of("turn"))
        self._given = 0

    def turn(self, messages: Sequence[Message], form: Form) -> Turn:
        if self._given >= len(self._turns):
            raise ReplayError("The replay asks for another turn; the record has none.")
        event = self._turns[self._given]
        self._given += 1
        if digest(messages) != event["prompt"]:
            raise ReplayError(f"Turn {event['step']}: the prompt differs from the recorded one.")
        calls = tuple(
            Call(each["id"], each["function"]["name"], each["function"]["arguments"]) for each in event["calls"]
        )
        numbers = (event["prompt_tokens"], event["completion_tokens"], event["seconds"], event["cut"])
        return Turn(event["content"], event["reasoning"], calls, *numbers)

    def count(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> int | None:
        """The counts of the next turn in the record, in their order."""
        if self._given >= len(self._turns):
            return None
        counts = self._turns[self._given]["counts"]
        return counts.pop(0) if counts else None


class _RecordedAgent(Agent):
    """An agent whose calls were decided before."""

    recorded: list[Event]

    def decide(self, tools: Mapping[str, Tool], call: Call, *, tainted: bool) -> Decision:
        event = self.recorded.pop(0) if self.recorded else {}
        if (event.get("name"), event.get("arguments"), event.get("tainted")) != (call.name, call.arguments, tainted):
            raise ReplayError(f"The replay calls {call.name} with {format_value(call.arguments)}; the record does not.")
        result = ToolResult(event["result"], event["failed"], event["untrusted"])
        return Decision(event["decision"], result, event["seconds"], event.get("answer"))


def replay(record: Record) -> list[Event]:
    """The events of the run, done again. Raises ReplayError, with the first difference, where they are not equal."""
    import copy

    record = Record(copy.deepcopy(list(record.events)), record.cut)
    recorded = copy.deepcopy([event for event in record.events if "inside" not in event])
    start = record.start
    tools = [_stub(each) for each in start["tools"] if not (start["style"] == "code" and each["name"] == PYTHON)]
    budget = {name: value for name, value in start["budget"].items() if name != "prices"}
    settings = AgentSettings(
        start["style"],
        start["system"],
        Budget(**budget, prices=tuple(start["budget"]["prices"])),
        start["repeats"],
        start["faults"],
    )
    agent = _RecordedAgent(RecordedModel(record), tools, settings, Permission(start["allow"]))
    agent.recorded = [event for event in recorded if event["event"] == "call" and event["decision"] != "repeated"]
    talk = Conversation(start["before"], start["tainted"]) if start["before"] else None
    done = [event for event in agent.run(start["task"], conversation=talk).events if "inside" not in event]
    for number, (old, new) in enumerate(zip(recorded, done, strict=False), 1):
        for name in sorted((old.keys() | new.keys()) - set(IGNORED)):
            if old.get(name) != new.get(name) and name != "usage":
                values = f"{format_value(old.get(name))}, now {format_value(new.get(name))}"
                raise ReplayError(f"Event {number} ({old['event']}), {name}: recorded {values}")
    if len(done) != len(recorded):
        raise ReplayError(f"The replay has {len(done)} events; the record has {len(recorded)}.")
    return done


def _stub(shown: Mapping[str, Any]) -> Tool:
    """A tool as the model saw it, which is never called."""
    named = (shown["name"], shown["description"], shown["parameters"])
    return Tool(*named, lambda arguments: None, **{name: shown[name] for name in SHOWN})
