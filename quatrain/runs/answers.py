"""Measuring a model that answers: chats that it has not learned, questions with SQL, and the recipe's prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.data.batches import TaskExample
from quatrain.data.corpus import Corpus
from quatrain.data.messages import content_text, has_calls
from quatrain.data.settings import DataSettings
from quatrain.data.sources import parts
from quatrain.evaluation.perplexity import examples_loss
from quatrain.evaluation.tasks import spread
from quatrain.generation.engine import Engine
from quatrain.generation.logits import SamplingParams
from quatrain.runs.chats import ANSWERED, Chat, conversations, encode_chats, split
from quatrain.runs.material import questions_of
from quatrain.runs.recipe import LEARNING_KINDS
from quatrain.runs.stage import LOOKS, StageContext, StageResult
from quatrain.tasks.text2sql.questions import SHOWN, Asked, ask, asks_sql, judge

SHORT = 5
"""Words of an answer that is right only where it is the same."""


def answers(settings: Settings, context: StageContext) -> bool:
    """Whether the model takes turns by then: the stage that taught it last was one of chats, or its data are chats."""
    last = next((stage for stage in _before(context) if stage.kind in LEARNING_KINDS), None)
    if last is not None:
        return last.kind == "dpo" or (last.kind == "finetune" and last.objective == "chat")
    kinds = (_kind(getattr(own, part), own) for _, part, own in sets(context.recipe.data_of(settings)))
    return any(kind is not None and kind != "pairs" for kind in kinds)


def data_measured(settings: Settings, context: StageContext) -> DataSettings:
    """The data that a stage is measured on: its own, or those of the stage that taught chats last, or the recipe's."""
    taught = [stage for stage in _before(context) if stage.kind == "finetune"]
    own = getattr(settings, "data", None) or next((stage.data for stage in taught if stage.data), None)
    return own or context.recipe.data


def _before(context: StageContext) -> list[Any]:
    """The stages up to this one, the last one first."""
    return list(context.recipe.stage[: context.index + 1])[::-1]


def _kind(source: str, data: DataSettings) -> str | None:
    """What a source is measured as: "sql", "chat", "pairs" of a text and its answer, or nothing, such as a text."""
    if asks_sql(source, format=data.format, databases=data.databases):
        return "sql"
    try:
        found = data.format or Corpus(source, columns=data.columns or None, streaming=data.streaming).format
    except InputError:
        return None
    return "pairs" if found in ANSWERED else "chat" if found == "chat" else None


def measure(settings: Settings, context: StageContext, engine: Engine, result: StageResult) -> None:
    """Adds scores of the sets held out, their samples, and answers to the recipe's prompts, asked as turns."""
    data, wanted = data_measured(settings, context), context.recipe.evaluate
    scores_of: dict[str, dict[str, float]] = {}
    result.samples = []
    said = _Said()
    for name, part, own in sets(data):
        kind = _kind(getattr(own, part), own)
        if kind is None:
            continue
        if kind == "sql":
            scores, samples, notes = _questions(name, part, own, context, engine, said)
        else:
            scores, samples, notes = _chats(name, part, own, settings, context, engine, said)
        result.notes += [f"{name}: {note}" for note in notes]
        result.samples += samples
        if scores:
            scores_of[name] = scores
            context.reporter.score(name, scores)
    if not scores_of and data.source is not None:
        result.notes.append("no scores: name data that is held out with data.test, or a share with data.validation")
    for temperature in wanted.temperatures if wanted.prompts else ():
        params = SamplingParams(max_new_tokens=wanted.max_new_tokens, temperature=temperature, seed=context.seed)
        turns = [[{"role": "user", "content": prompt}] for prompt in wanted.prompts]
        result.samples += [
            {"set": f"temperature {temperature}", "prompt": prompt, "output": text, "temperature": temperature,
             "turns": True}
            for prompt, text in zip(wanted.prompts, said.of(engine, turns, params), strict=True)
        ]
    result.scores = scores_of or None
    result.generation_tokens_per_second = said.tokens / said.seconds if said.seconds else None


class _Said:
    """Counts what an engine says, and the time that it takes."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def of(self, engine: Engine, turns: list[list[dict[str, Any]]], params: SamplingParams) -> list[str]:
        started = time.perf_counter()
        found = engine.chat(turns, params)
        self.add(found, time.perf_counter() - started)
        return [each.text for each in found]

    def add(self, found: Any, seconds: float) -> None:
        self.tokens += sum(len(each.ids) for each in found)
        self.seconds += seconds


def sets(data: DataSettings) -> Iterator[tuple[str, str, DataSettings]]:
    """The sets that scores are measured on: each part of `data.test`, or of `data.dev`, or the share held out, with its
    name, the part of the data that it is, and settings of it alone."""
    for part in ("test", "dev"):
        source = getattr(data, part)
        if source is not None:
            yield from ((name, part, data.model_copy(update={part: name})) for name in parts(source))
            return
    if data.source is not None and data.validation:
        yield "held out", "source", data


def _source_task(
    name: str, part: str, data: DataSettings, context: StageContext, engine: Engine
) -> Evaluation | None:
    """Scores the greedy completions of a set whose examples belong to a task; None where no task claims it."""
    task = source_task(data, part)
    if task is None:
        return None
    limits = context.recipe.evaluate
    with task, context.reporter.task("answering", unit="question") as bar:
        examples = task.take()
        notes = list(task.notes)
        if part == "source":
            examples = split(examples, data.validation, context.seed)[1]
        examples = examples[: limits.examples]
        if not examples:
            return Evaluation({}, notes=[NOTHING_HELD_OUT])
        params = SamplingParams(max_new_tokens=limits.max_new_tokens)
        evaluation = evaluate(engine, task, name, examples, params=params, progress=bar.update)
    evaluation.notes[:0] = notes
    return evaluation


def _chats(
    name: str, part: str, data: DataSettings, settings: Settings, context: StageContext, engine: Engine, said: _Said
) -> tuple[dict[str, float], list[dict[str, Any]], list[str]]:
    """The loss of the answers, and some of the model's own beside them; where they are short, the share that is right.
    """
    wanted = context.recipe.evaluate
    chats = held_out_chats(part, data, settings, context)[: wanted.examples]
    if not chats:
        return {}, [], ["nothing is held out; name data.test, or a share with data.validation"]
    limit = engine.model.config.max_position_embeddings
    try:
        examples, notes = encode_chats(chats, engine.tokenizer, limit)  # type: ignore[arg-type]
    except InputError as error:
        return {}, [], [error.message]
    own = examples
    if engine.model.adapter_set is not None:
        own = [TaskExample(each.ids, each.mask, engine.adapter) for each in examples]
    measured = examples_loss(engine.model, own)
    scores = {"loss": measured.loss, "perplexity": measured.perplexity, "count": len(examples)}
    shown = [(turns[:-1], turns[-1]) for _, turns in chats if turns[-1]["role"] == "assistant"]
    shown = [each for each in shown if len(engine.render(each[0])) < limit]
    params = SamplingParams(max_new_tokens=wanted.max_new_tokens)
    if shown and all(len(content_text(a).split()) <= SHORT and not has_calls(a) for _, a in shown):
        texts = said.of(engine, [asked for asked, _ in shown], params)
        right = [text.strip() == content_text(answer).strip() for text, (_, answer) in zip(texts, shown, strict=True)]
        scores["exact"] = sum(right) / len(right)
    texts = said.of(engine, [asked for asked, _ in spread(shown, SHOWN)], params)
    samples = [
        {"set": name, "prompt": content_text(asked[-1]), "reference": content_text(answer), "output": text}
        for (asked, answer), text in zip(spread(shown, SHOWN), texts, strict=True)
    ]
    return scores, samples, [note for note in notes if "left out" in note]


def held_out_chats(part: str, data: DataSettings, settings: Settings, context: StageContext) -> list[Chat]:
    """All chats of a part of their own, or the share of the source that was not learned."""
    if data.streaming and part == "source":
        return list(islice(conversations(data, context, settings, []), context.recipe.evaluate.examples))
    found = list(conversations(data, context, settings, [], part))
    return split(found, data.validation, context.seed)[1] if part == "source" else found


def look(settings: Settings, context: StageContext, engine: Engine) -> list[dict[str, Any]]:
    """A few answers of a model that still learns: to the recipe's prompts, or to chats held out."""
    wanted = context.recipe.evaluate
    params = SamplingParams(max_new_tokens=wanted.max_new_tokens, seed=context.seed)
    if wanted.prompts:
        params = replace(params, temperature=next(iter(wanted.temperatures), 0.0))
        turns = [[{"role": "user", "content": prompt}] for prompt in wanted.prompts[:LOOKS]]
        name, references = f"temperature {params.temperature}", [""] * LOOKS
    else:
        name, part, data = next(sets(data_measured(settings, context)), ("", "", None))
        known = data is not None and _kind(getattr(data, part), data) is not None
        chats = held_out_chats(part, data, settings, context) if data is not None and known else []
        chats = [chat for chat in spread(chats, LOOKS) if chat[1][-1]["role"] == "assistant"] if chats else []
        turns, references = [chat[:-1] for _, chat in chats], [content_text(chat[-1]) for _, chat in chats]
    said = engine.chat(turns, params) if turns else []
    return [
        {"set": name, "prompt": content_text(asked[-1]), "output": answer.text}
        | ({"reference": right} if right else {})
        for asked, answer, right in zip(turns, said, references, strict=False)
    ]
