"""Implementation of the ngram stage."""

from __future__ import annotations

import time
from typing import Any

from quatrain.evaluation.perplexity import text_loss, token_entropy
from quatrain.models.arpa import write_arpa
from quatrain.models.classic import _counts
from quatrain.models.classic._smoothing import SmoothingOptions
from quatrain.models.classic.ngram import NgramModel
from quatrain.runs.assess import assess
from quatrain.runs.material import tokenizer_of, with_rules, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._pretrain import split_tokens
from quatrain.runs.stages.ngram import NgramStage


def run(settings: NgramStage, context: StageContext) -> StageResult:
    """Counts the text, writes `model/` and evaluates it on the text held out, beside the frequencies of its tokens."""
    tokenizer = tokenizer_of(context)
    learned, held_out = split_tokens(settings, context, tokenizer)
    expected = _counts.expect(learned.tokens, tokenizer.vocab_size, settings.order, settings.chunk)
    context.reporter.info(f"{context.name}: {expected}.")
    began = time.perf_counter()
    with context.reporter.task(context.name, total=settings.order * len(learned), unit="token") as task:
        model: Any = NgramModel.fit(
            learned.tokens,
            tokenizer.vocab_size,
            settings.order,
            settings.smoothing,
            min_counts=settings.min_counts,
            options=SmoothingOptions(settings.k, settings.discount, settings.lambdas or None),
            chunk=settings.chunk,
            progress=task.update,
            eos_token_id=tokenizer.eos_id,
        )
    elapsed = time.perf_counter() - began
    with_rules(model, context)
    result = StageResult(seconds=elapsed, tokens=len(learned), parameters=model.num_parameters())
    result.model_bytes = write_model(model, tokenizer, context.model_folder)
    if settings.arpa:
        words = [tokenizer.id_to_token(token) or f"<{token}>" for token in range(tokenizer.vocab_size)]
        write_arpa(model, words, context.model_folder / "model.arpa")
    if len(held_out) > 1:
        measured, frequencies = text_loss(model, held_out.tokens, context=1), token_entropy(held_out.tokens)
        result.validation_loss, result.perplexity = measured.loss, measured.perplexity
        scores = {"loss": measured.loss, "perplexity": measured.perplexity}
        result.scores = {"text held out": scores | {"count": float(measured.count)}}
        baseline = {"loss": frequencies.loss, "perplexity": frequencies.perplexity}
        result.baselines = {"text held out": {"name": "token frequencies", **baseline}}
    seen = ", ".join(f"{count:,}" for count in model.config.ngrams)
    dense = float(tokenizer.vocab_size) ** settings.order
    result.notes.append(
        f"{seen} different n-grams of 1 to {settings.order} tokens; a full table has {dense:.3g} places"
    )
    assess(settings, context, model, tokenizer, result)
    return result


def prepare(settings: NgramStage, context: StageContext) -> str:
    """What `quatrain check` says: counting takes no optimizer steps."""
    return "counts n-grams, without steps to measure"
