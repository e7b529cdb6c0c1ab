"""Anthropic's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quatrain.serving.protocols import messages
from quatrain.serving.protocols.common import read_body
from quatrain.serving.routes.openai import service_of

router = APIRouter()


@router.post("/v1/messages")
async def create_message(request: Request) -> Any:
    """The next turn of a conversation."""
    service = service_of(request)
    return await messages.answer(service, await read_body(request, messages.MessagesForm, service.settings), request)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Any:
    """The number of tokens of a conversation."""
    service = service_of(request)
    return await messages.count_tokens(service, await read_body(request, messages.MessagesForm, service.settings))
