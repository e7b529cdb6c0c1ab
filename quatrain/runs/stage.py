"""What every stage of a run receives and returns.

A stage is a function `stage(settings, context) -> StageResult`. It writes into `context.stage_folder`
only, and follows three conventions, by which the runner hands its work to the stages that follow:

- a model is written to `stage_folder/model` (with its tokenizer), and becomes `previous_model`;
- a tokenizer alone is written to `stage_folder/tokenizer`, and becomes `tokenizer`;
- checkpoints are written to `stage_folder/checkpoints`. A stage that finds some there goes on from the
  newest whole one: the runner removes them when they no longer belong to the recipe.

The runner writes `result.json` after the stage has returned, so a stage without it is unfinished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.core.processes import process_number

if TYPE_CHECKING:
    from quatrain.core.progress import Reporter
    from quatrain.core.settings import Settings
    from quatrain.evaluation.evaluate import Evaluation
    from quatrain.runs.recipe import Recipe

StageFunction = Callable[[Any, "StageContext"], "StageResult"]

STAGES: dict[str, str] = {
    "tokenizer": "quatrain.runs.stages.tokenizer:run",
    "pretrain": "quatrain.runs.stages.pretrain:run",
    "finetune": "quatrain.runs.stages.finetune:run",
    "dpo": "quatrain.runs.stages.dpo:run",
    "quantize": "quatrain.runs.stages.quantize:run",
    "evaluate": "quatrain.runs.stages.evaluate:run",
}
"""Kind of stage -> "module:function", imported when the stage starts."""

LOOKS = 3
"""Samples of each held-out set that are taken of a model that still learns."""


@dataclass
class StageContext:
    """Where a stage works, and what the stages before it left.

    `seed` is the recipe's. `shared` lives as long as the process: stages keep there what is costly to
    build and equal for all of them, such as the generated questions of a text-to-SQL task.
    """

    recipe: Recipe
    folder: Path
    stage_folder: Path
    index: int
    name: str
    previous_model: Path | None
    tokenizer: Path | None
    seed: int
    reporter: Reporter
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes, of those that train together."""
        return process_number()[0] == 0

    @property
    def model_folder(self) -> Path:
        """Where this stage writes its model."""
        return self.stage_folder / "model"

    @property
    def tokenizer_folder(self) -> Path:
        """Where a tokenizer stage writes its tokenizer."""
        return self.stage_folder / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """Where this stage keeps its checkpoints."""
        return self.stage_folder / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        """The run's `metrics.jsonl`; write it through `quatrain.core.progress.MetricsLog`."""
        return self.folder / "metrics.jsonl"


@dataclass
class StageResult:
    """What a stage reports; `result.json` holds the keys that are not None.

    `seconds` is the time of the work (the runner measures it where the stage does not say),
    `scores` maps the name of a held-out set to its metrics, such as
    `{"new values": {"execution_accuracy": 0.97, "exact_match": 0.95, "count": 200}}`, and `samples` are
    dictionaries with `set`, `prompt`, `reference`, `output`, `correct`, `detail`, `temperature`.
    `baselines` maps the same sets to the scores of the task's dumb baseline, and its `name`.
    """

    seconds: float | None = None
    peak_memory_bytes: int | None = None
    flops: float | None = None
    tokens: int | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    model_bytes: int | None = None
    generation_tokens_per_second: float | None = None
    perplexity: float | None = None
    validation_loss: float | None = None
    scores: dict[str, dict[str, float]] | None = None
    baselines: dict[str, dict[str, Any]] | None = None
    samples: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, evaluation: Evaluation, reporter: Reporter) -> None:
        """Take over the evaluation of one set, and report its scores beside the baseline's."""
        self.notes += [f"{name}: {note}" for note in evaluation.notes]
        self.samples = [*(self.samples or []), *evaluation.samples]
        self.extra |= evaluation.details
        if not evaluation.scores:
            return
        self.scores = (self.scores or {}) | {name: evaluation.scores}
        if evaluation.baseline:
            named = {"name": evaluation.baseline_name} | evaluation.baseline
            self.baselines = (self.baselines or {}) | {name: named}
        reporter.score(name, evaluation.scores, evaluation.baseline)

    def as_dict(self) -> dict[str, Any]:
        """The keys that apply, those of `extra` among them."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        return {key: value for key, value in values.items() if value is not None} | self.extra


def stage_function(kind: str) -> StageFunction:
    """Import the function that does a stage of this kind."""
    module, name = STAGES[kind].split(":")
    function: StageFunction = getattr(import_module(module), name)
    return function


def stage_name(index: int, settings: Settings) -> str:
    """The name of a stage's folder, numbered from one: `02-pretrain` for index 1."""
    return f"{index + 1:02d}-{settings.kind}"  # type: ignore[attr-defined]
