"""Anthropic's routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quatrain.serving.protocols import messages
from quatrain.serving.protocols.common import read_body, service_of

router = APIRouter()


@router.post("/v1/messages")
async def create_message(request: Request) -> Any:
    """The next turn of a conversation."""
    return await messages.answer(service_of(request), await read_body(request, messages.MessagesForm), request)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Any:
    """The number of tokens of a conversation."""
    return await messages.count_tokens(service_of(request), await read_body(request, messages.MessagesForm))
