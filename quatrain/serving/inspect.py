"""What the page shows beside the text: how the model chose each token, the decoding controls, rows of a database.

`explained` gives the probability of each token and its alternatives, `distributions` what penalties, temperature and
filters do to the next token's distribution, `attended` what a token attends to. All of them read; text is generated
through the engine's queue alone. `routes.inspect` has the routes.
"""

from __future__ import annotations

import ast
import inspect
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.evaluation.inspection.attention import attention_maps
from quatrain.evaluation.inspection.tokens import token as described
from quatrain.generation import params as params_module
from quatrain.generation.candidates import completions_of
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.filters import processors
from quatrain.generation.params import SamplingParams
from quatrain.generation.pictures import reads_pictures, split_pictures
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import context_limit
from quatrain.models.transformer.stack import Model
from quatrain.serving.conversation import NO_SEARCH
from quatrain.serving.protocols.common import Form
from quatrain.tasks.task import Database, Table

ALTERNATIVES = 5
"""Tokens that are listed beside each token of a text."""
MOST_IDS = 1_000_000
"""The most token ids of one request."""
MOST_COLUMNS = 100
"""Columns of an answer that are returned."""

STAGES = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""What changes the distribution after the constraints, in the order in which `filters.processors` applies it."""


class Range(typing.NamedTuple):
    """Where a control stands in the page, and the values that its slider covers; any valid value can be typed."""

    group: str
    least: float | None = None
    most: float | None = None
    step: float | None = None


CONTROLS = {
    "max_new_tokens": Range("length", 1, 2048, 1),
    "min_new_tokens": Range("length", 0, 512, 1),
    "stop": Range("length"),
    "stop_token_ids": Range("length"),
    "ignore_eos": Range("length"),
    "temperature": Range("sampling", 0, 2, 0.05),
    "top_k": Range("sampling", 1, 200, 1),
    "top_p": Range("sampling", 0.01, 1, 0.01),
    "min_p": Range("sampling", 0, 1, 0.01),
    "typical_p": Range("sampling", 0.01, 1, 0.01),
    "top_h": Range("sampling", 0.01, 1, 0.01),
    "epsilon_cutoff": Range("sampling", 0, 0.1, 0.001),
    "eta_cutoff": Range("sampling", 0, 0.1, 0.001),
    "seed": Range("sampling"),
    "repetition_penalty": Range("penalties", 0.5, 2, 0.05),
    "frequency_penalty": Range("penalties", -2, 2, 0.1),
    "presence_penalty": Range("penalties", -2, 2, 0.1),
    "no_repeat_ngram_size": Range("penalties", 0, 10, 1),
    "logit_bias": Range("penalties"),
    "bad_words": Range("penalties"),
    "num_beams": Range("search", 1, 16, 1),
    "length_penalty": Range("search", -2, 2, 0.1),
    "early_stopping": Range("search"),
    "num_beam_groups": Range("search", 1, 8, 1),
    "diversity_penalty": Range("search", 0, 5, 0.1),
    "force_words": Range("search"),
    "penalty_alpha": Range("search", 0, 1, 0.05),
    "guidance_scale": Range("search", 0, 10, 0.1),
    "negative_prompt": Range("search"),
    "json_schema": Range("constraints"),
    "regex": Range("constraints"),
    "grammar": Range("constraints"),
    "choice": Range("constraints"),
}
"""The fields of SamplingParams that the page offers, in its order."""

NOT_OFFERED = {"num_return_sequences", "logprobs", "logprobs_mode", "logits_processors"}
"""The other fields: the page asks for these itself, or they are functions."""


class Text(Form):
    """A conversation and an answer to it, complete or not."""

    model: str | None = None
    messages: list[dict[str, Any]] = []
    content: str = ""
    """The assistant's answer."""
    ids: list[int] | None = Field(None, max_length=MOST_IDS)
    """The answer's token ids, where they are known: a text can be tokenized in several ways."""


class Position(Text):
    """A token of the answer: its place, 0 for the first."""

    position: int = Field(ge=0)


class DistributionQuestion(Position):
    """A token whose distribution is asked for."""

    settings: dict[str, Any] = {}
    """Fields of SamplingParams that differ from the model's own settings."""
    count: int = Field(12, ge=1, le=100)
    """Tokens to return."""


class AttentionQuestion(Position):
    """A token whose attention is asked for, in one layer and head or in the mean of all."""

    layer: int | None = Field(None, ge=0)
    head: int | None = Field(None, ge=0)


@cache
def _explanations() -> dict[str, str]:
    """The docstring under each field of SamplingParams, on one line."""
    tree = ast.parse(inspect.getsource(params_module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SamplingParams")
    found = {}
    for before, after in pairwise(body):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(SamplingParams, {**vars(params_module), "Tensor": torch.Tensor})


def decoding_controls() -> list[dict[str, Any]]:
    """The decoding controls: name, kind, group, default, range of the slider, explanation."""
    hints, explanations = _hints(), _explanations()
    defaults = {field.name: field.default for field in fields(SamplingParams) if field.default is not MISSING}
    return [
        {
            "name": name,
            "kind": _kind(name, hints[name]),
            "group": place.group,
            "default": _plain(defaults[name]),
            "least": place.least,
            "most": place.most,
            "step": place.step,
            "explanation": explanations[name],
        }
        for name, place in CONTROLS.items()
    ]


def _kind(name: str, hint: Any) -> str:
    """How a value is entered: "integer", "number", "boolean", "text", "list" or "choice"."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if any(typing.get_origin(option) is Literal for option in options):
        return "choice"
    kinds = {str: "text", bool: "boolean", float: "number", int: "integer"}
    for kind, word in kinds.items():
        if kind in options:
            return word
    return "list"


def _plain(value: Any) -> Any:
    """A value as JSON."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def describe(engine: Engine, adapter: str | None) -> dict[str, Any]:
    """What a model can do, for the page."""
    config, recommended = engine.model.config, engine.recommended
    own = {name: _plain(getattr(recommended, name)) for name in CONTROLS}
    defaults = {control["name"]: control["default"] for control in decoding_controls()}
    return {
        "chat": _has_chat(engine, adapter),
        "pictures": reads_pictures(config) and engine.processor is not None,
        "context": context_limit(engine.model, adapter),
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "settings": {name: value for name, value in own.items() if value != defaults[name]},
    }


def _has_chat(engine: Engine, adapter: str | None) -> bool:
    try:
        engine.check_chat(adapter)
    except InputError:
        return False
    return True


def continued(engine: Engine, adapter: str | None, text: Text) -> dict[str, Any]:
    """The ids that /v1/completions continues: a conversation's and those of the beginning of its answer."""
    before, answer = read(engine, adapter, text)
    while answer and answer[-1] in engine.end_ids:
        answer.pop()
    ids = [*before, *answer]
    return {"ids": ids, "answer": len(answer), "room": _room(engine, adapter, ids)}


def _room(engine: Engine, adapter: str | None, ids: Sequence[int]) -> int | None:
    """How many new tokens fit into the context; None without a limit."""
    return None if engine.has_encoder else engine.remaining_tokens(ids, adapter)


def text_of(engine: Engine, ids: Sequence[int]) -> dict[str, Any]:
    """The text of an answer's tokens, and whether its last token ends it."""
    _check_ids(engine, ids)
    ended = len(ids) > 0 and ids[-1] in engine.end_ids
    return {"text": _tokenizer(engine).decode(list(ids[:-1] if ended else ids)), "ended": ended}


def read(engine: Engine, adapter: str | None, text: Text) -> tuple[list[int], list[int]]:
    """The ids of a conversation and of its answer. A model without a chat template continues the messages' text."""
    if _has_chat(engine, adapter):
        if split_pictures(text.messages)[1]:
            raise InputError(
                "messages: have pictures; the tokens of an answer about a picture are neither shown nor branched here."
            )
        before = engine.render(text.messages, adapter=adapter)
    else:
        before = engine.encode("\n".join(str(message.get("content", "")) for message in text.messages), adapter)
    if text.ids is not None:
        _check_ids(engine, text.ids)
        return before, text.ids
    return before, _tokenizer(engine).encode(text.content) if text.content else []


def _check_ids(engine: Engine, ids: Sequence[int]) -> None:
    vocabulary = engine.model.config.vocab_size
    outside = next((token for token in ids if not 0 <= token < vocabulary), None)
    if outside is not None:
        raise InputError(f"ids: {format_value(outside)} is not in the model's vocabulary of {vocabulary:,}")


def _tokenizer(engine: Engine) -> Any:
    """The tokenizer of the completions."""
    if engine.target_tokenizer is None:
        raise InputError("This model has no tokenizer, so its text cannot be inspected.")
    return engine.target_tokenizer


def _named(engine: Engine, token: int) -> dict[str, Any]:
    return {"id": token, "text": described(_tokenizer(engine), token).text}


def _check_position(position: int, answer: Sequence[int]) -> None:
    if position >= len(answer):
        raise InputError(f"position: {position}; the answer has {len(answer)} tokens, numbered from 0")


def explained(engine: Engine, adapter: str | None, text: Text) -> dict[str, Any]:
    """Each token of an answer: its id, text, probability under the model itself, and the likeliest at its place."""
    before, answer = read(engine, adapter, text)
    if not answer:
        return {"prompt_tokens": len(before), "tokens": []}
    (score,) = engine.score([before], [answer], logprobs=ALTERNATIVES, adapters=adapter)
    tokens = [
        _named(engine, token)
        | {
            "probability": math.exp(logprob),
            "alternatives": [_named(engine, other) | {"probability": math.exp(value)} for other, value in top],
        }
        for token, logprob, top in zip(score.ids, score.logprobs, score.top_logprobs, strict=True)
    ]
    return {"prompt_tokens": len(before), "tokens": tokens}


def settings(engine: Engine, given: dict[str, Any]) -> SamplingParams:
    """The model's own settings with those given. Raises InputError, all problems at once."""
    unknown = [name for name in given if name not in CONTROLS]
    if unknown:
        raise InputError(
            "These settings are not known:", [f"{format_value(name)}; see /api/controls" for name in unknown]
        )
    return replace(engine.recommended, **given)


def distribution(engine: Engine, adapter: str | None, question: DistributionQuestion) -> dict[str, Any]:
    """The likeliest tokens at a place of the answer, and the chosen one, with their probabilities at each stage.

    A stage is what changes the distribution, with the number of tokens that it leaves.
    """
    before, answer = read(engine, adapter, question)
    params = settings(engine, question.settings)
    _check_position(question.position, answer)
    chosen = answer[question.position]
    stages = list(distributions(engine, adapter, before, answer[: question.position + 1], params))
    first, last = stages[0][1], stages[-1][1]
    tokens = first.topk(min(question.count, len(first))).indices.tolist()
    tokens += [token for token in dict.fromkeys((chosen, int(last.argmax()))) if token not in tokens]
    return {
        "chosen": chosen,
        "stages": [{"name": name, "left": int((values > 0).sum())} for name, values in stages],
        "tokens": [
            _named(engine, token) | {"probabilities": [float(values[token]) for _, values in stages]}
            for token in tokens
        ],
    }


def distributions(
    engine: Engine, adapter: str | None, before: Sequence[int], answer: Sequence[int], params: SamplingParams
) -> Iterator[tuple[str, torch.Tensor]]:
    """The probabilities (V,) of the answer's last token: the model's, and after each thing that changes them."""
    *past, _ = answer
    vocabulary = engine.model.config.vocab_size
    start = engine.rules.decoder_start_token_id if engine.has_encoder else None
    with engine.paused() as model:
        logits = _next_logits(model, adapter, before, past, start)
    yield "model", logits.softmax(dim=-1)[0]
    off: dict[str, Any] = NO_SEARCH | {name: None for name in STAGES[1:]}
    constrained = replace(params, temperature=0.0, **off)
    limit, ends = max(params.max_new_tokens, len(answer)), tuple(engine.end_ids)
    row = SequenceState(list(before), constrained, limit, 0, ends, None if start is None else (start,), ids=list(past))
    # A chooser of its own: that of the engine remembers the rows of its last step.
    chooser = TokenChooser(engine.rules, encoder_decoder=engine.has_encoder, tokenizer=engine.target_tokenizer)
    chooser.check(constrained, vocabulary)
    changed = chooser.process(logits, [row])
    if not torch.equal(changed, logits):
        yield "penalties and constraints", changed.softmax(dim=-1)[0]
    applied: dict[str, Any] = {"temperature": params.temperature}
    for name in STAGES if params.temperature else ():
        applied[name] = getattr(params, name)
        after = changed
        for process in processors(replace(constrained, **applied)):
            after = process(after)
        if applied[name] is not None and (name, applied[name]) != ("temperature", 1):
            yield name, after.softmax(dim=-1)[0]
    if not params.temperature and params.num_beams == 1 and not params.penalty_alpha:
        yield "greedy", torch.nn.functional.one_hot(changed[0].argmax(), vocabulary).float()


@torch.inference_mode()
def _next_logits(
    model: Model, adapter: str | None, before: Sequence[int], past: Sequence[int], start: int | None
) -> torch.Tensor:
    """The logits (1, V) of the token after the beginning of an answer; `start` is an encoder-decoder's start token."""
    adapters = None if model.adapter_set is None else [adapter]
    if start is None:
        ids = torch.tensor([[*before, *past]], device=model.device)
        hidden = model.hidden_states(ids, adapters=adapters)
    else:
        ids, decoder_ids = (torch.tensor([each], device=model.device) for each in (list(before), [start, *past]))
        hidden = model.hidden_states(ids, decoder_input_ids=decoder_ids, adapters=adapters)
    owners = torch.zeros(1, dtype=torch.long, device=model.device)
    return model.lm_logits(hidden[:, -1], owners).float().cpu()


def attended(engine: Engine, adapter: str | None, question: AttentionQuestion) -> dict[str, Any]:
    """The share of attention that a token of the answer pays to each token that it sees.

    The token is the query: its row of weights, which sums to 1 with the tokens of a soft prompt. For an
    encoder-decoder it is that of the decoder over the text of the encoder.
    """
    before, answer = read(engine, adapter, question)
    _check_position(question.position, answer)
    with engine.paused() as model:
        maps = attention_maps(
            model,
            typing.cast(Any, engine.tokenizer),
            before if engine.has_encoder else [*before, *answer],
            answer=answer if engine.has_encoder else (),
            target_tokenizer=_tokenizer(engine),
            adapter=adapter,
        )[-1]
    layers, heads = maps.layers, maps.heads
    problems = [
        f"{name}: {value}; the model has {count}, numbered from 0"
        for name, value, count in (("layer", question.layer, layers), ("head", question.head, heads))
        if value is not None and value >= count
    ]
    if problems:
        raise InputError("This attention does not exist:", problems)
    query = question.position + (1 if engine.has_encoder else len(before))
    weights = maps.weights[:, :, query]
    weights = weights if question.layer is None else weights[question.layer][None]
    weights = weights if question.head is None else weights[:, question.head][:, None]
    row = weights.mean(dim=(0, 1))[-len(maps.keys) :]
    seen = maps.keys if engine.has_encoder else maps.keys[: query + 1]
    return {
        "kind": maps.kind,
        "layers": layers,
        "heads": heads,
        "prompt_tokens": len(before),
        "tokens": [
            {"id": key.id, "text": key.text, "weight": float(weight)} for key, weight in zip(seen, row, strict=False)
        ],
    }


def tables_of(database: Database | None) -> dict[str, Any]:
    """Whether questions are answered from a database, and its tables."""
    tables = [] if database is None else database.tables()
    listed = [{"name": name, "columns": columns[:MOST_COLUMNS]} for name, columns in tables]
    return {"available": database is not None, "tables": listed}


def answer_of(
    database: Database, engine: Engine, adapter: str | None, question: str, params: SamplingParams
) -> dict[str, Any]:
    """The answer to a question: what `rows_of` returns, the completion and its confidence, and suggestions."""

    def generate(prompts: Sequence[str], candidates: int) -> list[Completion]:
        texts = [Text(messages=[{"role": "user", "content": prompt}], ids=None) for prompt in prompts]
        return completions_of(engine, [read(engine, adapter, text)[0] for text in texts], params, candidates, adapter)

    answer = database.answer(question, generate)
    completion = answer.completion
    return _shown(answer.statement, answer.table) | {
        "prompt": answer.prompt,
        "completion": "" if completion is None else completion.text,
        "ids": [] if completion is None else completion.ids,
        "finish": "stop" if completion is None else completion.finish_reason,
        "confidence": answer.confidence,
        "certainty": answer.certainty,
        "reason": answer.reason,
        "suggestions": database.suggestions(question, generate) if answer.reason else [],
    }


def rows_of(database: Database, question: str, completion: str) -> dict[str, Any]:
    """The statement in a model's answer, its columns and rows, or why it failed; `refused` for a refusal."""
    statement = database.statement(question, completion)
    return _shown(statement, database.run(statement) if statement else None)


def _shown(statement: str, table: Table | None) -> dict[str, Any]:
    """A statement and its rows as JSON; `refused` without a table."""
    columns = [] if table is None else table.columns
    return {
        "sql": statement,
        "columns": [str(name) for name in columns[:MOST_COLUMNS]],
        "columns_left_out": max(0, len(columns) - MOST_COLUMNS),
        "rows": [] if table is None else [[_cell(cell) for cell in row[:MOST_COLUMNS]] for row in table.rows],
        "truncated": table is not None and table.truncated,
        "seconds": 0.0 if table is None else table.seconds,
        "error": None if table is None else table.error,
        "refused": table is None,
    }


def _cell(value: Any) -> Any:
    """A cell as JSON: numbers that JSON lacks are written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # A browser's numbers are exact up to 2 ** 53.
    return str(value) if isinstance(value, int) and abs(value) > 2**53 else value
