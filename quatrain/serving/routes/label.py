"""The routes of the page `/label`: the pair to judge, a choice, the last choice taken back, a prompt to ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from quatrain.alignment.labelling import Session
from quatrain.serving.errors import ApiError
from quatrain.serving.labels import chosen
from quatrain.serving.protocols.common import Form, read_body, service_of
from quatrain.serving.protocols.events import Json

router = APIRouter(prefix="/api/label")


class ChoiceForm(Form):
    """A choice for the pair `id`."""

    id: str
    choice: Literal["a", "b", "tie", "both_bad", "skip"]


class PromptForm(Form):
    """A prompt that the person has typed."""

    text: str = Field(min_length=1)


@router.get("")
async def pair(request: Request) -> Any:
    """The pair to judge, and the counts."""
    return await _state(request)


@router.post("/choice")
async def choice(request: Request) -> Any:
    """Records a choice; answers with the next pair."""
    form = await read_body(request, ChoiceForm)
    return await _state(request, chosen(form.id, form.choice))


@router.post("/undo")
async def undo(request: Request) -> Any:
    """Takes the last choice back, and shows its pair again."""
    await read_body(request, Form)
    return await _state(request, Session.undo)


@router.post("/prompt")
async def prompt(request: Request) -> Any:
    """Asks the model a prompt that was typed."""
    form = await read_body(request, PromptForm)
    return await _state(request, lambda session: session.add_prompt([{"role": "user", "content": form.text}]))


async def _state(request: Request, change: Callable[[Session], object] = lambda session: None) -> Json:
    service = service_of(request)
    if service.labelling is None:
        raise ApiError(404, "There is nothing to label; start the server with `quatrain label MODEL --page`.")
    async with service.registry.use(None) as (loaded, _):
        return Json(await service.in_thread(service.labelling.state, loaded.engine, change))
