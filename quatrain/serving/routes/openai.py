"""OpenAI's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quatrain.serving.protocols import chat, completions, embeddings, responses
from quatrain.serving.protocols.common import read_body, service_of
from quatrain.serving.protocols.events import Json

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Any:
    """The next turn of a conversation."""
    return await chat.answer(service_of(request), await read_body(request, chat.ChatForm), request)


@router.post("/v1/completions")
async def text_completions(request: Request) -> Any:
    """Completions of texts."""
    return await completions.answer(service_of(request), await read_body(request, completions.CompletionForm), request)


@router.post("/v1/responses")
async def model_responses(request: Request) -> Any:
    """The next turn of a conversation, in the form of OpenAI's Responses."""
    return await responses.answer(service_of(request), await read_body(request, responses.ResponsesForm), request)


@router.post("/v1/embeddings")
async def text_embeddings(request: Request) -> Any:
    """The vectors of texts."""
    return await embeddings.answer(service_of(request), await read_body(request, embeddings.EmbeddingsForm), request)


@router.get("/v1/models")
async def models(request: Request) -> Any:
    """The models and adapters."""
    return Json({"object": "list", "data": service_of(request).registry.listing()})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Any:
    """One model."""
    return Json(service_of(request).registry.describe(name))
