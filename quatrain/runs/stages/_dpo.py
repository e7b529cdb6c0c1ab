"""Implementation of the dpo stage: preference pairs, training on them, and the choice of the better model.

With a database the pairs are samples of the model, judged by running them; otherwise a file has them. The task's split
"development" decides whether the trained model replaces the previous one, which is kept if the new one does not answer
more of these questions. The held-out sets take no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from quatrain.alignment.dpo import DPO, PreferenceExample, reference_logprobs
from quatrain.alignment.preferences import PairStatistics, from_chat, sample_pairs
from quatrain.alignment.watch import Watch
from quatrain.core.errors import InputError
from quatrain.evaluation.evaluate import evaluate
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.models.transformer.stack import Model
from quatrain.runs.assess import assess
from quatrain.runs.job import TrainingData
from quatrain.runs.learning import example_stream, learn, training_job, with_dropout
from quatrain.runs.material import generated_task, model_of, tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.dpo import DPOStage
from quatrain.tasks.task import Task
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.precision import Precision, working_dtype

PORTION = 256
"""Examples that are sampled and judged together."""


def run(settings: DPOStage, context: StageContext) -> StageResult:
    """Collects pairs, trains, chooses the better model by the development split, writes `model/` and evaluates it."""
    tokenizer = tokenizer_of(context)
    model = with_dropout(model_of(context), settings.train.dropout)
    data = context.recipe.data_of(settings)
    task = generated_task(context, settings) if data.preferences is None else None
    with task or nullcontext():
        return _run(settings, context, task, model, tokenizer)


def _run(
    settings: DPOStage, context: StageContext, task: Task[Any] | None, model: Model, tokenizer: Tokenizer
) -> StageResult:
    if task is None:
        pairs, notes = _given_pairs(settings, context, tokenizer)
    else:
        pairs, notes = _own_pairs(settings, context, task, model, tokenizer)
    limit = settings.context or model.config.max_position_embeddings
    short = [pair for pair in pairs if len(pair) // 2 <= limit]
    if len(short) < len(pairs):
        notes.append(f"{len(pairs) - len(short):,} pairs longer than {limit} tokens left out")
    if not short:
        return _unchanged(
            settings, context, model, tokenizer, [*notes, "no pair to learn from: the model stays as it was"]
        )
    before = None if task is None else _development_score(context, task, model, tokenizer)
    pad_id = tokenizer.pad_id or 0
    weights = Precision(model, working_dtype(settings.train, model.device))
    try:
        examples = reference_logprobs(model, short, pad_id=pad_id)
    finally:
        weights.close()
    objective = DPO(beta=settings.beta, sft_weight=settings.sft_weight, pad_id=pad_id)
    data = TrainingData(*example_stream(settings, context, examples), examples)
    job = training_job(settings, model, tokenizer, objective, data, limit=limit, notes=notes, watch=Watch())
    _, result = learn(job, context, check=False)
    if task is not None and before is not None:
        after = _development_score(context, task, model, tokenizer)
        result.notes.append(f"questions kept apart: {before:.1%} right before, {after:.1%} after")
        if after <= before:
            result.notes.append("the model from before is kept, because the new one does not answer more of them")
            model = model_of(context)
            result.model_bytes = write_model(model, tokenizer, context.model_folder)
    assess(settings, context, model, tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def _unchanged(
    settings: DPOStage, context: StageContext, model: Model, tokenizer: Tokenizer, notes: list[str]
) -> StageResult:
    result = StageResult(parameters=model.num_parameters(), notes=notes)
    result.model_bytes = write_model(model, tokenizer, context.model_folder)
    assess(settings, context, model, tokenizer, result)
    return result


def _own_pairs(
    settings: DPOStage, context: StageContext, task: Task[Any], model: Model, tokenizer: Tokenizer
) -> tuple[list[PreferenceExample], list[str]]:
    """Pairs of the model's own completions of practice examples, judged by the task.

    The reference is chosen where none is right.
    """
    examples, notes = task.judgeable(task.splits["practice"][: settings.prompts])
    engine = Engine(model, tokenizer)
    prompts, gold = [], []
    for example in examples:
        rendered = render(tokenizer, task.messages(example))
        start = rendered.assistant_mask.index(True)
        prompts.append(rendered.ids[:start])
        gold.append([token for token, learned in zip(rendered.ids, rendered.assistant_mask, strict=True) if learned])
    pairs: list[PreferenceExample] = []
    total = PairStatistics()
    with context.reporter.task("sampling", total=len(examples), unit="question") as bar:
        for start in range(0, len(examples), PORTION):
            part = examples[start : start + PORTION]

            def judge(number: int, completion: str, part: Sequence[Any] = part) -> bool:
                return task.score(part[number], completion).correct

            sampled, statistics = sample_pairs(
                engine,
                prompts[start : start + PORTION],
                judge,
                samples=settings.samples,
                temperature=settings.temperature,
                seed=context.seed + start,
                gold=gold[start : start + PORTION],
                max_new_tokens=context.recipe.evaluate.max_new_tokens,
            )
            pairs += sampled
            total += statistics
            bar.update(min(start + PORTION, len(examples)), pairs=len(pairs))
    return pairs, [
        *notes,
        f"{len(pairs):,} pairs from {total.samples:,} samples of {total.prompts:,} practice questions, "
        f"{total.accuracy:.1%} of them right; the reference answer was chosen in {total.from_gold:,}",
    ]


def _given_pairs(
    settings: DPOStage, context: StageContext, tokenizer: Tokenizer
) -> tuple[list[PreferenceExample], list[str]]:
    """The pairs of a file of preferences."""
    from quatrain.data.documents import read_preferences

    path = context.recipe.data_of(settings).preferences
    if path is None:
        raise InputError(f"{context.name}: needs data.preferences, a file of pairs, or data.database.")
    pairs = [from_chat(tokenizer, each.prompt, each.chosen, each.rejected) for each in read_preferences(path)]
    return pairs, [f"{len(pairs):,} pairs from {path}"]


def _development_score(context: StageContext, task: Task[Any], model: Model, tokenizer: Tokenizer) -> float:
    """The main metric of the model's greedy completions of the development split."""
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens)
    examples, _ = task.judgeable(task.splits["development"])
    return evaluate(Engine(model, tokenizer), task, "development", examples, params=params).main if examples else 0.0
