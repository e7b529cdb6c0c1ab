"""Trains and evaluates a model on a task of typed records: classes, numbers, tags, answers, choices, texts, embeddings.

`quatrain.tasks.kinds` has the tasks. Labels come from the data or from the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from quatrain.alignment.reward_model import RewardExample
from quatrain.core.errors import InputError
from quatrain.data.corpus import DataParts
from quatrain.data.example_cache import cached_examples
from quatrain.data.records import Row
from quatrain.evaluation.evaluate import evaluate, record_samples, spread
from quatrain.evaluation.metrics.objectives import evaluate_objective
from quatrain.generation.config import read_generation_config
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_weights
from quatrain.models.hub import ADAPTER_CONFIG
from quatrain.models.modules import is_in_head
from quatrain.models.transformer.stack import Model
from quatrain.runs import streaming
from quatrain.runs.job import Sample, TrainingData, TrainingJob, Validate
from quatrain.runs.learning import example_stream, longest, training_job, with_dropout
from quatrain.runs.material import (
    as_wanted,
    fresh_model,
    model_folder_of,
    quantize_of,
    start_from_vectors,
    tokenizer_of,
)
from quatrain.runs.settings import MEAN_POOLED
from quatrain.runs.stage import PREVIEW_SAMPLES, StageContext, StageResult
from quatrain.runs.streaming import Make
from quatrain.tasks.kinds import record_task
from quatrain.tasks.records import RecordTask
from quatrain.tokenizers.fit import check_fits
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.answers import ContextWindow
from quatrain.training.objectives.classification import ChoiceExample
from quatrain.training.objectives.embedding import EmbeddingExample
from quatrain.training.objectives.seq2seq import Seq2SeqExample
from quatrain.training.objectives.tagging import TaggedWindow
from quatrain.training.objectives.texts import EncodedText

KINDS = (EncodedText, TaggedWindow, ContextWindow, ChoiceExample, Seq2SeqExample, EmbeddingExample, RewardExample)
"""The types of prepared examples, for the cache."""


def setup(
    settings: Any,
    context: StageContext,
    model: Model | None = None,
    *,
    kind: type[RecordTask] | None = None,
    tokenizer: Tokenizer | None = None,
) -> TrainingJob:
    """The training job of a stage that teaches a task of records, by default that of `settings.objective`.

    `model` replaces the one that the earlier stages have left, `tokenizer` the one that they use.
    """
    data, kind = context.data_of(settings), kind or record_task(settings)
    tokenizer = tokenizer or tokenizer_of(context)
    if data.settings.streaming:
        streaming.check(settings, data.settings)
    corpus = kind.corpus(data)
    labels = kind.labels(settings, corpus)
    model = with_dropout(model or starting_model(settings, context, tokenizer, kind, labels), settings.train.dropout)
    limit = longest(model, settings, model.config.context_length)
    if getattr(settings, "pooling", "family") == "mean":
        if model.config.family not in MEAN_POOLED:
            known = ", ".join(MEAN_POOLED)
            raise InputError(
                f'{context.name}: pooling: "mean"; files of {model.config.family} cannot say so, only those of {known}'
            )
        model.config = model.config.replace(pooling="mean")
    objective = kind.make_objective(settings, tokenizer, corpus.format, labels, limit)
    objective.multiple = settings.train.pad_to_multiple_of
    task = kind(objective, data, limit=context.recipe.evaluate.examples)
    if data.settings.streaming:
        learned = streamed_examples(settings, context, task, data)
        count = len(learned.examples)
        notes = [f"of the first {count:,} examples: {note}" for note in objective.notes(learned.examples)]
    else:
        examples, notes, held_out = prepare(settings, context, task, data, limit)
        learn_words(model, examples)
        notes = [*notes, *start_from_vectors(model, tokenizer, context)]
        learned = TrainingData(*example_stream(settings, context, examples), examples, held_out)
    job = training_job(settings, model, tokenizer, objective, learned, limit=limit, notes=notes, task=task)
    job.validate = validation(job)
    job.sample = sampling(context, task, tokenizer)
    return job


def learn_words(model: Any, examples: Sequence[Any]) -> None:
    """A model with an embedding of words, and no words yet, takes over the frequent ones of the examples."""
    if (learn := getattr(model, "learn_words", None)) is not None:
        learn(example.ids for example in examples)


def prepare(
    settings: Any, context: StageContext, task: RecordTask, data: DataParts, limit: int
) -> tuple[Sequence[Any], list[str], Sequence[Any]]:
    """The training examples with their notes, and those for validation; from the cache where it has them."""
    objective, source, dev = task.objective, data.name(), data.name("dev")

    def encode(split: str, read_from: str | None) -> tuple[Sequence[Any], list[str]]:
        records = task.splits[split]
        if not records:
            return [], []
        try:
            examples, notes = objective.prepare(records)
        except InputError as error:
            hint = f"`quatrain data check {read_from}` names every fault"
            raise InputError(f"{error.message.rstrip(':.')}; {hint}:", error.problems) from error
        return examples, [*notes, f"{len(records):,} records, {len(examples):,} examples"]

    marks = [task.corpus(data).fingerprint, task.corpus(data, "dev").fingerprint if dev is not None else ""]
    named = ("labels", "stride", "source_prefix", "max_target_length")
    read = {"objective": task.name} | {name: getattr(settings, name, None) for name in named}
    read |= {"reads": settings.reads} if hasattr(settings, "reads") else {}
    key = {
        "data": marks[0],
        "dev": marks[1],
        "tokenizer": objective.tokenizer.fingerprint,
        "settings": read | {"limit": limit},
        "labels": list(getattr(objective, "labels", ())),
        "label reading": 2,
        "share": None if dev is not None else [data.settings.validation, context.seed],
    }
    if None in marks:
        (learned, notes), held_out = encode("train", source), encode("development", dev or source)[0]
    else:
        learned, notes, _ = cached_examples(key | {"part": "learned"}, lambda: encode("train", source), KINDS)
        part = key | {"part": "held out"}
        held_out, _, _ = cached_examples(part, lambda: encode("development", dev or source), KINDS)
    return learned, notes, held_out


def streamed_examples(settings: Any, context: StageContext, task: RecordTask, data: DataParts) -> TrainingData:
    """The examples as they are read. Validation has the first ones of `data.dev`, or of the source."""

    def make(part: str) -> Make:
        source = str(data.name(part))
        return lambda: streaming.of_records(task.objective, task.read(data, part), source)

    dev = make("dev") if data.name("dev") is not None else None
    held = context.recipe.evaluate.examples if dev is not None or data.settings.validation else 0
    return streaming.streamed(settings, context, make("source"), dev=dev, held=held)


def starting_model(
    settings: Any, context: StageContext, tokenizer: Tokenizer, task: type[RecordTask], labels: Sequence[str]
) -> Model:
    """The model of the earlier stages with the task's head, or new weights of the recipe's shape."""
    head, more = task.head, task.head_options(labels)
    folder = model_folder_of(context)
    if folder is None:
        model = fresh_model(context, tokenizer, head=head, **more)
        model.newly_initialized = [name for name, _ in model.named_parameters() if is_in_head(name)]
        return model
    if (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{folder}: this is an adapter that cannot be merged, such as a soft prompt; a task is taught on a model."
        )
    model = load_weights(folder, quantize=quantize_of(settings.adapter), head=head, seed=context.seed, **more)
    model = as_wanted(model, context)
    check_fits(tokenizer, model.config.vocab_size)
    if model.newly_initialized:
        context.reporter.info(f"fresh weights of the head: {', '.join(model.newly_initialized)}")
    return model


def validation(learning: TrainingJob) -> Validate | None:
    """The function that evaluates a model on the held-out examples."""
    if not learning.held_out:
        return None

    def validate(model: Model) -> dict[str, float]:
        metrics = evaluate_objective(learning.objective, model, learning.held_out)
        return {f"validation_{name}": value for name, value in metrics.items()}

    return validate


def sampling(context: StageContext, task: RecordTask, tokenizer: Tokenizer) -> Sample:
    """The function that previews the model's answers to a few records, always the same ones."""
    limits = context.recipe.evaluate

    def sample(model: Model) -> list[dict[str, Any]]:
        name, records = records_to_score(task, limits.examples)
        return record_samples(model, tokenizer, task, spread(records, PREVIEW_SAMPLES), name, limits.max_new_tokens)

    return sample


def measure(task: RecordTask, context: StageContext, model: Model, tokenizer: Tokenizer, result: StageResult) -> None:
    """Adds scores and samples on `data.test`, or, without it, on the held-out examples."""
    name, records = records_to_score(task, context.recipe.evaluate.examples)
    if not records:
        result.notes.append("no scores: name data that is held out with data.test, or a share with data.validation")
        return
    own = read_generation_config(model).recommended
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens)
    if task.writes and own.num_beams > 1:
        params = replace(own, max_new_tokens=params.max_new_tokens, num_return_sequences=1)
    with context.reporter.task("answering", total=len(records), unit="text") as bar:
        evaluation = evaluate((model, tokenizer), task, name, records, params=params, progress=bar.update)
    for note in evaluation.notes:
        context.reporter.warn(f"{name}: {note}")
    result.add(name, evaluation, context.reporter)
    if (figure := attention_figure(task, model, records[0])) is not None:
        result.extra["figures"] = [*result.extra.get("figures", []), figure]


def attention_figure(task: RecordTask, model: Any, record: Row) -> dict[str, Any] | None:
    """What each token of a target reads of its source, for a model that shows it (`attention_weights`)."""
    weights_of = getattr(model, "attention_weights", None)
    if weights_of is None or not task.writes:
        return None
    example = task.objective.encode(record.value, record.place)[0]
    weights = weights_of(example.source, example.target)
    if weights is None:
        return None
    sides = (example.target, task.objective.target_tokenizer), (example.source, task.objective.tokenizer)
    rows, columns = ([tokenizer.token_text(token).strip() or "␣" for token in ids] for ids, tokenizer in sides)
    return {
        "kind": "heat",
        "title": "Attention",
        "note": "each row is a token of the target, and shows what it reads of the source",
        "rows": rows,
        "columns": columns,
        "values": [[round(value, 4) for value in row] for row in weights.tolist()],
    }


def records_to_score(task: RecordTask, limit: int) -> tuple[str, Sequence[Row]]:
    """The name of the task's held-out set, and at most `limit` of its records; none where nothing is held out."""
    name = next(iter(task.held_out), "")
    return name, task.held_out[name][:limit] if name else []
