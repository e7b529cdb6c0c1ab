"""Inputs that are command lines, recipes and runs.

Verbs, flags and their types come from the application itself, so that a new verb is tried because it is there.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from fuzzing.case import ANY, EITHER, WRONG, Bench, Case
from fuzzing.folders import _break
from fuzzing.materials import LABELS
from fuzzing.values import STRINGS, VALUES, Raw, dump, get, mutated_tree, places, shown

Verb = tuple[tuple[str, ...], Any]
"""The words of a verb, and its arguments as the application knows them."""


def verbs() -> list[Verb]:
    """Every verb of the application."""
    from quatrain.cli.app import build_app

    def within(app: Any, before: tuple[str, ...]) -> Iterator[Verb]:
        for name in app:
            if name.startswith("-"):
                continue
            inner = app[name]
            if inner.default_command is None:
                yield from within(inner, (*before, name))
            else:
                yield (*before, name), list(inner.assemble_argument_collection())

    return list(within(build_app(), ()))


def _usual(bench: Bench, verb: tuple[str, ...], name: str, hint: Any) -> str:
    """A value that an argument of this name and type may well have."""
    draw, materials = bench.draw, bench.materials
    kinds = {kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)}
    named: dict[str, Callable[[], str]] = {
        "model": lambda: str(materials.path("models", draw.choice([*materials.models, *materials.adapters]))),
        "models": lambda: str(materials.path("models", draw.choice(list(materials.models)))),
        "index": lambda: str(materials.path("index")),
        "record": lambda: str(materials.path("record.jsonl")),
        "port": lambda: "0",
        "adapters": lambda: str(materials.path("models", draw.choice(list(materials.adapters)))),
        "recipe": lambda: str(materials.path("tiny.toml")) if verb[0] in ("run", "check") else "quickstart",
        "overrides": lambda: draw.choice(("seed=1", "stage.pretrain.train.steps=1", "name=x", *STRINGS[:40])),
        "data": lambda: bench.data(draw.choice(("text", "chat", "labelled", "pair", "sql"))),
        "source": lambda: bench.data(draw.choice(("text", "chat", "labelled", "pair", "sql", "tagged"))),
        "db": lambda: str(materials.path("databases", "shop", "shop.sqlite")),
        "databases": lambda: str(materials.path("databases")),
        "probe": lambda: str(materials.path("text.txt")),
        "out": lambda: "out",
        "attention": lambda: draw.choice(("page.html", "maps", "x.txt")),
        "runs-dir": lambda: "runs",
        "max-new-tokens": lambda: draw.choice("123"),
        "columns": lambda: "text=text",
        "method": lambda: draw.choice(("lora", "full", "qlora", "prompt")),
        "optimizer": lambda: draw.choice(("adamw", "muon", "adamw8bit")),
        "precision": lambda: draw.choice(("float32", "bfloat16")),
        "quantize": lambda: draw.choice(("int8", "nf4", "int4")),
    }
    if name in named:
        return named[name]()
    if float in kinds:
        return draw.choice(("0", "0.5", "1", "2"))
    if int in kinds:
        return draw.choice(("1", "2", "7", "40"))
    return draw.choice(("the cat", "no dog", "yes", *LABELS))


def flags(bench: Bench) -> Case:
    """A verb with usual and bad values of its arguments, flags that are twice, unknown, or without a value."""
    draw = bench.draw
    verb, arguments = draw.choice([each for each in verbs() if each[0] != ("doctor",) or bench.chance(0.05)])
    positional: list[str] = []
    optional: list[str] = []
    for argument in arguments:
        kind = argument.field_info.kind.name
        name = argument.names[0].lstrip("-").lower()
        share = 1.0 if argument.required else 0.25
        if kind.startswith("POSITIONAL") or kind == "VAR_POSITIONAL":
            if kind == "VAR_POSITIONAL":
                share = 0.9 if name == "adapters" else 0.2
            if bench.chance(share * 0.95):
                bad = bench.chance(0.2)
                positional.append(draw.choice(STRINGS) if bad else _usual(bench, verb, name, argument.hint))
            continue
        if not bench.chance(share * 0.97):
            continue
        flag = draw.choice(argument.names) if bench.chance(0.1) else argument.names[0]
        if argument.hint is bool:
            optional.append(flag)
            continue
        value = draw.choice(STRINGS) if bench.chance(0.35) else _usual(bench, verb, name, argument.hint)
        optional += [f"{flag}={value}"] if bench.chance(0.15) else [flag, value]
    words = [*verb, *positional, *optional]
    way = draw.randrange(12)
    if way == 0:
        words.insert(
            draw.randrange(len(words) + 1), draw.choice(("--nosuch", "--jsn", "-q", "--", "--help", "--version", "-"))
        )
    elif way == 1 and len(words) > 1:
        words.insert(draw.randrange(1, len(words)), draw.choice(words[1:]))
    elif way == 2:
        words.pop()
    elif way == 3:
        words.insert(draw.randrange(len(words) + 1), draw.choice(STRINGS))
    if words[:1] == ["run"]:
        # A recipe of ours takes minutes when it runs.
        names = {path.stem for path in _shipped()}
        words = [str(bench.materials.path("tiny.toml")) if word in names else word for word in words]
    return Case(words, f"flags of {' '.join(verb)}", EITHER, b"the cat\n")


def _shipped() -> list[Path]:
    from quatrain.runs.recipe import RECIPES

    return sorted(RECIPES.glob("*.toml"))


def _toml(tree: dict[str, Any]) -> bytes:
    """A recipe with a value that may be no value of TOML."""
    import tomli_w

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(child) for key, child in value.items() if child is not None}
        if isinstance(value, list):
            return [plain(child) for child in value if child is not None]
        return f"@@{value.text}@@" if isinstance(value, Raw) else value

    text = tomli_w.dumps(plain(tree))
    return text.replace('"@@', "").replace('@@"', "").encode("utf-8", "surrogatepass")


def _full(name_or_path: str | Path) -> dict[str, Any]:
    """A recipe with every key filled in."""
    from quatrain.runs.recipe import load, to_dict

    return to_dict(load(name_or_path))


RECIPE_KEYS = ("name", "seed", "data", "model", "stage", "tokenizer", "evaluate", "tracking", "next", "x")
LONG = ("steps", "epochs", "examples", "max_new_tokens", "samples", "copy_steps", "patience")
"""Keys that let a training take as long as somebody likes."""


def recipes(bench: Bench) -> Case:
    """A recipe with a bad value, or whose text is broken."""
    draw = bench.draw
    path = Path("mine.toml")
    source = bench.materials.path("tiny.toml") if bench.chance(0.6) else draw.choice(_shipped())
    tiny = source.name == "tiny.toml"
    bench.copy("text.txt")
    verb = draw.choice(("toml", "toml", "plan", "check" if tiny else "toml"))
    words = {
        "toml": ["check", str(path), "--toml"],
        "plan": ["plan", str(path)],
        "check": ["check", str(path), "--no-measure"],
    }[verb]
    if bench.chance(0.3):
        path.write_bytes(source.read_bytes())
        about, wrong = _break(bench, path)
        wrong = wrong and "truncated" not in about and "twice" not in about
        wrong = wrong and not any(each in about for each in ("a list", "white space"))
        return Case(words, about, WRONG if wrong else EITHER)
    tree = _full(source) if bench.chance(0.7) else tomllib.loads(source.read_text(encoding="utf-8"))
    usable = tuple(value for value in VALUES if value is not None)
    tree, place, value = mutated_tree(tree, draw, RECIPE_KEYS, usable)
    try:
        path.write_bytes(_toml(tree))
    except (TypeError, ValueError):
        path.write_text("x = \n")
    return Case(words, f"{source.name}: {'.'.join(map(str, place))} = {shown(value)}")


def overrides(bench: Bench) -> Case:
    """Overrides of a recipe on the command line."""
    draw = bench.draw
    bench.copy("text.txt")
    tree = _full(bench.materials.path("tiny.toml"))
    verb = draw.choice(("check", "check", "plan", "run"))
    given = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.choice([each for each in places(tree) if not isinstance(get(tree, each), dict)])
        if verb == "run" and place[-1] in LONG:
            continue
        key = ".".join(str(part) for part in place)
        if place[0] == "stage" and len(place) > 1:
            key = f"stage[{place[1]}]" + "".join(f".{part}" for part in place[2:])
        value = draw.choice((*STRINGS, *(str(each) for each in VALUES if isinstance(each, int | float))))
        given.append(f"{key}={value}" if bench.chance(0.9) else value)
    words = [verb, str(bench.materials.path("tiny.toml")), *given]
    words += {"check": draw.choice((["--toml"], ["--no-measure"])), "run": ["--quiet"], "plan": []}[verb]
    return Case(words, f"overrides {', '.join(map(shown, given))}", ANY if verb == "run" else EITHER)


def runs(bench: Bench) -> Case:
    """The folder of a finished run, one of whose files is broken or gone."""
    draw = bench.draw
    shutil.copytree(bench.materials.path("runs"), "runs")
    bench.copy("text.txt")
    bench.copy("tiny.toml")
    folder = Path("runs/tiny")
    every = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".json", ".jsonl", ".toml", ".html")
    ]
    path = draw.choice(every)
    if bench.chance(0.15):
        path.unlink()
        about = f"{path} is missing"
    elif path.suffix == ".json" and bench.chance(0.6):
        tree = json.loads(path.read_text(encoding="utf-8"))
        try:
            tree, place, value = mutated_tree(tree, draw, ("x", "name", "kind"))
        except (IndexError, TypeError, KeyError):
            place, value = (), {}
        path.write_bytes(dump(tree))
        about = f"{path}: {'.'.join(map(str, place))} = {shown(value)}"
    else:
        about, _ = _break(bench, path)
    choices = [["run", "tiny.toml", "--quiet"], ["run", "tiny.toml", "--quiet", "--reuse"], ["inspect", "runs/tiny"],
               ["generate", "runs/tiny/model", "the cat", "--max-new-tokens", "2"], ["check", "tiny.toml",
                                                                                     "--no-measure"],
               ["generate", "runs/tiny", "the cat", "--max-new-tokens", "2"], ["run", "tiny.toml",
                                                                               "--json"]]  # fmt: skip
    return Case(draw.choice(choices), about, ANY)


ENTRIES: dict[str, dict[str, tuple[Callable[[Bench], Case], float]]] = {
    "command line": {"flags": (flags, 16)},
    "recipes": {"recipes": (recipes, 8), "overrides": (overrides, 6)},
    "runs": {"runs": (runs, 3)},
}
"""What makes an input, and its share, by entry point."""
