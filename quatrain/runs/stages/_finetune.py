"""Implementation of the finetune stage."""

from __future__ import annotations

from quatrain.evaluation.perplexity import examples_loss
from quatrain.models.transformer.stack import Model
from quatrain.runs import multi_adapter, tasks
from quatrain.runs.assess import assess, preview
from quatrain.runs.chats import chat_examples, read_chats, with_template
from quatrain.runs.job import TrainingData, TrainingJob
from quatrain.runs.learning import example_stream, learn, longest, training_job, with_dropout
from quatrain.runs.material import model_of, tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.finetune import FinetuneStage
from quatrain.runs.streaming import Make, streamed
from quatrain.tasks.instructions import ChatEncoder
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal


def run(settings: FinetuneStage, context: StageContext) -> StageResult:
    """Prepares the examples, trains all weights or an adapter, writes `model/` (and `adapter/`) and evaluates it."""
    job = prepare(settings, context)
    _, result = learn(job, context)
    if settings.tasks:
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
    if settings.tasks:
        return multi_adapter.setup(settings, context, model, lambda task, shared: prepare(task, context, shared))
    if settings.objective != "chat":
        return tasks.setup(settings, context, model)
    tokenizer = with_template(tokenizer_of(context), context)
    model = with_dropout(model or model_of(context, settings.adapter), settings.train.dropout)
    limit = longest(model, settings, model.config.max_position_embeddings)
    pad_id = tokenizer.pad_id or 0
    if context.recipe.data_of(settings).streaming:
        encoder = ChatEncoder(limit)
        data, notes = streamed_chats(settings, context, encoder, tokenizer), encoder.notes
    else:
        examples, notes, held_out = chat_examples(settings, context, tokenizer, limit)
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
