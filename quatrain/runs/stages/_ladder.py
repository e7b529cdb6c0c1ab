"""Implementation of the ladder stage. Each rung is measured in bits per byte of the text held out, so that rungs with
different tokenizers could be compared too.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.evaluation.perplexity import text_loss
from quatrain.models.classic.ngram import NgramModel
from quatrain.models.io import model_folder
from quatrain.planning.machine import choose_device
from quatrain.runs.learning import load_weights, with_dropout
from quatrain.runs.material import new_model, tokenizer_of, write_model
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages._pretrain import split_tokens
from quatrain.runs.stages.ladder import LadderStage, Rung
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import CarriedCausal, Causal
from quatrain.training.streams import BatchStream, CarriedStream, WindowStream
from quatrain.training.trainer import Hooks, Trainer

DONE = "rungs.json"
"""The measured rungs, in the stage's folder."""


@dataclass(frozen=True)
class Text:
    """The tokens to learn from and those held out, which stand for `bytes` bytes."""

    tokenizer: Tokenizer
    learned: np.ndarray
    held_out: np.ndarray
    bytes: int


@dataclass(frozen=True)
class Measured:
    """A rung: mean loss in nats per token, bits per byte, seconds of training, and numbers that were learned."""

    name: str
    loss: float
    bits_per_byte: float
    seconds: float
    parameters: int


def run(settings: LadderStage, context: StageContext) -> StageResult:
    """Trains and measures every rung; rungs that an earlier, killed run has measured are not trained again."""
    text = read_text(settings, context)
    place = context.stage_folder / DONE
    rows = [Measured(**row) for row in json.loads(place.read_text(encoding="utf-8"))] if place.is_file() else []
    done = {row.name for row in rows}
    size = 0
    for rung in settings.rungs:
        if rung.name in done:
            continue
        loss, seconds, parameters, model = RUNGS[rung.kind](rung, text, context)
        bits = loss * (len(text.held_out) - 1) / text.bytes / math.log(2)
        best = min((row.bits_per_byte for row in rows), default=math.inf)
        rows.append(Measured(rung.name, loss, bits, seconds, parameters))
        context.reporter.info(f"{rung.name}: {bits:.3f} bits per byte, {seconds:.1f} s, {parameters:,} parameters")
        if model is not None and bits < best:
            size = write_model(model, text.tokenizer, context.model_folder)
        write_json(place, [asdict(row) for row in rows])
        checkpoints.remove(context.checkpoints)
    return _result(rows, size)


def prepare(settings: LadderStage, context: StageContext) -> str:
    """What `quatrain check` says."""
    networks = sum(rung.kind == "network" for rung in settings.rungs)
    return f"trains {networks} small networks one after the other; their steps are not measured here"


def read_text(settings: LadderStage, context: StageContext) -> Text:
    """The text of the stage. Raises InputError if nothing of it is held out."""
    tokenizer = tokenizer_of(context)
    learned, held_out = split_tokens(settings, context, tokenizer)
    if len(held_out) < 2:
        raise InputError(
            "The ladder measures text that is held out, and there is none; set data.validation = 0.1, or data.dev."
        )
    tokens = np.asarray(held_out.tokens)
    size = len(tokenizer.decode(tokens[1:].tolist(), skip_special_tokens=False).encode())
    return Text(tokenizer, np.asarray(learned.tokens), tokens, size)


Outcome = tuple[float, float, int, Any]
"""Mean loss, seconds of training, number of parameters, and the model (None for a guess)."""


def _uniform(rung: Rung, text: Text, context: StageContext) -> Outcome:
    return math.log(text.tokenizer.vocab_size), 0.0, 0, None


def _unigram(rung: Rung, text: Text, context: StageContext) -> Outcome:
    """Frequencies of the learned tokens, each counted once more than it occurs, so that none is impossible."""
    began = time.perf_counter()
    counts = np.bincount(text.learned, minlength=text.tokenizer.vocab_size) + 1.0
    losses = -np.log(counts / counts.sum())[text.held_out[1:]]
    return float(losses.mean()), time.perf_counter() - began, len(counts), None


def _ngram(rung: Rung, text: Text, context: StageContext) -> Outcome:
    began = time.perf_counter()
    model: Any = NgramModel.fit(text.learned, text.tokenizer.vocab_size, rung.order, "modified_kneser_ney")
    seconds = time.perf_counter() - began
    return text_loss(model, text.held_out, context=1).loss, seconds, model.num_parameters(), model


def _network(rung: Rung, text: Text, context: StageContext) -> Outcome:
    if rung.train is None:
        raise ValueError(f"{rung.name}: a network without train settings")
    train, length = rung.train, rung.model.max_position_embeddings
    model: Any = with_dropout(new_model(rung.model, text.tokenizer, context.seed, head="causal"), train.dropout)
    rows = max(1, train.batch_tokens // train.accumulation // length)
    stream: BatchStream
    if rung.rows == "carried":
        stream = CarriedStream(text.learned, length=length, rows=rows, seed=context.seed)
    else:
        stream = WindowStream(text.learned, length=length, rows=rows, seed=context.seed)
    tokens = rows * length * train.accumulation
    steps = train.steps or max(1, round((train.epochs or 1) * len(text.learned) / tokens))
    pad_id = text.tokenizer.pad_id or 0
    objective = CarriedCausal(pad_id) if rung.rows == "carried" else Causal(pad_id)
    model.to(choose_device(train.device))
    with context.reporter.task(rung.name, total=steps) as task:
        hooks = Hooks(
            save=partial(model_folder.save, model), load=partial(load_weights, model), progress=task.update,
            warn=context.reporter.warn,
        )  # fmt: skip
        trainer = Trainer(
            model, objective, stream, train, steps=steps, seed=context.seed, folder=context.checkpoints, hooks=hooks
        )
        trained = trainer.train()
    return text_loss(model, text.held_out, context=length).loss, trained.seconds, model.num_parameters(), model


RUNGS: dict[str, Callable[[Rung, Text, StageContext], Outcome]] = {
    "uniform": _uniform,
    "unigram": _unigram,
    "ngram": _ngram,
    "network": _network,
}


def _result(rows: list[Measured], size: int) -> StageResult:
    """The table and the charts of the report."""
    best = min(rows, key=lambda row: row.bits_per_byte)
    result = StageResult(seconds=None, parameters=best.parameters, model_bytes=size or None)
    result.validation_loss = best.loss
    baseline = {"bits_per_byte": rows[0].bits_per_byte}
    result.scores = {row.name: {"bits_per_byte": row.bits_per_byte, "loss": row.loss} for row in rows}
    result.baselines = {row.name: {"name": rows[0].name, **baseline} for row in rows}
    figures = []
    for key, label in (("seconds", "seconds of training (a guess takes none)"), ("parameters", "parameters")):
        points = [
            {
                "label": row.name,
                "x": getattr(row, key),
                "y": row.bits_per_byte,
                "detail": f"{row.name}: {row.bits_per_byte:.3f} bits per byte, {row.seconds:.1f} s, "
                f"{row.parameters:,} parameters",
            }
            for row in rows
        ]
        figures.append(
            {
                "kind": "points",
                "title": f"Bits per byte against {key}",
                "note": "text held out; lower is better",
                "points": points,
                "x_label": label,
                "y_label": "bits per byte",
            }
        )
    result.extra = {"ladder": [asdict(row) for row in rows], "figures": figures}
    result.notes.append(f"the best rung is {best.name}: {best.bits_per_byte:.3f} bits per byte")
    return result
