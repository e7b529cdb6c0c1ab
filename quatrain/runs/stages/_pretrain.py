"""Implementation of the pretrain stage: token files, streams of rows, validation."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quatrain.alignment.distillation import TextDistillation
from quatrain.core.errors import InputError
from quatrain.core.reading import user_path
from quatrain.data import token_file
from quatrain.data.batches import TokenExample
from quatrain.data.documents import DocumentChunk
from quatrain.data.token_file import TokenFile
from quatrain.evaluation.expert_load import load_figure
from quatrain.evaluation.metrics.objectives import evaluate_objective
from quatrain.evaluation.perplexity import TextLoss, examples_loss, text_loss, token_entropy
from quatrain.loading.model import load_model
from quatrain.models.classic.ngram import NgramModel
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.runs.assess import assess, preview
from quatrain.runs.job import TrainingJob, Validate
from quatrain.runs.learning import example_stream, learn, with_dropout
from quatrain.runs.material import (
    as_wanted,
    fresh_model,
    model_folder_of,
    pieces,
    start_from_vectors,
    tokenizer_of,
)
from quatrain.runs.settings import HEAD_OF_OBJECTIVE, StageSettings
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.pretrain import PretrainStage, TeacherSettings
from quatrain.runs.streaming import Make, of_texts, streamed
from quatrain.tokenizers.fit import check_fits
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import (
    Bidirectional,
    CarriedCausal,
    Causal,
    Denoising,
    Masked,
    Objective,
    ReplacedTokens,
    SpanCorruption,
)
from quatrain.training.objectives.corruption import CorruptionObjective
from quatrain.training.sampled_loss import SampledSoftmax
from quatrain.training.streams import (
    AlternatingStream,
    BatchStream,
    CarriedStream,
    CopyStream,
    ExampleStream,
    WindowStream,
)

COPY_LENGTH = 64
"""Tokens in a row of the copying steps."""
VALIDATION_TOKENS = 100_000
"""Most held-out tokens that a validation of a corruption objective reads."""
NGRAM_TOKENS = 3_000_000
"""The longest text of which a pretraining also counts n-grams, as the score to beat: some seconds."""
REACH, REACH_TEXTS = 64, 32
"""Tokens of the texts, and how many, that show how far back a recurrent model's loss reaches."""
STAGE_NAME = re.compile(r"\d\d-[a-z-]+")
"""The folder of a stage."""
WORD_CHUNK = 65_536
"""Tokens that are split into words at once, for a model that learns a vocabulary of words."""
CORRUPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "masked": (Masked, ("whole_word_masking", "next_sentence_prediction")),
    "span": (SpanCorruption, ("mean_span_length",)),
    "denoise": (Denoising, ("mean_span_length",)),
}
"""Objectives that corrupt their text, with the settings that they read besides `mask_ratio`; the rest are causal."""


def run(settings: PretrainStage, context: StageContext) -> StageResult:
    """Tokenizes the text into a token file, trains, writes `model/` and evaluates it."""
    job = prepare(settings, context)
    _, result = learn(job, context)
    if result.validation_loss is not None and isinstance(job.objective, Causal):
        result.perplexity = TextLoss(result.validation_loss, 1).perplexity
    compare(settings, context, job, result)
    result.notes += kept_of_teacher(settings, context, job, result)
    assess(settings, context, job.model, job.tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def compare(settings: PretrainStage, context: StageContext, job: TrainingJob, result: StageResult) -> None:
    """Names the n-gram model that a language model has to beat, counted from the same tokens, and shows how far back a
    recurrent one looks, and which experts of a mixture work.
    """
    if not isinstance(job.objective, Causal) or context.recipe.data_of(settings).streaming:
        return
    learned, held_out = split_tokens(settings, context, job.tokenizer)
    if len(held_out) < 2:
        return
    if len(learned) <= NGRAM_TOKENS and settings.rows != "documents" and model_folder_of(context) is None:
        began = time.perf_counter()
        order = 7 if job.tokenizer.vocab_size <= 256 else 3
        counted = NgramModel.fit(learned.tokens, job.tokenizer.vocab_size, order, "modified_kneser_ney")
        loss = text_loss(counted, held_out.tokens, context=1).loss  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        result.extra["ngram"] = {"order": order, "loss": loss, "seconds": seconds}
    drawn = (reach_figure(job.model, held_out), load_figure(job.model, held_out.tokens))
    if figures := [figure for figure in drawn if figure is not None]:
        result.extra["figures"] = figures


def kept_of_teacher(settings: PretrainStage, context: StageContext, job: TrainingJob, result: StageResult) -> list[str]:
    """What the student keeps of its teacher: its share of the weights, and of the gain over token frequencies."""
    if not isinstance(job.objective, TextDistillation) or job.validate is None or result.validation_loss is None:
        return []
    teacher = job.objective.teacher
    loss = job.validate(teacher)["validation_loss"]
    size = job.model.num_parameters() / teacher.num_parameters()
    text = f"{size:.0%} of the teacher's weights; perplexity {TextLoss(result.validation_loss, 1).perplexity:.2f}, "
    text += f"the teacher's {TextLoss(loss, 1).perplexity:.2f}"
    if not context.recipe.data_of(settings).streaming:
        held_out = split_tokens(settings, context, job.tokenizer)[1]
        dumb = token_entropy(held_out.tokens).loss
        if dumb > loss:
            text += f"; it kept {(dumb - result.validation_loss) / (dumb - loss):.0%} of what the teacher gains over "
            text += f"token frequencies ({math.exp(dumb):.2f})"
    result.extra["teacher"] = {"validation_loss": loss, "parameters": teacher.num_parameters()}
    context.reporter.info(text)
    return [text]


def reach_figure(model: Any, held_out: TokenFile) -> dict[str, Any] | None:
    """How strongly a prediction depends on the inputs before it, for a model that tells it (`gradient_norms`)."""
    norms_of = getattr(model, "gradient_norms", None)
    if norms_of is None or len(held_out) <= REACH:
        return None
    starts = np.linspace(0, len(held_out) - REACH - 1, min(REACH_TEXTS, len(held_out) - REACH)).astype(int)
    rows = np.stack([held_out[start : start + REACH + 1] for start in starts]).astype(np.int64)
    norms = norms_of(torch.from_numpy(rows).to(model.device))
    largest = max(norms) or 1.0
    line = {
        "name": "gradient",
        "x": list(range(len(norms), 0, -1)),
        "y": [math.log10(max(norm / largest, 1e-12)) for norm in norms],
    }
    return {
        "kind": "lines",
        "title": "How far back the loss reaches",
        "note": "gradient of the last token's loss by the distance of the input: why gradients vanish",
        "lines": [line],
        "x_label": "tokens back",
        "y_label": "log10 of the norm, the largest is 0",
    }


def prepare(settings: PretrainStage, context: StageContext) -> TrainingJob:
    """The training job of the stage."""
    tokenizer = tokenizer_of(context)
    model = with_dropout(starting_model(settings, context, tokenizer), settings.train.dropout)
    length = settings.context or model.config.max_position_embeddings
    if settings.generator is not None:
        objective: Any = detection(settings, context, tokenizer, length)
    else:
        objective = make_objective(settings, tokenizer, length)
    if settings.teacher is not None:
        objective = distilled(settings.teacher, context, tokenizer)
    if settings.rows == "carried" and context.processes > 1:
        raise InputError('rows: "carried"; the state of a text is carried on in one process: start one only.')
    objective.multiple = settings.train.pad_to_multiple_of
    train = settings.train
    job = TrainingJob(
        model,
        tokenizer,
        objective,
        stream=None,  # type: ignore[arg-type]
        settings=train,
        steps=0,
        length=length,
        limit=length,
    )
    job.sample = lambda model: preview(settings, context, model, tokenizer)
    if context.recipe.data_of(settings).streaming:
        _stream(settings, context, job)
        return job
    if settings.next_sentence_prediction:
        _pairs(settings, context, job)
        return job
    learned, held_out = split_tokens(settings, context, tokenizer)
    if (learn_words := getattr(model, "learn_words", None)) is not None:
        learn_words(learned[start : start + WORD_CHUNK] for start in range(0, len(learned), WORD_CHUNK))
    job.notes += start_from_vectors(model, tokenizer, context)
    if settings.sampled_softmax:
        counts = np.bincount(learned.tokens, minlength=model.config.vocab_size)
        objective.sampler = SampledSoftmax(counts, settings.sampled_softmax)
    job.stream, job.steps, job.examples = make_stream(settings, context, objective, learned, length)
    job.validate = make_validation(settings, objective, held_out, length)
    job.compare = model_folder_of(context) is not None
    if settings.copy_steps or settings.copy_every:
        job.stream = copy_first(settings, context, tokenizer, job.stream)
    return job


def make_objective(settings: PretrainStage, tokenizer: Tokenizer, length: int) -> Objective:
    """The objective of the stage, for rows of at most `length` tokens."""
    if settings.objective == "bidirectional":
        return Bidirectional(tokenizer.pad_id or 0)
    if settings.objective not in CORRUPTIONS:
        kind = CarriedCausal if settings.rows == "carried" else Causal
        return kind(tokenizer.pad_id or 0)
    kind, names = CORRUPTIONS[settings.objective]
    options = {name: getattr(settings, name) for name in names}
    if settings.mask_ratio is not None:
        options["mask_ratio"] = settings.mask_ratio
    objective: Objective = kind(tokenizer, max_length=length, **options)
    return objective


def distilled(settings: TeacherSettings, context: StageContext, tokenizer: Tokenizer) -> TextDistillation:
    """The objective under a teacher. Raises InputError for a teacher with another tokenizer."""
    teacher, theirs = other_model(settings.model, "teacher.model", context, tokenizer)
    if theirs is None or theirs.fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"teacher.model: {settings.model} has another tokenizer than the student, so their tokens cannot be "
            "compared. Take a teacher with the same tokenizer, or learn its texts: write them with `quatrain generate "
            "TEACHER --prompts FILE --out FILE` and finetune on that file."
        )
    options = settings.model_dump(exclude={"model", "divergence"})
    return TextDistillation(teacher, tokenizer.pad_id or 0, kind=settings.divergence, **options)


def detection(settings: PretrainStage, context: StageContext, tokenizer: Tokenizer, length: int) -> ReplacedTokens:
    """The detection of tokens that the generator replaces. Raises InputError for a generator of another tokenizer."""
    generator, theirs = other_model(settings.generator or "", "generator", context, tokenizer, head="masked")
    if theirs is not None and theirs.fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"generator: {settings.generator} has another tokenizer than the model, which reads what it writes. Take a "
            "generator that was trained with this tokenizer, such as an earlier stage of the recipe."
        )
    options: dict[str, Any] = {} if settings.mask_ratio is None else {"mask_ratio": settings.mask_ratio}
    options["whole_word_masking"] = settings.whole_word_masking
    return ReplacedTokens(tokenizer, generator, max_length=length, **options)


def other_model(
    name: str, key: str, context: StageContext, tokenizer: Tokenizer, head: str | None = None
) -> tuple[Model, Tokenizer | None]:
    """A model besides the one that learns: of an earlier stage, a run or a folder; fresh in the preflight."""
    earlier = context.folder / "stages" / name / "model"
    place: str | Path = earlier if (earlier / "config.json").is_file() else user_path(name, key)
    if context.fresh_model and STAGE_NAME.fullmatch(name) and place != earlier:
        return fresh_model(context, tokenizer, head=head), tokenizer  # The preflight trains no other model.
    return load_model(place)


def row_length(objective: Objective, length: int) -> int:
    """Tokens of text in a row, such that the model reads at most `length` tokens after corruption."""
    return (objective.row_length or length) if isinstance(objective, CorruptionObjective) else length


def _stream(settings: PretrainStage, context: StageContext, job: TrainingJob) -> None:
    """Streams the text without a token file. Its first tokens, or those of `data.dev`, are held out."""
    data, row = context.recipe.data_of(settings), row_length(job.objective, job.length)
    causal = isinstance(job.objective, Causal)

    def rows_of(part: str) -> Make:
        documents = settings.rows == "documents"
        return lambda: of_texts(pieces(context, settings, part), job.tokenizer, row, documents=documents, causal=causal)

    dev = rows_of("dev") if data.dev is not None else None
    held = max(1, VALIDATION_TOKENS // row) if dev is not None or data.validation else 0
    read = streamed(settings, context, rows_of("source"), dev=dev, held=held)
    job.stream, job.steps, job.examples = read.stream, read.steps, read.examples
    job.held_out = read.held_out
    if causal and read.held_out:
        job.validate = lambda model: {"validation_loss": examples_loss(model, read.held_out).loss}
    elif read.held_out:
        job.validate = lambda model: held_out_loss(model, job.objective, read.held_out)
    job.compare = model_folder_of(context) is not None
    if settings.copy_steps or settings.copy_every:
        job.stream = copy_first(settings, context, job.tokenizer, job.stream)


def _pairs(settings: PretrainStage, context: StageContext, job: TrainingJob) -> None:
    """Pairs of sentences from documents in memory; the pairs of the last documents are held out."""
    documents = [{"text": text} for text in whole_texts(pieces(context, settings))]
    share = context.recipe.data_of(settings).validation
    held = min(round(share * len(documents)), len(documents) - 2) if len(documents) > 2 else 0
    masked: Masked = job.objective  # type: ignore[assignment]
    job.examples, job.notes = masked.prepare(documents[: len(documents) - held], seed=context.seed)
    train = settings.train
    stream = ExampleStream(job.examples, batch_tokens=micro_tokens(settings, job.length), seed=context.seed)
    job.stream, job.steps = stream, train.steps or stream.steps(train.epochs or 1, train.accumulation)
    if held >= 2:
        job.held_out = masked.prepare(documents[-held:], seed=context.seed)[0]
        job.validate = lambda model: held_out_loss(model, masked, job.held_out)


def whole_texts(parts: Iterable[DocumentChunk]) -> Iterator[str]:
    """Whole documents, joined from their chunks."""
    held: list[str] = []
    for piece in parts:
        held.append(piece.text)
        if piece.last:
            yield "".join(held)
            held = []


def micro_tokens(settings: PretrainStage, length: int) -> int:
    """Tokens of a micro-batch, at least one row."""
    return max(length, settings.train.batch_tokens // settings.train.accumulation)


def make_stream(
    settings: PretrainStage, context: StageContext, objective: Objective, learned: TokenFile, length: int
) -> tuple[BatchStream, int, list[TokenExample] | None]:
    """The stream of batches, the number of optimizer steps, and the examples if they are known."""
    train = settings.train
    row = row_length(objective, length)
    rows = micro_tokens(settings, length) // length
    if settings.rows == "documents":
        of_documents = whole_documents if isinstance(objective, Causal) else parts_of_documents
        examples = of_documents(learned, row)
        pad_id = getattr(objective, "pad_id", 0)
        stream, steps = example_stream(settings, context, examples, length=length, pad_id=pad_id)
        return stream, steps, examples
    if settings.rows == "carried":
        carried = CarriedStream(learned.tokens, length=length, rows=rows, seed=context.seed)
        return carried, train.steps or max(1, round((train.epochs or 1) * carried.batches / train.accumulation)), None
    windows = WindowStream(learned.tokens, length=row, rows=rows, seed=context.seed, stride=settings.stride)
    tokens = rows * windows.stride * train.accumulation
    return windows, train.steps or max(1, round((train.epochs or 1) * len(learned) / tokens)), None


def copy_first(
    settings: PretrainStage, context: StageContext, tokenizer: Tokenizer, stream: BatchStream
) -> BatchStream:
    """The stream behind `copy_steps` steps of copying random tokens, with one more such step every `copy_every`."""
    train = settings.train
    tokens = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids]
    separator = tokenizer.eos_id if tokenizer.eos_id is not None else tokens.pop()
    rows = max(1, train.batch_tokens // train.accumulation // COPY_LENGTH)
    first = CopyStream(tokens, separator, length=COPY_LENGTH, rows=rows, seed=context.seed)
    return AlternatingStream(first, settings.copy_steps * train.accumulation, stream, every=settings.copy_every)


def make_validation(settings: PretrainStage, objective: Objective, held_out: TokenFile, length: int) -> Validate | None:
    """The validation: the mean loss on held-out text, in rows like those of the training; None without such text."""
    row = row_length(objective, length)
    if len(held_out) < 2:
        return None
    if not isinstance(objective, Causal):
        examples = parts_of_documents(held_out, row)[: max(1, VALIDATION_TOKENS // row)]
        return lambda model: held_out_loss(model, objective, examples)
    # Where the end of one long document is held out, none begins there: it is measured as running text.
    if settings.rows == "documents" and (examples := whole_documents(held_out, length)):
        return lambda model: {"validation_loss": examples_loss(model, examples).loss}
    return lambda model: {"validation_loss": text_loss(model, held_out.tokens, context=length).loss}


def held_out_loss(model: Model, objective: Objective, examples: Sequence[Any]) -> dict[str, float]:
    """Loss and metrics, each as "validation_…"; the same tokens are masked every time."""
    return {f"validation_{name}": value for name, value in evaluate_objective(objective, model, examples).items()}


def parts_of_documents(file: TokenFile, length: int) -> list[TokenExample]:
    """The documents without separators, in parts of at most `length` tokens, for corruption objectives."""
    separator = file.about["separator"]
    starts = sorted({0, *file.document_starts.tolist(), len(file)})
    examples = []
    for start, end in pairwise(starts):
        ids = [token for token in file[start:end].tolist() if token != separator]
        examples += [TokenExample(ids[at : at + length], [True] * len(ids[at : at + length]))
                  for at in range(0, len(ids), length)]  # fmt: skip
    return examples


def whole_documents(file: TokenFile, length: int) -> list[TokenExample]:
    """Each document as an example between two separators, so that its first token and its end have labels.

    A document longer than `length` tokens becomes several examples that overlap by one token. A document that continues
    behind the file's last token gets no separator there, because it does not end where the held-out text begins.
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
    """Fresh weights of the recipe's shape, or the model of an earlier stage."""
    head = "pretraining" if settings.next_sentence_prediction else HEAD_OF_OBJECTIVE[settings.objective]
    folder = model_folder_of(context)
    if folder is None:
        return fresh_model(context, tokenizer, head=head)
    model = as_wanted(model_folder.load(folder, head=head), context)
    check_fits(tokenizer, model.config.vocab_size)
    return model


def split_tokens(settings: StageSettings, context: StageContext, tokenizer: Tokenizer) -> tuple[TokenFile, TokenFile]:
    """The training ids and the held-out ids: those of `data.dev`, or the last `data.validation` share of the text."""
    data = context.recipe.data_of(settings)
    whole = make_token_file(settings, context, tokenizer, "source")
    if data.dev is not None:
        return whole, make_token_file(settings, context, tokenizer, "dev")
    return whole.split(data.validation)


def make_token_file(settings: StageSettings, context: StageContext, tokenizer: Tokenizer, part: str) -> TokenFile:
    """The ids of a part of the data, memory-mapped; the token file is built if it does not exist."""
    folder = context.stage_folder / ("tokens" if part == "source" else f"tokens-{part}")
    if (folder / token_file.ABOUT).exists():
        return token_file.TokenFile(folder)
    data = context.recipe.data_of(settings)
    with context.reporter.task("tokens", unit="token") as task:
        return token_file.build(
            pieces(context, settings, part),
            tokenizer,
            folder,
            source=data.task or data.database or getattr(data, part),
            progress=lambda tokens, characters: task.update(tokens),
        )
