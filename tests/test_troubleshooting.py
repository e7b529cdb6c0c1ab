"""docs/troubleshooting.md quotes messages that the code can write: each is in one text of the source."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^> (.+)$", PAGE, re.MULTILINE)
GAP = "\0"
"""What a value of a message is replaced by."""


@cache
def texts() -> tuple[str, ...]:
    """The texts of the package's source, with a gap for each value; neighbouring literals are one text."""
    found = []
    for path in (ROOT / "quatrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                found.append("".join(map(str, parts)))
    return tuple(found)


def in_source(message: str) -> bool:
    """Whether the parts of a message stand in this order in one text, each `…` over a value or a part left out."""
    parts = [part.strip() for part in message.split("…") if part.strip(" .:;,()")]
    pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
    return any(pattern.search(text) for text in texts())


@pytest.mark.parametrize("message", QUOTED)
def test_the_message_is_in_the_code(message: str) -> None:
    assert in_source(message), message


def test_quotations_are_long_enough_to_be_searched_and_unknown_ones_are_found() -> None:
    assert len(QUOTED) >= 30 and len(set(QUOTED)) == len(QUOTED)
    assert all(max(map(len, message.split("…"))) >= 12 for message in QUOTED)
    assert not in_source("…: the flux capacitor needs …, and there is none")
