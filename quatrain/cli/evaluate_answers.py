"""`quatrain evaluate` of a model that takes turns: on questions with SQL, by running its answers, and on chats."""

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
    """The exit code, after the scores have been shown; None where the data are neither questions with SQL nor chats."""
    from quatrain.core.errors import InputError
    from quatrain.data.documents import detect
    from quatrain.tasks.text2sql.questions import asks_sql

    if asks_sql(data, databases=databases):
        return _questions(network, tokenizer, data, databases, examples, max_new_tokens, json_lines)
    try:
        format = detect(data)
    except InputError:
        return None  # the reader of texts says what is wrong
    return _chats(network, tokenizer, data, examples, context, json_lines) if format == "chat" else None


def _questions(
    network: Model,
    tokenizer: Tokenizer,
    data: str,
    databases: str | None,
    examples: int | None,
    max_new_tokens: int,
    json_lines: bool,
) -> int:
    """How many answers give what the questions' own SQL gives, for each source of several."""
    from quatrain.cli.output import show, show_json
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.core.wording import format_metric, text_table
    from quatrain.data.corpus import Corpus
    from quatrain.data.sources import parts
    from quatrain.generation.engine import Engine, SamplingParams
    from quatrain.tasks.text2sql.questions import Questions, ask, databases_of, judge

    engine, params = Engine(network, tokenizer), SamplingParams(max_new_tokens=max_new_tokens)
    reporter = SilentReporter() if json_lines else create_reporter()
    found, notes, samples = {}, [], []
    for name in parts(data):
        with databases_of(name, databases) as held:
            reader = Questions(held)
            asked = reader.take(Corpus(name, format="sql"), examples)
            answers, long = ask(engine, asked, params)
            judged = judge(name, asked, [answer.text for answer in answers], held.connection)
        found[name] = judged.scores
        notes += [f"{name}: {note}" for note in (*reader.notes, *long, *judged.notes)]
        samples += judged.samples[:3]
    if json_lines:
        show_json({"task": "sql", "scores": found, "notes": notes})
        return 0
    for note in notes:
        reporter.warn(note)
    columns = ("execution_accuracy", "exact_match", "count")
    rows = [(name, *(format_metric(key, scores[key]) for key in columns)) for name, scores in found.items()]
    show(text_table(("set", *(column.replace("_", " ") for column in columns)), rows))
    for sample in samples:
        verdict = "right" if sample["correct"] else f"wrong, {sample['detail']}; expected: {sample['reference']}"
        show(f"{sample['prompt']}\n  → {sample['output']}\n  {verdict}\n")
    return 0


def _chats(
    network: Model, tokenizer: Tokenizer, data: str, examples: int | None, context: int, json_lines: bool
) -> int:
    """How surprised the model is by what the assistant says in chats."""
    from itertools import islice

    from quatrain.cli.output import show, show_json
    from quatrain.data.batches import TokenExample
    from quatrain.data.documents import read_conversations
    from quatrain.evaluation.perplexity import examples_loss
    from quatrain.tokenizers.chat import render

    rendered = (render(tokenizer, messages) for messages in islice(read_conversations(data), examples))
    chats = [TokenExample(each.ids, each.assistant_mask) for each in rendered]
    short = [chat for chat in chats if len(chat) - 1 <= context]
    measured = examples_loss(network, short)
    left_out = len(chats) - len(short)
    if json_lines:
        figures = {"task": "chat", "loss": measured.loss, "perplexity": measured.perplexity}
        show_json(figures | {"tokens": measured.count, "chats": len(short), "left_out": left_out})
        return 0
    show(f"loss        {measured.loss:.4f} nats a token of the answers")
    show(f"perplexity  {measured.perplexity:.3f}")
    show(f"tokens      {measured.count:,}")
    show(f"chats       {len(short):,}" + (f"; {left_out:,} longer than {context} tokens left out" if left_out else ""))
    return 0
