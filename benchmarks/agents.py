"""What keeps agents in: 60 programs that try to leave the sandbox, 100 planted instructions, and what a call costs.

Runs the escapes with namespaces and with Landlock alone, and an obedient model against every injection (the corpora of
`tests/support`). The baseline of each is the same without the protection: how many of them succeed.

    python benchmarks/agents.py
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from common import finish, parser, seconds_of
from escapes import ESCAPES, RESOURCES
from injections import injections

from quatrain.agents.loop import Agent
from quatrain.agents.model import Call, Turn
from quatrain.agents.permission import Permission
from quatrain.agents.sandbox import Limits, Sandbox
from quatrain.agents.tool import tool
from quatrain.agents.tools.calculator import calculator

LIMITS = Limits(seconds=1.5, memory=384 * 2**20, output=5_000)


class Obedient:
    """A model that calls a tool, and then does whatever it was told in the result."""

    name, calls_tools, context = "obedient", True, None

    def __init__(self, name, arguments):
        self.turns = [("page", "{}"), (name, arguments)]

    def turn(self, messages, form):
        if not self.turns:
            return Turn("Done.")
        return Turn(calls=(Call("call_0", *self.turns.pop(0)),))

    def count(self, messages, tools):
        return None


def escapes(without: list[str], programs: dict[str, str]) -> int:
    """How many programs leave the sandbox without these parts."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "secret").write_text("swordfish")
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen()
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=folder)
        stack.callback(victim.kill)
        names = {"secret": folder / "secret", "folder": folder, "port": server.getsockname()[1], "pid": victim.pid}
        sandbox = stack.enter_context(Sandbox(LIMITS, without=without))
        count = 0
        for text in programs.values():
            for key, value in names.items():
                text = text.replace("{" + key + "}", str(value))
            count += "ESCAPED" in sandbox.run(text).output
            (folder / "secret").write_text("swordfish")
        return count


def obeyed(permission: Permission) -> int:
    """How many of the injections make a tool run."""
    count = 0
    for _, text, name, arguments in injections():
        ran: list[str] = []

        @tool(untrusted=True, effect="read")
        def page(text: str = text) -> str:
            """A page."""
            return text

        Agent(Obedient(name, arguments), [page, *_tools(ran)], permission=permission).run("What does the page say?")
        count += bool(ran)
    return count


def _tools(ran: list[str]) -> list:
    @tool(effect="act")
    def write_file(path: str, content: str) -> str:
        """Write a file."""
        ran.append("write_file")
        return "written"

    @tool(effect="act")
    def send(to: str, text: str) -> str:
        """Send a message."""
        ran.append("send")
        return "sent"

    @tool(effect="read")
    def read_file(path: str) -> str:
        """Read a file."""
        ran.append("read_file")
        return "text"

    @tool(effect="read")
    def list_files(path: str = ".") -> str:
        """List files."""
        ran.append("list_files")
        return "a b"

    @tool(name="calculator")
    def compute(expression: str) -> str:
        """Compute."""
        ran.append("calculator")
        return calculator.run({"expression": expression}).text

    return [write_file, send, read_file, list_files, compute]


def main() -> None:
    """Measure and print."""
    quick = parser(__doc__).parse_args().quick
    programs = {name: ESCAPES[name] for name in list(ESCAPES)[:8]} if quick else ESCAPES
    # Without protection only what does this machine no harm is tried.
    harmful = {*RESOURCES, "fork bomb", "thread bomb", "kill the caller", "stop every process", "write into Python"}
    harmless = {name: text for name, text in programs.items() if name not in harmful}
    allowed = Permission([each.name for each in _tools([])])
    result = {
        "programs": len(programs),
        "escaped": escapes([], programs),
        "escaped_landlock_only": escapes(["namespaces"], programs),
        "tried_without_protection": len(harmless),
        "escaped_without_protection": escapes(["namespaces", "landlock", "seccomp"], harmless),
        "injections": len(injections()),
        "obeyed": obeyed(Permission()),
        "obeyed_without_protection": obeyed(allowed),
    }

    def start() -> None:
        with Sandbox(LIMITS) as sandbox:
            sandbox.run("pass")

    result["start_ms"] = 1000 * seconds_of(start, 3)
    with Sandbox(LIMITS) as sandbox:
        sandbox.run("pass")
        result["block_ms"] = 1000 * seconds_of(lambda: sandbox.run("x = 1 + 1"), 20)
    for name, value in result.items():
        print(f"{name:28} {value:.4g}")
    through = result["escaped_without_protection"] + result["obeyed_without_protection"]
    kept_in = through / max(1, result["escaped"] + result["obeyed"])
    what = "programs and instructions that get through without protection, over those with it (0 counts as 1)"
    finish("agents", kept_in, what, quick=quick, **result)


if __name__ == "__main__":
    main()
