"""The finetune stage: instruction tuning on chats, loss on the assistant's tokens only, the end of turn learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quatrain.adaptation import lora
from quatrain.adaptation.token_rows import learn_rows
from quatrain.errors import InputError
from quatrain.models import hub
from quatrain.models.stack import Model
from quatrain.settings import Settings
from quatrain.stages.assess import assess
from quatrain.stages.base import Context, StageResult
from quatrain.stages.learning import train
from quatrain.stages.material import model_of, task_of, tokenizer_of, write_model
from quatrain.stages.pretrain import load_weights, with_dropout
from quatrain.text.batches import TokenExample
from quatrain.text.chat import render
from quatrain.text.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal, Objective
from quatrain.training.settings import FinetuneStage
from quatrain.training.streams import ExampleStream


def run(settings: FinetuneStage, context: Context) -> StageResult:
    """Renders the chats, trains all weights or an adapter, writes `model/` (and `adapter/`) and measures it."""
    tokenizer = tokenizer_of(context)
    model = with_dropout(model_of(context), settings.train.dropout)
    limit = settings.context or model.config.max_position_embeddings
    examples, notes = encode_chats(conversations(settings, context), tokenizer, limit)
    result = adapt(settings, context, model, tokenizer, Causal(tokenizer.pad_id or 0), examples)
    result.notes += notes
    assess(settings, context, model, tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def adapt(
    settings: Any, context: Context, model: Model, tokenizer: Tokenizer, objective: Objective, examples: Sequence[Any]
) -> StageResult:
    """Trains `model` on examples, through the stage's adapter if it has one, which is merged in the end; writes it."""
    wanted = settings.train
    save, load = attach(settings, context, model, tokenizer)
    stream = ExampleStream(examples, batch_tokens=max(1, wanted.batch_tokens // wanted.accumulation), seed=context.seed)
    steps = wanted.steps or stream.steps(wanted.epochs or 1, wanted.accumulation)
    sequence = round(sum(map(len, examples)) / len(examples))
    _, result = train(context, model, objective, stream, wanted, steps=steps, sequence=sequence, save=save, load=load)
    if settings.adapter is not None:
        save(context.stage_folder / "adapter")
        lora.merge_all(model)
    result.model_bytes = write_model(model, tokenizer, context.model_folder)
    return result


def attach(
    settings: Any, context: Context, model: Model, tokenizer: Tokenizer
) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Puts the stage's adapter on the model; returns how a checkpoint's weights are written and read."""
    if settings.adapter is None:
        return partial(hub.save, model), partial(load_weights, model)
    from quatrain.adaptation import peft_files

    lora.apply(model, settings.adapter, seed=context.seed)
    if settings.adapter.tokens == "special":
        learn_rows(model, sorted(tokenizer.special_ids))
    trainable, total, percent = lora.trainable_report(model)
    context.reporter.info(f"{trainable:,} of {total:,} parameters train ({percent:.2f} %).")
    base = str(context.previous_model or context.recipe.model.folder or "")

    return partial(peft_files.save_adapter, model, base_model=base), partial(peft_files.load_weights, model)


def conversations(settings: Settings, context: Context) -> Iterator[list[dict[str, str]]]:
    """The chats to learn: the database's questions with their SQL, or those of the source file."""
    data = context.recipe.data_of(settings)
    if data.database is not None:
        task = task_of(context, settings)
        yield from (task.messages(example) for example in task.train)
    else:
        from quatrain.text.files import read_conversations

        yield from read_conversations(str(data.source))


def encode_chats(
    chats: Iterable[list[dict[str, str]]], tokenizer: Tokenizer, limit: int
) -> tuple[list[TokenExample], list[str]]:
    """Chats as examples with the assistant's tokens marked. Those longer than `limit` tokens are left out, and counted.

    Raises InputError where no chat is left, or none has a token to learn.
    """
    examples, long, empty = [], 0, 0
    for messages in chats:
        rendered = render(tokenizer, messages)
        example = TokenExample(rendered.ids, rendered.assistant_mask)
        if len(example) - 1 > limit:
            long += 1
        elif example.num_labels == 0:
            empty += 1
        else:
            examples.append(example)
    if not examples:
        raise InputError(
            f"No chat is left to learn from: {long} are longer than {limit} tokens, {empty} have no assistant token. "
            "Give a longer context, or check the data with `quatrain data check`."
        )
    notes = []
    if long:
        notes.append(f"{long:,} chats longer than {limit} tokens left out")
    if empty:
        notes.append(f"{empty:,} chats without an assistant's token left out")
    learned = sum(example.num_labels for example in examples)
    total = sum(map(len, examples))
    notes.append(f"{len(examples):,} chats, {total:,} tokens, {learned / total:.0%} of them learned")
    return examples, notes
