"""The pretrain stage: the recipe's text is learned, from fresh weights or from the model so far.

Next tokens (GPT), hidden tokens (BERT), hidden spans (T5) or a text out of a spoilt one (BART): see `objective`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from quatrain.data import token_file
from quatrain.data.batches import TokenExample
from quatrain.data.documents import DocumentChunk
from quatrain.data.token_file import TokenFile
from quatrain.evaluation.metrics.objectives import evaluate_objective
from quatrain.evaluation.perplexity import TextLoss, examples_loss, text_loss
from quatrain.models.io import model_folder
from quatrain.models.transformer.settings import HEADS
from quatrain.models.transformer.stack import Model
from quatrain.runs.assess import assess, preview
from quatrain.runs.job import TrainingJob, Validate
from quatrain.runs.learning import example_stream, learn, with_dropout
from quatrain.runs.material import as_wanted, fresh_model, model_folder_of, pieces, tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.pretrain import PretrainStage
from quatrain.runs.streaming import Make, of_texts, streamed
from quatrain.tokenizers.fit import check_fits
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal, Denoising, Masked, Objective, SpanCorruption
from quatrain.training.objectives.corruption import CorruptionObjective
from quatrain.training.streams import AlternatingStream, BatchStream, CopyStream, ExampleStream, WindowStream

COPY_LENGTH = 64
"""Tokens of a row of the copying steps."""
VALIDATION_TOKENS = 100_000
"""Of the text held out, as much is read at a validation of an objective that hides tokens."""


def run(settings: PretrainStage, context: StageContext) -> StageResult:
    """Tokenizes the text into a token file, trains, writes `model/` and measures it."""
    learning = prepare(settings, context)
    _, result = learn(learning, context)
    if result.validation_loss is not None and settings.objective == "causal":
        result.perplexity = TextLoss(result.validation_loss, 1).perplexity
    assess(settings, context, learning.model, learning.tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def prepare(settings: PretrainStage, context: StageContext) -> TrainingJob:
    """The training job of the stage."""
    tokenizer = tokenizer_of(context)
    model = with_dropout(starting_model(settings, context, tokenizer), settings.train.dropout)
    length = settings.context or model.config.max_position_embeddings
    objective: Any = make_objective(settings, tokenizer, length)
    objective.multiple = settings.train.pad_to_multiple_of
    wanted = settings.train
    learning = TrainingJob(
        model, tokenizer, objective, stream=None, settings=wanted, steps=0, length=length, limit=length  # type: ignore[arg-type]
    )
    learning.sample = lambda model: preview(settings, context, model, tokenizer)
    if context.recipe.data_of(settings).streaming:
        _stream(settings, context, learning)
        return learning
    if settings.next_sentence_prediction:
        _pairs(settings, context, learning)
        return learning
    learned, held_out = split_tokens(settings, context, tokenizer)
    learning.stream, learning.steps, learning.examples = make_stream(settings, context, objective, learned, length)
    learning.validate = make_validation(settings, objective, held_out, length)
    learning.compare = model_folder_of(context) is not None
    if settings.copy_steps or settings.copy_every:
        learning.stream = copy_first(settings, context, tokenizer, learning.stream)
    return learning


def make_objective(settings: PretrainStage, tokenizer: Tokenizer, length: int) -> Objective:
    """The recipe's way to learn a text."""
    hidden = {} if settings.mask_ratio is None else {"mask_ratio": settings.mask_ratio}
    if settings.objective == "masked":
        return Masked(
            tokenizer,
            whole_word_masking=settings.whole_word_masking,
            next_sentence_prediction=settings.next_sentence_prediction,
            max_length=length,
            **hidden,
        )
    if settings.objective == "span":
        return SpanCorruption(tokenizer, mean_span_length=settings.mean_span_length, max_length=length, **hidden)
    if settings.objective == "denoise":
        return Denoising(tokenizer, mean_span_length=settings.mean_span_length, max_length=length, **hidden)
    return Causal(tokenizer.pad_id or 0)


def row_length(objective: Objective, length: int) -> int:
    """Tokens of text that a row takes, so that what the model reads has at most `length`."""
    return (objective.row_length or length) if isinstance(objective, CorruptionObjective) else length


def _stream(settings: PretrainStage, context: StageContext, learning: TrainingJob) -> None:
    """The text as it is read: no token file is written. Its first tokens, or those of `data.dev`, are held out."""
    data, row = context.recipe.data_of(settings), row_length(learning.objective, learning.length)
    causal = settings.objective == "causal"

    def rows_of(part: str) -> Make:
        documents = settings.rows == "documents"
        return lambda: of_texts(
            pieces(context, settings, part), learning.tokenizer, row, documents=documents, causal=causal
        )

    dev = rows_of("dev") if data.dev is not None else None
    held = max(1, VALIDATION_TOKENS // row) if dev is not None or data.validation else 0
    found = streamed(settings, context, rows_of("source"), dev=dev, held=held)
    learning.stream, learning.steps, learning.examples = found.stream, found.steps, found.examples
    learning.held_out = found.held_out
    if causal and found.held_out:
        learning.validate = lambda model: {"validation_loss": examples_loss(model, found.held_out).loss}
    elif found.held_out:
        learning.validate = lambda model: held_out_loss(model, learning.objective, found.held_out)
    learning.compare = model_folder_of(context) is not None
    if settings.copy_steps or settings.copy_every:
        learning.stream = copy_first(settings, context, learning.tokenizer, learning.stream)


def _pairs(settings: PretrainStage, context: StageContext, learning: TrainingJob) -> None:
    """Pairs of sentences, of documents that are held whole; those of the last documents are held out."""
    documents = [{"text": text} for text in whole_texts(pieces(context, settings))]
    share = context.recipe.data_of(settings).validation
    held = min(round(share * len(documents)), len(documents) - 2) if len(documents) > 2 else 0
    masked: Masked = learning.objective  # type: ignore[assignment]
    learning.examples, learning.notes = masked.prepare(documents[: len(documents) - held], seed=context.seed)
    wanted = settings.train
    stream = ExampleStream(learning.examples, batch_tokens=micro_tokens(settings, learning.length), seed=context.seed)
    learning.stream, learning.steps = stream, wanted.steps or stream.steps(wanted.epochs or 1, wanted.accumulation)
    if held >= 2:
        learning.held_out = masked.prepare(documents[-held:], seed=context.seed)[0]
        learning.validate = lambda model: held_out_loss(model, masked, learning.held_out)


def whole_texts(parts: Iterable[DocumentChunk]) -> Iterator[str]:
    """Documents, each in one piece."""
    held: list[str] = []
    for piece in parts:
        held.append(piece.text)
        if piece.last:
            yield "".join(held)
            held = []


def micro_tokens(settings: PretrainStage, length: int) -> int:
    """Tokens of a micro-batch, at least a row."""
    return max(length, settings.train.batch_tokens // settings.train.accumulation)


def make_stream(
    settings: PretrainStage, context: StageContext, objective: Objective, learned: TokenFile, length: int
) -> tuple[BatchStream, int, list[TokenExample] | None]:
    """The order in which the text is learned, the number of optimizer steps, and the examples where they are known."""
    wanted = settings.train
    row = row_length(objective, length)
    rows = micro_tokens(settings, length) // length
    if settings.rows == "documents":
        of_documents = whole_documents if settings.objective == "causal" else parts_of_documents
        examples = of_documents(learned, row)
        pad_id = getattr(objective, "pad_id", 0)
        stream, steps = example_stream(settings, context, examples, length=length, pad_id=pad_id)
        return stream, steps, examples
    windows = WindowStream(learned.tokens, length=row, rows=rows, seed=context.seed, stride=settings.stride)
    tokens = rows * windows.stride * wanted.accumulation
    return windows, wanted.steps or max(1, round((wanted.epochs or 1) * len(learned) / tokens)), None


def copy_first(
    settings: PretrainStage, context: StageContext, tokenizer: Tokenizer, stream: BatchStream
) -> BatchStream:
    """The stream, after `copy_steps` steps of copying random tokens and with more of them in between."""
    wanted = settings.train
    tokens = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids]
    separator = tokenizer.eos_id if tokenizer.eos_id is not None else tokens.pop()
    rows = max(1, wanted.batch_tokens // wanted.accumulation // COPY_LENGTH)
    first = CopyStream(tokens, separator, length=COPY_LENGTH, rows=rows, seed=context.seed)
    return AlternatingStream(first, settings.copy_steps * wanted.accumulation, stream, every=settings.copy_every)


def make_validation(
    settings: PretrainStage, objective: Objective, held_out: TokenFile, length: int
) -> Validate | None:
    """What measures the mean loss of the text held out, in the rows that training has; None without text."""
    row = row_length(objective, length)
    if len(held_out) < 2:
        return None
    if settings.objective != "causal":
        examples = parts_of_documents(held_out, row)[: max(1, VALIDATION_TOKENS // row)]
        return lambda model: held_out_loss(model, objective, examples)
    # Where the end of one long document is held out, none begins there: it is measured as running text.
    if settings.rows == "documents" and (examples := whole_documents(held_out, length)):
        return lambda model: {"validation_loss": examples_loss(model, examples).loss}
    return lambda model: {"validation_loss": text_loss(model, held_out.tokens, context=length).loss}


def held_out_loss(model: Model, objective: Objective, examples: Sequence[Any]) -> dict[str, float]:
    """Loss and metrics, each as "validation_…"; the same tokens are hidden every time."""
    return {f"validation_{name}": value for name, value in evaluate_objective(objective, model, examples).items()}


def parts_of_documents(file: TokenFile, length: int) -> list[TokenExample]:
    """The documents without their separators, in parts of at most `length` tokens, for objectives that hide tokens."""
    separator = file.about["separator"]
    starts = sorted({0, *file.document_starts.tolist(), len(file)})
    found = []
    for start, end in pairwise(starts):
        ids = [token for token in file[start:end].tolist() if token != separator]
        found += [TokenExample(ids[at : at + length], [True] * len(ids[at : at + length]))
                  for at in range(0, len(ids), length)]  # fmt: skip
    return found


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


def starting_model(settings: PretrainStage, context: StageContext, tokenizer: Tokenizer) -> Model:
    """Fresh weights of the recipe's shape, or the model so far."""
    head = "pretraining" if settings.next_sentence_prediction else HEADS[settings.objective]
    folder = model_folder_of(context)
    if folder is None:
        return fresh_model(context, tokenizer, head=head)
    model = as_wanted(model_folder.load(folder, head=head), context)
    check_fits(tokenizer, model.config.vocab_size)
    return model


def split_tokens(settings: PretrainStage, context: StageContext, tokenizer: Tokenizer) -> tuple[TokenFile, TokenFile]:
    """The ids to learn and the ids held out: those of `data.dev`, or the text's last `data.validation` share."""
    data = context.recipe.data_of(settings)
    whole = make_token_file(settings, context, tokenizer, "source")
    if data.dev is not None:
        return whole, make_token_file(settings, context, tokenizer, "dev")
    return whole.split(data.validation)


def make_token_file(settings: PretrainStage, context: StageContext, tokenizer: Tokenizer, part: str) -> TokenFile:
    """The ids of a part of the data, memory-mapped; made where they are not there yet."""
    folder = context.stage_folder / ("tokens" if part == "source" else f"tokens-{part}")
    if (folder / token_file.ABOUT).exists():
        return token_file.TokenFile(folder)
    data = context.recipe.data_of(settings)
    with context.reporter.task("tokens", unit="token") as task:
        return token_file.build(
            pieces(context, settings, part),
            tokenizer,
            folder,
            source=data.database or getattr(data, part),
            progress=lambda tokens, characters: task.update(tokens),
        )
