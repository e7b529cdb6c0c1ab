"""`create_app`: the server's routes over its models, behind the gate."""

from __future__ import annotations

import asyncio
import importlib
import logging
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

import quatrain.serving.routes
from quatrain.core.errors import QuatrainError
from quatrain.serving.conversation import Service
from quatrain.serving.errors import ApiError, api_error
from quatrain.serving.metrics import Metrics
from quatrain.serving.models import LoadOptions, ModelEntry, ModelRegistry
from quatrain.serving.protocols.events import Gone, Json
from quatrain.serving.security import Gate, error_body
from quatrain.serving.settings import ServerSettings

logger = logging.getLogger("quatrain.serving")


def create_app(
    models: list[ModelEntry], settings: ServerSettings | None = None, options: LoadOptions | None = None
) -> Gate:
    """The ASGI application of a server. The first model is loaded when the server starts, others on demand.

    Every module in `quatrain.serving.routes` that has a `router` adds its routes.
    """
    settings = settings or ServerSettings()
    registry = ModelRegistry(models, settings, Metrics(), options or LoadOptions())
    service = Service(registry, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(registry.load_first()), asyncio.create_task(registry.unload_idle())]
        try:
            yield
        finally:
            service.is_stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await registry.close()
            service.threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.service = service
    for module in pkgutil.iter_modules(quatrain.serving.routes.__path__, "quatrain.serving.routes."):
        router = getattr(importlib.import_module(module.name), "router", None)
        if isinstance(router, APIRouter):
            app.include_router(router)
    for kind in (ApiError, QuatrainError, MemoryError, HTTPException, Gone):
        app.add_exception_handler(kind, _answer_error)
    return Gate(app, settings)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Gone):
        return Response(status_code=499)  # Nobody reads it.
    if isinstance(error, HTTPException):
        messages = {404: f"There is no {request.url.path[:100]} here.", 405: f"{request.method} is not possible here."}
        error = ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), headers=error.headers)
    shown = api_error(error)
    if shown.status >= 500:
        logger.error("%s: %s", request.url.path[:100], error)
    return Json(error_body(request.url.path, shown), shown.status, shown.headers)
