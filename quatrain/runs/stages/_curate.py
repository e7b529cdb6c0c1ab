"""Implementation of the curate stage: a crawl, three ways to curate it, and the held-out losses with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.data.curation.crawl import crawl_recipe, held_out, passages_shown, write_crawl
from quatrain.data.curation.runner import curate, read_shards
from quatrain.data.curation.settings import CurationRecipe
from quatrain.data.curation.step import CorpusStep
from quatrain.data.curation.steps import steps
from quatrain.evaluation.perplexity import text_loss
from quatrain.models.io import model_folder
from quatrain.planning.machine import choose_device
from quatrain.runs.learning import load_weights, with_dropout
from quatrain.runs.material import new_model, tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.curate import CurateStage
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal
from quatrain.training.streams import WindowStream
from quatrain.training.trainer import Hooks, Trainer

DONE = "losses.json"
VARIANTS = ("raw", "filtered", "deduplicated")
STUDENT = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""The 97.5 % points of Student's t distribution for 1 to 9 degrees of freedom."""


@dataclass(frozen=True)
class Trained:
    """A model's loss on the text held out, in nats per token."""

    variant: str
    seed: int
    loss: float
    tokens: int


def run(settings: CurateStage, context: StageContext) -> StageResult:
    """Makes and curates the crawl, then trains every variant with every seed; what a killed run measured stays."""
    source = context.recipe.data_of(settings).source
    if source is None:
        raise InputError("data.source is missing; passages of the crawl come from a text")
    crawl = context.stage_folder / "crawl"
    if not (crawl / "recipe.toml").is_file():
        write_crawl(crawl, source=source, documents=settings.documents, words=settings.words, seed=context.seed)
    tokenizer = tokenizer_of(context)
    passages = held_out(source, settings.words, passages_shown(crawl), settings.held_out)
    if len(passages) < settings.held_out:
        raise InputError(
            f"{source} has only {len(passages)} passages besides those of the crawl, and held_out is "
            f"{settings.held_out}; take fewer documents, or a larger source"
        )
    measured = encode(tokenizer, passages)
    place = context.stage_folder / DONE
    rows = [Trained(**row) for row in json.loads(place.read_text(encoding="utf-8"))] if place.is_file() else []
    done = {(row.variant, row.seed) for row in rows}
    amounts: dict[str, int] = {}
    for variant in VARIANTS:
        texts = curated(variant, crawl, context)
        tokens = encode(tokenizer, texts)
        amounts[variant] = len(tokens)
        for seed in range(settings.seeds):
            if (variant, seed) in done:
                continue
            model, loss = train(
                settings, tokens, measured, tokenizer, context, context.seed + seed, f"{variant} {seed}"
            )
            if loss < min((row.loss for row in rows), default=math.inf):
                write_model(model, tokenizer, context.model_folder)
            rows.append(Trained(variant, seed, loss, len(tokens)))
            context.reporter.info(f"{variant}, seed {seed}: {loss:.4f} nats per token held out")
            write_json(place, [asdict(row) for row in rows])
            checkpoints.remove(context.checkpoints)
    return summarize(rows, amounts, settings)


def prepare(settings: CurateStage, context: StageContext) -> str:
    """What `quatrain check` says."""
    models = len(VARIANTS) * settings.seeds
    return (
        f"curates {settings.documents:,} pages and trains {models} small models one after the other; not measured here"
    )


def curated(variant: str, crawl: Path, context: StageContext) -> list[str]:
    """The texts of the crawl after the steps of a variant."""
    raw = crawl_recipe(crawl)
    raw["name"] = variant
    raw["output"] = {}
    if variant == "raw":
        raw["step"] = []
    if variant == "filtered":
        raw["step"] = [step for step in raw["step"] if not issubclass(steps()[step["kind"]], CorpusStep)]
    recipe = CurationRecipe.model_validate(raw)
    folder = context.stage_folder / "curated" / variant
    result = curate(recipe, folder, reporter=context.reporter)
    kept, read = result.funnel.kept, result.funnel.read
    context.reporter.info(f"{variant}: {kept.documents:,} of {read.documents:,} pages, {kept.tokens:,} words")
    return [row["text"] for row in read_shards(folder)]


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """The ids (N,) of all texts, each followed by the token of an end if the tokenizer has one."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return np.concatenate([np.array([*tokenizer.encode(text), *end], dtype=np.int64) for text in texts])


def train(
    settings: CurateStage, tokens: np.ndarray, measured: np.ndarray, tokenizer: Tokenizer, context: StageContext,
    seed: int, name: str,
) -> tuple[Any, float]:  # fmt: skip
    """A model that learned from these tokens, and its loss on the text held out."""
    learning, length = settings.train, settings.model.max_position_embeddings
    model: Any = with_dropout(new_model(settings.model, tokenizer, seed, head="causal"), learning.dropout)
    rows = max(1, learning.batch_tokens // learning.accumulation // length)
    model.to(choose_device(learning.device))
    total = learning.steps or 1
    with context.reporter.task(name, total=total) as task:
        hooks = Hooks(
            save=partial(model_folder.save, model), load=partial(load_weights, model), progress=task.update,
            warn=context.reporter.warn,
        )  # fmt: skip
        Trainer(
            model, Causal(tokenizer.pad_id or 0), WindowStream(tokens, length=length, rows=rows, seed=seed), learning,
            steps=total, seed=seed, folder=context.checkpoints / name.replace(" ", "-"), hooks=hooks,
        ).train()  # fmt: skip
    return model, text_loss(model, measured, context=length).loss


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval by Student's t distribution."""
    count = len(values)
    factor = STUDENT[count - 1] if count <= len(STUDENT) else 1.96
    return float(np.mean(values)), factor * float(np.std(values, ddof=1)) / math.sqrt(count)


def summarize(rows: Sequence[Trained], amounts: dict[str, int], settings: CurateStage) -> StageResult:
    """Scores, the differences between variants with intervals over the seeds, and the report's figure."""
    by_variant = {name: [row.loss for row in rows if row.variant == name] for name in VARIANTS}
    result = StageResult(validation_loss=min(row.loss for row in rows))
    result.scores, points, differences = {}, [], {}
    for name, losses in by_variant.items():
        mean, half = interval(losses)
        result.scores[name] = {"loss": mean, "interval": half}
        points += [
            {"label": name if number == 0 else "", "x": amounts[name], "y": loss,
             "detail": f"{name}, seed {number}: {loss:.4f}"}
            for number, loss in enumerate(losses)
        ]  # fmt: skip
    raw = {"name": "raw", "loss": result.scores["raw"]["loss"]}
    result.baselines = {name: raw for name in VARIANTS[1:]}
    for before, after in pairwise(VARIANTS):
        gains = [one - other for one, other in zip(by_variant[before], by_variant[after], strict=True)]
        mean, half = interval(gains)
        differences[f"{before} to {after}"] = {"gain": mean, "interval": half}
        surely = "more than its interval" if mean > half else "within its interval, so it may be chance"
        result.notes.append(f"{before} to {after}: {mean:.4f} ± {half:.4f} nats per token, {surely}")
    figure = {
        "kind": "points",
        "title": "Loss on text held out, by the tokens of the training text",
        "note": f"{settings.train.steps} steps each: equal tokens, {settings.seeds} seeds; lower is better",
        "points": points,
        "x_label": "tokens of the training text",
        "y_label": "nats per token",
    }
    result.extra = {
        "curation": {"losses": [asdict(row) for row in rows], "differences": differences, "tokens": amounts},
        "figures": [figure],
    }
    return result
