"""The API reference, as pages of Markdown: every name of tests/public_api.txt with its signature and docstring."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = ROOT / "tests" / "public_api.txt"

CLASS = re.compile(r"^class (quatrain[\w.]*)(\(.*)$")
FUNCTION = re.compile(r"^(quatrain[\w.]*)(\(.*)$")
ALIAS = re.compile(r"^(quatrain[\w.]*) = (quatrain[\w.]*)$")
CONSTANT = re.compile(r"^(quatrain[\w.]*): (\w+)$")
METHOD = re.compile(r"^    (\w+)(\(.*|: property)$")
WIDTH = 88
"""Characters of a line of a signature, from which its parameters are broken."""


def api_pages() -> dict[str, str]:
    """The text of each page by its file name: one for each folder of the package, that of `quatrain` itself first."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    parts: dict[str, list[str]] = {}
    page = owner = "quatrain"
    for line in SNAPSHOT.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            parts[page] += method(line, owner)
            continue
        for pattern, shown in ((CLASS, entry), (FUNCTION, entry), (ALIAS, alias), (CONSTANT, constant)):
            if match := pattern.match(line):
                owner = match[1]
                page = page_of(owner)
                parts.setdefault(page, []).extend(shown(*match.groups()))
                break
    return {f"{page}.md": "\n".join([f"# {title(page)}", "", *parts[page]]) for page in sorted(parts, key=order)}


def order(page: str) -> tuple[bool, str]:
    return page != "quatrain", page


def title(page: str) -> str:
    return "`quatrain`: the main names" if page == "quatrain" else f"`quatrain.{page}`"


def page_of(name: str) -> str:
    """The page of a dotted name: its folder in the package; names of the package itself have a page of their own."""
    folders = name.split(".")[1:-1]
    return folders[0] if folders else "quatrain"


def value_of(name: str) -> Any:
    """The object of a dotted name, which may be a module."""
    module, _, attribute = name.rpartition(".")
    parent = importlib.import_module(module)
    return getattr(parent, attribute) if hasattr(parent, attribute) else importlib.import_module(name)


def entry(name: str, signature: str) -> list[str]:
    """A class or a function: where it is imported from, how it is called, what it is for."""
    module, _, short = name.rpartition(".")
    value = value_of(name)
    kind = "class " if inspect.isclass(value) else ""
    text = documentation(value)
    head = [f"## `{short}` {{ #{name} }}", "", f"`from {module} import {short}`", ""]
    return [*head, *code(f"{kind}{short}{signature}"), *text, ""]


def alias(name: str, target: str) -> list[str]:
    """Another name of what is described elsewhere."""
    module, _, short = name.rpartition(".")
    place = "" if page_of(name) == page_of(target) else f"{page_of(target)}.md"
    return [f"## `{short}` {{ #{name} }}", "", f"`from {module} import {short}`: [`{target}`]({place}#{target}).", ""]


def constant(name: str, kind: str) -> list[str]:
    module, _, short = name.rpartition(".")
    return [f"## `{short}` {{ #{name} }}", "", f"`from {module} import {short}`: a constant of type `{kind}`.", ""]


def method(line: str, owner: str) -> list[str]:
    """A method or property of the class before it."""
    match = METHOD.match(line)
    if match is None:
        return []
    name, rest = match.groups()
    value = inspect.getattr_static(value_of(owner), name, None)
    value = getattr(value, "__func__", getattr(value, "fget", value))
    shown = [f"### `{owner.rpartition('.')[2]}.{name}` {{ #{owner}.{name} }}", ""]
    if rest == ": property":
        return [*shown, "Property.", "", *documentation(value), ""]
    return [*shown, *code(f"{name}{without_self(rest)}"), *documentation(value), ""]


def without_self(signature: str) -> str:
    """The signature as it is called."""
    return re.sub(r"^\((self|cls)(, )?", "(", signature)


def documentation(value: Any) -> list[str]:
    """The docstring as Markdown; that of a class without one of its own is left out."""
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
    if not own or (inspect.isclass(value) and own.startswith(f"{value.__name__}(")):  # a dataclass's generated one
        return []
    lines = inspect.cleandoc(own).splitlines()
    text: list[str] = []
    for line in lines:
        if re.fullmatch(r"-{3,}", line) and text and text[-1]:  # a heading of numpy's style
            text[-1] = f"**{text[-1]}**"
            text.append("")
        else:
            text.append(line.replace("<", "&lt;") if not line.startswith("    ") else line)
    return [*text, ""]


def code(signature: str) -> list[str]:
    """A signature as a block of code, its parameters broken into lines if it is long."""
    if len(signature) <= WIDTH:
        lines = [signature]
    else:
        head, _, rest = signature.partition("(")
        inner, returns = split_returns(rest)
        lines = [f"{head}(", *(f"    {each}," for each in parameters(inner)), f"){returns}"]
    return ["```python", *lines, "```", ""]


def split_returns(rest: str) -> tuple[str, str]:
    """The text between the parentheses, and what follows the closing one."""
    depth = 1
    for place, character in enumerate(rest):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return rest[:place], rest[place + 1 :]
    return rest, ""


def parameters(inner: str) -> Iterator[str]:
    """The parameters of a signature: its parts between commas that are in no bracket and no text."""
    depth, start, quote = 0, 0, ""
    for place, character in enumerate(inner):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "," and depth == 0:
            yield inner[start:place].strip()
            start = place + 1
        else:
            depth += (character in "([{") - (character in ")]}")
    if inner[start:].strip():
        yield inner[start:].strip()
