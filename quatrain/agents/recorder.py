"""The flight recorder: every run of an agent as JSON lines, from which it can be shown and replayed.

Events: `start` (model, tools, settings, task), `turn` (the messages that are new in the prompt, a digest of the whole
prompt, what the model wrote, tokens, seconds), `call` (arguments, decision, result, seconds), `forgot` (what left the
context) and `end` (why the run stopped, the answer, totals). Each line is written before the next step begins, so that
a run that is killed leaves all that it did.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from quatrain.agents.tool import Effect
from quatrain.core.atomic import disk_errors
from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings, parse

VERSION = 1
MAX_RECORD = 256 * 2**20
"""The most bytes of a record that are read."""
Event = dict[str, Any]


class _Part(Settings):
    """What a record must have to be shown and replayed; it may have more."""

    model_config = ConfigDict(extra="ignore")


class _Function(_Part):
    name: str
    arguments: str


class _CallPart(_Part):
    id: str
    function: _Function


class _MessagePart(_Part):
    role: str
    content: str | None = None
    tool_calls: Listing[_CallPart] | None = None


class _ToolPart(_Part):
    name: str
    description: str
    parameters: dict[str, Any]
    effect: Effect
    untrusted: bool
    described_outside: bool
    ends: bool


class _BudgetPart(_Part):
    steps: int
    tokens: int | None
    seconds: float | None
    money: float | None
    prices: Listing[float]


class _UsagePart(_Part):
    money: float


class _Start(_Part):
    model: str
    calls_tools: bool
    context: int | None
    style: Literal["tools", "react", "code"]
    system: str
    task: str
    time: str
    tools: Listing[_ToolPart]
    budget: _BudgetPart
    repeats: int
    faults: int
    allow: Listing[str]
    before: Listing[_MessagePart]
    tainted: bool


class _TurnEvent(_Part):
    step: int
    prompt: str
    messages: Listing[_MessagePart]
    counts: Listing[int | None]
    content: str
    reasoning: str
    calls: Listing[_CallPart]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cut: bool


class _CallEvent(_Part):
    step: int
    id: str
    name: str
    arguments: str
    tainted: bool
    decision: str
    result: str
    failed: bool
    untrusted: bool
    seconds: float
    answer: str | None = None


class _Forgot(_Part):
    what: Listing[str]


class _End(_Part):
    stop: str
    answer: str | None
    usage: _UsagePart
    messages: Listing[_MessagePart]


EVENTS: dict[str, type[_Part]] = {
    "start": _Start, "turn": _TurnEvent, "call": _CallEvent, "forgot": _Forgot, "end": _End
}  # fmt: skip
"""The events of a record, and what each must have."""


class Recorder:
    """Collects the events of a run, and writes them to a file if it has a path.

    Raises QuatrainError for a full disk, InputError for a file that exists: a record is never written over.
    """

    def __init__(self, path: str | Path | None = None):
        self.events: list[Event] = []
        self.path = None if path is None else Path(path)
        self._file = None
        if self.path is not None:
            with disk_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._file = open(self.path, "x", encoding="utf-8", newline="\n")  # noqa: SIM115
                except FileExistsError:
                    raise InputError(f"{self.path} exists: give the record of this run another name") from None

    def write(self, event: str, **fields: Any) -> Event:
        """Add an event."""
        line = {"event": event, **fields}
        self.events.append(line)
        if self._file is not None:
            with disk_errors(self.path or ""):
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self._file.flush()
        return line

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with disk_errors(self.path or ""):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            self._file = None


@dataclass(frozen=True)
class Record:
    """A recorded run. `cut`: the last line was not whole, so the run was killed while it was written."""

    events: Sequence[Event]
    cut: bool = False

    @property
    def start(self) -> Event:
        """The first event."""
        return self.events[0]

    @property
    def end(self) -> Event | None:
        """The last event of a run that ended by itself."""
        last = self.events[-1]
        return last if last["event"] == "end" else None

    def of(self, kind: str) -> Iterator[Event]:
        """The events of a kind, in order."""
        return (event for event in self.events if event["event"] == kind)


def read_record(path: str | Path) -> Record:
    """A record from its file. Raises InputError, with the line, for what is none."""
    from quatrain.core.reading import read_text

    events: list[Event] = []
    lines = read_text(path, MAX_RECORD).splitlines()
    cut = False
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise InputError(f"{path}:{number}: is not JSON, so this is no whole record of an agent") from None
            cut = True
            break
        kind = event.get("event") if isinstance(event, dict) else None
        if not isinstance(kind, str) or kind not in EVENTS:
            raise InputError(f"{path}:{number}: is no event of an agent's run")
        if (kind == "start") != (number == 1) or (number == 1 and event.get("version") != VERSION):
            raise InputError(f"{path}:{number}: a record begins with the start of one run (version {VERSION})")
        parse(EVENTS[kind], event, what=f"{path}:{number}: the event {kind}")
        events.append(event)
    if not events:
        raise InputError(f"{path}: has no whole event, so this is no record of an agent")
    return Record(events, cut)


def digest(messages: Sequence[Mapping[str, Any]]) -> str:
    """A digest of messages, equal for equal ones."""
    text = json.dumps(list(messages), ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass
class Usage:
    """What a run has used. `seconds` are those of the model and the tools."""

    steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    money: float = 0.0
    calls: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def record(self) -> dict[str, Any]:
        """As JSON."""
        names = ("steps", "calls", "prompt_tokens", "completion_tokens", "seconds", "money")
        return {name: round(value, 6) if isinstance(value := getattr(self, name), float) else value for name in names}


@dataclass(frozen=True)
class Budget:
    """What a run may use; None for no limit. `prices` are those of a million tokens, read and written."""

    steps: int = 12
    tokens: int | None = None
    seconds: float | None = 600.0
    money: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        limits = {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds, "money": self.money}
        problems = [
            f"{name}: {value}; must be above 0" for name, value in limits.items() if value is not None and value <= 0
        ]
        if self.money is not None and not any(self.prices):
            problems.append("money: needs prices, those of a million tokens read and written")
        if problems:
            raise InputError("The budget of the agent:", problems)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of these tokens."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6

    def exceeded(self, usage: Usage) -> str | None:
        """The first limit that is reached."""
        for name in ("steps", "tokens", "seconds", "money"):
            limit = getattr(self, name)
            if limit is not None and getattr(usage, name) >= limit:
                return name
        return None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        names = ("steps", "tokens", "seconds", "money")
        return {name: getattr(self, name) for name in names} | {"prices": list(self.prices)}
