"""Scores prompts on a task, compares them in one table, and finds the best of a few.

Answers that a task can judge are judged by it; texts with references are measured by ROUGE. Every score stands beside
that of the task's dumb baseline, with a 95 % interval.
"""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.core.wording import format_metric
from quatrain.evaluation.evaluate import SAMPLES, mean, spread
from quatrain.evaluation.measures import mean_of
from quatrain.evaluation.metrics.texts import rouge
from quatrain.generation.decoding import Decoding
from quatrain.generation.endpoint import Endpoint
from quatrain.generation.engine import Engine
from quatrain.tasks.prompting.prompt import Prompt, PromptScore, make_prompt, with_settings
from quatrain.tasks.prompting.prompter import Prompter
from quatrain.tasks.prompting.selection import Embed, embedder
from quatrain.tasks.prompting.template import load_templates
from quatrain.tasks.task import Score, Task

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")


@dataclass
class PromptResult:
    """The scores of one prompt on one set, the main metric first, and what the model read and wrote.

    `low` and `high` bound the main metric: its 95 % interval (`Measure.interval`). `shots` is the mean number that
    the model read. `texts` are the answers, `samples` some of them with their references.
    """

    prompt: Prompt
    set: str
    scores: dict[str, float]
    low: float
    high: float
    shots: float
    tokens: int
    seconds: float
    texts: list[str]
    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The name of the main metric."""
        return next(iter(self.scores))

    @property
    def main(self) -> float:
        """The main metric."""
        return self.scores[self.metric]

    def score(self, model: str) -> PromptScore:
        """The score as a prompt's file keeps it, of a model of this name, with today's date."""
        count = int(self.scores["count"])
        return PromptScore(
            date=datetime.date.today().isoformat(), model=model, set=self.set, metric=self.metric, value=self.main,
            low=self.low, high=self.high, count=count, prompt=self.prompt.hash,
        )  # fmt: skip

    def stored(self) -> dict[str, Any]:
        """Everything but the prompt, as JSON; `PromptResult(prompt, **stored)` is the result again."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "prompt"}

    def as_dict(self) -> dict[str, Any]:
        """The result for programs, without the texts."""
        prompt = self.prompt
        return {
            "template": prompt.template.name,
            "shots": prompt.shots,
            "selection": prompt.selection if prompt.shots else None,
            "shots_read": round(self.shots, 3),
            "decoding": prompt.decoding.model_dump(exclude_none=True),
            "samples": prompt.samples,
            "set": self.set,
            "scores": self.scores,
            "interval": [self.low, self.high],
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "prompt": prompt.hash,
            "notes": self.notes,
        }


@dataclass
class Comparison:
    """Several prompts or settings on the same examples, beside the dumb baseline."""

    results: list[PromptResult]
    baseline: dict[str, float]
    baseline_name: str

    @property
    def best(self) -> PromptResult:
        """The result with the highest main metric, the first among equals."""
        return max(self.results, key=lambda result: result.main)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows, the baseline first."""
        metrics = [name for name in self.results[0].scores if name != "count"]
        several = len({result.prompt.decoding.label for result in self.results}) > 1
        columns = ["prompt", *(["generation"] if several else []), *metrics, "95 %", "shots read", "tokens", "seconds"]
        known = [format_metric(name, self.baseline[name]) if name in self.baseline else "" for name in metrics]
        rows = [[f"baseline: {self.baseline_name}", *([""] if several else []), *known, "", "", "", ""]]
        for result in self.results:
            bounds = f"{format_metric(result.metric, result.low)} to {format_metric(result.metric, result.high)}"
            named = [result.prompt.label, *([result.prompt.decoding.label] if several else [])]
            own = [format_metric(name, result.scores[name]) for name in metrics]
            rows.append([*named, *own, bounds, f"{result.shots:.1f}", f"{result.tokens:,}", f"{result.seconds:.1f}"])
        return columns, rows

    def as_dict(self) -> dict[str, Any]:
        """The comparison for programs."""
        baseline = {"name": self.baseline_name, **self.baseline}
        return {"baseline": baseline, "results": [result.as_dict() for result in self.results]}


class KeptResults:
    """Results in a folder, one file for each prompt and set, so that a stopped comparison is continued."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, prompt: Prompt, name: str, count: int) -> Path:
        return self.folder / f"{prompt.hash}-{hashlib.sha256(f'{name}, {count}'.encode()).hexdigest()[:8]}.json"

    def find(self, prompt: Prompt, name: str, count: int) -> PromptResult | None:
        """The result of a prompt on so many examples of a set; None where there is none."""
        path = self._path(prompt, name, count)
        return PromptResult(prompt, **read_json(path)) if path.is_file() else None

    def add(self, result: PromptResult) -> None:
        """Keep a result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(result.prompt, result.set, len(result.texts)), result.stored())


def score_prompt(
    model: Engine | Endpoint,
    task: Task[Any],
    name: str,
    prompt: Prompt,
    examples: Sequence[Any],
    pool: Sequence[Any] = (),
    *,
    embed: Embed | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> PromptResult:
    """Score one prompt on the examples of a set. Raises InputError without examples that can be judged."""
    if not examples:
        raise InputError(f"{name}: there is no example to ask about")
    prompter = Prompter(model, task, prompt, pool, embed=embed)
    started = time.perf_counter()
    answers = prompter.answer(examples, progress)
    seconds = time.perf_counter() - started
    scores, notes = scores_of(task, name, examples, answers.texts)
    main = next(iter(mean([score for score in scores if score is not None])))
    values = [score.metrics[main] for score in scores if score is not None]
    bounds = mean_of(main, values, unit="%" if all(0 <= value <= 1 for value in values) else "").interval()
    rows = list(zip(examples, answers.texts, scores, strict=True))
    samples = [
        {"set": name, "prompt": task.question(example), "reference": task.reference(example), "output": text}
        | ({"detail": score.detail} if score is not None and score.detail else {})
        for example, text, score in spread([] if name in task.hidden else rows, SAMPLES)
    ]
    means = mean([score for score in scores if score is not None])
    return PromptResult(
        prompt, name, means, bounds.low, bounds.high, answers.shots, answers.tokens, seconds, answers.texts, samples,
        [*answers.notes, *notes],
    )  # fmt: skip


def scores_of(
    task: Task[Any], name: str, examples: Sequence[Any], texts: Sequence[str]
) -> tuple[list[Score | None], list[str]]:
    """The score of each answer; None, with a note, where the example's own reference cannot be judged."""
    if getattr(task, "writes", False):
        return [
            Score(rouge([text], [task.references(example)], kinds=ROUGE_KINDS))  # type: ignore[attr-defined]
            for example, text in zip(examples, texts, strict=True)
        ], []
    scores = [task.score(example, text) for example, text in zip(examples, texts, strict=True)]
    invalid = sum(not score.valid for score in scores)
    if invalid == len(scores):
        raise InputError(f"{name}: nothing can be judged: the {task.reference_name} of every example fails")
    note = f"{invalid:,} examples are not counted because their own {task.reference_name} fails"
    return [score if score.valid else None for score in scores], [note] if invalid else []


def compare(
    model: Engine | Endpoint,
    task: Task[Any],
    name: str,
    prompts: Sequence[Prompt],
    examples: Sequence[Any],
    pool: Sequence[Any] = (),
    *,
    progress: Callable[[int], None] = lambda done: None,
    kept: KeptResults | None = None,
) -> Comparison:
    """Score several prompts on the same examples. Raises InputError without prompts or examples.

    `kept` has the results of an earlier, stopped comparison, and gets each new one.
    """
    if not prompts:
        raise InputError("there is no prompt to compare")
    if not examples:
        raise InputError(f"{name}: there is no example to ask about")
    embedders: dict[str, Embed] = {}
    results: list[PromptResult] = []
    for prompt in prompts:
        known = None if kept is None else kept.find(prompt, name, len(examples))
        before = len(results) * len(examples)
        progress(before)
        if known is not None:
            results.append(known)
            continue
        embed = None
        if prompt.shots and prompt.embedder is not None and prompt.selection == "similar":
            embed = embedders.setdefault(prompt.embedder, embedder(prompt.embedder))
        counted = partial(_counted, progress, before)
        results.append(score_prompt(model, task, name, prompt, examples, pool, embed=embed, progress=counted))
        if kept is not None:
            kept.add(results[-1])
    progress(len(results) * len(examples))
    scores, _ = scores_of(task, name, examples, task.baseline(examples))
    baseline = mean([score for score in scores if score is not None])
    return Comparison(results, {key: value for key, value in baseline.items() if key != "count"}, task.baseline_name)


def _counted(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def search(
    model: Engine | Endpoint,
    task: Task[Any],
    prompts: Sequence[Prompt],
    development: Sequence[Any],
    held_out: Mapping[str, Sequence[Any]],
    pool: Sequence[Any] = (),
    *,
    progress: Callable[[int], None] = lambda done: None,
    kept: KeptResults | None = None,
) -> tuple[Comparison, dict[str, Comparison]]:
    """The prompts on the development examples, and the best of them, once, on each held-out set."""
    found = compare(model, task, "development", prompts, development, pool, progress=progress, kept=kept)
    best = found.best.prompt
    scored = {
        name: compare(model, task, name, [best], examples, pool, kept=kept) for name, examples in held_out.items()
    }
    return found, scored


def grid(
    templates: str,
    names: Sequence[str] = (),
    shots: Sequence[int] = (0,),
    selections: Sequence[str] = ("random",),
    decodings: Sequence[Decoding] = (Decoding(),),
    **settings: Any,
) -> list[Prompt]:
    """Every combination of templates (all of the file by default), shots, selections and generation settings.

    Without shots there is nothing to select, so that such a prompt comes once. Raises InputError for unknown names.
    """
    return list(_grid(templates, names, shots, selections, decodings, settings))


def _grid(
    templates: str,
    names: Sequence[str],
    shots: Sequence[int],
    selections: Sequence[str],
    decodings: Sequence[Decoding],
    settings: Mapping[str, Any],
) -> Iterator[Prompt]:
    every = [template.name for template in load_templates(templates).template]
    for name in names or every:
        plain = make_prompt(templates, name, **settings)
        for count in dict.fromkeys(shots):
            for selection in list(dict.fromkeys(selections))[: None if count else 1]:
                for decoding in decodings:
                    how = {"selection": selection} if count else {}
                    yield with_settings(plain, shots=count, decoding=decoding, **how)
