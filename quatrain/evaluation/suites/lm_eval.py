"""Tasks of EleutherAI's lm-eval, asked and counted by its own library: `lm-eval:TASK`, or `lm-eval:FILE.yaml`.

Intervals are 1.96 standard errors, which lm-eval computes. Data that a task names by hub id are downloaded once; a task
file with `dataset_path: json` and local files needs no network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.reading import read_text
from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure
from quatrain.evaluation.subject import LocalSubject, Subject
from quatrain.evaluation.suite import Output, Suite, prompt_hash

SAMPLES = 12
"""Answers that a result shows."""


class LmEvalTask(Suite):
    """A task of lm-eval, or a group of tasks."""

    name = "lm-eval"
    title = "a task of EleutherAI's lm-eval"
    paper = "Biderman et al. 2024, arXiv 2405.14782"
    columns = "the name of a task, or a task's YAML file"

    def __init__(self, source: str | None = None, *, shots: int | None = None, **options: Any):
        super().__init__(source, **options)
        self.given_shots = shots

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"shots": self.given_shots}

    def parse(self, value: Mapping[str, Any]) -> Any:
        return value

    def read(self, limit: int | None = None) -> list[Row]:
        """Nothing: lm-eval reads the data."""
        return []

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        raise NotImplementedError("lm-eval asks its tasks itself")

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        raise NotImplementedError("lm-eval counts its tasks itself")

    def sources(self) -> list[str]:
        return [str(self.source)] if self._file is not None else []

    @property
    def _file(self) -> Path | None:
        path = Path(str(self.source))
        return path if path.suffix in (".yaml", ".yml") else None

    def whole(self, subject: Subject, limit: int | None) -> dict[str, Any]:
        """The result as lm-eval gives it. Raises InputError for an unknown task and without lm-eval."""
        with require("lm-eval:TASK", "lm-eval", "eval"):
            import lm_eval
            from lm_eval.tasks import TaskManager

            from quatrain.evaluation.lm_eval_model import EngineLM
        if not isinstance(subject, LocalSubject):
            raise InputError(f"lm-eval:{self.source} runs on a model of this machine; lm-eval has its own client of "
                             "endpoints (local-completions)")  # fmt: skip
        task, manager = self._known_task(TaskManager)
        found = lm_eval.simple_evaluate(
            model=EngineLM(subject),
            tasks=[task],
            task_manager=manager,
            num_fewshot=self.given_shots,
            limit=limit,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
            fewshot_random_seed=self.seed,
            apply_chat_template=bool(self.chat),
            bootstrap_iters=1000,
            log_samples=True,
        )
        return result_of_lm_eval(self, found)

    def _known_task(self, manager: Any) -> tuple[str, Any]:
        """The task's name, and lm-eval's index of tasks that has it."""
        if self._file is None:
            known = manager()
            if not known.match_tasks([str(self.source)]):
                import difflib

                near = difflib.get_close_matches(str(self.source), known.all_tasks, 3, 0.6)
                hint = f" Did you mean {', '.join(near)}?" if near else " `lm-eval ls tasks` lists them."
                raise InputError(f"lm-eval has no task {self.source!r}.{hint}")
            return str(self.source), known
        if not self._file.is_file():
            raise InputError(f"{self._file} does not exist: lm-eval:FILE takes a task's YAML file")
        name = re.search(r"^(?:task|group):\s*['\"]?([^'\"#\s]+)", read_text(self._file), re.MULTILINE)
        known = manager(include_path=str(self._file.parent), include_defaults=False)
        if name is None or not known.match_tasks([name[1]]):
            raise InputError(f"{self._file} is no task of lm-eval: it must have the key `task`")
        return name[1], known

    def question(self, example: Row) -> str:
        return ""

    def reference(self, example: Row) -> str:
        return ""


def result_of_lm_eval(suite: LmEvalTask, found: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's results in the form of ours."""
    scores: list[dict[str, Any]] = []
    for task, values in found["results"].items():
        prefix = "" if len(found["results"]) == 1 else f"{task}."
        better = found.get("higher_is_better", {}).get(task, {})
        for key, value in values.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{name}_stderr,{filtered}")
            spread = 1.96 * error if isinstance(error, int | float) else math.nan
            shown = name if filtered == "none" else f"{name} ({filtered})"
            share = name.startswith(("acc", "exact_match", "f1"))
            scores.append({
                "name": prefix + shown, "value": float(value), "interval": [value - spread, value + spread],
                "unit": "%" if share and 0 <= value <= 1 else "", "higher_is_better": bool(better.get(name, True)),
                "explanation": f"lm-eval's {name}, filter {filtered}",
            })  # fmt: skip
    samples = [sample for own in found.get("samples", {}).values() for sample in own]
    prompts = [str(sample.get("arguments", "")) for sample in samples]
    counts = found.get("n-samples", {})
    return {
        "suite": f"lm-eval:{suite.source}",
        "title": suite.title,
        "paper": suite.paper,
        "count": sum(int(each["effective"]) for each in counts.values()) or len(samples),
        "scores": scores,
        "baselines": [],
        "below": [],
        "details": {"versions": found.get("versions", {}), "prompts_sha256": prompt_hash(prompts)},
        "notes": ["lm-eval's tasks have no baselines of ours: compare with chance, or take the suite of the same name"],
        "samples": [
            {"prompt": _first_prompt(sample), "reference": str(sample.get("target", "")),
             "output": str(sample.get("filtered_resps", ""))}
            for sample in samples[:SAMPLES]
        ],
    }  # fmt: skip


def _first_prompt(sample: Mapping[str, Any]) -> str:
    arguments = sample.get("arguments") or {}
    first: Any = next(iter(arguments.values()), {}) if isinstance(arguments, Mapping) else arguments[0]
    if isinstance(first, Mapping):
        first = first.get("arg_0", "")
    return str(first[0] if isinstance(first, tuple | list) else first)


SUITE = LmEvalTask
