"""OpenAI's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quatrain.serving.conversation import Service
from quatrain.serving.protocols import chat
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


@router.get("/v1/models")
async def models(request: Request) -> Any:
    """The models and adapters."""
    return Json({"object": "list", "data": service_of(request).registry.listing()})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Any:
    """One model."""
    return Json(service_of(request).registry.describe(name))
