"""Inputs of `generate` and `chat`: constraints on the text, files of prompts, options, commands of a conversation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.case import EITHER, Bench, Case
from fuzzing.values import ABSENT, TEXTS, VALUES, dump, mutated_tree

WRONG_BYTES = (b"\xff\xfe\x00", b"\0\0", b"{", b"\xc3(", b"[" * 5000, b"")
PLAIN = tuple(value for value in VALUES if value is not ABSENT)
SCHEMAS: tuple[Any, ...] = (
    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]},
    {"type": "array", "items": {"enum": ["a", "b", None, 3]}, "minItems": 1, "maxItems": 3},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
    {"type": "string", "pattern": "^[a-c]{1,4}$"}, {"anyOf": [{"type": "null"}, {"type": "number"}]}, {}, True,
)  # fmt: skip
EXPRESSIONS = ("[0-9]{3}", "(a|b)*c", "\\d+\\.\\d{2}", "yes|no", "(?i)cat", ".*")
HOSTILE = (
    "(a*)*" * 20 + "b",
    "(" * 5000 + ")" * 5000,
    "[",
    "(?=a)b",
    "a{1000000}",
    "(((a{1,100}){1,100}){1,100})",
    "\\",
    "*",
    "",
)
GRAMMARS = ('start: "a" "b"?', 'start: item+\nitem: "cat" | "dog"', 'start: /[0-9]+/ ("," /[0-9]+/)*')
BROKEN = (
    "start:",
    'begin: "a"',
    'start: start "a"',
    "start: x",
    'start: "a',
    "%import nowhere",
    "start: " + "(" * 3000,
)
OPTIONS = tuple(
    """--temperature --top-k --top-p --min-p --typical-p --repetition-penalty --frequency-penalty --presence-penalty
    --no-repeat-ngram-size --seed --num-beams --num-beam-groups --diversity-penalty --length-penalty --penalty-alpha
    --guidance-scale --negative-prompt --bad-words --force-words --stop --min-new-tokens --max-new-tokens --samples
    --prompt-lookup --draft --dtype --quantize --device --adapter --adapters --choice --regex""".split()
)
NUMBERS = ("0", "1", "2", "0.5", "-1", "nan", "inf", "1e9", "1e-9", "3", "100000", "float16", "int8", "x", "")
COMMANDS = (
    "/set temperature 0.5", "/set temperature nan", "/set seed x", "/set", "/set stop", "/set nosuch 1", "/settings",
    "/set max_new_tokens 0", "/set top_k -3", "/system be brief", "/system", "/retry", "/undo", "/history", "/explain",
    "/save talk.json", "/save /nowhere/talk.json", "/save", "/load talk.json", "/load nowhere", "/load .", "/reset",
    '"""', "two", "the cat", "/schema", "/help", "/quit now",
)  # fmt: skip


def constraints(bench: Bench) -> Case:
    """A schema, an expression, a grammar or choices: valid, mutated and hostile ones."""
    draw = bench.draw
    model = str(bench.materials.path("models", "llama"))
    words = [
        "generate",
        model,
        "the cat",
        "--max-new-tokens",
        "4",
        *draw.choice(([], ["--json"], ["--num-beams", "2"])),
    ]
    kind = draw.randrange(4)
    if kind == 0:
        schema = draw.choice(SCHEMAS)
        if bench.chance(0.6):
            schema = mutated_tree(schema, draw)[0] if isinstance(schema, dict) and schema else draw.choice(PLAIN)
        if bench.chance(0.1):
            for _ in range(draw.choice((10, 100, 5000))):
                schema = {"type": "array", "items": schema} if bench.chance(0.5) else {"allOf": [schema]}
        content = (
            draw.choice(WRONG_BYTES) if bench.chance(0.1) else dump(schema) if not _is_deep(schema) else b"[" * 5000
        )
        Path("schema.json").write_bytes(content)
        return Case([*words, "--json-schema", "schema.json"], "a schema")
    if kind == 1:
        expression = draw.choice(HOSTILE if bench.chance(0.5) else EXPRESSIONS)
        return Case([*words, f"--regex={expression}"], f"the expression {expression[:40]!a}")
    if kind == 2:
        grammar = draw.choice(BROKEN if bench.chance(0.5) else GRAMMARS)
        Path("grammar.lark").write_text(grammar, encoding="utf-8")
        return Case([*words, "--grammar", "grammar.lark"], f"the grammar {grammar[:40]!a}")
    texts = [draw.choice((*TEXTS, "yes", "no", "")) for _ in range(draw.randrange(1, 4))]
    return Case([*words, *(f"--choice={text}" for text in texts if "\0" not in text)], "choices")


def _is_deep(schema: Any) -> bool:
    try:
        json.dumps(schema)
    except (RecursionError, TypeError, ValueError):
        return True
    return False


def prompt_files(bench: Bench) -> Case:
    """A file of prompts, and a file of completions that is there already."""
    draw = bench.draw
    lines = []
    for _ in range(draw.randrange(0, 5)):
        good = draw.choice(("the cat", {"prompt": "the cat"}, {"messages": [{"role": "user", "content": "no"}]}))
        lines.append(good if bench.chance(0.6) else draw.choice((*PLAIN, {"prompt": draw.choice(PLAIN)})))
    content = b"\n".join(map(dump, lines)) + draw.choice((b"", b"\n", b"\n\n"))
    if bench.chance(0.15):
        content = draw.choice(WRONG_BYTES)
    Path("prompts.jsonl").write_bytes(content)
    out = draw.choice(("out.jsonl", "out.jsonl", "deep/er/out.jsonl", ".", "/nowhere/out.jsonl"))
    if out == "out.jsonl" and bench.chance(0.4):
        Path(out).write_bytes(draw.choice((b"", b"{}\n", b"half", b'{"line": 1}\n', draw.choice(WRONG_BYTES))))
    model = str(bench.materials.path("models", "llama"))
    words = ["generate", model, "--prompts", "prompts.jsonl", "--out", out, "--max-new-tokens", "2"]
    words += draw.choice(([], [], ["--json"], ["--samples", "2", "--temperature", "1"], ["--explain"], ["--truncate"]))
    return Case(words, "a file of prompts", frozenset({0, 1, 2}) if out.startswith(("/", ".")) else EITHER)


def options(bench: Bench) -> Case:
    """Options of choosing and loading, with values that may be none."""
    draw = bench.draw
    model = str(bench.materials.path("models", "llama"))
    pairs = [f"{draw.choice(OPTIONS)}={draw.choice(NUMBERS)}" for _ in range(draw.randrange(1, 4))]
    words = ["generate", model, "the cat", *pairs]
    if not any(pair.startswith("--max-new-tokens") for pair in pairs):
        words += ["--max-new-tokens", "3"]
    return Case(words, " ".join(pairs), frozenset({0, 1, 2}) if "--draft" in " ".join(pairs) else EITHER)


def conversation(bench: Bench) -> Case:
    """Commands of a conversation in any order: no error ends it."""
    draw = bench.draw
    model = str(bench.materials.path("models", "llama"))
    typed = "\n".join(draw.choice(COMMANDS) for _ in range(draw.randrange(1, 12))) + "\n"
    if bench.chance(0.2):
        saved = (b"{}", b'{"messages": [3]}', b'{"messages": [], "settings": {"seed": "x"}}', draw.choice(WRONG_BYTES))
        Path("talk.json").write_bytes(draw.choice(saved))
    words = [
        "chat",
        model,
        "--max-new-tokens",
        "2",
        *draw.choice(([], ["--json"], ["--system", "brief"], ["--explain"])),
    ]
    return Case(words, "a conversation", frozenset({0}), typed.encode())


ENTRIES: dict[str, dict[str, tuple[Callable[[Bench], Case], float]]] = {
    "generation": {
        "constraints": (constraints, 3),
        "prompt files": (prompt_files, 2),
        "options": (options, 4),
        "conversation": (conversation, 2),
    },
}
"""What makes an input, and its share, by entry point."""
