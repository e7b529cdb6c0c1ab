"""The routes of the page `/ask`: what the index holds, and answers from it with checked citations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.retrieval.generated import NEW_TOKENS, answer
from quatrain.retrieval.index import Index
from quatrain.retrieval.retrievers import RETRIEVERS
from quatrain.serving import inspect
from quatrain.serving.errors import ApiError
from quatrain.serving.protocols.common import Form, read_body, service_of
from quatrain.serving.protocols.events import Json

router = APIRouter(prefix="/api/index")

MOST_TURNS = 20


class TurnForm(Form):
    """A question that was asked before, and its answer."""

    question: str = Field(max_length=20_000)
    answer: str = Field(max_length=100_000)


class AskForm(Form):
    """A question to the index."""

    question: str = Field(min_length=1, max_length=20_000)
    history: list[TurnForm] = Field([], max_length=MOST_TURNS)
    model: str | None = None
    """The model that writes the answer; None: sentences are quoted."""
    k: int = Field(5, ge=1, le=50)
    retriever: str | None = None
    settings: dict[str, Any] = {}
    """Fields of SamplingParams that differ from the model's own settings."""


@router.get("")
async def about(request: Request) -> Json:
    """Whether there is an index, and what it holds."""
    service = service_of(request)
    if service.index is None:
        return Json({"available": False})
    counts = await service.in_thread(service.index.store.counts)
    return Json(
        {
            **{"available": True, "name": service.index.folder.name, "models": service.registry.names_of_generators()},
            "retrievers": [each for each in RETRIEVERS if each == "bm25" or service.index.settings.dense],
            "retriever": service.index.retriever(),
            **vars(counts),
        }
    )


@router.post("/ask")
async def ask(request: Request) -> Json:
    """The answer to a question, with its passages, spans, support and prompt."""
    service = service_of(request)
    index = _opened(service.index)
    form = await read_body(request, AskForm)
    given: dict[str, Any] = {
        **{"history": [(turn.question, turn.answer) for turn in form.history], "k": form.k},
        "search": {"retriever": form.retriever},
    }

    def quoted() -> dict[str, Any]:
        return answer(index, form.question, **given).record()

    def written(engine: Engine) -> dict[str, Any]:
        params: SamplingParams = inspect.settings(
            engine, {"temperature": 0.0, "max_new_tokens": NEW_TOKENS} | form.settings
        )
        params = replace(params, max_new_tokens=min(params.max_new_tokens, service.settings.max_tokens))
        return answer(index, form.question, model=engine, params=params, **given).record()

    if form.model is None:
        return Json(await service.in_thread(quoted))
    async with service.registry.use(form.model) as (loaded, _):
        loaded.generator.reserve(1)
        try:
            return Json(await service.in_thread(written, loaded.engine))
        finally:
            loaded.generator.release(1)


def _opened(index: Index | None) -> Index:
    if index is None:
        raise ApiError(404, "There is no index to ask; start the server with --index INDEX.")
    return index
