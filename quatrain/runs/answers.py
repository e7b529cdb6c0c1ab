"""Evaluates a model that takes turns in a chat: held-out chats, the examples of a task, and the recipe's prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.data.corpus import DataParts
from quatrain.data.messages import content_text
from quatrain.evaluation.evaluate import Evaluation, evaluate, spread
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.runs.stage import PREVIEW_SAMPLES, StageContext, StageResult
from quatrain.runs.stages import spec_of
from quatrain.tasks.instructions import ANSWERED, Instructions
from quatrain.tasks.task import Task, source_task, spec_of_source


def takes_turns(settings: Settings, context: StageContext) -> bool:
    """Whether the model takes turns in a chat: the last stage that taught it used chats, or its data are chats."""
    lesson = next((lesson for stage in _before(context) if (lesson := spec_of(stage).teaches(stage))), None)
    if lesson is not None:
        return lesson == "chat"
    sets = context.data_of(settings).held_out_sets(by_source=True).values()
    return any(spec_of_source(*each) is not None or _format(*each) == "chat" for each in sets)


def evaluation_data(settings: Settings, context: StageContext) -> DataParts:
    """The data to evaluate on: the stage's own, or those of the last stage that taught chats, or the recipe's."""
    taught = [stage for stage in _before(context) if spec_of(stage).teaches(stage) in ("chat", "task")]
    own = getattr(settings, "data", None)
    of_lesson = (stage.data for stage in taught if stage.data and stage.data.source)
    return context.parts(own or next(of_lesson, context.recipe.data))


def _before(context: StageContext) -> list[Any]:
    """The stages up to this one, the latest first."""
    return list(context.recipe.stage[: context.index + 1])[::-1]


def _format(data: DataParts, part: str) -> str:
    """The format of a part of the data; "" where that is unknown."""
    try:
        return data.settings.format or data.corpus(part).format
    except InputError:
        return ""


def chat_sets(data: DataParts, limit: int) -> Iterator[tuple[str, Task[Any]]]:
    """The held-out sets of chats, of texts with answers and of tasks with a source, each with its task.

    A stream gives `limit` chats.
    """
    for name, (own, part) in data.held_out_sets(by_source=True).items():
        if (task := source_task(own, part)) is not None:
            yield name, task
        elif _format(own, part) in ("chat", *ANSWERED):
            yield name, Instructions(own, limit=limit if own.settings.streaming else None)


def measure(settings: Settings, context: StageContext, engine: Engine, result: StageResult) -> None:
    """Adds scores and samples of the held-out sets, and answers to the recipe's prompts, asked as turns."""
    data, limits = evaluation_data(settings, context), context.recipe.evaluate
    result.samples = []
    tokens = seconds = 0.0
    for name, task in chat_sets(data, limits.examples):
        evaluation = _evaluate(name, task, context, engine)
        tokens, seconds = tokens + evaluation.tokens, seconds + evaluation.seconds
        result.add(name, evaluation, context.reporter)
    if not result.scores and data.settings.source is not None:
        result.notes.append("no scores: name data that is held out with data.test, or a share with data.validation")
    for temperature in limits.temperatures if limits.prompts else ():
        params = SamplingParams(max_new_tokens=limits.max_new_tokens, temperature=temperature, seed=context.seed)
        started = time.perf_counter()
        completions = engine.chat([[{"role": "user", "content": prompt}] for prompt in limits.prompts], params)
        seconds += time.perf_counter() - started
        tokens += sum(len(completion.ids) for completion in completions)
        of_prompts = {"set": f"temperature {temperature}", "temperature": temperature, "turns": True}
        result.samples += [
            of_prompts | {"prompt": prompt, "output": completion.text}
            for prompt, completion in zip(limits.prompts, completions, strict=True)
        ]
    result.generation_tokens_per_second = tokens / seconds if seconds else None


def _evaluate(name: str, task: Task[Any], context: StageContext, engine: Engine) -> Evaluation:
    """The evaluation of one held-out set by its task."""
    limits = context.recipe.evaluate
    params = SamplingParams(max_new_tokens=limits.max_new_tokens)
    with task, context.reporter.task("answering", unit="example") as bar:
        examples = task.held_out[name][: limits.examples]
        if not examples:
            return Evaluation({}, notes=["nothing is held out; name data.test, or a share with data.validation"])
        notes = list(task.notes)
        evaluation = evaluate(engine, task, name, examples, params=params, progress=bar.update)
    evaluation.notes[:0] = notes
    return evaluation


def preview(settings: Settings, context: StageContext, engine: Engine) -> list[dict[str, Any]]:
    """A few answers during training: to the recipe's prompts, or to held-out chats."""
    limits = context.recipe.evaluate
    params = SamplingParams(max_new_tokens=limits.max_new_tokens, seed=context.seed)
    if limits.prompts:
        params = replace(params, temperature=next(iter(limits.temperatures), 0.0))
        turns = [[{"role": "user", "content": prompt}] for prompt in limits.prompts[:PREVIEW_SAMPLES]]
        name, references = f"temperature {params.temperature}", [""] * PREVIEW_SAMPLES
    else:
        name, task = next(chat_sets(evaluation_data(settings, context), limits.examples), ("", None))
        turns, references = [], []
        if task is not None:
            with task:
                shown = [each for each in spread(task.held_out[name], PREVIEW_SAMPLES) if task.answered(each)]
                turns, references = [task.prompt(each) for each in shown], [task.reference(each) for each in shown]
    completions = engine.chat(turns, params) if turns else []
    return [
        {"set": name, "prompt": content_text(prompt[-1]), "output": completion.text}
        | ({"reference": reference} if reference else {})
        for prompt, completion, reference in zip(turns, completions, references, strict=False)
    ]
