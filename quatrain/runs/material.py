"""What stages start from: the tokenizer, the model of the earlier stages, and the texts that they learn from."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.data.documents import DocumentChunk, read_chunks
from quatrain.data.messages import content_text
from quatrain.data.records import (
    AnyRecord,
    Choice,
    Conversation,
    Document,
    LabelledText,
    Preference,
    Question,
    RatedAnswer,
    SQLQuestion,
    TaggedTokens,
)
from quatrain.data.sources import is_dataset
from quatrain.runs.inputs import beginning, is_of_hub
from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageContext
from quatrain.runs.stages import spec_of
from quatrain.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quatrain.adapters.settings import AdapterSettings
    from quatrain.models.transformer.settings import ModelSettings
    from quatrain.models.transformer.stack import Model
    from quatrain.tasks.task import Task

CHAT_TEMPLATE = "chatml"
DATABASE = "{database}"
"""Stands in the names of tools for the database of a stage's questions."""
MAX_HELD = 8_000_000
"""The most characters of a text without a space that stay in one piece."""


def tokenizer_of(context: StageContext) -> Tokenizer:
    """The run's tokenizer: that of the previous model, of the tokenizer stage, or of `tokenizer.path`.

    The recipe's special tokens and chat template are added to it.
    """
    return _as_wanted(_stored_tokenizer(context), context)


def _as_wanted(tokenizer: Tokenizer, context: StageContext) -> Tokenizer:
    """A tokenizer with the recipe's special tokens and chat template."""
    settings = context.recipe.tokenizer
    return tokenizer.extended(settings.special_tokens, chat_template=settings.chat_template)


def _stored_tokenizer(context: StageContext) -> Tokenizer:
    """The run's tokenizer as it is stored."""
    for place in (context.previous_model, context.tokenizer, context.recipe.tokenizer.path, beginning(context.recipe)):
        if place is not None:
            return Tokenizer.load(place)
    raise InputError('No tokenizer: put a stage of kind = "tokenizer" first, or set tokenizer.path.')


def model_folder_of(context: StageContext) -> Path | None:
    """The folder of the previous stages' model, or `model.folder`; None if the stage starts from new weights."""
    return context.previous_model or beginning(context.recipe)


def base_name_of(context: StageContext) -> str:
    """The base model as an adapter's configuration names it: a hub id or a folder; "" if there is neither."""
    folder = context.recipe.model.folder
    if context.previous_model is None and folder is not None and is_of_hub(folder):
        return folder
    return str(model_folder_of(context) or "")


def model_of(context: StageContext, adapter: AdapterSettings | None = None) -> Model:
    """The previous stages' model, or the one in `model.folder`, quantized if `adapter` has a `quantize_base`."""
    from quatrain.loading.model import load_model

    folder = model_folder_of(context)
    if folder is None and context.fresh_model:
        return fresh_model(context, tokenizer_of(context))
    if folder is None:
        raise InputError(f"{context.name} needs a model; put a pretrain stage before it, or set model.folder.")
    return as_wanted(load_model(folder, quantize=quantize_of(adapter))[0], context)


def fresh_model(context: StageContext, tokenizer: Tokenizer, *, head: str | None = None, **more: Any) -> Model:
    """A model of the recipe's shape and the tokenizer's vocabulary, with weights drawn from the recipe's seed.

    `more` are fields of its configuration such as `labels`.
    """
    return with_rules(new_model(context.recipe.model, tokenizer, context.seed, head=head, **more), context)


def new_model(
    settings: ModelSettings, tokenizer: Tokenizer, seed: int, *, head: str | None = None, **more: Any
) -> Model:
    """A model of these sizes for a tokenizer, with weights drawn from a seed; otherwise as `fresh_model`."""
    from quatrain.models import classic
    from quatrain.models.transformer.stack import Model

    if settings.classic.words:
        more["boundary_token_ids"] = whitespace_ids(tokenizer)
    config = settings.config(
        tokenizer.vocab_size,
        head=head,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        **more,
    )
    kind: Any = classic.find(config.family) or Model
    model: Model = kind(config).initialize(seed)
    return model


def start_from_vectors(model: Any, tokenizer: Tokenizer, context: StageContext) -> list[str]:
    """Fills the embedding of a fresh classic model from the recipe's file of word vectors; a note on how much it does.

    Raises InputError for a file that cannot be read, and for vectors of another width.
    """
    path = context.recipe.model.classic.vectors
    if path is None or model_folder_of(context) is not None:
        return []
    import torch

    from quatrain.models.word_vectors import WordVectors

    vectors = WordVectors.read(path)

    def known(word: str) -> list[int]:
        """The tokens of a word; none if the tokenizer reads it as unknown."""
        ids = tokenizer.encode(word)
        return [] if tokenizer.special_ids.intersection(ids) else ids

    count = model.start_from_vectors(vectors.words, torch.from_numpy(vectors.matrix), known)
    rows = model.vector_table.weight.shape[0]
    return [f"{count:,} of {rows:,} rows of the embedding start from the {len(vectors):,} vectors of {path}"]


def whitespace_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that are nothing but white space, and the special ones: words end there.

    Raises InputError if no token is: the tokenizer then joins spaces and words.
    """
    spaces = [token for token in range(tokenizer.vocab_size) if tokenizer.decode([token]).isspace()]
    if not spaces:
        raise InputError(
            "model.classic.words: true; the tokenizer has no token for a space alone, so words cannot be told apart: "
            'take tokenizer.kind = "char", or "bpe" with vocab_size = 260 (bytes).'
        )
    return sorted({*spaces, *tokenizer.special_ids})


def as_wanted(model: Model, context: StageContext) -> Model:
    """The model with the recipe's generation settings, and an embedding row for each token that the recipe adds.

    Reports the new tokens.
    """
    from quatrain.models.transformer.vocabulary import resize_vocabulary

    model = with_rules(model, context)
    if context.recipe.tokenizer.special_tokens or context.recipe.tokenizer.chat_template:
        stored = _stored_tokenizer(context)
        tokenizer = _as_wanted(stored, context)
        model.added_token_ids = sorted(tokenizer.special_ids - stored.special_ids)
        if model.added_token_ids:
            # Some models have unused rows.
            resize_vocabulary(model, max(model.config.vocab_size, tokenizer.vocab_size))
            shown = ", ".join(str(tokenizer.id_to_token(token)) for token in model.added_token_ids)
            context.reporter.info(f"New tokens, each with a row that learns: {shown}.")
    return model


def with_rules(model: Model, context: StageContext) -> Model:
    """The model with the recipe's generation settings, which replace its own."""
    if rules := context.recipe.model.generation.model_dump(exclude_none=True):
        model.generation_config = {**(model.generation_config or {}), **rules}
    return model


def quantize_of(adapter: AdapterSettings | None) -> str | None:
    """The format of the frozen layers under an adapter, as `load_model` takes it; None for floats."""
    return adapter.quantize_base if adapter is not None and adapter.quantize_base != "float" else None


def pieces(context: StageContext, stage: StageSettings, part: str = "source") -> Iterator[DocumentChunk]:
    """The texts that a stage learns from: of the source, or of the task that generates them; or those of `dev`.

    A large document comes in several chunks, of which only one is in memory.
    """
    from quatrain.tasks.task import source_task

    data = context.data_of(stage)
    task = generated_task(context, stage) if part == "source" else None
    task = task or source_task(data, part)
    if task is not None:
        with task:
            yield from (DocumentChunk(text, True) for text in task.documents())
        return
    corpus, settings = data.corpus(part), data.settings
    named = settings.format is not None
    chats = corpus.format in ("chat", "preference") and spec_of(stage).teaches(stage) == "text" and not named
    plain = not named and not settings.columns and not is_dataset(corpus.source)
    if chats or (corpus.format == "text" and plain):
        # Reads documents of any size in chunks. Chats are rejected there, with a hint to finetune.
        yield from read_chunks(corpus.source)
    else:
        yield from (DocumentChunk(text, True) for record in corpus for text in texts_of(record) if text.strip())


def texts_of(record: AnyRecord) -> list[str]:
    """All texts of a record."""
    if isinstance(record, Document):
        return [record.text]
    if isinstance(record, Conversation):
        return [content_text(message) for message in record.messages]
    if isinstance(record, Preference):
        return [content_text(message) for part in (record.prompt, record.chosen, record.rejected) for message in part]
    if isinstance(record, RatedAnswer):
        return [content_text(message) for message in (*record.prompt, *record.completion)]
    if isinstance(record, LabelledText):
        return [record.text, *([record.other] if record.other else [])]
    if isinstance(record, TaggedTokens):
        return [" ".join(record.words)]
    if isinstance(record, Question):
        return [record.question, record.context]
    if isinstance(record, Choice):
        return [record.question, *record.choices]
    if isinstance(record, SQLQuestion):
        return [record.question, record.query]
    return [record.source, record.target, *record.references]


def texts(parts: Iterable[DocumentChunk]) -> Iterator[str]:
    """Chunks as texts for counting words: each ends at a space, if there is one."""
    held = ""
    for piece in parts:
        text = held + piece.text
        end = len(text) if piece.last or len(text) > MAX_HELD else max(0, text.rfind(" "))
        if end:
            yield text[:end]
        held = text[end:]


def generated_task(context: StageContext, stage: Settings) -> Task[Any] | None:
    """The task that generates its examples from the stage's data, built once a process; None where there is none."""
    from quatrain.tasks.task import GenerateSettings, generated

    data = context.recipe.data_of(stage)
    if not data.generates:
        return None
    key = f"task:{data.task or data.database}:{data.databases}:{data.examples}"
    if key not in context.shared:
        limits = context.recipe.evaluate
        settings = GenerateSettings(
            context.folder, context.seed, limits.examples, questions=limits.questions, people=limits.people,
            reporter=context.reporter,
        )  # fmt: skip
        context.shared[key] = task = generated(data, settings)
        for note in task.notes if task is not None else ():
            context.reporter.info(note)
    return context.shared[key]


def tools_of(named: Sequence[str], stage: Settings, context: StageContext) -> list[str]:
    """The names of tools as `agents.toolbox.open_tools` reads them: `{database}` is that of the stage's questions.

    Raises InputError where the questions have none.
    """
    if not any(DATABASE in name for name in named):
        return list(named)
    path = getattr(generated_task(context, stage), "path", None)
    if path is None:
        raise InputError(f'{context.name}: tools: "{DATABASE}", but the data of this stage are no questions to one')
    return [name.replace(DATABASE, str(path)) for name in named]


@contextmanager
def opened_task(stage: Settings, context: StageContext) -> Iterator[Task[Any]]:
    """The task of a stage's data whose answers are texts: the one that generates them, or that of their format."""
    from quatrain.tasks.prompting.texts import text_task

    made = generated_task(context, stage)
    if made is not None:
        yield made
        return
    with text_task(context.data_of(stage), folder=context.folder, limit=context.recipe.evaluate.examples) as task:
        yield task


def write_model(model: Model, tokenizer: Tokenizer, folder: Path) -> int:
    """Writes a whole model folder and returns the bytes of its weights."""
    from quatrain.models.io import model_folder

    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(tokenizer, Tokenizer):  # Of pictures and sound it is a processor.
        tokenizer.max_length = model.config.max_position_embeddings
    tokenizer.save(folder)
    model_folder.save(model, folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def write_mixture(model: Model, tokenizer: Tokenizer, folder: Path) -> int:
    """Writes a folder with the base model and one folder for each adapter; returns the bytes of the base's weights."""
    from quatrain.adapters.peft_files import save_adapter
    from quatrain.models.hub import ADAPTERS, BASE

    adapter_set = model.adapter_set
    shutil.rmtree(folder, ignore_errors=True)
    with adapter_set.disabled():
        size = write_model(model, tokenizer, folder / BASE)
    for name in adapter_set.members:
        with adapter_set.only(name):
            save_adapter(model, folder / ADAPTERS / name, base_model=f"../../{BASE}")
        tokenizer.save(folder / ADAPTERS / name)
    tokenizer.save(folder)
    return size
