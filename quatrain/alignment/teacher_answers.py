"""Sequence-level distillation: a stronger model answers the prompts, and a student learns its answers as text.

Kim and Rush 2016 (arXiv 1606.07947). The teacher may have any tokenizer and stand behind an OpenAI-compatible address,
since only its texts are needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.atomic import disk_errors
from quatrain.generation.endpoint import open_model
from quatrain.generation.params import SamplingParams

TOGETHER = 32
"""Prompts that the teacher answers between two writes."""

Conversation = Sequence[Mapping[str, Any]]
"""The messages of a chat."""


def answered(
    teacher: str,
    conversations: Sequence[Conversation],
    store: Path,
    *,
    params: SamplingParams | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """The teacher's answer to each conversation, which ends with a user's message.

    `teacher` is a model folder, a run, a hub id or http://HOST/v1#NAME. Answers are appended to the file `store`: a
    call that was stopped continues and asks for no answer twice. Raises InputError and QuatrainError.
    """
    keys = [_key(teacher, each, params) for each in conversations]
    known = dict(_stored(store))
    missing = [number for number, key in enumerate(keys) if key not in known]
    model = open_model(teacher) if missing else None
    for start in range(0, len(missing), TOGETHER):
        part = missing[start : start + TOGETHER]
        completions = model.chat([list(conversations[number]) for number in part], params)  # type: ignore[union-attr]
        with disk_errors(store):
            store.parent.mkdir(parents=True, exist_ok=True)
            with store.open("a", encoding="utf-8") as file:
                for number, completion in zip(part, completions, strict=True):
                    known[keys[number]] = completion.text
                    file.write(json.dumps({"key": keys[number], "answer": completion.text}) + "\n")
        progress(start + len(part))
    return [known[key] for key in keys]


def _key(teacher: str, conversation: Conversation, params: SamplingParams | None) -> str:
    """Identifies a question to a teacher."""
    asked = json.dumps([teacher, [dict(each) for each in conversation], repr(params)], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()


def _stored(store: Path) -> Iterator[tuple[str, str]]:
    """The answers of a file; a line that was not written whole is left out."""
    if not store.is_file():
        return
    for line in store.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            yield row["key"], row["answer"]
        except (ValueError, KeyError, TypeError):
            continue
