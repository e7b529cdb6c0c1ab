"""Implementation of the finetune stage: chats, several sets of chats, or a task of records (`quatrain.runs.tasks`).

The chats are the conversations of a source, the examples of a task, or the examples that a task generates. They become
examples with the assistant's tokens marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quatrain.alignment.teacher_answers import answered
from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.data.batches import TokenExample
from quatrain.data.corpus import DataParts
from quatrain.data.example_cache import cached_examples
from quatrain.data.records import Messages
from quatrain.evaluation.perplexity import examples_loss
from quatrain.generation.params import SamplingParams
from quatrain.models.transformer.stack import Model
from quatrain.runs import multi_adapter, tasks
from quatrain.runs.assess import assess, preview
from quatrain.runs.job import TrainingData, TrainingJob
from quatrain.runs.learning import example_stream, learn, longest, training_job, with_dropout
from quatrain.runs.material import generated_task, model_of, tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.finetune import FinetuneStage, TeacherAnswers
from quatrain.runs.streaming import Make, streamed
from quatrain.tasks.instructions import LEFT, Chat, ChatEncoder, Instructions, encode_chats
from quatrain.tasks.task import source_task
from quatrain.tokenizers.chat import has_marks
from quatrain.tokenizers.templates import TEMPLATE_TOKENS, TEMPLATES
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal


def run(settings: FinetuneStage, context: StageContext) -> StageResult:
    """Prepares the examples, trains all weights or an adapter, writes `model/` (and `adapter/`) and evaluates it."""
    job = prepare(settings, context)
    _, result = learn(job, context)
    if settings.mixture:
        if settings.evaluate:
            multi_adapter.measure(settings, context, job, result)
    elif settings.objective == "chat":
        assess(settings, context, job.model, job.tokenizer, result)
    elif settings.evaluate and job.task is not None:
        tasks.measure(job.task, context, job.model, job.tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: FinetuneStage, context: StageContext, model: Model | None = None) -> TrainingJob:
    """The training job of the stage. `model` replaces the one that earlier stages have left."""
    if settings.mixture:
        return multi_adapter.setup(settings, context, model, lambda task, shared: prepare(task, context, shared))
    if settings.objective != "chat":
        return tasks.setup(settings, context, model)
    tokenizer = with_template(tokenizer_of(context), context)
    model = with_dropout(model or model_of(context, settings.adapter), settings.train.dropout)
    limit = longest(model, settings, model.config.max_position_embeddings)
    pad_id = tokenizer.pad_id or 0
    parts = context.data_of(settings)
    if parts.settings.streaming:
        encoder = ChatEncoder(limit)
        data, notes = streamed_chats(settings, context, encoder, tokenizer), encoder.notes
    else:
        examples, notes, held_out = chat_examples(settings, context, parts, tokenizer, limit)
        stream = example_stream(settings, context, examples, length=limit, pad_id=pad_id)
        data = TrainingData(*stream, examples, held_out)
    job = training_job(
        settings,
        model,
        tokenizer,
        Causal(pad_id, multiple=settings.train.pad_to_multiple_of),
        data,
        limit=limit,
        notes=notes,
        sample=lambda model: preview(settings, context, model, tokenizer),
        chats=True,
    )
    if len(data.held_out):
        job.validate = lambda model: {"validation_loss": examples_loss(model, data.held_out).loss}
    return job


def streamed_chats(
    settings: FinetuneStage, context: StageContext, encoder: ChatEncoder, tokenizer: Tokenizer
) -> TrainingData:
    """The examples as they are read. Validations have the first ones of `data.dev`, or of the source."""
    data = context.data_of(settings)

    def make(part: str) -> Make:
        return lambda: encoder.encode(read_chats(data, part), tokenizer)

    dev = make("dev") if data.name("dev") is not None else None
    held = context.recipe.evaluate.examples if dev is not None or data.settings.validation else 0
    return streamed(settings, context, make("source"), dev=dev, held=held)


def with_template(tokenizer: Tokenizer, context: StageContext) -> Tokenizer:
    """The tokenizer with a chat template that marks the assistant's tokens, which training needs.

    Templates of public models seldom mark them. Unless the recipe names a template, the first one of ours whose special
    tokens the tokenizer has replaces it, or `plain`. Raises InputError where the recipe's own template marks nothing.
    """
    if any(map(has_marks, tokenizer.chat_templates.values())):
        return tokenizer
    if context.recipe.tokenizer.chat_template is not None:
        raise InputError(
            "tokenizer.chat_template: does not mark what the assistant says with {% generation %} … {% endgeneration "
            f"%}}, so nothing can be learned from it; mark it, or name one of {', '.join(TEMPLATES)}."
        )
    known = (name for name, tokens in TEMPLATE_TOKENS.items() if tokens and not _unknown(tokenizer, name))
    name = next(known, "plain")
    has = "does not mark the assistant's words" if tokenizer.chat_templates else "is not there"
    context.reporter.info(f'The model\'s own chat template {has}; "{name}" is taught in its place.')
    tokenizer.chat_template = TEMPLATES.get(name, name)
    return tokenizer


def _unknown(tokenizer: Tokenizer, name: str) -> list[str]:
    """The tokens of a template that the tokenizer does not know."""
    return [token for token in TEMPLATE_TOKENS.get(name, ()) if tokenizer.token_to_id(token) is None]


def chat_examples(
    settings: Settings, context: StageContext, data: DataParts, tokenizer: Tokenizer, limit: int
) -> tuple[Sequence[TokenExample], list[str], Sequence[TokenExample]]:
    """The training chats with their notes, and those held out for validation; from the cache where it has them."""
    chats: list[Sequence[Chat]] = []
    source_notes: list[str] = []
    taught = getattr(settings, "teacher", None) is not None and not context.fresh_model  # The preflight asks nobody.

    def encode(part: int) -> tuple[Sequence[TokenExample], list[str]]:
        if not chats:
            chats.extend(training_chats(settings, context, data, source_notes))
            if taught:
                chats[0] = with_answers(settings.teacher, chats[0], context)  # type: ignore[attr-defined]
        if part == 1 and not chats[1]:
            return [], []
        examples, notes = encode_chats(chats[part], tokenizer, limit)
        return examples, [*source_notes, *notes] if part == 0 else notes

    marks = [None] if data.settings.generates or taught else [fingerprint_of(data, part) for part in ("source", "dev")]
    if None in marks:
        learned, notes = encode(0)
        held_out, others = encode(1)
        return learned, _warned(notes, others, context), held_out
    key = {
        "objective": "chat",
        "data": marks,
        "share": None if data.settings.dev is not None else [data.settings.validation, context.seed],
        "tokenizer": tokenizer.fingerprint,
        "template": tokenizer.chat_templates,
        "tokens": tokenizer.special_tokens_map,
        "limit": limit,
    }
    learned, notes, _ = cached_examples(key | {"part": "learned"}, lambda: encode(0), (TokenExample,))
    held_out, others, _ = cached_examples(key | {"part": "held out"}, lambda: encode(1), (TokenExample,))
    return learned, _warned(notes, others, context), held_out


def with_answers(teacher: TeacherAnswers, chats: Sequence[Chat], context: StageContext) -> list[Chat]:
    """The chats that end with an assistant's message, with the teacher's answer in its place."""
    ending = [(place, messages) for place, messages in chats if messages and messages[-1]["role"] == "assistant"]
    params = SamplingParams(max_new_tokens=teacher.max_new_tokens, temperature=teacher.temperature, seed=context.seed)
    with context.reporter.task("teacher", total=len(ending), unit="answer") as task:
        answers = answered(
            teacher.model,
            [messages[:-1] for _, messages in ending],
            context.stage_folder / "teacher-answers.jsonl",
            params=params,
            progress=lambda count: task.update(count),
        )
    return [
        (place, _replaced(messages, answer))
        for (place, messages), answer in zip(ending, answers, strict=True)
        if answer.strip()
    ]


def _replaced(messages: list[dict[str, Any]], answer: str) -> list[dict[str, Any]]:
    """The messages with another last one; their tools and documents stay."""
    before, last = messages[:-1], {**messages[-1], "content": answer}
    return before.of([*before, last]) if isinstance(before, Messages) else [*before, last]


def _warned(notes: list[str], validation_notes: list[str], context: StageContext) -> list[str]:
    """The notes of a stage, those on validation included; warns of chats that are left out."""
    notes = [*notes, *(f"validations: {note}" for note in validation_notes if LEFT in note)]
    for note in notes:
        if LEFT in note:
            context.reporter.warn(note)
    return notes


def fingerprint_of(data: DataParts, part: str) -> str | None:
    """Identifies the content of a part of the data for caches; "" where there is none, None where it must be read."""
    if data.name(part) is None:
        return ""
    task = source_task(data, part)
    return Instructions.corpus(data, part).fingerprint if task is None else task.fingerprint


def training_chats(
    settings: Settings, context: StageContext, data: DataParts, notes: list[str]
) -> tuple[Sequence[Chat], Sequence[Chat]]:
    """The training chats, and those for validation: of `data.dev`, or the share of the source that is held out.

    Examples that a task generates are all trained on. `notes` get what was left out of the source.
    """
    generated = generated_task(context, settings) if data.settings.generates else None
    if generated is not None:
        return [(generated.place(each), generated.messages(each)) for each in generated.splits["train"]], []
    if (task := source_task(data)) is None:
        chats = Instructions(data)
        return chats.splits["train"], chats.splits["development"]
    with task:
        sets = [task.splits[name] for name in ("train", "development")]
        learned, held_out = ([(task.place(each), task.messages(each)) for each in examples] for examples in sets)
    notes += task.notes
    return learned, held_out


def read_chats(data: DataParts, part: str) -> Iterator[Chat]:
    """The chats of a part of the data as they are read."""
    task = source_task(data, part)
    if task is None:
        yield from Instructions().read(data, part)
        return
    with task:
        yield from ((task.place(example), task.messages(example)) for example in task.read())
