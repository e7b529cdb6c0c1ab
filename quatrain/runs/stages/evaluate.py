"""The evaluate stage: measures the model as the stages before have left it, or the one in `model.folder`."""

from __future__ import annotations

from quatrain.evaluation.settings import EvaluateStage
from quatrain.models.transformer.stack import Model
from quatrain.runs import tasks
from quatrain.runs.assess import assess
from quatrain.runs.material import model_of, tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.training.settings import TASKS, FinetuneStage
from quatrain.training.tasks import OF_HEAD, SCORE, make_objective, task_of_model


def run(settings: EvaluateStage, context: StageContext) -> StageResult:
    """Scores and samples; writes no model."""
    model = model_of(context)
    result = StageResult(parameters=model.num_parameters())
    task = task_of(settings, context, model)
    if task is None:
        assess(settings, context, model, tokenizer_of(context), result)
        return result
    tokenizer = tokenizer_of(context)
    corpus = tasks.open_corpus(task, context.recipe.data_of(task))
    limit = task.context or model.config.context_length
    labels = SCORE if task.objective == "regress" else tuple(model.config.labels)
    objective = make_objective(task, tokenizer, corpus.format, labels, limit)
    tasks.measure(task, context, objective, model, tokenizer, result)
    return result


def task_of(settings: EvaluateStage, context: StageContext, model: Model) -> FinetuneStage | None:
    """The task that the model is measured by: the one that it learned last, or that its head tells; None for texts.

    The data are the evaluate stage's own, or those of the stage that taught it, or the recipe's.
    """
    before = [stage for stage in context.recipe.stage[: context.index] if isinstance(stage, FinetuneStage)]
    taught = before[-1] if before and before[-1].objective in TASKS else None
    if taught is None:
        head = model.config.head
        if head not in OF_HEAD or (head == "seq2seq" and not _is_pairs(settings, context)):
            return None
        taught = task_of_model(model.config)
    return taught.model_copy(update={"data": settings.data or taught.data})


def _is_pairs(settings: EvaluateStage, context: StageContext) -> bool:
    data = context.recipe.data_of(settings)
    return data.source is not None and tasks.corpus_of(data).format == "pair"
