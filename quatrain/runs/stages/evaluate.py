"""The evaluate stage: evaluates the model that earlier stages have left, or the one in `model.folder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from quatrain.data.settings import DataSettings
from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageContext, StageResult, StageSpec

if TYPE_CHECKING:
    from quatrain.models.transformer.stack import Model
    from quatrain.runs.stages.finetune import FinetuneStage


class EvaluateStage(StageSettings):
    """Evaluates the model that earlier stages have left, or the one in `model.folder`."""

    kind: Literal["evaluate"] = "evaluate"
    data: DataSettings | None = None


def run(settings: EvaluateStage, context: StageContext) -> StageResult:
    """Scores and samples; writes no model."""
    from quatrain.runs import tasks
    from quatrain.runs.assess import assess
    from quatrain.runs.material import model_of, tokenizer_of
    from quatrain.tasks.kinds import record_task

    model = model_of(context)
    result = StageResult(parameters=model.num_parameters())
    task = task_of(settings, context, model)
    if task is None:
        assess(settings, context, model, tokenizer_of(context), result)
        return result
    tokenizer = tokenizer_of(context)
    corpus = tasks.open_corpus(task, context.recipe.data_of(task))
    limit = task.context or model.config.context_length
    kind = record_task(task)
    labels = kind.model_labels(model.config.labels)
    objective = kind.make_objective(task, tokenizer, corpus.format, labels, limit)
    tasks.measure(task, context, objective, model, tokenizer, result)
    return result


def task_of(settings: EvaluateStage, context: StageContext, model: Model) -> FinetuneStage | None:
    """The task to evaluate the model on: the last one that it was finetuned for, or that of its head; None for text.

    The data are the evaluate stage's own, or those of the stage that taught the task, or the recipe's.
    """
    from quatrain.runs.stages import spec_of
    from quatrain.runs.stages.finetune import FinetuneStage
    from quatrain.tasks.kinds import OF_HEAD, task_of_model
    from quatrain.training.settings import TrainSettings

    earlier = context.recipe.stage[: context.index]
    taught = [stage for stage in earlier if spec_of(stage).teaches(stage) in ("chat", "task")]
    task: Any = None
    if taught and spec_of(taught[-1]).teaches(taught[-1]) == "task":
        task = taught[-1]
    elif model.config.head not in OF_HEAD or (model.config.head == "seq2seq" and not _is_pairs(settings, context)):
        return None
    else:
        train = TrainSettings(steps=1, warmup_steps=0)
        task = FinetuneStage(train=train, **task_of_model(model.config).model_dump())
    copy: FinetuneStage = task.model_copy(update={"data": settings.data or task.data})
    return copy


def _is_pairs(settings: EvaluateStage, context: StageContext) -> bool:
    from quatrain.runs import tasks

    data = context.recipe.data_of(settings)
    return data.source is not None and tasks.corpus_of(data).format == "pair"


SPEC = StageSpec(EvaluateStage, run=run, needs=lambda settings, recipe: {"model"})
