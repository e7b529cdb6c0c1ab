"""Trains and evaluates a model on a task of typed records: classes, numbers, tags, answers, choices, texts, embeddings.

`quatrain.tasks.kinds` has the tasks. Labels come from the data or from the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.corpus import Corpus
from quatrain.data.example_cache import cached_examples
from quatrain.data.records import Row
from quatrain.data.settings import DataSettings
from quatrain.evaluation.evaluate import evaluate, record_samples, spread
from quatrain.evaluation.metrics.objectives import evaluate_objective
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_weights
from quatrain.models.hub import ADAPTER_CONFIG
from quatrain.models.modules import is_in_head
from quatrain.models.transformer.stack import Model
from quatrain.runs import streaming
from quatrain.runs.chats import split as split_share
from quatrain.runs.job import Sample, TrainingJob, Validate
from quatrain.runs.learning import (
    example_stream,
    longest,
    mean_length,
    with_dropout,
)
from quatrain.runs.material import as_wanted, corpus_of, fresh_model, model_folder_of, quantize_of, tokenizer_of
from quatrain.runs.stage import PREVIEW_SAMPLES, StageContext, StageResult
from quatrain.runs.stages.finetune import FinetuneStage
from quatrain.runs.streaming import Make, Streamed
from quatrain.tasks.kinds import record_task
from quatrain.tasks.records import placed
from quatrain.tokenizers.fit import check_fits
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.answers import ContextWindow
from quatrain.training.objectives.classification import ChoiceExample
from quatrain.training.objectives.embedding import EmbeddingExample
from quatrain.training.objectives.seq2seq import Seq2SeqExample
from quatrain.training.objectives.tagging import TaggedWindow
from quatrain.training.objectives.texts import EncodedText
from quatrain.training.streams import BatchStream

KINDS = (EncodedText, TaggedWindow, ContextWindow, ChoiceExample, Seq2SeqExample, EmbeddingExample)
"""What examples of tasks are."""


def setup(settings: FinetuneStage, context: StageContext, model: Model | None = None) -> TrainingJob:
    """The training job of the stage. `model` replaces the one that the earlier stages have left."""
    data = context.recipe.data_of(settings)
    tokenizer = tokenizer_of(context)
    if data.streaming:
        streaming.check(settings, data)
    corpus = open_corpus(settings, data)
    task = record_task(settings)
    labels = task.labels(settings, corpus)
    model = with_dropout(model or starting_model(settings, context, tokenizer, labels), settings.train.dropout)
    limit = longest(model, settings, model.config.context_length)
    objective = task.make_objective(settings, tokenizer, corpus.format, labels, limit)
    objective.multiple = settings.train.pad_to_multiple_of
    stream: BatchStream
    if data.streaming:
        read = streamed_examples(settings, context, corpus, objective)
        stream, steps, examples, held_out = read.stream, read.steps, read.examples, read.held_out
        notes = [f"of the first {len(examples):,} examples: {note}" for note in objective.notes(examples)]
    else:
        examples, notes, held_out = prepare(settings, context, corpus, objective, limit)
        stream, steps = example_stream(settings, context, examples)
    job = TrainingJob(
        model,
        tokenizer,
        objective,
        stream,
        settings.train,
        steps,
        length=mean_length(examples),
        limit=limit,
        examples=examples,
        notes=notes,
        held_out=held_out,
        adapter=settings.adapter,
    )
    job.validate = validation(job)
    job.sample = sampling(settings, context, job)
    return job


def prepare(
    settings: FinetuneStage, context: StageContext, corpus: Corpus, objective: Any, limit: int
) -> tuple[Sequence[Any], list[str], Sequence[Any]]:
    """The training examples with their notes, and those for validation; from the cache where it has them."""
    data = context.recipe.data_of(settings)
    both: list[list[Row]] = []

    def made(part: int) -> tuple[Sequence[Any], list[str]]:
        if not both:
            both.extend(split(settings, context, corpus))
        if not both[part]:
            return [], []
        try:
            examples, notes = objective.prepare(both[part])
        except InputError as error:
            source = corpus.source if part == 0 else data.dev or corpus.source
            hint = f"`quatrain data check {source}` names every fault"
            raise InputError(f"{error.message.rstrip(':.')}; {hint}:", error.problems) from error
        return examples, [*notes, f"{len(both[part]):,} records, {len(examples):,} examples"]

    dev = open_corpus(settings, data, "dev").fingerprint if data.dev is not None else ""
    named = ("objective", "labels", "stride", "source_prefix", "max_target_length")
    key = {
        "data": corpus.fingerprint,
        "dev": dev,
        "tokenizer": objective.tokenizer.fingerprint,
        "settings": {name: getattr(settings, name) for name in named} | {"limit": limit},
        "labels": list(getattr(objective, "labels", ())),
        "label reading": 2,
        "share": None if data.dev is not None else [data.validation, context.seed],
    }
    if corpus.fingerprint is None or dev is None:
        (learned, notes), held_out = made(0), made(1)[0]
    else:
        learned, notes, _ = cached_examples(key | {"part": "learned"}, lambda: made(0), KINDS)
        held_out, _, _ = cached_examples(key | {"part": "held out"}, lambda: made(1), KINDS)
    return learned, notes, held_out


def streamed_examples(settings: FinetuneStage, context: StageContext, corpus: Corpus, objective: Any) -> Streamed:
    """The examples as they are read. Validation has the first ones of `data.dev`, or of the source."""
    data, related = context.recipe.data_of(settings), record_task(settings).related

    def make(part: str) -> Make:
        source = corpus if part == "source" else open_corpus(settings, data, part)
        return lambda: streaming.of_records(objective, placed(source, related=related), source.source)

    dev = make("dev") if data.dev is not None else None
    held = context.recipe.evaluate.examples if dev is not None or data.validation else 0
    return streaming.streamed(settings, context, make("source"), dev=dev, held=held)


def open_corpus(settings: FinetuneStage, data: DataSettings, part: str = "source") -> Corpus:
    """The records of a part of the data: `source`, `dev` or `test`."""
    format = record_task(settings).format
    if data.format is not None and format is not None and data.format != format:
        raise InputError(f"data.format: {data.format}; objective {settings.objective} reads {format}. Leave it out.")
    return corpus_of(data, part, format=format)


def split(settings: FinetuneStage, context: StageContext, corpus: Corpus) -> tuple[list[Row], list[Row]]:
    """The training records, and those for validation: of `data.dev`, or a random share of the source."""
    data = context.recipe.data_of(settings)
    related = record_task(settings).related
    learned = list(placed(corpus, related=related))
    if data.dev is not None:
        return learned, list(placed(open_corpus(settings, data, "dev"), related=related))
    return split_share(learned, data.validation, context.seed)


def starting_model(
    settings: FinetuneStage, context: StageContext, tokenizer: Tokenizer, labels: Sequence[str]
) -> Model:
    """The model of the earlier stages with the task's head, or new weights of the recipe's shape."""
    task = record_task(settings)
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


def sampling(settings: FinetuneStage, context: StageContext, learning: TrainingJob) -> Sample:
    """The function that previews the model's answers to a few records, always the same ones."""
    task = record_task(settings)(learning.objective)
    cached: list[tuple[str, list[Row]]] = []
    max_new_tokens = context.recipe.evaluate.max_new_tokens

    def sample(model: Model) -> list[dict[str, Any]]:
        if not cached:
            name, records = records_to_score(settings, context)
            cached.append((name, spread(records, PREVIEW_SAMPLES)))
        name, records = cached[0]
        return record_samples(model, learning.tokenizer, task, records, name, max_new_tokens)

    return sample


def measure(
    settings: FinetuneStage,
    context: StageContext,
    objective: Any,
    model: Model,
    tokenizer: Tokenizer,
    result: StageResult,
) -> None:
    """Adds scores and samples on `data.test`, or, without it, on the held-out examples."""
    name, records = records_to_score(settings, context)
    if not records:
        result.notes.append("no scores: name data that is held out with data.test, or a share with data.validation")
        return
    task = record_task(settings)(objective)
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens)
    with context.reporter.task("answering", total=len(records), unit="text") as bar:
        evaluation = evaluate((model, tokenizer), task, name, records, params=params, progress=bar.update)
    for note in evaluation.notes:
        context.reporter.warn(f"{name}: {note}")
    result.add(name, evaluation, context.reporter)


def records_to_score(settings: FinetuneStage, context: StageContext) -> tuple[str, list[Row]]:
    """The name of the evaluated set, and at most `evaluate.examples` of its records."""
    data, limit = context.recipe.data_of(settings), context.recipe.evaluate.examples
    for name in ("test", "dev"):
        if getattr(data, name) is not None:
            corpus = open_corpus(settings, data, name)
            return name, list(islice(placed(corpus, related=record_task(settings).related), limit))
    if data.streaming:
        corpus = open_corpus(settings, data)
        count = limit if data.validation else 0
        return "held out", list(islice(placed(corpus, related=record_task(settings).related), count))
    return "held out", split(settings, context, open_corpus(settings, data))[1][:limit]
