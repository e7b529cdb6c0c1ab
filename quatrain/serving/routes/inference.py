"""The routes of Hugging Face's inference form: `/`, `/pipeline/TASK`, `/models/NAME` and what is under it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quatrain.serving.protocols import chat, inference
from quatrain.serving.protocols.common import read_body, service_of
from quatrain.serving.protocols.events import Json

router = APIRouter()


async def _answer(request: Request, model: str | None = None, task: str | None = None) -> Any:
    task = None if task is None else inference.known_task(task)
    form = await read_body(request, inference.InferenceForm)
    return await inference.answer(service_of(request), form, request, model, task)


@router.post("/")
async def default_model(request: Request) -> Any:
    """The first model, for the task that its head and the input say."""
    return await _answer(request)


@router.post("/pipeline/{task}")
async def task_of_default_model(request: Request, task: str) -> Any:
    """The first model, for a task."""
    return await _answer(request, None, task)


@router.post("/pipeline/{task}/{name:path}")
async def task_of_model(request: Request, task: str, name: str) -> Any:
    """A model, for a task."""
    return await _answer(request, name, task)


@router.post("/models/{name:path}/v1/chat/completions")
async def chat_of_model(request: Request, name: str) -> Any:
    """The next turn of a conversation with a model."""
    form = await read_body(request, chat.ChatForm)
    return await chat.answer(service_of(request), form.model_copy(update={"model": name}), request)


@router.post("/models/{name:path}/pipeline/{task}")
async def pipeline_of_model(request: Request, name: str, task: str) -> Any:
    """A model, for a task."""
    return await _answer(request, name, task)


@router.post("/models/{name:path}")
async def model(request: Request, name: str) -> Any:
    """A model, for the task that its head and the input say."""
    return await _answer(request, name)


@router.get("/info")
async def info(request: Request) -> Any:
    """The first model and the limits, as Text Generation Inference tells them."""
    service = service_of(request)
    about = service.registry.describe(service.registry.default)
    settings = service.settings
    return Json({
        "model_id": about["id"], "max_concurrent_requests": settings.max_queue, "max_best_of": 1,
        "max_total_tokens": about.get("max_model_len"), "max_client_batch_size": settings.max_prompts,
    })  # fmt: skip
