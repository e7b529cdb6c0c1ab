"""Trains a mixture: several sets of chats over one frozen model, each by its own adapter, in the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from quatrain.data.batches import AdapterExample, TokenExample
from quatrain.evaluation.perplexity import examples_loss
from quatrain.generation.engine import Engine
from quatrain.models.transformer.stack import Model
from quatrain.runs import answers
from quatrain.runs.job import TrainingJob
from quatrain.runs.learning import example_stream, mean_length
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.finetune import FinetuneStage
from quatrain.tokenizers.tokenizer import Tokenizer


def of_set(settings: FinetuneStage, name: str) -> FinetuneStage:
    """The same stage with one set of its mixture alone."""
    return settings.model_copy(update={"data": settings.mixture[name], "mixture": {}})


def setup(
    settings: FinetuneStage,
    context: StageContext,
    model: Model | None,
    one: Callable[[FinetuneStage, Model | None], TrainingJob],
) -> TrainingJob:
    """The training job: the examples of all sets, each prepared by `one`, shuffled together."""
    parts: dict[str, TrainingJob] = {}
    for name in settings.mixture:
        parts[name] = one(of_set(settings, name), model)
        model = parts[name].model
    first = next(iter(parts.values()))
    examples = [each for name, part in parts.items() for each in tagged(part.examples or (), name)]
    held_out = {name: tagged(part.held_out, name) for name, part in parts.items() if len(part.held_out)}
    stream, steps = example_stream(settings, context, examples)

    def validate(model: Model) -> dict[str, float]:
        losses = {name: examples_loss(model, examples) for name, examples in held_out.items()}
        total = sum(loss.loss * loss.count for loss in losses.values())
        by_set = {f"validation_loss_{name}": loss.loss for name, loss in losses.items()}
        return {"validation_loss": total / sum(loss.count for loss in losses.values()), **by_set}

    return replace(
        first,
        stream=stream,
        steps=steps,
        length=mean_length(examples),
        examples=examples,
        held_out=[each for own in held_out.values() for each in own],
        validate=validate if held_out else None,
        notes=[f"{name}: {note}" for name, part in parts.items() for note in part.notes],
        sample=lambda model: preview(settings, context, model, first.tokenizer),
        adapters=tuple(parts),
    )


def tagged(examples: Sequence[TokenExample], name: str | None) -> list[AdapterExample]:
    """Examples that go through an adapter."""
    return [AdapterExample(each.ids, each.mask, name) for each in examples]


def preview(
    settings: FinetuneStage, context: StageContext, model: Model, tokenizer: Tokenizer
) -> list[dict[str, object]]:
    """A few answers by each adapter during training."""
    return [
        {**sample, "set": f"{name}: {sample['set']}"}
        for name in settings.mixture
        for sample in answers.preview(of_set(settings, name), context, Engine(model, tokenizer, adapter=name))
    ]


def measure(settings: FinetuneStage, context: StageContext, learning: TrainingJob, result: StageResult) -> None:
    """The scores of each set with its own adapter, and the loss of the frozen model without an adapter."""
    scores: dict[str, dict[str, float]] = {}
    baselines: dict[str, dict[str, Any]] = {}
    result.samples = []
    for name in settings.mixture:
        own, evaluated = of_set(settings, name), StageResult()
        answers.measure(own, context, Engine(learning.model, learning.tokenizer, adapter=name), evaluated)
        held = [each for each in learning.held_out if isinstance(each, AdapterExample) and each.adapter == name]
        without = {"loss_without": examples_loss(learning.model, tagged(held, None)).loss} if held else {}
        scores |= {f"{name}: {key}": value | without for key, value in (evaluated.scores or {}).items()}
        baselines |= {f"{name}: {key}": value for key, value in (evaluated.baselines or {}).items()}
        result.samples += [{**sample, "set": f"{name}: {sample['set']}"} for sample in evaluated.samples or []]
        result.notes += evaluated.notes
    result.scores, result.baselines = scores or None, baselines or None
