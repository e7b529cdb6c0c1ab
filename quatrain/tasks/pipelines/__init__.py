"""Pipelines: a model in one line, by Hugging Face's names of tasks and shapes of outputs.

    classify = quatrain.pipeline("text-classification", "runs/sentiment/model")
    classify("A fine film.")                                # [{"label": "positive", "score": 0.98}]

Each task is one file of this folder. The task follows from the model's head where none is named, and the model is that
of the newest run of a suitable recipe where none is named.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import suggest
from quatrain.core.wording import format_value
from quatrain.generation.engine import Engine
from quatrain.loading.model import ResolvedModel
from quatrain.models.io import model_folder
from quatrain.tasks.pipelines.base import BATCH, Field, Pipeline, Prediction
from quatrain.tasks.pipelines.subject import Subject, head_of, load_subject, models_with, newest_run, reads_of

__all__ = ["Field", "Pipeline", "Prediction", "Subject", "pipeline", "pipeline_class", "pipelines", "task_of_head"]


@cache
def pipelines() -> Mapping[str, type[Pipeline]]:
    """The class of every task by the task's name, found by its place in this folder."""
    found: dict[str, type[Pipeline]] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for each in vars(loaded).values():
            is_own = isinstance(each, type) and issubclass(each, Pipeline) and each.__module__ == loaded.__name__
            if is_own and getattr(each, "task", None):
                found[each.task] = each
    return dict(sorted(found.items()))


def names() -> list[str]:
    """All names of tasks, aliases included."""
    return sorted({name for kind in pipelines().values() for name in (kind.task, *kind.aliases)})


def pipeline_class(name: str) -> type[Pipeline]:
    """The class of a task's name. Raises InputError, with a near name, for an unknown one."""
    for kind in pipelines().values():
        if kind.named(name) is not None:
            return kind
    near = suggest(name, names())
    hint = f"; did you mean {near}?" if near else ""
    raise InputError(f"task: {format_value(name)} is unknown{hint} The tasks are {', '.join(names())}.")


def task_of_head(head: str, reads: str = "") -> str:
    """The task that a model with a head is for. Raises InputError for a head without one.

    `reads` is what the model reads beside or instead of text (`Family.features`).
    """
    fitting = [kind for kind in pipelines().values() if head in kind.default_for and kind.reads in (reads, "")]
    if fitting:
        return max(fitting, key=lambda kind: kind.reads == reads).task
    raise InputError(
        f"The model has the head {head}, and no task is its own. Name one, such as task='feature-extraction'; the "
        f"tasks are {', '.join(pipelines())}."
    )


def pipeline(
    task: str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    *,
    device: Any = None,
    dtype: Any = "auto",
    quantize: str | None = None,
    batch_size: int = BATCH,
    **options: Any,
) -> Any:
    """The pipeline of a task: call it with one input, a list, or an iterator, which it streams.

    `task` is Hugging Face's name (`quatrain.tasks.pipelines.names()`); without it the model's head determines it.
    `model` is a model folder, an adapter, a run, a hub id, an engine, or a model in memory with its `tokenizer`.
    Without it the model is that of the newest run under `runs` of a recipe for the task. `device` is a name or the
    number of a GPU; None takes the best one. `dtype` = "auto" keeps the weights' format, on a CPU float32. `quantize`
    as for `load_model`. `options` are defaults of the task's options.

    Raises InputError for an unknown task or option, a model of another head, and where no model is found.
    """
    kind = None if task is None else pipeline_class(task)
    if model is None:
        model = _default_model(task)
    if isinstance(model, str | Path | ResolvedModel):
        resolved = ResolvedModel.of(model)
        head = head_of(resolved)
        kind = kind or pipeline_class(task_of_head(head, reads_of(model_folder.read_config(resolved.base))))
        wanted = _suitable(kind, task or kind.task, head, str(model))
        subject = load_subject(
            resolved, head=wanted if wanted != head else None, device=device, dtype=dtype, quantize=quantize
        )
        if tokenizer is not None:
            subject.tokenizer = tokenizer
    else:
        subject = _in_memory(model, tokenizer)
        head = subject.model.config.head
        kind = kind or pipeline_class(task_of_head(head, reads_of({"model_type": subject.model.config.family})))
        if _suitable(kind, task or kind.task, head, "the model") != head:
            raise InputError(f"The model has the head {head}; load it with head={kind.heads[0]!r} for {kind.task}.")
    return kind(subject, name=task or kind.task, batch_size=batch_size, **options)


def _in_memory(model: Any, tokenizer: Any) -> Subject:
    """The subject of a model, an engine, or a subject."""
    if isinstance(model, Engine):
        return Subject(model.model, model.tokenizer, engine=model)  # type: ignore[arg-type]
    return model if isinstance(model, Subject) else Subject(model, tokenizer)


def _default_model(task: str | None) -> Path:
    """The model of the newest run for a task. Raises InputError that names the recipe to run."""
    if task is None:
        raise InputError("Give a task, a model, or both: quatrain.pipeline('text-classification', 'runs/sentiment')")
    kind = pipeline_class(task)
    recipes = kind.recipes_of(task)
    heads = kind.heads or ("embedding", "masked")
    found = newest_run(recipes, (*heads, *kind.loads))
    if found is None:
        how = f"Run `quatrain run {recipes[0]}`, or name" if recipes else "Name"
        raise InputError(
            f"{task}: no model is named, and no run under runs/ has one for it. {how} a model with the head "
            f"{' or '.join(heads)}."
        )
    return found


def _suitable(kind: type[Pipeline], task: str, head: str, name: str) -> str:
    """The head with which a model of this head is loaded for a task. Raises InputError that says which models fit."""
    if not kind.heads or head in kind.heads:
        return head
    if head in kind.loads:
        return kind.loads[head]
    recipes = kind.recipes_of(task)
    how = f" `quatrain run {recipes[0]}` trains one." if recipes else ""
    raise InputError(
        f"{task}: needs a model with the head {' or '.join(kind.heads)}, and {name} has {head}. Models with it: "
        f"{models_with(kind.heads)}.{how}"
    )
