"""A model measured on the records of its task: the metrics that people quote, and samples of what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.progress import Reporter
from quatrain.data.corpus import Corpus
from quatrain.data.records import Fault, Pair, Row
from quatrain.evaluation.metrics.objectives import judge
from quatrain.evaluation.metrics.texts import AUTO, bleu, chrf, rouge
from quatrain.generation.engine import Engine
from quatrain.generation.logits import SamplingParams
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import (
    ExtractiveQA,
    MultipleChoice,
    Seq2Seq,
    SequenceClassification,
    TokenClassification,
    best_answers,
    collate,
)

SHOWN = 12
"""Samples of the measured set, evenly spread."""

ROWS = 64
"""Texts that are answered together."""

QUOTED = ("f1", "accuracy", "pearson", "bleu")
"""The metrics that stand for a task, the first that it has before the others."""

RIGHT_OR_WRONG = (SequenceClassification, MultipleChoice, TokenClassification)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Scored:
    """Metrics, the one that is quoted first; samples; and what is behind the metrics (`metrics.objectives.judge`)."""

    scores: dict[str, float]
    samples: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score(
    objective: Any,
    model: Model,
    tokenizer: Tokenizer,
    records: Sequence[Row],
    reporter: Reporter,
    *,
    name: str,
    max_new_tokens: int,
) -> Scored:
    """Measures a model on records, the set called `name`. An encoder-decoder answers greedily, and its texts are held
    against people's by BLEU, chrF and ROUGE; where the library of one is missing the reader is told.

    Raises InputError with every record that the task cannot use.
    """
    examples, notes = objective.prepare(records)
    scores, details = judge(objective, model, examples)
    if isinstance(objective, Seq2Seq):
        started = time.perf_counter()
        with reporter.task("answering", total=len(records), unit="text") as task:
            texts = answers(objective, model, tokenizer, records, max_new_tokens, task.update)
        scores["texts_per_second"] = round(len(texts) / (time.perf_counter() - started), 2)
        scores |= _of_texts(texts, records, reporter)
        shown = [(record, text) for record, text in zip(records, texts, strict=True)]
        samples = [said_as(record, text, name) for record, text in spread(shown, SHOWN)]
    else:
        samples = said(objective, model, tokenizer, spread(records, SHOWN), name=name, max_new_tokens=max_new_tokens)
    first = next((key for key in QUOTED if key in scores), "loss")
    return Scored({first: scores[first]} | scores | {"count": len(records)}, samples, details, notes)


def _of_texts(texts: Sequence[str], records: Sequence[Row], reporter: Reporter) -> dict[str, float]:
    wanted = [[record.value["target"], *record.value.get("references", [])] for record in records]
    scores: dict[str, float] = {}
    for metric in (partial(bleu, tokenize=AUTO), chrf, rouge):
        try:
            found: Mapping[str, float | str] = metric(texts, wanted)
            scores |= {key: value for key, value in found.items() if isinstance(value, float)}
        except InputError as error:
            reporter.warn(error.message)
    return scores


def answers(
    objective: Seq2Seq,
    model: Model,
    tokenizer: Tokenizer,
    records: Sequence[Row],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The texts that the model says greedily of the records' sources."""
    engine = Engine(model, tokenizer)
    rows = [objective.encode(record.value, record.place)[0].source for record in records]
    params = SamplingParams(max_new_tokens=max_new_tokens)
    texts: list[str] = []
    for start in range(0, len(rows), ROWS):
        texts += [answer.text.strip() for answer in engine.generate(rows[start : start + ROWS], params)]
        progress(len(texts))
    return texts


def said(
    objective: Any,
    model: Model,
    tokenizer: Tokenizer,
    records: Sequence[Row],
    *,
    name: str,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Samples: each record with what the model says of it; none for objectives that say nothing."""
    if isinstance(objective, Seq2Seq):
        texts = answers(objective, model, tokenizer, records, max_new_tokens)
        return [said_as(record, text, name) for record, text in zip(records, texts, strict=True)]
    if not hasattr(objective, "predict"):
        return []
    found = []
    for record in records:
        examples, _ = objective.prepare([record])
        batch = collate(objective, examples, 0)
        text = said_of(objective, examples, objective.predict(model, batch.to(model.device)))
        prompt, reference = asked(_in_names(objective, record.value))
        found.append({"set": name, "prompt": prompt, "reference": reference, "output": text}
                     | ({"correct": text == reference} if isinstance(objective, RIGHT_OR_WRONG) else {}))  # fmt: skip
    return found


def _in_names(objective: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """A record with its labels by the names that the model has for them."""
    if isinstance(objective, SequenceClassification) and objective.problem == "single":
        return fields | {"label": objective.name_of(fields["label"])}
    if isinstance(objective, TokenClassification):
        return fields | {"tags": [objective.name_of(tag) for tag in fields["tags"]]}
    return fields


def said_as(record: Row, text: str, name: str) -> dict[str, Any]:
    """A record of two texts as a sample, with what the model says."""
    return {"set": name, "prompt": record.value["source"], "reference": record.value["target"], "output": text}


def spread(found: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly from the first on."""
    return list(found[:: max(1, len(found) // count)][:count])


def said_of(objective: Any, examples: Sequence[Any], predictions: Sequence[Any]) -> str:
    """A prediction as a person reads it."""
    if isinstance(objective, TokenClassification):
        return " ".join(objective.sentences(examples, predictions)[0])
    if isinstance(objective, ExtractiveQA):
        return best_answers(examples, predictions, may_be_none=True)[0][0].text
    if isinstance(objective, MultipleChoice):
        return LETTERS[int(predictions[0])]
    if isinstance(objective, SequenceClassification) and objective.problem == "single":
        return objective.labels[int(predictions[0])]
    return f"{float(predictions[0]):.3g}"


def asked(fields: dict[str, Any]) -> tuple[str, str]:
    """What a record asks and what is right, as a person reads it."""
    if "words" in fields:
        return " ".join(fields["words"]), " ".join(fields["tags"])
    if "context" in fields:
        right = fields["answers"]["text"]
        return f"{fields['context']}\n\n{fields['question']}", right[0] if right else ""
    if "choices" in fields:
        choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, fields["choices"], strict=False))
        return f"{fields['question']}\n{choices}", LETTERS[fields["label"]]
    if "anchor" in fields:
        return fields["anchor"], fields["positive"]
    other = fields.get("text_pair")
    return fields["text"] + (f"\n{other}" if other else ""), str(fields["label"])


def placed(corpus: Corpus, *, related: bool = False) -> Iterator[Row]:
    """The records of a corpus with their places, as objectives take them, and the faults of rows that are none.

    With `related`, pairs of texts are texts that mean the same.
    """
    for row in corpus.rows():
        try:
            records = corpus.convert(row)
        except Fault as fault:
            yield from (Row(row.place, fault=str(each)) for each in fault.all)
            continue
        for record in records:
            value: Any = record.fields()
            if related and isinstance(record, Pair):
                value = {"anchor": record.source, "positive": record.target}
            yield Row(row.place, value)
