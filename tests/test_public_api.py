"""The interface that users call, as a snapshot: `public_api.txt` lists it, so that changes are deliberate.

It is `quatrain.__all__` and everything that Python code of the guide and the README imports, with signatures; the verbs
of the command line with their options; and the keys of recipes. docs/stability.md promises what stays. After a
deliberate change, write the snapshot anew and commit it with the change:

    python tests/test_public_api.py
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclopts import App
from pydantic import BaseModel

import quatrain
from quatrain.cli.app import build_app
from quatrain.runs.recipe import Recipe
from quatrain.runs.stages import specs
from quatrain.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).with_suffix("").with_name("public_api.txt")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLAIN = (str, int, float, bool, type(None))


def documented() -> set[str]:
    """The dotted names that Python code of the guide and the README imports from the package."""
    names = {f"quatrain.{name}" for name in quatrain.__all__ if not name.startswith("_")}
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in PYTHON.findall(page.read_text(encoding="utf-8")):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "quatrain":
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
                elif isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names if alias.name.startswith("quatrain.")}
    return names


def value_of(name: str) -> Any:
    """The module, class, function or constant of a dotted name."""
    module, _, attribute = name.rpartition(".")
    parent = importlib.import_module(module)
    return getattr(parent, attribute) if hasattr(parent, attribute) else importlib.import_module(name)


class Raw(str):
    """Text that `inspect` shows as it is."""

    def __repr__(self) -> str:
        return str(self)


def shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter with its annotation as text; a default that is no plain value is shown as `...`."""
    empty, default, annotation = inspect.Parameter.empty, parameter.default, parameter.annotation
    if default is not empty and not isinstance(default, PLAIN) and default != ():
        parameter = parameter.replace(default=Raw("..."))
    if annotation is empty:
        return parameter
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return parameter.replace(annotation=Raw(text.replace("quatrain.", "")))


def signature(value: Any) -> str:
    """Parameters and annotations of a function or class; of settings the keys and their defaults."""
    if inspect.isclass(value) and issubclass(value, BaseModel):
        fields = ((key, field.default) for key, field in value.model_fields.items())
        return f"({', '.join(f'{key}={d!r}' if isinstance(d, PLAIN) else f'{key}=...' for key, d in fields)})"
    try:
        found = inspect.signature(value)
    except ValueError:
        return "(...)"
    parameters = [shown(parameter) for parameter in found.parameters.values()]
    returns = found.return_annotation
    returns = returns if isinstance(returns, type) else Raw(returns)
    return str(found.replace(parameters=parameters, return_annotation=returns))


def lines(name: str, value: Any) -> Iterator[str]:
    """A name's lines of the snapshot; a class with its public methods, a module with what it defines."""
    if isinstance(value, types.ModuleType):
        for key, member in sorted(vars(value).items()):
            if not key.startswith("_") and getattr(member, "__module__", None) == value.__name__:
                yield from lines(f"{name}.{key}", member)
    elif inspect.isclass(value):
        yield f"class {name}{signature(value)}"
        for key, member in sorted(vars(value).items()):
            function = getattr(member, "__func__", member)
            if key.startswith("_"):
                continue
            if isinstance(member, property):
                yield f"    {key}: property"
            elif inspect.isfunction(function):
                yield f"    {key}{signature(function)}"
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def verbs(app: App, words: str = "quatrain") -> Iterator[str]:
    """A line for each verb, such as `$ quatrain recipes --json`: its arguments, then its options by name."""
    for name in app:
        if name.startswith("-"):
            continue
        verb = app[name]
        inner = list(verbs(verb, f"{words} {name}"))
        if inner:
            yield from inner
            continue
        arguments = verb.assemble_argument_collection()
        positional = [each.field_info.name.upper() for each in arguments if each.index is not None]
        options = sorted({each.names[0] for each in arguments if each.index is None} - {"*"})
        yield f"$ {' '.join([words, name, *positional, *options])}"


def recipe_keys() -> Iterator[str]:
    """A line for each table of a recipe and each kind of stage: its keys."""
    yield f"[recipe] {' '.join(Recipe.model_fields)}"
    for key, field in Recipe.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield f"[{key}] {' '.join(field.annotation.model_fields)}"
    for kind, spec in specs().items():
        yield f"[[stage]] {kind}: {' '.join(key for key in spec.settings.model_fields if key != 'kind')}"
    yield f"[stage.train] {' '.join(TrainSettings.model_fields)}"


def snapshot() -> str:
    """The text of the snapshot for the package as it is."""
    text: list[str] = [*sorted(verbs(build_app())), *recipe_keys()]
    first: dict[int, str] = {}
    for name in sorted(documented()):
        value = value_of(name)
        known = first.setdefault(id(value), name)
        text += lines(name, value) if known == name else [f"{name} = {known}"]
    return "".join(f"{line}\n" for line in text)


def test_the_api_is_the_one_that_is_written_down():
    now, written = (text.splitlines() for text in (snapshot(), SNAPSHOT.read_text(encoding="utf-8")))
    gone = [f"- {line}" for line in written if line not in now]
    new = [f"+ {line}" for line in now if line not in written]
    assert now == written, "\n".join(["run `python tests/test_public_api.py` if this is meant", *gone, *new])


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
