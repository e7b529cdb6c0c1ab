"""The contract between the runner and a kind of stage: `StageSpec`, `StageContext` and `StageResult`.

A kind of stage is one module in `quatrain/runs/stages/` that defines its settings and a `SPEC`. The recipe, the runner,
the preflight, the fingerprints and the report ask the spec; none of them knows a kind by name.

A stage writes into `context.stage_folder` only. The runner hands its files to later stages by their places:

- `stage_folder/model` (with its tokenizer) becomes `previous_model`;
- `stage_folder/tokenizer` becomes `tokenizer`;
- `stage_folder/checkpoints` holds checkpoints. A stage resumes from the newest valid one: the runner removes
  checkpoints that no longer match the recipe.

The runner writes `result.json` after the stage has returned, so a stage without this file is unfinished.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quatrain.core.processes import process_number
from quatrain.core.settings import Problem
from quatrain.runs.settings import RecipeSettings, StageSettings

if TYPE_CHECKING:
    from quatrain.core.progress import Reporter
    from quatrain.core.settings import Settings
    from quatrain.data.corpus import DataParts
    from quatrain.data.settings import DataSettings
    from quatrain.evaluation.evaluate import Evaluation
    from quatrain.runs.job import TrainingJob

Need = Literal["data", "tokenizer", "model"]
Product = Literal["tokenizer", "model"]
Lesson = Literal["", "text", "chat", "task"]

PREVIEW_SAMPLES = 3
"""Samples of each held-out set that are generated during training."""


@dataclass
class StageContext:
    """Where a stage works, and what earlier stages left.

    `seed` is the recipe's. `shared` lives as long as the process: stages cache there what is costly to build and equal
    for all of them, such as the generated questions of a text-to-SQL task. `processes` is the number of processes that
    train this stage together; the first of them calls `announce` right before training so that the others join.

    `fresh_model` allows a stage to start from fresh weights of the recipe's shape where an earlier stage would have
    made the model: the preflight sets it, because it runs no training.
    """

    recipe: RecipeSettings
    folder: Path
    stage_folder: Path
    index: int
    name: str
    previous_model: Path | None
    tokenizer: Path | None
    seed: int
    reporter: Reporter
    shared: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    announce: Callable[[], None] = lambda: None
    fresh_model: bool = False

    def data_of(self, stage: Settings) -> DataParts:
        """The data of a stage: its own, or the recipe's."""
        return self.parts(self.recipe.data_of(stage))

    def parts(self, data: DataSettings) -> DataParts:
        """The parts of these data. They are opened once a process, for all that reads them."""
        from quatrain.data.corpus import DataParts

        parts: DataParts = self.shared.setdefault(f"data:{data!r}", DataParts(data, self.seed))
        return parts

    @property
    def is_main(self) -> bool:
        """Whether this is the one process, of those that train together, that writes files."""
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

    `seconds` is the duration of the work (the runner measures it if the stage does not). `scores` maps the name of a
    held-out set to its metrics, such as
    `{"new values": {"execution_accuracy": 0.97, "exact_match": 0.95, "count": 200}}`. `samples` are dictionaries with
    `set`, `prompt`, `reference`, `output`, `correct`, `detail`, `temperature`. `baselines` maps the same
    sets to the scores of the task's dumb baseline, and its `name`. `kinds` maps them to how many examples of each kind
    are right: `{"questions by people": {"join2": {"right": 7, "count": 8}}}`. `compressed` tells the report to compare
    size and speed with the model of the stage before.
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
    compressed: bool | None = None
    scores: dict[str, dict[str, float]] | None = None
    baselines: dict[str, dict[str, Any]] | None = None
    kinds: dict[str, dict[str, dict[str, int]]] | None = None
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
        if evaluation.kinds:
            self.kinds = (self.kinds or {}) | {name: evaluation.kinds}
        reporter.score(name, evaluation.scores, evaluation.baseline)

    def as_dict(self) -> dict[str, Any]:
        """The keys that are not None, those of `extra` included."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        return {key: value for key, value in values.items() if value is not None} | self.extra


def _nothing(*_: Any) -> tuple[()]:
    return ()


def _no_lesson(_: Any) -> Lesson:
    return ""


@dataclass(frozen=True)
class StageSpec:
    """Everything that the package knows about one kind of stage.

    The functions take the stage's settings first. They import what is heavy when they are called (see `deferred`), so
    that a recipe is checked without torch.

    - `run(settings, context)` does the stage.
    - `needs(settings, recipe)` names what must exist before: "data" (a source or a database), "tokenizer" (a model's
      own counts) and "model".
    - `produces` names what it leaves for later stages.
    - `prepare(settings, context)` serves the preflight and the other processes of a distributed run. It returns the
      `TrainingJob` of a stage that trains; otherwise a sentence for `quatrain check` on why it is skipped, or None
      where there is nothing to say. A stage whose product later stages need to be prepared may make it here.
    - `conflicts(settings, recipe, index)` yields contradictions between the stage and the rest of its recipe.
    - `file_problems(settings, recipe)` yields problems that only the user's files show.
    - `special_tokens(settings, recipe)` names tokens that a tokenizer trained for this recipe must have.
    - `teaches(settings)`: what the model learns: running "text", "chat", the "task" of its head, or nothing.
    - `distributed`: all processes of a torchrun train this stage together; other stages run in the first one alone.
    - `judges`: the stage's model judges completions. Later stages start from the model before it, and rewards name it
      by the kind of its stage.
    - `final`: why no later stage may change the model, "" if one may.
    - `tables`: tables of the recipe that the stage's work depends on, for its fingerprint. With `measured` the stage's
      scores depend on `evaluate` too.
    """

    settings: type[StageSettings]
    run: Callable[[Any, StageContext], StageResult]
    needs: Callable[[Any, RecipeSettings], Collection[Need]] = _nothing
    produces: tuple[Product, ...] = ()
    prepare: Callable[[Any, StageContext], TrainingJob | str | None] | None = None
    conflicts: Callable[[Any, RecipeSettings, int], Iterator[Problem] | tuple[()]] = _nothing
    file_problems: Callable[[Any, RecipeSettings], Iterator[str] | tuple[()]] = _nothing
    special_tokens: Callable[[Any, RecipeSettings], Collection[str]] = _nothing
    teaches: Callable[[Any], Lesson] = _no_lesson
    distributed: bool = False
    judges: bool = False
    final: str = ""
    tables: tuple[str, ...] = ("data", "tokenizer", "model")
    measured: bool = True

    @property
    def kind(self) -> str:
        """The `kind` that a `[[stage]]` table names."""
        kind: str = self.settings.model_fields["kind"].default
        return kind

    def training_job(self, settings: StageSettings, context: StageContext) -> TrainingJob:
        """The training job of a stage that trains. Raises TypeError for a kind that does not."""
        job = self.prepare(settings, context) if self.prepare is not None else None
        if job is None or isinstance(job, str):
            raise TypeError(f"the {self.kind} stage has no training job")
        return job


def deferred(path: str) -> Callable[..., Any]:
    """The function at "module:name", imported at its first call."""
    module, name = path.split(":")

    def call(*args: Any, **keywords: Any) -> Any:
        return getattr(import_module(module), name)(*args, **keywords)

    return call


def stage_name(index: int, settings: StageSettings) -> str:
    """The name of a stage's folder, numbered from one: `02-pretrain` for index 1."""
    return f"{index + 1:02d}-{settings.kind}"
