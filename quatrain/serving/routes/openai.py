"""OpenAI's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quatrain.serving.conversation import Service
from quatrain.serving.protocols import chat, completions, embeddings, responses
from quatrain.serving.protocols.common import read_body
from quatrain.serving.protocols.events import Json

router = APIRouter()


def service_of(request: Request) -> Service:
    """The service of the application that got a request."""
    service: Service = request.app.state.service
    return service


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Any:
    """The next turn of a conversation."""
    service = service_of(request)
    return await chat.answer(service, await read_body(request, chat.ChatForm, service.settings), request)


@router.post("/v1/completions")
async def text_completions(request: Request) -> Any:
    """Completions of texts."""
    service = service_of(request)
    form = await read_body(request, completions.CompletionForm, service.settings)
    return await completions.answer(service, form, request)


@router.post("/v1/responses")
async def model_responses(request: Request) -> Any:
    """The next turn of a conversation, in the form of OpenAI's Responses."""
    service = service_of(request)
    return await responses.answer(service, await read_body(request, responses.ResponsesForm, service.settings), request)


@router.post("/v1/embeddings")
async def text_embeddings(request: Request) -> Any:
    """The vectors of texts."""
    service = service_of(request)
    form = await read_body(request, embeddings.EmbeddingsForm, service.settings)
    return await embeddings.answer(service, form, request)


@router.get("/v1/models")
async def models(request: Request) -> Any:
    """The models and adapters."""
    return Json({"object": "list", "data": service_of(request).registry.listing()})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Any:
    """One model."""
    return Json(service_of(request).registry.describe(name))
