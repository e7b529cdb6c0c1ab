"""Labels preferences by hand: two answers of a model to each prompt, a person's choice, a JSON Lines file.

A session is independent of how it is shown: `Session.next()` gives the pair to show, `choose` records a choice, `undo`
takes the last one back. Each choice is one line that is on the disk before `choose` returns, so a session that is
killed resumes where it stopped. The file is read as preference data (`quatrain.data.preference_rows`):

    {"id": …, "prompt": [messages], "answers": [A, B], "choice": "a", "rater": …, "model": …, "number": …}

Which answer is shown first is drawn at random, from the seed and the pair, so that neither a place nor a model is
favoured. Several raters share one file; `agreement` compares their choices.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from quatrain.core.atomic import atomic_write, disk_errors
from quatrain.core.errors import InputError
from quatrain.core.reading import parse_json, user_path
from quatrain.core.wording import format_value
from quatrain.data.corpus import Corpus
from quatrain.data.formats import FORMATS
from quatrain.data.messages import content_text
from quatrain.data.preference_rows import CHOICES
from quatrain.data.records import Conversation, Document, Preference, RatedAnswer
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams

Messages = Sequence[Mapping[str, Any]]
Answers = Callable[[Messages, int], tuple[str, str]]
"""`answers(prompt, number)`: two answers of the model to prompt `number`."""

MIRRORED = {"a": "b", "b": "a"}
"""The choice of the same answer where the two are shown in the other order."""


@dataclass(frozen=True)
class Comparison:
    """Two answers to show: `answers` in the order in which they are shown, `number` is the prompt's place."""

    number: int
    prompt: Messages
    answers: tuple[str, str]

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the prompt and both answers, in either order."""
        content = json.dumps([list(map(dict, self.prompt)), sorted(self.answers)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def identical(self) -> bool:
        """Whether there is nothing to choose between."""
        return self.answers[0].strip() == self.answers[1].strip()


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree on the pairs that both have judged.

    `raw` is the share of equal choices. `kappa` is Cohen's (1960): agreement beyond what the raters' own frequencies
    give by chance, 1 for full agreement, 0 for none beyond it; None if both made one and the same choice throughout.
    """

    first: str
    second: str
    count: int
    raw: float
    kappa: float | None


class Session:
    """One rater's session on a file of choices.

    `prompts` are asked in order; empty ones, and those that the rater has judged in the file already, are passed over.
    `answers` draws the two answers to a prompt when they are needed. Where another rater has judged a prompt, the same
    two answers are shown again, so that agreement can be measured. `model` names where the answers come from.
    """

    def __init__(
        self,
        path: str | Path,
        prompts: Sequence[Messages],
        answers: Answers,
        *,
        rater: str = "",
        model: str = "",
        seed: int = 0,
    ):
        """Reads the choices made so far. Raises InputError for a file with other content."""
        self.path, self.prompts, self.answers = user_path(path, "the file of choices"), list(prompts), answers
        self.rater, self.model, self.seed = rater, model, seed
        self.rows = read_choices(self.path)
        self._shown: Comparison | None = None
        self._place = 0
        self._identical: set[int] = set()

    @property
    def done(self) -> dict[str, int]:
        """How often the rater has chosen what, in the whole file."""
        return dict(Counter(row["choice"] for row in self.rows if row["rater"] == self.rater))

    @property
    def identical(self) -> int:
        """Prompts that were passed over, because their two answers are the same."""
        return len(self._identical - self._judged())

    @property
    def remaining(self) -> int:
        """Prompts that the rater has not judged, without those that were passed over."""
        return sum(map(bool, self.prompts)) - len(self._judged() | self._identical)

    def add_prompt(self, prompt: Messages) -> None:
        """Ask one more prompt, after the others."""
        self.prompts.append(prompt)

    def next(self) -> Comparison | None:
        """The pair to show now, the same one until it is judged; None when all prompts are.

        A prompt with two identical answers is passed over; `identical` counts these prompts.
        """
        judged = self._judged()
        while self._shown is None and self._place < len(self.prompts):
            number = self._place
            if self.prompts[number] and number not in judged:
                shown = self._comparison(number)
                if not shown.identical:
                    self._shown = shown
                    break
                self._identical.add(number)
            self._place += 1
        return self._shown

    def choose(self, choice: str) -> dict[str, Any]:
        """Record a choice, one of "a", "b", "tie", "both_bad" and "skip", for the pair that is shown; returns the row.

        The row is on the disk when this returns. Raises InputError for another choice, or if nothing is shown.
        """
        if choice not in CHOICES:
            raise InputError(f"choice {format_value(choice)}: must be one of {', '.join(CHOICES)}.")
        shown = self.next()
        if shown is None:
            raise InputError("Every prompt is labelled already.")
        row = {
            "id": shown.id,
            "prompt": [dict(message) for message in shown.prompt],
            "answers": list(shown.answers),
            "choice": choice,
            "rater": self.rater,
            "model": self.model,
            "number": shown.number,
        }
        append_choice(self.path, row)
        self.rows.append(row)
        self._shown, self._place = None, shown.number + 1
        return row

    def undo(self) -> dict[str, Any] | None:
        """Take back the rater's last choice and show its pair again; None if there is nothing to take back."""
        row = remove_last_choice(self.path, self.rater)
        if row is None:
            return None
        self.rows = read_choices(self.path)
        number = row.get("number")
        if isinstance(number, int) and 0 <= number < len(self.prompts):
            self._place = number
            self._shown = Comparison(number, row["prompt"], (row["answers"][0], row["answers"][1]))
        return row

    def agreements(self) -> list[Agreement]:
        """The rater's agreement with each other rater of the file."""
        return [each for each in agreement(self.rows) if self.rater in (each.first, each.second)]

    def _judged(self) -> set[int]:
        """The numbers of the prompts that the rater has judged; a row counts if it has the prompt of this place."""
        keys = {row.get("number"): row["prompt"] for row in self.rows if row["rater"] == self.rater}
        return {
            number for number, prompt in enumerate(self.prompts) if keys.get(number) == [dict(each) for each in prompt]
        }

    def _comparison(self, number: int) -> Comparison:
        prompt = self.prompts[number]
        others = (row for row in self.rows if row["rater"] != self.rater and row.get("number") == number)
        known = next((row["answers"] for row in others if row["prompt"] == [dict(each) for each in prompt]), None)
        first, second = known if known is not None else self.answers(prompt, number)
        rater = int.from_bytes(hashlib.sha256(self.rater.encode()).digest()[:4], "big")
        if np.random.default_rng((abs(self.seed), number, rater)).integers(2):
            first, second = second, first
        return Comparison(number, prompt, (first, second))


def read_choices(path: Path) -> list[dict[str, Any]]:
    """The choices of a file; [] if it does not exist. A last line without its end, of a killed process, is left out.

    Raises InputError, with the line, for a line that is not a choice.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    rows = []
    # Not splitlines, which also divides at the line separators that an answer may contain (U+2028, U+0085).
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}:{number}", dict)
        answers = row.get("answers")
        right = isinstance(row.get("prompt"), list) and isinstance(answers, list) and len(answers) == 2
        if not right or row.get("choice") not in CHOICES:
            raise InputError(
                f"{path}:{number} is not a choice of `quatrain label`; it needs prompt, answers (two) and choice "
                f"({', '.join(CHOICES)}). Name another file with --out."
            )
        rows.append({"rater": "", **row})
    return rows


def append_choice(path: Path, row: Mapping[str, Any]) -> None:
    """Append one choice; it is on the disk when this returns. A torn last line is removed first.

    Raises QuatrainError for a full disk.
    """
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with disk_errors(path), _lock(path), open(path, "ab+") as file:
        file.truncate(_end_of_last_line(file))
        file.seek(0, os.SEEK_END)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def remove_last_choice(path: Path, rater: str) -> dict[str, Any] | None:
    """Remove and return the last choice of a rater; None if there is none. The choices of others stay."""
    if not path.exists():
        return None
    with _lock(path):
        lines = path.read_bytes().split(b"\n")[:-1]
        for place in range(len(lines) - 1, -1, -1):
            row = parse_json(lines[place].decode(), f"{path}:{place + 1}", dict) if lines[place].strip() else None
            if row is not None and row.get("rater", "") == rater:
                rest = b"".join(line + b"\n" for number, line in enumerate(lines) if number != place)
                with atomic_write(path, "wb") as file:
                    file.write(rest)
                return row
    return None


def _lock(path: Path) -> FileLock:
    """The lock under which the raters of one file write."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _end_of_last_line(file: Any) -> int:
    """The offset after the last line end of an open file."""
    file.seek(0)
    content: bytes = file.read()
    return content.rfind(b"\n") + 1


def agreement(rows: Iterable[Mapping[str, Any]]) -> list[Agreement]:
    """The agreement of every two raters on the pairs that both have judged; skipped pairs do not count.

    Choices are compared by the answer that was chosen, whatever the order in which the answers were shown.
    """
    choices: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["choice"] == "skip":
            continue
        first, second = row["answers"]
        choice = row["choice"] if first <= second else MIRRORED.get(row["choice"], row["choice"])
        key = Comparison(0, row["prompt"], (first, second)).id
        choices.setdefault(str(row.get("rater", "")), {})[key] = choice
    raters = sorted(choices)
    result = []
    for number, first in enumerate(raters):
        for second in raters[number + 1 :]:
            shared = sorted(choices[first].keys() & choices[second].keys())
            if shared:
                pairs = [(choices[first][key], choices[second][key]) for key in shared]
                result.append(Agreement(first, second, len(pairs), *_raw_and_kappa(pairs)))
    return result


def _raw_and_kappa(pairs: Sequence[tuple[str, str]]) -> tuple[float, float | None]:
    raw = sum(first == second for first, second in pairs) / len(pairs)
    counts = [Counter(each[side] for each in pairs) for side in (0, 1)]
    chance = sum(counts[0][choice] * counts[1][choice] for choice in counts[0]) / len(pairs) ** 2
    return raw, None if chance == 1 else (raw - chance) / (1 - chance)


def sampled_answers(engine: Engine, params: SamplingParams, *, adapter: str | None = None) -> Answers:
    """Two samples of an engine to each prompt; the seeds follow from the seed of `params` and the prompt's number.

    Answers of a model that takes no turns continue the text of the prompt.
    """
    seed = params.seed or 0
    tokenizer: Any = engine.tokenizer_of(adapter)
    chats = bool(getattr(tokenizer, "chat_templates", None))

    def answers(prompt: Messages, number: int) -> tuple[str, str]:
        ids = engine.render(prompt, adapter=adapter) if chats else engine.encode(shown_prompt(prompt), adapter)
        own = replace(params, seed=int(np.random.SeedSequence((abs(seed), number)).generate_state(1)[0]))
        first, second = engine.generate([ids, ids], own, adapters=adapter)
        return first.text.strip(), second.text.strip()

    return answers


def prompts_of(source: str | Path) -> list[Messages]:
    """The prompts of a source, each once: of prompts, chats and preferences the turns before the last answer.

    A text is a prompt of one turn, each line of a text file too. Raises InputError for data without prompts.
    """
    path = Path(source)
    corpus = Corpus(source, format="lines" if path.suffix == ".txt" else None)
    found: dict[str, Messages] = {}
    for record in corpus:
        if isinstance(record, Preference | RatedAnswer):
            prompt = list(record.prompt)
        elif isinstance(record, Conversation):
            prompt = list(record.messages)
            while prompt and prompt[-1]["role"] == "assistant":
                prompt.pop()
        elif isinstance(record, Document):
            prompt = [{"role": "user", "content": record.text.strip()}]
        else:
            raise InputError(
                f"{source}: {FORMATS[corpus.format].noun} have no prompts to label; give prompts or chats."
            )
        if prompt:
            found.setdefault(repr(prompt), prompt)
    return list(found.values())


def shown_prompt(messages: Messages) -> str:
    """A prompt as a person reads it: the text of a single message, otherwise each with its role."""
    if len(messages) == 1:
        return content_text(messages[0])
    return "\n\n".join(f"{message['role']}: {content_text(message)}" for message in messages)
