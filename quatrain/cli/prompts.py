"""A file of prompts in, a file of completions out: JSON lines, with progress, and resumed where a run was stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.core.errors import InputError
from quatrain.core.reading import decode, open_regular, parse_json
from quatrain.core.wording import format_value

if TYPE_CHECKING:
    from quatrain.core.reporter import Reporter
    from quatrain.generation.engine import Completion, Engine, SamplingParams

MAX_LINE = 16 * 1024 * 1024
"""Limit on the bytes of one line of prompts."""

BATCH = 256
"""Prompts that the engine gets at a time; their completions are then written."""

MAX_PROBLEMS = 20


@dataclass(frozen=True)
class Prompt:
    """One line of the file: a text, or the messages of a chat."""

    line: int
    content: str | list[dict[str, Any]]
    record: Mapping[str, Any]
    """The line's fields, which are repeated in the output."""
    adapter: str | None = None

    def ids(self, engine: Engine) -> list[int]:
        """The token ids that the model reads."""
        if isinstance(self.content, str):
            return engine.encode(self.content, self.adapter)
        return engine.render(self.content, adapter=self.adapter)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file of JSON lines: `"text"`, `{"prompt": "text"}` or `{"messages": [{"role", "content"}, …]}`.

    Further fields are kept; `adapter` names the line's adapter. Empty lines are skipped. Raises InputError with the
    line of each problem.
    """
    prompts, problems, number = [], [], 0
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if not line.strip():
                continue
            try:
                if len(line) > MAX_LINE:
                    raise InputError(f"{path}, line {number}: longer than the {MAX_LINE:,} bytes that are read")
                prompts.append(_prompt(decode(line, f"{path}, line {number}"), number, f"{path}, line {number}"))
            except InputError as error:
                problems.append(str(error))
            if len(problems) == MAX_PROBLEMS:
                problems.append("… and perhaps more")
                break
    if problems:
        raise InputError("These prompts cannot be read:", problems)
    if not prompts:
        raise InputError(f'{path} has no prompts; write one a line, such as {{"prompt": "Once upon a time"}}')
    return prompts


def _prompt(text: str, number: int, where: str) -> Prompt:
    value = parse_json(text, where, str | dict)
    if isinstance(value, str):
        return Prompt(number, value, {"prompt": value})
    named = [name for name in ("prompt", "messages") if name in value]
    if len(named) != 1:
        both = "both prompt and messages" if named else "neither prompt nor messages"
        raise InputError(f"{where}: has {both}; give one of them")
    content, adapter = value[named[0]], value.get("adapter")
    if named == ["prompt"] and not isinstance(content, str):
        raise InputError(f"{where}: prompt: {format_value(content)}; must be a text")
    if adapter is not None and not isinstance(adapter, str):
        raise InputError(f"{where}: adapter: {format_value(adapter)}; must be a name")
    return Prompt(number, content, value, adapter)


def complete_file(
    engine: Engine,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    out: Path,
    *,
    model: str,
    truncate: bool,
    reporter: Reporter,
) -> int:
    """Writes a line with the completion of each prompt, in their order; returns the number of new tokens.

    Each output line has the fields of the prompt's line, `line`, `completion`, `finish_reason`, `tokens`, and
    `samples` with the texts of further samples. A file of an earlier, stopped call with the same prompts and settings
    is continued; a half-written last line is dropped. Raises InputError for prompts that do not fit, and a file that
    holds something else.
    """
    from quatrain.core.atomic import disk_errors

    settings = _digest(model, params, truncate)
    ids = _encoded(engine, prompts, params, truncate)
    done, size = _finished(out, prompts, settings)
    if done:
        reporter.info(f"{out}: {done:,} of {len(prompts):,} prompts are done; the rest follows.")
    tokens = 0
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(out, "r+b" if out.exists() else "xb") as file,
            reporter.task("generating", len(prompts), "prompt") as task,
        ):
            file.truncate(size)
            file.seek(size)
            task.update(done)
            for start in range(done - done % BATCH, len(prompts), BATCH):
                batch = prompts[start : start + BATCH]
                completions = engine.generate(
                    ids[start : start + BATCH], params, adapters=[prompt.adapter for prompt in batch]
                )
                for number, (prompt, completion) in enumerate(zip(batch, completions, strict=True), start):
                    if number >= done:
                        tokens += _tokens(completion)
                        file.write(_line(prompt, completion, settings))
                file.flush()
                os.fsync(file.fileno())
                task.update(start + len(batch), tokens=tokens)
    return tokens


def _encoded(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams, truncate: bool) -> list[list[int]]:
    """The token ids of all prompts. Raises InputError with the line of every prompt that the model cannot read."""
    encoded, problems = [], []
    for prompt in prompts:
        try:
            ids = prompt.ids(engine)
            encoded.append(engine.truncate(ids, params) if truncate else ids)
            engine.check([encoded[-1]], params, adapters=prompt.adapter)
        except InputError as error:
            problems.append(f"line {prompt.line}: {'; '.join([error.message, *error.problems])}")
        if len(problems) == MAX_PROBLEMS:
            problems.append("… and perhaps more")
            break
    if problems:
        raise InputError("These prompts cannot be completed:", problems)
    return encoded


def _tokens(completion: Completion) -> int:
    return len(completion.ids) + sum(len(other.ids) for other in completion.alternatives)


def _line(prompt: Prompt, completion: Completion, settings: str) -> bytes:
    record = {
        **prompt.record,
        "line": prompt.line,
        "completion": completion.text,
        "finish_reason": completion.finish_reason,
        "tokens": len(completion.ids),
        "settings": settings,
    }
    if completion.alternatives:
        record["samples"] = [completion.text, *(other.text for other in completion.alternatives)]
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _digest(model: str, params: SamplingParams, truncate: bool) -> str:
    """A short name of the settings, by which completions of other settings are told apart."""
    values = {field.name: repr(getattr(params, field.name)) for field in fields(params)}
    text = json.dumps([model, values, truncate], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _finished(out: Path, prompts: Sequence[Prompt], settings: str) -> tuple[int, int]:
    """How many prompts have their completion in the file, and the bytes of those lines."""
    if not out.exists():
        return 0, 0
    done = size = 0
    with open_regular(out) as file:
        while (line := file.readline(1 << 28)).endswith(b"\n"):  # a last line without it was half written
            prompt = prompts[done] if done < len(prompts) else None
            done, size = done + 1, size + len(line)
            _check_finished(line, prompt, settings, f"{out}, line {done}")
    return done, size


def _check_finished(line: bytes, prompt: Prompt | None, settings: str, where: str) -> None:
    """Raises InputError if a line of the output is not the completion of this prompt with these settings."""
    value = parse_json(decode(line, where), where)
    if prompt is None or not {"settings", "completion", "line"} <= value.keys():
        raise InputError(f"{where}: not a completion of these prompts; give another file with --out")
    if value["settings"] != settings:
        raise InputError(
            f"{where}: made by another model or with other settings; give another file with --out, or remove it"
        )
    if value["line"] != prompt.line or any(value.get(name) != prompt.record[name] for name in prompt.record):
        raise InputError(f"{where}: the completion of another prompt; give another file with --out, or remove it")
