"""`quatrain evaluate` of a model that takes turns: on the examples of a task, or on chats."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer


def measure(
    network: Model,
    tokenizer: Tokenizer,
    data: str,
    databases: str | None,
    examples: int | None,
    context: int,
    max_new_tokens: int,
    *,
    json_lines: bool,
) -> int | None:
    """Shows the scores and returns the exit code; None where the data are neither examples of a task nor chats."""
    from quatrain.core.errors import InputError
    from quatrain.data.documents import detect
    from quatrain.data.settings import DataSettings
    from quatrain.tasks.task import spec_of_source

    if spec_of_source(DataSettings(source=data, databases=databases)) is not None:
        return _task(network, tokenizer, data, databases, examples, max_new_tokens, json_lines)
    try:
        format = detect(data)
    except InputError:
        return None  # the reader of texts raises the error that names the fault
    return _chats(network, tokenizer, data, examples, context, json_lines) if format == "chat" else None


def _task(
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
    from quatrain.data.corpus import Corpus
    from quatrain.data.settings import DataSettings
    from quatrain.data.sources import source_names
    from quatrain.evaluation.evaluate import evaluate
    from quatrain.generation.engine import Engine, SamplingParams
    from quatrain.tasks.task import spec_of_source

    engine, params = Engine(network, tokenizer), SamplingParams(max_new_tokens=max_new_tokens)
    reporter = SilentReporter() if json_lines else create_reporter()
    results, notes, kind = {}, [], ""
    for name in source_names(data):
        settings = DataSettings(source=name, databases=databases)
        spec = spec_of_source(settings)
        if spec is None:
            continue
        kind = spec.name
        with spec.open(settings, "source", Corpus(name, format=spec.name)) as task:
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
        beside = [format_metric(key, result.baseline[key]) if key in result.baseline else "" for key in columns]
        rows.append((f"  baseline: {result.baseline_name}", *beside))
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
    beside = {key: f"  (token frequencies: {value:.4f})" for key, value in result.baseline.items()}
    show(f"loss        {loss:.4f} nats a token of the answers{beside['loss']}")
    show(f"perplexity  {perplexity:.3f}{beside['perplexity']}")
    show(f"tokens      {tokens:,}")
    notice = f"; {left_out:,} longer than {context} tokens left out" if left_out else ""
    show(f"chats       {len(encoded):,}{notice}")
    return 0
