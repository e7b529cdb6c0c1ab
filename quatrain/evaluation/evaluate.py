"""The one evaluator: a model's completions of a task's examples, scored by the task, beside its dumb baseline.

A task may hold databases open, so it is used as a context manager:

    with task:
        evaluation = evaluate(Engine.load("runs/sql"), task, "new values")
    evaluation.scores, evaluation.baseline
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from quatrain.core.errors import InputError
from quatrain.data.batches import AdapterExample, TokenExample
from quatrain.data.records import Row
from quatrain.evaluation.metrics.objectives import BATCH_TOKENS, batches_of, measure, references
from quatrain.evaluation.metrics.objectives import scores as metric_scores
from quatrain.evaluation.metrics.texts import AUTO, bleu, chrf, rouge
from quatrain.evaluation.perplexity import examples_loss, unigram_loss
from quatrain.generation.candidates import completions_of
from quatrain.generation.endpoint import Endpoint
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.params import SamplingParams
from quatrain.models.transformer.stack import Model
from quatrain.tasks.records import RecordTask
from quatrain.tasks.task import Score, Task
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import collate

MAIN_METRICS = ("f1", "accuracy", "pearson", "bleu")
"""The main metric of a task of records is the first of these that it has."""
ROWS = 64
"""Texts in one batch of an encoder-decoder."""
SAMPLES = 12
"""The number of samples of each set, evenly spread."""
CONFIDENT = 0.8
"""An answer of at least this confidence counts as confident."""
NAMED = 3
"""Examples without a valid reference that an error names."""


@dataclass
class Evaluation:
    """Scores of one set of examples, the main metric first, with those of the dumb baseline on the same examples.

    `details` explain the metrics, such as a confusion matrix. `kinds` has for each kind of example how many are `right`
    and their `count`. `tokens` is the number generated in `seconds`.
    """

    scores: dict[str, float]
    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    baseline: dict[str, float] = field(default_factory=dict)
    baseline_name: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def main(self) -> float:
        """The main metric."""
        return next(iter(self.scores.values()), 0.0)


def evaluate(
    model: Engine | Endpoint | tuple[Model, Tokenizer],
    task: Task[Any],
    name: str,
    examples: Sequence[Any] | None = None,
    *,
    params: SamplingParams | None = None,
    as_text: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Score a model's greedy completions of the held-out set `name`, or of other `examples` under this name.

    For a task that measures losses, completions are generated only where `params` are given. With `as_text` the model
    continues the task's text prompt, for a model that has only been pre-trained. An endpoint is scored by its
    completions alone.

    Raises InputError where no example has a reference that can be judged.
    """
    examples = task.held_out[name] if examples is None else examples
    if isinstance(model, Endpoint) and (task.objective is not None or task.measures_loss):
        raise InputError(f"{model.url}: an endpoint gives completions, and the task {task.name} is scored by a model")
    if task.objective is not None:
        network, tokenizer = model if isinstance(model, tuple) else (model.model, model.tokenizer)  # type: ignore[union-attr]
        of_head = cast(RecordTask, task)
        return _with_head(network, tokenizer, of_head, name, examples, params or SamplingParams(), progress)
    engine = Engine(*model) if isinstance(model, tuple) else model
    if task.measures_loss and isinstance(engine, Engine):
        return _with_loss(engine, task, name, examples, params)
    started = time.perf_counter()
    completions, notes = complete(engine, task, examples, params or SamplingParams(), as_text=as_text)
    seconds = time.perf_counter() - started
    progress(len(completions))
    confidences = [task.confidence(completion) for completion in completions]
    evaluation = judge(task, name, examples, [completion.text for completion in completions], confidences)
    evaluation.notes[:0] = notes
    evaluation.baseline = baseline_scores(task, name, examples, lambda: _judged_baseline(task, name, examples))
    evaluation.baseline_name = task.baseline_name
    evaluation.tokens = sum(len(completion.ids or completion.logprobs) for completion in completions)
    evaluation.seconds = seconds
    return evaluation


def baseline_scores(
    task: Task[Any], name: str, examples: Sequence[Any], score: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """The scores of the dumb baseline on a set, which `score` computes unless the task has them already."""
    known, scores = task.baseline_scores.get(name, ((), {}))
    if len(known) != len(examples) or any(one is not other for one, other in zip(known, examples, strict=True)):
        scores = score()
        task.baseline_scores[name] = examples, scores
    return dict(scores)


def _judged_baseline(task: Task[Any], name: str, examples: Sequence[Any]) -> dict[str, float]:
    return judge(task, name, examples, task.baseline(examples)).scores


def _with_head(
    model: Model,
    tokenizer: Any,
    task: RecordTask,
    name: str,
    records: Sequence[Row],
    params: SamplingParams,
    progress: Callable[[int], None],
) -> Evaluation:
    """The loss and the metrics of a model with the head of the task, and of texts that an encoder-decoder writes."""
    examples, notes = task.objective.prepare(records)
    scores, details = measure(task.objective, model, examples)
    baseline = baseline_scores(task, name, records, lambda: _baseline_of_head(task, records, examples))
    if task.writes:
        started = time.perf_counter()
        texts = translations(Engine(model, tokenizer), task, records, params, progress)
        scores["texts_per_second"] = round(len(texts) / (time.perf_counter() - started), 2)
        right = [task.references(record) for record in records]
        compared, missing = text_scores(texts, right)
        scores |= compared
        notes = [*notes, *missing]
        if figure := bleu_by_length(texts, right, [task.question(record) for record in records]):
            details = details | {"figures": [figure]}
        pairs = spread(list(zip(records, texts, strict=True)), SAMPLES)
        samples = [text_sample(task, record, text, name) for record, text in pairs]
    else:
        samples = predicted_samples(task, model, spread(records, SAMPLES), name)
    main = next((key for key in MAIN_METRICS if key in scores), "loss")
    first = {main: baseline[main]} if main in baseline else {}
    return Evaluation(
        {main: scores[main]} | scores | {"count": len(records)},
        samples,
        list(notes),
        first | baseline,
        task.baseline_name,
        details,
    )


def _baseline_of_head(task: RecordTask, records: Sequence[Row], examples: Sequence[Any]) -> dict[str, float]:
    """The metrics of the dumb baseline, or those of chance."""
    if task.writes:
        return text_scores(task.baseline(records), [task.references(record) for record in records])[0]
    if chance := task.chance(len(batches_of(examples, BATCH_TOKENS)), len(examples)):
        return chance
    right = references(task.objective, examples)
    if right is None:
        return {}
    return metric_scores(task.objective, [task.parse(text) for text in task.baseline(records)], right)


def text_scores(texts: Sequence[str], right: Sequence[Sequence[str]]) -> tuple[dict[str, float], list[str]]:
    """BLEU, chrF and ROUGE of texts beside their references, and a note on each metric whose library is missing."""
    scores: dict[str, float] = {}
    notes = []
    for metric in (partial(bleu, tokenize=AUTO), chrf, rouge):
        try:
            values: Mapping[str, float | str] = metric(texts, right)
            scores |= {key: value for key, value in values.items() if isinstance(value, float)}
        except InputError as error:
            notes.append(error.message)
    return scores, notes


LENGTH_GROUPS = 5
"""Groups of equal size by the length of the source, for the picture of BLEU by length."""
LEAST_OF_GROUP = 20
"""The fewest texts of a group: BLEU of fewer says little."""


def bleu_by_length(
    texts: Sequence[str], right: Sequence[Sequence[str]], sources: Sequence[str]
) -> dict[str, Any] | None:
    """A figure for the report: BLEU of texts in groups by the words of their sources; None for few texts.

    Without attention a recurrent decoder forgets long sources (Bahdanau et al. 2015, figure 2).
    """
    if len(texts) < LENGTH_GROUPS * LEAST_OF_GROUP:
        return None
    lengths = [len(source.split()) for source in sources]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    size = -(-len(order) // LENGTH_GROUPS)
    x, y = [], []
    try:
        for start in range(0, len(order), size):
            group = order[start : start + size]
            score = bleu([texts[place] for place in group], [right[place] for place in group], tokenize=AUTO)["bleu"]
            x.append(sum(lengths[place] for place in group) / len(group))
            y.append(float(score))
    except InputError:
        return None
    line = {"name": "BLEU", "x": x, "y": y}
    return {
        "kind": "lines",
        "title": "BLEU by length of the source",
        "note": f"{len(order):,} texts in {len(x)} groups of equal size",
        "lines": [line],
        "x_label": "words of the source, mean of the group",
        "y_label": "BLEU",
    }


def translations(
    engine: Engine,
    task: RecordTask,
    records: Sequence[Row],
    params: SamplingParams,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The texts that an encoder-decoder writes greedily from the records' sources."""
    rows = [task.objective.encode(record.value, record.place)[0].source for record in records]
    texts: list[str] = []
    for start in range(0, len(rows), ROWS):
        texts += [completion.text.strip() for completion in engine.generate(rows[start : start + ROWS], params)]
        progress(len(texts))
    return texts


def record_samples(
    model: Model, tokenizer: Tokenizer, task: RecordTask, records: Sequence[Row], name: str, max_new_tokens: int
) -> list[dict[str, Any]]:
    """The model's answers to some records, for the preview during training."""
    if not task.writes:
        return predicted_samples(task, model, records, name)
    params = SamplingParams(max_new_tokens=max_new_tokens)
    texts = translations(Engine(model, tokenizer), task, records, params)
    return [text_sample(task, record, text, name) for record, text in zip(records, texts, strict=True)]


def text_sample(task: RecordTask, record: Row, text: str, name: str) -> dict[str, Any]:
    """A record and the text that the model wrote."""
    return {"set": name, "prompt": task.question(record), "reference": task.reference(record), "output": text}


def predicted_samples(task: RecordTask, model: Model, records: Sequence[Row], name: str) -> list[dict[str, Any]]:
    """Records with the model's predictions; [] for an objective without predictions."""
    objective = task.objective
    if not hasattr(objective, "predict"):
        return []
    samples = []
    for record in records:
        examples, _ = objective.prepare([record])
        batch = collate(objective, examples, 0)
        text = task.prediction_text(examples, objective.predict(model, batch.to(model.device)))
        reference = task.reference(record)
        samples.append({"set": name, "prompt": task.question(record), "reference": reference, "output": text}
                       | ({"correct": text == reference} if task.exact else {}))  # fmt: skip
    return samples


def _with_loss(
    engine: Engine, task: Task[Any], name: str, examples: Sequence[Any], params: SamplingParams | None
) -> Evaluation:
    """The loss of the references and, as baseline, that of token frequencies; with `params` also completions.

    Completions are scored where all references are short; otherwise some are shown.
    """
    limit = engine.model.config.max_position_embeddings
    try:
        encoded, notes = task.encode(engine.tokenizer, examples, limit)  # type: ignore[arg-type]
    except InputError as error:
        return Evaluation({}, notes=[error.message])
    evaluation = reference_loss(engine, encoded)
    evaluation.notes, evaluation.baseline_name = notes, task.baseline_name
    if params is None:
        return evaluation
    answered = [example for example in examples if task.answered(example)]
    answered = [example for example in answered if len(engine.render(task.prompt(example))) < limit]
    shown = spread(answered, SAMPLES)
    scored = bool(answered) and task.comparable(answered)
    started = time.perf_counter()
    completions = engine.chat([task.prompt(example) for example in (answered if scored else shown)], params)
    evaluation.seconds = time.perf_counter() - started
    evaluation.tokens = sum(len(completion.ids) for completion in completions)
    texts = [completion.text for completion in completions]
    if scored:
        scores = judge(task, name, answered, texts).scores
        baseline = baseline_scores(task, name, answered, lambda: _judged_baseline(task, name, answered))
        evaluation.scores |= {key: value for key, value in scores.items() if key != "count"}
        evaluation.baseline |= {key: value for key, value in baseline.items() if key != "count"}
        texts = spread(texts, SAMPLES)
    evaluation.samples = [
        {"set": name, "prompt": task.question(example), "reference": task.reference(example), "output": text}
        for example, text in zip(shown, texts, strict=True)
    ]
    return evaluation


def reference_loss(engine: Engine, encoded: Sequence[TokenExample]) -> Evaluation:
    """The mean loss of the marked tokens in nats, and that of a model that knows only their frequencies."""
    adapted = encoded
    if engine.model.adapter_set is not None:
        adapted = [AdapterExample(example.ids, example.mask, engine.adapter) for example in encoded]
    measured = examples_loss(engine.model, adapted)
    unigram = unigram_loss(encoded)
    return Evaluation(
        {"loss": measured.loss, "perplexity": measured.perplexity, "count": len(encoded)},
        baseline={"loss": unigram.loss, "perplexity": unigram.perplexity},
    )


def complete(
    engine: Engine | Endpoint,
    task: Task[Any],
    examples: Sequence[Any],
    params: SamplingParams,
    *,
    as_text: bool = False,
) -> tuple[list[Completion], list[str]]:
    """The model's completion of each example; empty, with a note, for prompts longer than the model's context."""
    if isinstance(engine, Endpoint):
        return _from_endpoint(engine, task, examples, params, as_text)
    prompts: list[list[int]]
    if as_text:
        tokenizer: Any = engine.tokenizer
        begin = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        prompts = [begin + tokenizer.encode(task.text_prompt(example)) for example in examples]
        params = replace(params, stop=("\n",))
    else:
        prompts = [engine.render(task.prompt(example)) for example in examples]
    limit = engine.model.config.max_position_embeddings

    def generate(numbers: Sequence[int], candidates: int) -> list[Completion]:
        # A search takes long, and does not help a model that has only been pre-trained.
        return completions_of(engine, [prompts[number] for number in numbers], params, 1 if as_text else candidates)

    completions = task.complete(examples, generate)
    long = sum(len(ids) >= limit for ids in prompts)
    notes = [f"{long:,} prompts are longer than the model's context of {limit} tokens and count as wrong"]
    return completions, notes if long else []


def _from_endpoint(
    endpoint: Endpoint, task: Task[Any], examples: Sequence[Any], params: SamplingParams, as_text: bool
) -> tuple[list[Completion], list[str]]:
    """`complete` where the endpoint renders the prompts, and takes the likeliest completion without a search."""

    def generate(numbers: Sequence[int], candidates: int) -> list[Completion]:
        chosen = [examples[number] for number in numbers]
        if as_text:
            texts = [task.text_prompt(example) for example in chosen]
            return endpoint.generate(texts, replace(params, stop=("\n",)), skip_long=True)
        return endpoint.chat([task.prompt(example) for example in chosen], params, skip_long=True)

    completions = task.complete(examples, generate)
    long = sum(not each.text and each.finish_reason == "length" and not each.logprobs for each in completions)
    notes = [f"{long:,} prompts are longer than the context of the endpoint's model and count as wrong"]
    return completions, notes if long else []


def judge(
    task: Task[Any],
    name: str,
    examples: Sequence[Any],
    completions: Sequence[str],
    confidences: Sequence[float | None] = (),
) -> Evaluation:
    """The mean of each metric over the examples that can be judged, their `count`, and samples evenly spread.

    With `confidences` also the share of confident answers, and how many of these are right. A note says how many
    references are invalid. Raises InputError where all are.
    """
    answers = [task.answer(*pair) for pair in zip(examples, completions, strict=True)]
    judged = [
        (example, answer, task.score(example, completion))
        for example, answer, completion in zip(examples, answers, completions, strict=True)
    ]
    valid = [row for row in judged if row[2].valid]
    invalid = [f"{task.reference(example)}: {score.detail}" for example, _, score in judged if not score.valid]
    if judged and not valid:
        raise InputError(
            f"{name}: nothing can be judged: the {task.reference_name} of all {len(judged):,} examples fails",
            invalid[:NAMED],
        )
    notes = []
    if invalid:
        notes.append(
            f"{len(invalid):,} examples are not counted because their own {task.reference_name} fails, such as "
            f"{invalid[0]}"
        )
    samples = [
        {
            "set": name,
            "prompt": task.question(example),
            "reference": task.reference(example),
            "output": answer,
            "correct": score.correct,
            "detail": score.detail,
        }
        for example, answer, score in spread([] if name in task.hidden else valid, SAMPLES)
    ]
    scores = mean([score for _, _, score in valid])
    if confidences and None not in confidences:
        pairs = [(row, level or 0.0) for row, level in zip(judged, confidences, strict=True) if row[2].valid]
        sure = [score.correct for (_, answer, score), level in pairs if answer and level >= CONFIDENT]
        count = scores.pop("count")
        scores["confident_share"] = len(sure) / len(valid)
        if sure:
            scores["confident_accuracy"] = sum(sure) / len(sure)
        scores["count"] = count
    return Evaluation(scores, samples, notes, kinds=_kinds(task, valid))


def _kinds(task: Task[Any], judged: Sequence[tuple[Any, str, Score]]) -> dict[str, dict[str, int]]:
    """How many examples of each kind are right, and their count; the kind with most errors first."""
    kinds: dict[str, dict[str, int]] = {}
    for example, _, score in judged:
        if kind := task.kind(example):
            counts = kinds.setdefault(kind, {"right": 0, "count": 0})
            counts["right"] += score.correct
            counts["count"] += 1
    return dict(sorted(kinds.items(), key=lambda item: item[1]["right"] - item[1]["count"]))


def mean(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of each metric, and the number of scores as `count`."""
    names = dict.fromkeys(name for score in scores for name in score.metrics)
    means = {name: sum(score.metrics[name] for score in scores) / len(scores) for name in names}
    return means | {"count": len(scores)}


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most `count` rows, evenly spread from the first on."""
    return list(rows[:: max(1, len(rows) // count)][:count])
