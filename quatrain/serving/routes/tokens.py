"""Texts to token ids and back, as vLLM's server has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quatrain.serving.conversation import check_text, token_of
from quatrain.serving.errors import ApiError
from quatrain.serving.models import Loaded
from quatrain.serving.protocols.chat import ChatForm
from quatrain.serving.protocols.common import Form, read_body, service_of, validated
from quatrain.serving.protocols.events import Json

router = APIRouter()


class TokenizeForm(Form):
    """A text, or a conversation as for chat completions."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeForm(Form):
    """Token ids."""

    model: str | None = None
    tokens: list[int]


@router.post("/tokenize")
async def tokenize(request: Request) -> Any:
    """The ids of a text or a conversation."""
    service = service_of(request)
    form = await read_body(request, TokenizeForm)
    if (form.prompt is None) == (form.messages is None):
        raise ApiError(400, "Give one of prompt and messages.", param="prompt")
    check_text(form.prompt, "prompt")
    async with service.registry.use(form.model) as (loaded, adapter):
        tokenizer = _tokenizer_of(loaded, adapter)
        if form.messages is not None:
            given = {"model": form.model, "messages": form.messages, "tools": form.tools}
            job = validated(given | {"chat_template_kwargs": form.chat_template_kwargs}, ChatForm).job()
            ids = await service.rendered(job)
        else:
            ids = await service.in_thread(
                lambda: tokenizer.encode(form.prompt or "", special_tokens=form.add_special_tokens)
            )
        config = loaded.model.config
        result: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": config.context_length if config.has_position_limit else None,
        }
        result |= {"tokens": ids}
        if form.return_token_strs and loaded.worker is not None:
            result["token_strs"] = [token_of(loaded.engine, token, 0.0).text for token in ids]
        return Json(result)


@router.post("/detokenize")
async def detokenize(request: Request) -> Any:
    """The text of token ids."""
    service = service_of(request)
    form = await read_body(request, DetokenizeForm)
    async with service.registry.use(form.model) as (loaded, adapter):
        tokenizer = _tokenizer_of(loaded, adapter)
        wrong = [token for token in form.tokens if not 0 <= token < loaded.model.config.vocab_size]
        if wrong:
            raise ApiError(400, f"tokens: {wrong[0]} is not in the model's vocabulary.", param="tokens")
        text = await service.in_thread(lambda: tokenizer.decode(form.tokens, skip_special_tokens=False))
        return Json({"prompt": text})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> Any:
    """The special tokens and the chat template of a tokenizer, as vLLM's server has them and lm-eval reads them."""
    service = service_of(request)
    async with service.registry.use(model) as (loaded, adapter):
        tokenizer = _tokenizer_of(loaded, adapter)
        roles = {f"{role}_token": None for role in ("bos", "eos", "pad", "unk")} | tokenizer.special_tokens_map
        return Json(roles | {"chat_template": tokenizer.chat_template, "model_max_length": tokenizer.max_length})


def _tokenizer_of(loaded: Loaded, adapter: str | None) -> Any:
    """The tokenizer of a model or an adapter. Raises ApiError."""
    tokenizer = loaded.tokenizer if loaded.worker is None else loaded.engine.tokenizer_of(adapter)
    if tokenizer is None:
        raise ApiError(400, "This model has no tokenizer.", param="model")
    return tokenizer
