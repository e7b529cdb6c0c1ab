"""Several sets of chats learned together over one frozen model, each by an adapter of its own, in the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from quatrain.data.batches import TaskExample, TokenExample
from quatrain.evaluation.perplexity import examples_loss
from quatrain.generation.engine import Engine
from quatrain.models.transformer.stack import Model
from quatrain.runs import answers
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import example_stream, mean_length
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.finetune import FinetuneStage
from quatrain.tokenizers.tokenizer import Tokenizer


def of_task(settings: FinetuneStage, name: str) -> FinetuneStage:
    """The same stage with one of its tasks alone."""
    return settings.model_copy(update={"data": settings.tasks[name], "tasks": {}})


def setup(
    settings: FinetuneStage,
    context: StageContext,
    model: Model | None,
    one: Callable[[FinetuneStage, Model | None], TrainingJob],
) -> TrainingJob:
    """What the stage learns: the examples of all tasks, each as `one` sets it up alone, shuffled together."""
    parts: dict[str, TrainingJob] = {}
    for name in settings.tasks:
        parts[name] = one(of_task(settings, name), model)
        model = parts[name].model
    first = next(iter(parts.values()))
    examples = [each for name, part in parts.items() for each in tagged(part.examples or (), name)]
    held_out = {name: tagged(part.held_out, name) for name, part in parts.items() if len(part.held_out)}
    stream, steps = example_stream(settings, context, examples)

    def validate(model: Model) -> dict[str, float]:
        losses = {name: examples_loss(model, own) for name, own in held_out.items()}
        total = sum(each.loss * each.count for each in losses.values())
        found = {f"validation_loss_{name}": each.loss for name, each in losses.items()}
        return {"validation_loss": total / sum(each.count for each in losses.values()), **found}

    return replace(
        first,
        stream=stream,
        steps=steps,
        length=mean_length(examples),
        examples=examples,
        held_out=[each for own in held_out.values() for each in own],
        validate=validate if held_out else None,
        notes=[f"{name}: {note}" for name, part in parts.items() for note in part.notes],
        sample=lambda model: look(settings, context, model, first.tokenizer),
        tasks=tuple(parts),
    )


def tagged(examples: Sequence[TokenExample], name: str | None) -> list[TaskExample]:
    """Examples that go through an adapter."""
    return [TaskExample(each.ids, each.mask, name) for each in examples]


def look(settings: FinetuneStage, context: StageContext, model: Model, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """What the model says by each adapter by now."""
    return [
        {**sample, "set": f"{name}: {sample['set']}"}
        for name in settings.tasks
        for sample in answers.look(of_task(settings, name), context, Engine(model, tokenizer, adapter=name))
    ]


def measure(settings: FinetuneStage, context: StageContext, learning: TrainingJob, result: StageResult) -> None:
    """Scores of each task by its own adapter, and the loss of the frozen model without it."""
    scores: dict[str, dict[str, float]] = {}
    baselines: dict[str, dict[str, Any]] = {}
    result.samples = []
    for name in settings.tasks:
        own, found = of_task(settings, name), StageResult()
        answers.measure(own, context, Engine(learning.model, learning.tokenizer, adapter=name), found)
        held = [each for each in learning.held_out if isinstance(each, TaskExample) and each.adapter == name]
        without = {"loss_without": examples_loss(learning.model, tagged(held, None)).loss} if held else {}
        scores |= {f"{name}: {key}": value | without for key, value in (found.scores or {}).items()}
        baselines |= {f"{name}: {key}": value for key, value in (found.baselines or {}).items()}
        result.samples += [{**sample, "set": f"{name}: {sample['set']}"} for sample in found.samples or []]
        result.notes += found.notes
    result.scores, result.baselines = scores or None, baselines or None
