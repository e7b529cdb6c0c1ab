"""The routes under /api, which the page needs beside the OpenAI-compatible ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine
from quatrain.serving import inspect
from quatrain.serving.protocols.common import Form, read_body, service_of
from quatrain.serving.protocols.events import Json
from quatrain.tasks.task import Database

router = APIRouter(prefix="/api")

Answer = Callable[[Engine, str | None, Any], dict[str, Any]]
"""The engine, the adapter of the model's name, and the question, to the response."""


class TokenIds(Form):
    """Tokens of an answer."""

    model: str | None = None
    ids: list[int] = Field(max_length=inspect.MOST_IDS)


class DatabaseQuestion(Form):
    """A question in the user's words; an empty one gets suggestions."""

    question: str
    model: str | None = None
    settings: dict[str, Any] = {}
    """Fields of SamplingParams that differ from the model's own settings."""


class DatabaseAnswer(Form):
    """What the model has answered to a question."""

    question: str
    completion: str


async def _answer(request: Request, form: Any, answer: Answer) -> Json:
    """Answers a question with the model that it names, in a thread: models are slow, and may wait for a step."""
    service = service_of(request)
    question = await read_body(request, form)
    async with service.registry.use(question.model) as (loaded, adapter):
        loaded.generator.reserve(1)
        try:
            return Json(await service.in_thread(answer, loaded.engine, adapter, question))
        finally:
            loaded.generator.release(1)


@router.get("/controls")
async def controls() -> Json:
    """Every decoding control with its one-line explanation."""
    return Json(inspect.decoding_controls())


@router.get("/model")
async def model(request: Request, name: str | None = None) -> Json:
    """What a model can do, and its own decoding settings. Loads the model."""
    service = service_of(request)
    async with service.registry.use(name) as (loaded, adapter):
        return Json(await service.in_thread(inspect.describe, loaded.engine, adapter))


@router.post("/prompt")
async def prompt(request: Request) -> Json:
    """The token ids of a conversation and of the beginning of its answer, and how many new tokens it may get."""
    most = service_of(request).settings.max_tokens

    def answer(engine: Engine, adapter: str | None, text: inspect.Text) -> dict[str, Any]:
        found = inspect.continued(engine, adapter, text)
        return found | {"room": most if found["room"] is None else min(found["room"], most)}

    return await _answer(request, inspect.Text, answer)


@router.post("/text")
async def text(request: Request) -> Json:
    """The text of an answer's tokens."""
    return await _answer(request, TokenIds, lambda engine, _, tokens: inspect.text_of(engine, tokens.ids))


@router.post("/explain")
async def explain(request: Request) -> Json:
    """The tokens of an answer with their probabilities and alternatives."""
    return await _answer(request, inspect.Text, inspect.explained)


@router.post("/distribution")
async def distribution(request: Request) -> Json:
    """The distribution of a token before and after each thing that changes it."""
    return await _answer(request, inspect.DistributionQuestion, inspect.distribution)


@router.post("/attention")
async def attention(request: Request) -> Json:
    """What a token of the answer attends to."""
    return await _answer(request, inspect.AttentionQuestion, inspect.attended)


@router.get("/database")
async def tables(request: Request) -> Json:
    """Whether questions are answered from a database, and its tables."""
    service = service_of(request)
    return Json(await service.in_thread(inspect.tables_of, service.database))


@router.post("/database/answer")
async def database_answer(request: Request) -> Json:
    """Answers a question: the model's SQL, run read-only, its rows and confidence; or a refusal with suggestions."""
    service = service_of(request)
    database = _opened(service.database)

    def answer(engine: Engine, adapter: str | None, asked: DatabaseQuestion) -> dict[str, Any]:
        params = inspect.settings(engine, asked.settings)
        most = min(params.max_new_tokens, service.settings.max_tokens)
        return inspect.answer_of(database, engine, adapter, asked.question, replace(params, max_new_tokens=most))

    return await _answer(request, DatabaseQuestion, answer)


@router.post("/database/rows")
async def database_rows(request: Request) -> Json:
    """Runs the statement in a model's answer read-only."""
    service = service_of(request)
    answer = await read_body(request, DatabaseAnswer)
    return Json(await service.in_thread(inspect.rows_of, _opened(service.database), answer.question, answer.completion))


def _opened(database: Database | None) -> Database:
    if database is None:
        raise InputError("There is no database to question; start the server with --db FILE.")
    return database
