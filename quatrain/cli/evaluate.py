"""`quatrain evaluate`: how well a model predicts a text, or does its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument

if TYPE_CHECKING:
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

SCORED = ("causal",)
"""The heads whose models are measured by perplexity."""


def evaluate(
    model: str,
    data: str,
    *,
    context: int | None = None,
    examples: int | None = None,
    split: str | None = None,
    databases: str | None = None,
    source_prefix: TextArgument = "",
    max_new_tokens: int = 120,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Measure a model: how surprised it is by a text, or how well it does the task that it was made for.

    A model that says the next token is measured on all of a text, on the answers in chats, or on questions with SQL by
    running what it says. One that tells classes or tags apart, answers, chooses, translates, summarizes or compares is
    measured on records, by what people quote for its task.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, or an id of the Hugging Face hub.
    data
        A file, a folder, hf:owner/name, or a name that `quatrain data list` shows.
    context
        The tokens that are read at once; the model's longest unless given.
    examples
        Of a task's records, chats or questions, the first so many; all unless given.
    split
        Of a data set of Hugging Face, such as validation.
    databases
        What questions with SQL are asked of: a folder, a .zip or a file of SQLite databases. The catalog knows those of
        its own questions.
    source_prefix
        What a model of texts out of texts was taught with before each source, such as "summarize: ".
    max_new_tokens
        The longest text that it says of a source, in tokens.
    json_lines
        Write one JSON object, for programs.
    """
    import sys

    from quatrain.core.errors import InputError
    from quatrain.loading.model import load_model

    network, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError(f"{model} has no tokenizer: a text cannot be measured without its tokens")
    longest = network.config.context_length
    if context is not None and not 1 <= context <= longest:
        raise InputError(f"--context {context}: must be from 1 to the model's longest, {longest}")
    if examples is not None and examples < 1:
        raise InputError(f"--examples {examples}: must be at least 1")
    examples = None if examples is None else min(examples, sys.maxsize)
    if network.config.head in SCORED:
        from quatrain.cli.evaluate_answers import measure

        found = measure(
            network, tokenizer, data, databases, examples, context or longest, max_new_tokens, json_lines=json_lines
        )
        return _text(network, tokenizer, data, context or longest, json_lines) if found is None else found
    limit = context or longest
    return _records(network, tokenizer, data, split, source_prefix, examples, limit, max_new_tokens, json_lines)


def _text(network: Model, tokenizer: Tokenizer, data: str, context: int, json_lines: bool) -> int:
    """The perplexity of a text."""
    import math

    import numpy as np

    from quatrain.cli.output import show, show_json
    from quatrain.data.documents import read_documents
    from quatrain.evaluation.perplexity import text_loss, token_entropy

    documents = list(read_documents(data))
    ids = [token for document in documents for token in tokenizer.encode(document)]
    tokens = np.asarray(ids, dtype=np.int64)
    measured = text_loss(network, tokens, context=context)
    baseline = token_entropy(tokens)
    characters = sum(map(len, documents))
    bits = measured.loss * measured.count / math.log(2) / max(1, characters)
    if json_lines:
        beside = {"name": "token frequencies", "loss": baseline.loss, "perplexity": baseline.perplexity}
        figures: dict[str, Any] = {"loss": measured.loss, "perplexity": measured.perplexity, "bits_per_character": bits}
        figures |= {"baseline": beside}
        show_json(figures | {"tokens": measured.count, "characters": characters})
        return 0
    show(f"loss                {measured.loss:.4f} nats a token (token frequencies alone: {baseline.loss:.4f})")
    show(f"perplexity          {measured.perplexity:.3f} (token frequencies alone: {baseline.perplexity:.3f})")
    show(f"bits per character  {bits:.4f}")
    show(f"tokens              {measured.count:,}")
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
    from quatrain.generation.logits import SamplingParams
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
