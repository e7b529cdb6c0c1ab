"""The evaluate stage: evaluates the model that earlier stages have left, or the one in `model.folder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from quatrain.data.settings import DataSettings
from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageContext, StageResult, StageSpec

if TYPE_CHECKING:
    from quatrain.models.transformer.stack import Model
    from quatrain.tasks.records import RecordTask
    from quatrain.tokenizers.tokenizer import Tokenizer


class EvaluateStage(StageSettings):
    """Evaluates the model that earlier stages have left, or the one in `model.folder`."""

    kind: Literal["evaluate"] = "evaluate"
    data: DataSettings | None = None


def run(settings: EvaluateStage, context: StageContext) -> StageResult:
    """Scores and samples; writes no model."""
    from quatrain.compression.methods import weight_count
    from quatrain.runs import tasks
    from quatrain.runs.assess import assess
    from quatrain.runs.material import model_of, tokenizer_of

    model, tokenizer = model_of(context), tokenizer_of(context)
    result = StageResult(parameters=weight_count(model))
    task = task_of(settings, context, model, tokenizer)
    if task is None:
        assess(settings, context, model, tokenizer, result)
    else:
        tasks.measure(task, context, model, tokenizer, result)
    return result


def task_of(settings: EvaluateStage, context: StageContext, model: Model, tokenizer: Tokenizer) -> RecordTask | None:
    """The task to evaluate the model on: the last one that it was finetuned for, or that of its head; None for text.

    The data are the evaluate stage's own, or those of the stage that taught the task, or the recipe's.
    """
    from quatrain.runs.stages import spec_of
    from quatrain.tasks.kinds import OF_HEAD, record_task, task_of_model

    earlier = context.recipe.stage[: context.index]
    taught: Any = next(
        (stage for stage in reversed(earlier) if spec_of(stage).teaches(stage) in ("chat", "task")), None
    )
    data, limit = context.data_of(settings), model.config.context_length
    if taught is not None and spec_of(taught).teaches(taught) == "task":
        learned, limit = taught, taught.context or limit
        data = context.parts(settings.data or context.recipe.data_of(taught))
    elif model.config.head not in OF_HEAD or (
        model.config.head == "seq2seq" and (data.name() is None or data.corpus().format != "pair")
    ):
        return None
    else:
        learned = task_of_model(model.config)
    kind = record_task(learned)
    labels = kind.model_labels(model.config.labels)
    objective = kind.make_objective(learned, tokenizer, kind.corpus(data).format, labels, limit)
    return kind(objective, data, limit=context.recipe.evaluate.examples)


SPEC = StageSpec(EvaluateStage, run=run, needs=lambda settings, recipe: {"model"})
