"""The dpo stage: the model practises, its answers are judged, and it learns to prefer the right ones.

With a database the pairs are the model's own samples, judged by running them; otherwise they come from a file of
preferences. A share of the practice questions is kept apart: the stage keeps the model from before unless the new one
answers more of those, so that it never makes a model worse unnoticed. The held-out sets take no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quatrain.alignment.dpo import DPO, PreferenceExample, reference_logprobs
from quatrain.alignment.preferences import PairStatistics, from_chat, sample_pairs
from quatrain.alignment.settings import DPOStage
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine
from quatrain.generation.logits import SamplingParams
from quatrain.models.transformer.stack import Model
from quatrain.runs.assess import assess
from quatrain.runs.learning import TrainingJob, example_stream, learn, mean_length, with_dropout
from quatrain.runs.material import database_path, model_of, task_of, tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.precision import Precision, working_dtype

if TYPE_CHECKING:
    from quatrain.tasks.text2sql.examples import Example


def run(settings: DPOStage, context: StageContext) -> StageResult:
    """Collects pairs, trains, keeps the better model by the questions kept apart, writes `model/` and measures it."""
    tokenizer = tokenizer_of(context)
    model = with_dropout(model_of(context), settings.train.dropout)
    data = context.recipe.data_of(settings)
    judged = data.database is not None and data.preferences is None
    pairs, notes = (
        _own_pairs(settings, context, model, tokenizer) if judged else _given_pairs(settings, context, tokenizer)
    )
    limit = settings.context or model.config.max_position_embeddings
    short = [pair for pair in pairs if len(pair) // 2 <= limit]
    if len(short) < len(pairs):
        notes.append(f"{len(pairs) - len(short):,} pairs longer than {limit} tokens left out")
    if not short:
        return _unchanged(
            settings, context, model, tokenizer, [*notes, "no pair to learn from: the model stays as it was"]
        )
    before = _practice_accuracy(settings, context, model, tokenizer) if judged else None
    pad_id = tokenizer.pad_id or 0
    weights = Precision(model, working_dtype(settings.train, model.device))
    try:
        examples = reference_logprobs(model, short, pad_id=pad_id)
    finally:
        weights.close()
    objective = DPO(beta=settings.beta, sft_weight=settings.sft_weight, pad_id=pad_id)
    stream, steps = example_stream(settings, context, examples)
    learning = TrainingJob(
        model,
        tokenizer,
        objective,
        stream,
        settings.train,
        steps,
        length=mean_length(examples),
        limit=limit,
        examples=examples,
        adapter=settings.adapter,
        notes=notes,
    )
    _, result = learn(learning, context)
    if before is not None:
        after = _practice_accuracy(settings, context, model, tokenizer)
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
    settings: DPOStage, context: StageContext, model: Model, tokenizer: Tokenizer
) -> tuple[list[PreferenceExample], list[str]]:
    """The model's own answers to practice questions, judged by running them; the reference where none is right."""
    from quatrain.tasks.text2sql.judge import execution_match
    from quatrain.tasks.text2sql.sandbox import Connection

    task = task_of(context, settings)
    questions, failing = _runnable(settings, context, task.practice[: settings.prompts])
    engine = Engine(model, tokenizer)
    prompts, gold = [], []
    for example in questions:
        rendered = render(tokenizer, task.messages(example))
        start = rendered.assistant_mask.index(True)
        prompts.append(rendered.ids[:start])
        gold.append([token for token, learned in zip(rendered.ids, rendered.assistant_mask, strict=True) if learned])
    limit = context.recipe.evaluate.max_new_tokens
    found: list[PreferenceExample] = []
    portion = 256
    with (
        Connection(database_path(context, settings)) as connection,
        context.reporter.task("sampling", total=len(questions), unit="question") as task_bar,
    ):
        total = PairStatistics()
        for start in range(0, len(questions), portion):
            part = questions[start : start + portion]

            def judge(number: int, text: str, part: Sequence[Any] = part) -> bool:
                return execution_match(connection, part[number].sql, text).correct

            pairs, statistics = sample_pairs(
                engine,
                prompts[start : start + portion],
                judge,
                samples=settings.samples,
                temperature=settings.temperature,
                seed=context.seed + start,
                gold=gold[start : start + portion],
                max_new_tokens=limit,
            )
            found += pairs
            total += statistics
            task_bar.update(min(start + portion, len(questions)), pairs=len(found))
    return found, [
        *failing,
        f"{len(found):,} pairs from {total.samples:,} samples of {total.prompts:,} practice questions, "
        f"{total.accuracy:.1%} of them right; the reference answer was chosen in {total.from_gold:,}"
    ]


def _runnable(
    settings: DPOStage, context: StageContext, questions: Sequence[Example]
) -> tuple[list[Example], list[str]]:
    """The questions whose own SQL runs, by which an answer can be judged, and a note on the others."""
    from quatrain.tasks.text2sql.judge import reference_error
    from quatrain.tasks.text2sql.sandbox import Connection

    with Connection(database_path(context, settings)) as connection:
        errors = [reference_error(connection, each.sql) for each in questions]
    failed = [f"{each.sql}: {error}" for each, error in zip(questions, errors, strict=True) if error is not None]
    if not failed:
        return list(questions), []
    kept = [each for each, error in zip(questions, errors, strict=True) if error is None]
    return kept, [f"{len(failed):,} practice questions left out, whose own SQL fails, such as {failed[0]}"]


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


def _practice_accuracy(settings: DPOStage, context: StageContext, model: Model, tokenizer: Tokenizer) -> float:
    """Share of the questions kept apart for choosing that the model answers right, greedily."""
    from quatrain.tasks.text2sql.judge import execution_match
    from quatrain.tasks.text2sql.sandbox import Connection

    task = task_of(context, settings)
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens)
    asked, _ = _runnable(settings, context, task.development)
    answers = Engine(model, tokenizer).chat([task.messages(example)[:-1] for example in asked], params)
    with Connection(database_path(context, settings)) as connection:
        right = [
            execution_match(connection, example.sql, answer.text).correct
            for example, answer in zip(asked, answers, strict=True)
        ]
    return sum(right) / max(1, len(right))
