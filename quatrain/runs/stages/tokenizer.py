"""The tokenizer stage: trains the recipe's tokenizer on its data, or takes over the one at `tokenizer.path`."""

from __future__ import annotations

from collections.abc import Iterator

from quatrain.core.settings import Settings
from quatrain.runs.material import CHAT_TEMPLATE, pieces, texts
from quatrain.runs.recipe import Recipe
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.streaming import CHARACTERS
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.settings import PretrainStage

SENTINELS = 100
"""Sentinels that a tokenizer for hidden spans gets, as T5's has."""


def needed_tokens(recipe: Recipe) -> list[str]:
    """Special tokens that the recipe's stages need beside those of the tokenizer's kind."""
    objectives = {stage.objective for stage in recipe.stage if isinstance(stage, PretrainStage)}
    found = []
    if objectives & {"masked", "denoise"} and recipe.tokenizer.kind != "wordpiece":
        found.append("<mask>")
    if "span" in objectives:
        found += [f"<extra_id_{number}>" for number in range(SENTINELS)]
    return found


def run(settings: Settings, context: StageContext) -> StageResult:
    """Writes `tokenizer/` and says how well it compresses its own text."""
    wanted = context.recipe.tokenizer
    if wanted.path is not None:
        tokenizer = Tokenizer.load(wanted.path)
        tokenizer.save(context.tokenizer_folder)
        return StageResult(notes=[f"taken over from {wanted.path}: {tokenizer.vocab_size:,} tokens"])
    chat = any(
        stage.kind == "dpo" or (stage.kind == "finetune" and stage.objective == "chat")
        for stage in context.recipe.stage
    )
    template = wanted.chat_template or (CHAT_TEMPLATE if chat else None)
    count = 0
    streaming = context.recipe.data_of(settings).streaming

    def counted() -> Iterator[str]:
        nonlocal count
        with context.reporter.task("tokenizer", unit="character") as task:
            for text in texts(pieces(context, settings)):
                count += len(text)
                task.update(count)
                yield text
                if streaming and count >= CHARACTERS:
                    return

    tokenizer = Tokenizer.train(
        counted(),
        kind=wanted.kind,
        vocab_size=wanted.vocab_size,
        spaces=wanted.spaces,
        lowercase=wanted.lowercase,
        special_tokens=tuple(dict.fromkeys([*wanted.special_tokens, *needed_tokens(context.recipe)])),
        chat_template=template,
    )
    tokenizer.save(context.tokenizer_folder)
    return StageResult(notes=[f"{tokenizer.vocab_size:,} {tokenizer.kind} tokens learned from {count:,} characters"])
