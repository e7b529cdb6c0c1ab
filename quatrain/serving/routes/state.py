"""What the server says about itself: its health, its metrics and its version."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

import quatrain
from quatrain.serving.protocols.common import service_of
from quatrain.serving.protocols.events import Json

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Any:
    """200 if the server can answer, 503 while it loads its first model, cannot load it, or shuts down."""
    service = service_of(request)
    if service.is_stopping:
        state = "stopping"
    elif service.registry.is_ready:
        state = "ok"
    else:
        state = "failed" if service.registry.error is not None else "loading"
    return Json({"status": state}, 200 if state == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Any:
    """Metrics in Prometheus's text format."""
    service = service_of(request)
    for entry in service.registry.entries.values():
        if entry.loaded is not None and entry.loaded.worker is not None:
            entry.loaded.worker.observe_queue()
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version(request: Request) -> Any:
    """The version of quatrain."""
    return Json({"version": quatrain.__version__})
