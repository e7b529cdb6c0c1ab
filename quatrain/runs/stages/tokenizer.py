"""The tokenizer stage: trains the recipe's tokenizer on its data, or copies the one at `tokenizer.path`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from quatrain.data.settings import DataSettings
from quatrain.runs.settings import RecipeSettings, StageSettings
from quatrain.runs.stage import Need, StageContext, StageResult, StageSpec

CHARACTERS = 50_000_000
"""Characters of a stream that a tokenizer is trained on."""


class TokenizerStage(StageSettings):
    """Trains the recipe's tokenizer on its data, or copies the one at `tokenizer.path`."""

    kind: Literal["tokenizer"] = "tokenizer"
    data: DataSettings | None = None


def needs(settings: TokenizerStage, recipe: RecipeSettings) -> set[Need]:
    """A text, unless there is a tokenizer to copy."""
    return {"data"} if recipe.tokenizer.path is None else set()


def special_tokens(recipe: RecipeSettings) -> list[str]:
    """The special tokens to train with: those of the recipe and those that its stages need."""
    from quatrain.runs.stages import spec_of

    needed = [token for stage in recipe.stage for token in spec_of(stage).special_tokens(stage, recipe)]
    return list(dict.fromkeys([*recipe.tokenizer.special_tokens, *needed]))


def run(settings: TokenizerStage, context: StageContext) -> StageResult:
    """Writes `tokenizer/` and notes how many characters its tokens were learned from."""
    from quatrain.runs.material import CHAT_TEMPLATE, pieces, texts
    from quatrain.runs.stages import spec_of
    from quatrain.tokenizers.tokenizer import Tokenizer

    options = context.recipe.tokenizer
    if options.path is not None:
        tokenizer = Tokenizer.load(options.path)
        tokenizer.save(context.tokenizer_folder)
        return StageResult(notes=[f"taken over from {options.path}: {tokenizer.vocab_size:,} tokens"])
    chat = any(spec_of(stage).teaches(stage) == "chat" for stage in context.recipe.stage)
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
        kind=options.kind,
        vocab_size=options.vocab_size,
        spaces=options.spaces,
        lowercase=options.lowercase,
        special_tokens=tuple(special_tokens(context.recipe)),
        chat_template=options.chat_template or (CHAT_TEMPLATE if chat else None),
    )
    tokenizer.save(context.tokenizer_folder)
    return StageResult(notes=[f"{tokenizer.vocab_size:,} {tokenizer.kind} tokens learned from {count:,} characters"])


def prepare(settings: TokenizerStage, context: StageContext) -> None:
    """Trains the tokenizer already: no later stage can be prepared without its vocabulary."""
    run(settings, context)


SPEC = StageSpec(
    TokenizerStage,
    run=run,
    needs=needs,
    produces=("tokenizer",),
    prepare=prepare,
    tables=("data", "tokenizer"),
    measured=False,
)
