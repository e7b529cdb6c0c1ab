"""The loop of an agent: the model's turn, the calls that it asks for, their results, until it answers.

    agent = Agent(open_chat_model("runs/tool-sft"), [calculator])
    print(agent.run("What is 17 * 23?").answer)

Every run has a budget and a flight recorder. A call that is repeated without end is stopped; a tool that fails is shown
to the model and recorded; what a tool brought from outside cannot make another tool run (`permission`).
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import quatrain
from quatrain.agents.conversation import Conversation
from quatrain.agents.model import Call, ChatModel, Message, Turn
from quatrain.agents.permission import Permission, broken_marks, quoted
from quatrain.agents.recorder import VERSION, Budget, Recorder, Usage, digest
from quatrain.agents.styles import PYTHON, STYLES, Step, Style, schema_of
from quatrain.agents.tool import Tool, ToolError, ToolResult, check_tools
from quatrain.agents.tools.python import python_tool, sandbox_of
from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean

ROOM = 256
"""Tokens of the context that are left for a turn."""
SHOWN = ("effect", "untrusted", "described_outside", "ends")
"""Fields of a tool that the record has beside its schema."""
Stop = Literal[
    "answer", "handed_over", "repeated_call", "no_answer", "context", "steps", "tokens", "seconds", "money", "cancelled"
]


@dataclass(frozen=True)
class AgentSettings:
    """How an agent works. `style` "auto" is "tools" where the model's chat template has tools, else "react".

    `system` is the user's own system message. A call whose name and arguments came `repeats` times ends the run.
    """

    style: Literal["auto", "tools", "react", "code"] = "auto"
    system: str = ""
    budget: Budget = field(default_factory=Budget)
    repeats: int = 3
    faults: int = 3
    """Turns in a row that cannot be read before the run ends."""

    def __post_init__(self) -> None:
        if self.repeats < 2 or self.faults < 1:
            raise InputError("agent: repeats must be at least 2, and faults at least 1")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `stop` says why, `answer` is None without one. The conversation can be continued."""

    answer: str | None
    stop: Stop
    usage: Usage
    conversation: Conversation
    events: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Decision:
    """What became of a call: "free", "allowed" or "approved" where it ran, "refused", "invalid" or "unknown" where not.
    `answer` is that of `final_answer` in a replay."""

    decision: str
    result: ToolResult
    seconds: float = 0.0
    answer: str | None = None


class Agent:
    """A model with tools.

    Raises InputError for tools of the same name, and a style that the model cannot speak.
    """

    def __init__(
        self,
        model: ChatModel,
        tools: Sequence[Tool] = (),
        settings: AgentSettings | None = None,
        permission: Permission | None = None,
    ):
        self.model, self.tools = model, check_tools(tools)
        self.settings, self.permission = settings or AgentSettings(), permission or Permission()
        style = self.settings.style
        if style == "auto":
            style = "tools" if model.calls_tools or not tools else "react"
        if style == "tools" and tools and not model.calls_tools:
            raise InputError("style tools: this model's chat template shows no tools; use style react or code")
        if style == "code" and PYTHON in self.tools:
            raise InputError("style code: its code runs in the sandbox already; leave out the tool python")
        self.style: Style = STYLES[style]()
        unknown = sorted(set(self.permission.allow) - set(self.tools))
        if unknown:
            known = list(self.tools)
            raise InputError(f"allow: {', '.join(unknown)} is no tool here{did_you_mean(unknown[0], known)}")

    def run(
        self,
        task: str,
        *,
        conversation: Conversation | None = None,
        recorder: Recorder | None = None,
        watch: Callable[[dict[str, Any]], None] | None = None,
    ) -> Outcome:
        """Work on a task until there is an answer or a limit is reached.

        `conversation` is that of an earlier outcome, which this task continues. `watch` receives every event.
        """
        return _Run(self, recorder or Recorder(), watch, conversation).work(task)

    def decide(self, tools: Mapping[str, Tool], call: Call, *, tainted: bool) -> Decision:
        """Check a call, ask for permission, and run it. A replay gives what was recorded."""
        tool = tools.get(call.name)
        if tool is None:
            known = ", ".join(tools) or "none"
            return Decision("unknown", ToolResult(f"Error: there is no tool {call.name!r}; there are: {known}", True))
        try:
            arguments = tool.read(call.arguments)
        except ToolError as error:
            return Decision("invalid", ToolResult(f"Error: {error}", True))
        decision, reason = self.permission.refusal(tool, arguments, tainted=tainted)
        if decision == "refused":
            text = f"Not run: {reason}, and nobody has allowed {tool.name}. Answer without it."
            return Decision(decision, ToolResult(text, True))
        started = time.perf_counter()
        result = tool.run(arguments)
        return Decision(decision, result, time.perf_counter() - started)


class _Stopped(Exception):
    def __init__(self, stop: Stop, answer: str | None = None):
        self.stop, self.answer = stop, answer


class _Run:
    """One run."""

    def __init__(
        self,
        agent: Agent,
        recorder: Recorder,
        watch: Callable[[dict[str, Any]], None] | None,
        conversation: Conversation | None,
    ):
        self.agent, self.recorder, self.watch = agent, recorder, watch
        self.conversation = copy.deepcopy(conversation) if conversation is not None else Conversation()
        self.usage, self.seen = Usage(), Counter[str]()
        self.shown = 0
        """Messages that the record has."""
        self.faults = 0
        self.tools = dict(agent.tools)
        self.final: str | None = None
        """What code gave as the final answer."""
        self.read_inside = False
        """Whether code has read a text from outside."""
        self.stop_inside: Stop | None = None

    def work(self, task: str) -> Outcome:
        """The whole run."""
        stop: Stop
        try:
            with ExitStack() as stack:
                if self.agent.style.name == "code":
                    sandbox = stack.enter_context(sandbox_of(list(self.tools), self._from_code))
                    self.tools[PYTHON] = python_tool(sandbox, self._answered)
                self._begin(task)
                while True:
                    self._step()
        except _Stopped as stopped:
            stop, answer = stopped.stop, stopped.answer
        except KeyboardInterrupt:
            stop, answer = "cancelled", None
        self._close_calls(stop)
        self._write("end", stop=stop, answer=answer, usage=self.usage.record(), messages=self._new())
        return Outcome(answer, stop, self.usage, self.conversation, self.recorder.events)

    def _close_calls(self, stop: Stop) -> None:
        """Give calls that the end of the run has left open a result: endpoints refuse conversations without."""
        said = self.conversation.messages[-1]
        if said["role"] != "assistant" or not said.get("tool_calls"):
            return
        text = "The person reads this." if stop == "handed_over" else "The run ended here."
        calls = [Call(each["id"], each["function"]["name"], "") for each in said["tool_calls"]]
        self.conversation.messages += self.agent.style.results([(call, text) for call in calls])

    def _answered(self, answer: str) -> None:
        self.final = answer

    def _begin(self, task: str) -> None:
        agent, settings, talk = self.agent, self.agent.settings, self.conversation
        before, was_tainted = [dict(message) for message in talk.messages], talk.tainted
        talk.tainted = talk.tainted or any(tool.described_outside for tool in self.tools.values())
        if not talk.messages:
            system = "\n\n".join(filter(None, (settings.system, agent.style.system(self.tools))))
            talk.messages += [{"role": "system", "content": system}] if system else []
        talk.messages.append({"role": "user", "content": task})
        tools = [
            tool.schema["function"] | {name: getattr(tool, name) for name in SHOWN} for tool in self.tools.values()
        ]
        self._write(
            "start",
            version=VERSION,
            quatrain=quatrain.__version__,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            model=agent.model.name,
            calls_tools=agent.model.calls_tools,
            context=agent.model.context,
            style=agent.style.name,
            system=settings.system,
            task=task,
            tools=tools,
            budget=settings.budget.record(),
            repeats=settings.repeats,
            faults=settings.faults,
            allow=sorted(agent.permission.allow),
            before=before,
            tainted=was_tainted,
        )
        self.shown = len(before)

    def _step(self) -> None:
        """A turn of the model with its calls."""
        limit = self.agent.settings.budget.exceeded(self.usage)
        if limit is not None:
            raise _Stopped(limit)  # type: ignore[arg-type]
        turn = self._turn()
        step = self.agent.style.read(turn)
        if turn.cut and not step.calls:
            step = Step(fault="Your turn was cut at its limit of tokens. Be shorter.")
        elif not (step.calls or step.fault or (step.answer or "").strip()):
            step = Step(fault="Your turn was empty. Call a tool, or answer.")
        self.conversation.messages.append(self.agent.style.said(turn, step))
        if step.fault:
            self.faults += 1
            if self.faults >= self.agent.settings.faults:
                raise _Stopped("no_answer", turn.content or None)
            self.conversation.messages.append({"role": "user", "content": step.fault})
            return
        self.faults = 0
        if not step.calls:
            raise _Stopped("answer", step.answer)
        # The calls of a turn were written before the results of any of them were read.
        tainted = self.conversation.tainted
        results = [(call, self.call(call, tainted=tainted)) for call in step.calls]
        self.conversation.messages += self.agent.style.results(results)

    def _turn(self) -> Turn:
        agent, talk = self.agent, self.conversation
        form, counts = agent.style.form(self.tools), list[int | None]()
        forgotten = talk.fit(_Counting(agent.model, counts), form.tools, ROOM)
        if forgotten:
            self._write("forgot", what=forgotten)
            self.shown = min(self.shown, len(talk.messages))
        if counts and agent.model.context is not None and (counts[-1] or 0) >= agent.model.context:
            raise _Stopped("context")
        turn = agent.model.turn(talk.messages, form)
        self.usage.steps += 1
        self.usage.prompt_tokens += turn.prompt_tokens
        self.usage.completion_tokens += turn.completion_tokens
        self.usage.seconds += turn.seconds
        self.usage.money += agent.settings.budget.cost(turn.prompt_tokens, turn.completion_tokens)
        self._write(
            "turn",
            step=self.usage.steps,
            prompt=digest(talk.messages),
            messages=self._new(),
            counts=counts,
            content=turn.content,
            reasoning=turn.reasoning,
            calls=[call.message() for call in turn.calls],
            prompt_tokens=turn.prompt_tokens,
            completion_tokens=turn.completion_tokens,
            seconds=round(turn.seconds, 6),
            cut=turn.cut,
        )
        return turn

    def call(self, call: Call, *, tainted: bool) -> str:
        """The result of a call as the model reads it. Raises `_Stopped` where the run ends with it."""
        self.final, self.read_inside = None, False
        result = self._recorded(call, tainted=tainted)
        if self.stop_inside is not None:
            raise _Stopped(self.stop_inside)
        if call.name in self.tools and self.tools[call.name].ends and not result.failed:
            raise _Stopped("handed_over", result.text)
        if call.name == PYTHON and self.final is not None:
            raise _Stopped("answer", self.final)
        if not result.untrusted:
            return broken_marks(result.text)
        self.conversation.tainted = True
        return quoted(result.text, call.name)

    def _recorded(self, call: Call, *, tainted: bool, inside: bool = False) -> ToolResult:
        """The result of a call, which is counted and recorded."""
        event: dict[str, Any] = {"step": self.usage.steps, "id": call.id, "name": call.name}
        event |= {"arguments": call.arguments, "tainted": tainted} | ({"inside": PYTHON} if inside else {})
        self.usage.calls += 1
        key = json.dumps(schema_of(call), sort_keys=True)
        self.seen[key] += 1
        if self.seen[key] >= self.agent.settings.repeats:
            self._write("call", **event, decision="repeated", result="", failed=True, untrusted=False, seconds=0.0)
            raise _Stopped("repeated_call")
        decided = self.agent.decide(self.tools, call, tainted=tainted)
        result = decided.result
        if not inside:
            self.final = decided.answer if decided.answer is not None else self.final
            result = replace(result, untrusted=result.untrusted or self.read_inside)
            self.usage.seconds += decided.seconds
        self._write(
            "call",
            **event,
            decision=decided.decision,
            result=result.text,
            failed=result.failed,
            untrusted=result.untrusted,
            seconds=round(decided.seconds, 6),
            **({} if self.final is None or inside else {"answer": self.final}),
        )
        return result

    def _from_code(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """A call of a tool by code in the sandbox, under the same rules as one by the model."""
        call = Call(f"inside_{self.usage.calls}", name, json.dumps(dict(arguments)))
        try:
            result = self._recorded(call, tainted=self.conversation.tainted or self.read_inside, inside=True)
        except _Stopped as stopped:
            self.stop_inside = stopped.stop
            return "the run was stopped", True
        self.read_inside = self.read_inside or result.untrusted
        return result.text, result.failed

    def _new(self) -> list[Message]:
        """Messages that the record has not got yet."""
        new = self.conversation.messages[self.shown :]
        self.shown = len(self.conversation.messages)
        return copy.deepcopy(new)

    def _write(self, event: str, **fields: Any) -> None:
        line = self.recorder.write(event, **fields)
        if self.watch is not None:
            self.watch(line)


@dataclass
class _Counting:
    """A model whose counts are kept for the record."""

    model: ChatModel
    counts: list[int | None]

    def __post_init__(self) -> None:
        self.name, self.calls_tools, self.context = self.model.name, self.model.calls_tools, self.model.context

    def turn(self, messages: Sequence[Message], form: Any) -> Turn:
        return self.model.turn(messages, form)

    def count(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> int | None:
        self.counts.append(self.model.count(messages, tools))
        return self.counts[-1]
