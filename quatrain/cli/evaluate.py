"""`quatrain evaluate`: the loss of a model on a text, or its scores on a task, beside a dumb baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument
from quatrain.cli.suites import OPTIONS, SuiteOptions, is_suite, reproduce, run_suites

if TYPE_CHECKING:
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

TEXT_HEADS = ("causal",)
"""Heads of models that are evaluated by the loss of texts and by their completions."""


def evaluate(
    model: str | None = None,
    /,
    *what: str,
    context: int | None = None,
    limit: Annotated[int | None, Parameter(name=("--limit", "--examples"))] = None,
    split: str | None = None,
    databases: str | None = None,
    source_prefix: TextArgument = "",
    max_new_tokens: int | None = None,
    suites: SuiteOptions = OPTIONS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Evaluate a model on suites, or on data of your own, beside the scores of dumb baselines and classic methods.

    A suite asks the questions of a benchmark (mmlu, gsm8k, truthfulqa, perplexity, …) and counts the answers in every
    way that papers use; SUITE:FILE takes other data. Without a suite, a causal language model is evaluated on a text,
    on the answers in chats, or on questions with SQL by running its answers; a model with the head of a task (classes,
    tags, answers, choices, translation, summaries, similarity) on records by the metrics of its task.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, or an id of the Hugging Face hub.
    what
        Suites, each with its own data or as SUITE:FILE; lm-eval:TASK for a task of lm-eval. Or one source of data: a
        file, a folder, hf:owner/name, or a name that `quatrain data list` shows.
    context
        The context in tokens of a text's perplexity; the model's longest by default.
    limit
        How many examples to take from the beginning; all by default.
    split
        Of a data set of Hugging Face, such as validation.
    databases
        The databases of questions with SQL: a folder, a .zip or a file of SQLite databases. The catalog knows those of
        its own questions.
    source_prefix
        The prefix of each source that an encoder-decoder was trained with, such as "summarize: ".
    max_new_tokens
        The most tokens of a completion; 120, or the suite's own number, by default.
    json_lines
        Write one JSON object for each suite, for programs.
    """
    from quatrain.core.errors import InputError

    if suites.passport is not None:
        return reproduce(suites.passport, suites, json_lines=json_lines)
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: must be at least 1")
    asked = [name for name in what if is_suite(name)]
    if model is None or not what or (asked and len(asked) < len(what)) or (not asked and len(what) > 1):
        raise InputError(_wrong_arguments(model, what, asked))
    if asked:
        more = {"context": context, "databases": databases, "prefix": source_prefix}
        return run_suites(model, asked, suites, limit=limit, max_new_tokens=max_new_tokens, more=more,
                          json_lines=json_lines)  # fmt: skip
    return _on_data(model, what[0], context, limit, split, databases, source_prefix, max_new_tokens or 120, json_lines)


def _wrong_arguments(model: str | None, what: tuple[str, ...], asked: list[str]) -> str:
    from quatrain.evaluation.suite import suite_names

    known = f"Suites: {', '.join(suite_names())}."
    if model is None:
        return f"evaluate needs a model and suites or data: quatrain evaluate MODEL mmlu gsm8k. {known}"
    if not what:
        return f"evaluate needs suites or data after {model}. {known}"
    others = ", ".join(name for name in what if name not in asked)
    return f"{others}: give suites, or one source of data alone. {known}"


def _on_data(
    model: str,
    data: str,
    context: int | None,
    examples: int | None,
    split: str | None,
    databases: str | None,
    source_prefix: str,
    max_new_tokens: int,
    json_lines: bool,
) -> int:
    """The scores on a source of data by the task that it is for."""
    import sys

    from quatrain.core.errors import InputError
    from quatrain.loading.model import load_model

    network, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError(f"{model} has no tokenizer: a text cannot be measured without its tokens")
    longest = network.config.context_length
    if context is not None and not 1 <= context <= longest:
        raise InputError(f"--context {context}: must be from 1 to the model's longest, {longest}")
    examples = None if examples is None else min(examples, sys.maxsize)
    limit = context or longest
    if network.config.head not in TEXT_HEADS:
        return _records(network, tokenizer, data, split, source_prefix, examples, limit, max_new_tokens, json_lines)
    from quatrain.data.corpus import DataParts
    from quatrain.data.settings import source_settings
    from quatrain.tasks.task import spec_of_source

    if spec_of_source(DataParts(source_settings(data, databases))) is not None:
        return _source_task(network, tokenizer, data, databases, examples, max_new_tokens, json_lines)
    if _is_chat(data):
        return _chats(network, tokenizer, data, examples, limit, json_lines)
    return _text(network, tokenizer, data, limit, json_lines)


def _is_chat(data: str) -> bool:
    from quatrain.core.errors import InputError
    from quatrain.data.documents import detect

    try:
        return detect(data) == "chat"
    except InputError:
        return False  # the reader of texts raises the error that names the fault


def _text(network: Model, tokenizer: Tokenizer, data: str, context: int, json_lines: bool) -> int:
    """The perplexity of a text."""
    import numpy as np

    from quatrain.cli.output import show, show_json
    from quatrain.data.documents import read_documents
    from quatrain.evaluation.metrics.likelihood import bits_per
    from quatrain.evaluation.perplexity import text_loss, token_entropy

    documents = list(read_documents(data))
    ids = [token for document in documents for token in tokenizer.encode(document)]
    tokens = np.asarray(ids, dtype=np.int64)
    measured = text_loss(network, tokens, context=context)
    baseline = token_entropy(tokens)
    characters = sum(map(len, documents))
    bits = bits_per(measured.loss * measured.count, characters, "character")
    if json_lines:
        frequencies = {"name": "token frequencies", "loss": baseline.loss, "perplexity": baseline.perplexity}
        figures: dict[str, Any] = {"loss": measured.loss, "perplexity": measured.perplexity, "bits_per_character": bits}
        figures |= {"baseline": frequencies}
        show_json(figures | {"tokens": measured.count, "characters": characters})
        return 0
    show(f"loss                {measured.loss:.4f} nats a token (token frequencies alone: {baseline.loss:.4f})")
    show(f"perplexity          {measured.perplexity:.3f} (token frequencies alone: {baseline.perplexity:.3f})")
    show(f"bits per character  {bits:.4f}")
    show(f"tokens              {measured.count:,}")
    return 0


def _source_task(
    network: Model,
    tokenizer: Tokenizer,
    data: str,
    databases: str | None,
    examples: int | None,
    max_new_tokens: int,
    json_lines: bool,
) -> int:
    """The scores of each source, beside the task's dumb baseline."""
    from quatrain.cli.output import show, show_json
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.core.wording import format_metric, text_table
    from quatrain.data.corpus import DataParts
    from quatrain.data.settings import source_settings
    from quatrain.data.sources import source_names
    from quatrain.evaluation.evaluate import evaluate
    from quatrain.generation.engine import Engine, SamplingParams
    from quatrain.tasks.task import source_task

    engine, params = Engine(network, tokenizer), SamplingParams(max_new_tokens=max_new_tokens)
    reporter = SilentReporter() if json_lines else create_reporter()
    results, notes, kind = {}, [], ""
    for name in source_names(data):
        task = source_task(DataParts(source_settings(name, databases)))
        if task is None:
            continue
        kind = task.name
        with task:
            chosen = task.take(examples)
            result = evaluate(engine, task, name, chosen, params=params)
            notes += [f"{name}: {note}" for note in (*task.notes, *result.notes)]
        results[name] = result
    if json_lines:
        scores = {name: result.scores for name, result in results.items()}
        baselines = {name: {"name": result.baseline_name, **result.baseline} for name, result in results.items()}
        show_json({"task": kind, "scores": scores, "baselines": baselines, "notes": notes})
        return 0
    for note in notes:
        reporter.warn(note)
    columns = list(dict.fromkeys(key for result in results.values() for key in result.scores))
    rows = []
    for name, result in results.items():
        rows.append((name, *(format_metric(key, result.scores[key]) for key in columns)))
        baselines_row = [format_metric(key, result.baseline[key]) if key in result.baseline else "" for key in columns]
        rows.append((f"  baseline: {result.baseline_name}", *baselines_row))
    show(text_table(("set", *(column.replace("_", " ") for column in columns)), rows))
    for sample in [sample for result in results.values() for sample in result.samples[:3]]:
        verdict = "right" if sample["correct"] else f"wrong, {sample['detail']}; expected: {sample['reference']}"
        show(f"{sample['prompt']}\n  → {sample['output']}\n  {verdict}\n")
    return 0


def _chats(
    network: Model, tokenizer: Tokenizer, data: str, examples: int | None, context: int, json_lines: bool
) -> int:
    """The loss of the assistant's tokens in chats, beside that of token frequencies."""
    from itertools import islice

    from quatrain.cli.output import show, show_json
    from quatrain.data.documents import read_conversations
    from quatrain.evaluation.evaluate import reference_loss
    from quatrain.generation.engine import Engine
    from quatrain.tasks.instructions import ChatEncoder

    encoder = ChatEncoder(context)
    conversations = islice(read_conversations(data), examples)
    encoded = list(encoder.encode((("", messages) for messages in conversations), tokenizer))
    result = reference_loss(Engine(network, tokenizer), encoded)
    tokens = sum(example.num_labels for example in encoded)
    loss, perplexity, left_out = result.scores["loss"], result.scores["perplexity"], encoder.long
    if json_lines:
        figures = {"task": "chat", "loss": loss, "perplexity": perplexity, "baseline": result.baseline}
        show_json(figures | {"tokens": tokens, "chats": len(encoded), "left_out": left_out})
        return 0
    comparison = {key: f"  (token frequencies: {value:.4f})" for key, value in result.baseline.items()}
    show(f"loss        {loss:.4f} nats a token of the answers{comparison['loss']}")
    show(f"perplexity  {perplexity:.3f}{comparison['perplexity']}")
    show(f"tokens      {tokens:,}")
    notice = f"; {left_out:,} longer than {context} tokens left out" if left_out else ""
    show(f"chats       {len(encoded):,}{notice}")
    return 0


def _records(
    network: Model,
    tokenizer: Tokenizer,
    data: str,
    split: str | None,
    source_prefix: str,
    examples: int | None,
    context: int,
    max_new_tokens: int,
    json_lines: bool,
) -> int:
    """The metrics of the model's task beside the dumb baseline's, by label where there are labels, and some samples."""
    from itertools import islice

    from quatrain.cli.output import show, show_json
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.core.wording import text_table
    from quatrain.data.corpus import Corpus
    from quatrain.evaluation.evaluate import evaluate
    from quatrain.generation.params import SamplingParams
    from quatrain.tasks.kinds import record_task, task_of_model
    from quatrain.tasks.records import placed

    settings = task_of_model(network.config, source_prefix=source_prefix)
    kind = record_task(settings)
    corpus = Corpus(data, format=kind.format, split=split)
    records = list(islice(placed(corpus, related=kind.related), examples))
    labels = kind.model_labels(network.config.labels)
    task = kind(kind.make_objective(settings, tokenizer, corpus.format, labels, context))
    reporter = SilentReporter() if json_lines else create_reporter()
    params = SamplingParams(max_new_tokens=max_new_tokens)
    with reporter.task("answering", total=len(records), unit="text") as bar:
        result = evaluate((network, tokenizer), task, data, records, params=params, progress=bar.update)
    if json_lines:
        baseline = {"name": result.baseline_name, **result.baseline}
        head = {"task": kind.name, "scores": result.scores, "baseline": baseline}
        show_json({**head, **result.details, "notes": result.notes})
        return 0
    for note in result.notes:
        reporter.warn(note)
    rows = [
        (name.replace("_", " "), _figure(value), _figure(result.baseline[name]) if name in result.baseline else "")
        for name, value in result.scores.items()
    ]
    show(text_table(("measure", "value", "baseline"), rows))
    show(f"baseline: {result.baseline_name}\n")
    if by_label := result.details.get("by_label"):
        columns = ("label", "precision", "recall", "f1", "count")
        show(text_table(columns, [[row["label"], *(_figure(row[name]) for name in columns[1:])] for row in by_label]))
    for sample in result.samples[:3]:
        verdict = "" if "correct" not in sample or sample["correct"] else f" (expected: {sample['reference']})"
        show(f"{sample['prompt']}\n  → {sample['output']}{verdict}\n")
    return 0


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
