"""An encoder-decoder's texts measured: each source is answered, and compared with what people wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from quatrain.errors import InputError
from quatrain.evaluation.metrics.texts import bleu, chrf, rouge
from quatrain.generation.engine import Engine
from quatrain.generation.logits import SamplingParams
from quatrain.stages.base import Context
from quatrain.stages.learning import Learning
from quatrain.text.records import Record
from quatrain.training.objectives import Seq2Seq
from quatrain.training.settings import FinetuneStage

ROWS = 64
"""Texts that are answered together."""

SHOWN = 12
"""Samples that the report shows, evenly spread."""


def measure_texts(
    settings: FinetuneStage, context: Context, learning: Learning, records: Sequence[Record], name: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """BLEU, chrF and ROUGE of the texts that the model says greedily, and some of them as samples.

    Where the library of a metric is missing, the reader is told and the metric left out.
    """
    started = time.perf_counter()
    with context.reporter.task("answering", total=len(records), unit="text") as task:
        texts = answers(learning, context, records, task.update)
    seconds = time.perf_counter() - started
    wanted = [[record.value["target"], *record.value.get("references", [])] for record in records]
    scores: dict[str, float] = {"texts_per_second": round(len(texts) / seconds, 2)}
    for metric in (bleu, chrf, rouge):
        try:
            scores |= {key: value for key, value in metric(texts, wanted).items() if isinstance(value, float)}
        except InputError as error:
            context.reporter.warn(error.message)
    shown = range(0, len(records), max(1, len(records) // SHOWN))
    return scores, [sample(records[place], texts[place], name) for place in list(shown)[:SHOWN]]


def answers(
    learning: Learning, context: Context, records: Sequence[Record], progress: Callable[[int], None] = lambda done: None
) -> list[str]:
    """The texts that the model says greedily of the records' sources."""
    objective: Seq2Seq = learning.objective  # type: ignore[assignment]
    engine = Engine(learning.model, learning.tokenizer)
    rows = [objective.encode(record.value, record.place)[0].source for record in records]
    params = SamplingParams(max_new_tokens=context.recipe.evaluate.max_new_tokens)
    texts: list[str] = []
    for start in range(0, len(rows), ROWS):
        texts += [answer.text.strip() for answer in engine.generate(rows[start : start + ROWS], params)]
        progress(len(texts))
    return texts


def sample(record: Record, text: str, name: str) -> dict[str, Any]:
    """A record with what the model says of it."""
    return {"set": name, "prompt": record.value["source"], "reference": record.value["target"], "output": text}
