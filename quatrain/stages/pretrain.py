"""The pretrain stage: next-token prediction on the recipe's text, from fresh weights or from the model so far."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from quatrain.evaluation.perplexity import TextLoss, examples_loss, text_loss
from quatrain.models import hub
from quatrain.models.config import ModelConfig
from quatrain.models.stack import Block, Model
from quatrain.stages.assess import assess
from quatrain.stages.base import Context, StageResult
from quatrain.stages.learning import train
from quatrain.stages.material import model_of, pieces, tokenizer_of, write_model
from quatrain.text import tokenfile
from quatrain.text.batches import TokenExample
from quatrain.text.tokenfile import TokenFile
from quatrain.text.tokenizer import Tokenizer
from quatrain.text.tokenizer_fit import check_fits
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal
from quatrain.training.settings import PretrainStage
from quatrain.training.streams import CopyStream, ExampleStream, InTurn, Stream, WindowStream

COPY_LENGTH = 64
"""Tokens of a row of the copying steps."""


def run(settings: PretrainStage, context: Context) -> StageResult:
    """Tokenizes the text into a token file, trains, writes `model/` and measures it."""
    tokenizer = tokenizer_of(context)
    learned, held_out = split_tokens(settings, context, tokenizer)
    model = starting_model(settings, context, tokenizer)
    length = settings.context or model.config.max_position_embeddings
    wanted = settings.train
    stream, steps = make_stream(settings, context, learned, length)
    if settings.copy_steps or settings.copy_every:
        stream = copy_first(settings, context, tokenizer, stream)

    trained, result = train(
        context,
        model,
        Causal(),
        stream,
        wanted,
        steps=steps,
        sequence=length,
        save=partial(hub.save, model),
        load=partial(load_weights, model),
        validate=make_validation(settings, held_out, length),
    )
    result.model_bytes = write_model(model, tokenizer, context.model_folder)
    if "validation_loss" in trained.metrics:
        measured = TextLoss(trained.metrics["validation_loss"], len(held_out))
        result.validation_loss, result.perplexity = measured.loss, measured.perplexity
    assess(settings, context, model, tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def load_weights(model: Model, checkpoint: Path) -> None:
    """Puts the weights of a checkpoint into the model."""
    model.load_state_dict(hub.load(checkpoint).state_dict())


def make_stream(settings: PretrainStage, context: Context, learned: TokenFile, length: int) -> tuple[Stream, int]:
    """The order in which the text is learned, and the number of optimizer steps."""
    wanted = settings.train
    micro = max(length, wanted.batch_tokens // wanted.accumulation)
    if settings.rows == "documents":
        examples = whole_documents(learned, length)
        stream = ExampleStream(examples, batch_tokens=micro, seed=context.seed)
        return stream, wanted.steps or stream.steps(wanted.epochs or 1, wanted.accumulation)
    windows = WindowStream(learned.tokens, length=length, rows=micro // length, seed=context.seed)
    tokens = windows.rows * length * wanted.accumulation
    return windows, wanted.steps or max(1, round((wanted.epochs or 1) * len(learned) / tokens))


def copy_first(settings: PretrainStage, context: Context, tokenizer: Tokenizer, stream: Stream) -> Stream:
    """The stream, after `copy_steps` steps of copying random tokens and with more of them in between."""
    wanted = settings.train
    tokens = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids]
    separator = tokenizer.eos_id if tokenizer.eos_id is not None else tokens.pop()
    rows = max(1, wanted.batch_tokens // wanted.accumulation // COPY_LENGTH)
    first = CopyStream(tokens, separator, length=COPY_LENGTH, rows=rows, seed=context.seed)
    return InTurn(first, settings.copy_steps * wanted.accumulation, stream, every=settings.copy_every)


def make_validation(
    settings: PretrainStage, held_out: TokenFile, length: int
) -> Callable[[Model], dict[str, float]] | None:
    """What measures the mean loss per token of the text held out, in the rows that training has; None without text."""
    if len(held_out) < 2:
        return None
    # Where the end of one long document is held out, none begins there: it is measured as running text.
    if settings.rows == "documents" and (examples := whole_documents(held_out, length)):
        return lambda model: {"validation_loss": examples_loss(model, examples).loss}
    return lambda model: {"validation_loss": text_loss(model, held_out.tokens, context=length).loss}


def whole_documents(file: TokenFile, length: int) -> list[TokenExample]:
    """Each document as an example between two separators, so that its first token and its end are learned.

    A document longer than `length` tokens becomes several, which overlap by the one token that is read first. One that
    goes on behind the file's last token gets no separator there: nothing ends where the held-out text begins.
    """
    separator = file.about["separator"]
    starts = [*file.document_starts.tolist(), len(file)]
    examples = []
    for start, end in pairwise(starts):
        ids = file[start:end].tolist()
        if separator is not None:
            whole = end < len(file) or file.stop == file.about["tokens"]
            ids = [separator, *ids, *([separator] if whole and ids[-1] != separator else [])]
        for begin in range(0, max(1, len(ids) - 1), length):
            part = ids[begin : begin + length + 1]
            examples.append(TokenExample(part, [True] * len(part)))
    return examples


def starting_model(settings: PretrainStage, context: Context, tokenizer: Tokenizer) -> Model:
    """Fresh weights of the recipe's shape, or the model so far; training's dropout in its configuration."""
    shape = context.recipe.model
    if context.previous_model is not None or shape.folder is not None:
        model = model_of(context)
        check_fits(tokenizer, model.config.vocab_size)
        return with_dropout(model, settings.train.dropout)
    return Model(fresh_config(context, tokenizer, settings.train.dropout)).initialize(context.seed)


def fresh_config(context: Context, tokenizer: Tokenizer, dropout: float = 0.0) -> ModelConfig:
    """The configuration of the recipe's shape and the tokenizer's vocabulary."""
    config = context.recipe.model.config(
        tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return config.with_(dropout=dropout)


def with_dropout(model: Model, dropout: float) -> Model:
    """The same model with this share of dropout in training."""
    model.config = model.config.with_(dropout=dropout)
    for layer in model.layers.children():
        if isinstance(layer, Block):
            layer.dropout = dropout
    return model


def split_tokens(settings: PretrainStage, context: Context, tokenizer: Tokenizer) -> tuple[TokenFile, TokenFile]:
    """The ids to learn and the ids held out: the text's last `data.validation` share. Memory-mapped."""
    folder = context.stage_folder / "tokens"
    data = context.recipe.data_of(settings)
    if (folder / tokenfile.ABOUT).exists():
        whole = tokenfile.TokenFile(folder)
    else:
        with context.reporter.task("tokens", unit="token") as task:
            whole = tokenfile.build(
                pieces(context, settings),
                tokenizer,
                folder,
                source=data.source or data.database,
                progress=lambda tokens, characters: task.update(tokens),
            )
    return whole.split(data.validation)
