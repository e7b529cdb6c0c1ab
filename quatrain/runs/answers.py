"""Evaluates a model that takes turns in a chat: held-out chats, the examples of a task, and the recipe's prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.data.corpus import Corpus
from quatrain.data.messages import content_text
from quatrain.data.settings import DataSettings
from quatrain.data.sources import source_names
from quatrain.evaluation.evaluate import Evaluation, evaluate, spread
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.runs.chats import conversations, split
from quatrain.runs.material import source_task
from quatrain.runs.stage import PREVIEW_SAMPLES, StageContext, StageResult
from quatrain.runs.stages import spec_of
from quatrain.tasks.instructions import ANSWERED, Chat, Instructions
from quatrain.tasks.task import SourceTask, Task, spec_of_source


def takes_turns(settings: Settings, context: StageContext) -> bool:
    """Whether the model takes turns in a chat: the last stage that taught it used chats, or its data are chats."""
    lesson = next((lesson for stage in _before(context) if (lesson := spec_of(stage).teaches(stage))), None)
    if lesson is not None:
        return lesson == "chat"
    kinds = (_kind(part, own) for _, part, own in sets(context.recipe.data_of(settings)))
    return any(kind is not None and kind != "pairs" for kind in kinds)


def evaluation_data(settings: Settings, context: StageContext) -> DataSettings:
    """The data to evaluate on: the stage's own, or those of the last stage that taught chats, or the recipe's."""
    taught = [stage for stage in _before(context) if spec_of(stage).teaches(stage) in ("chat", "task")]
    own = getattr(settings, "data", None)
    return own or next((stage.data for stage in taught if stage.data and stage.data.source), context.recipe.data)


def _before(context: StageContext) -> list[Any]:
    """The stages up to this one, the latest first."""
    return list(context.recipe.stage[: context.index + 1])[::-1]


def _kind(part: str, data: DataSettings) -> str | None:
    """How a part of the data is evaluated: by the task of this name, as "chat", or as "pairs" of a text and its answer.

    None for plain text.
    """
    if (spec := spec_of_source(data, part)) is not None:
        return spec.name
    try:
        source = getattr(data, part)
        format = data.format or Corpus(source, columns=data.columns or None, streaming=data.streaming).format
    except InputError:
        return None
    return "pairs" if format in ANSWERED else "chat" if format == "chat" else None


def measure(settings: Settings, context: StageContext, engine: Engine, result: StageResult) -> None:
    """Adds scores and samples of the held-out sets, and answers to the recipe's prompts, asked as turns."""
    data, limits = evaluation_data(settings, context), context.recipe.evaluate
    result.samples = []
    tokens = seconds = 0.0
    for name, part, own in sets(data):
        if _kind(part, own) is None:
            continue
        evaluation = _evaluate(name, part, own, settings, context, engine)
        tokens, seconds = tokens + evaluation.tokens, seconds + evaluation.seconds
        result.add(name, evaluation, context.reporter)
    if not result.scores and data.source is not None:
        result.notes.append("no scores: name data that is held out with data.test, or a share with data.validation")
    for temperature in limits.temperatures if limits.prompts else ():
        params = SamplingParams(max_new_tokens=limits.max_new_tokens, temperature=temperature, seed=context.seed)
        started = time.perf_counter()
        completions = engine.chat([[{"role": "user", "content": prompt}] for prompt in limits.prompts], params)
        seconds += time.perf_counter() - started
        tokens += sum(len(completion.ids) for completion in completions)
        result.samples += [
            {"set": f"temperature {temperature}", "prompt": prompt, "output": completion.text,
             "temperature": temperature, "turns": True}
            for prompt, completion in zip(limits.prompts, completions, strict=True)
        ]
    result.generation_tokens_per_second = tokens / seconds if seconds else None


def sets(data: DataSettings) -> Iterator[tuple[str, str, DataSettings]]:
    """The held-out sets: each source of `data.test`, or of `data.dev`, or the held-out share of `data.source`.

    Yields the name of a set, the part of the data that it is in, and data settings with this source alone.
    """
    for part in ("test", "dev"):
        source = getattr(data, part)
        if source is not None:
            yield from ((name, part, data.model_copy(update={part: name})) for name in source_names(source))
            return
    if data.source is not None and data.validation:
        yield "held out", "source", data


def _evaluate(
    name: str, part: str, data: DataSettings, settings: Settings, context: StageContext, engine: Engine
) -> Evaluation:
    """The evaluation of one held-out set by the task that its examples belong to, or as chats."""
    limits = context.recipe.evaluate
    params = SamplingParams(max_new_tokens=limits.max_new_tokens)
    task: Task[Any] | None = source_task(data, part)
    if task is None:
        task, examples = Instructions(), held_out_chats(part, data, settings, context)
    with task, context.reporter.task("answering", unit="example") as bar:
        if isinstance(task, SourceTask):
            examples = task.take()
            if part == "source":
                examples = split(examples, data.validation, context.seed)[1]
        examples = examples[: limits.examples]
        if not examples:
            return Evaluation({}, notes=["nothing is held out; name data.test, or a share with data.validation"])
        notes = list(task.notes)
        evaluation = evaluate(engine, task, name, examples, params=params, progress=bar.update)
    evaluation.notes[:0] = notes
    return evaluation


def held_out_chats(part: str, data: DataSettings, settings: Settings, context: StageContext) -> list[Chat]:
    """All chats of a separate part, or the share of the source that was not learned."""
    if data.streaming and part == "source":
        return list(islice(conversations(data, context, settings, []), context.recipe.evaluate.examples))
    chats = list(conversations(data, context, settings, [], part))
    return split(chats, data.validation, context.seed)[1] if part == "source" else chats


def preview(settings: Settings, context: StageContext, engine: Engine) -> list[dict[str, Any]]:
    """A few answers during training: to the recipe's prompts, or to held-out chats."""
    limits = context.recipe.evaluate
    params = SamplingParams(max_new_tokens=limits.max_new_tokens, seed=context.seed)
    if limits.prompts:
        params = replace(params, temperature=next(iter(limits.temperatures), 0.0))
        turns = [[{"role": "user", "content": prompt}] for prompt in limits.prompts[:PREVIEW_SAMPLES]]
        name, references = f"temperature {params.temperature}", [""] * PREVIEW_SAMPLES
    else:
        name, part, data = next(sets(evaluation_data(settings, context)), ("", "", None))
        known = data is not None and _kind(part, data) is not None
        chats = held_out_chats(part, data, settings, context) if data is not None and known else []
        chats = [chat for chat in spread(chats, PREVIEW_SAMPLES) if chat[1][-1]["role"] == "assistant"] if chats else []
        turns, references = [chat[:-1] for _, chat in chats], [content_text(chat[-1]) for _, chat in chats]
    completions = engine.chat(turns, params) if turns else []
    return [
        {"set": name, "prompt": content_text(prompt[-1]), "output": completion.text}
        | ({"reference": reference} if reference else {})
        for prompt, completion, reference in zip(turns, completions, references, strict=False)
    ]
