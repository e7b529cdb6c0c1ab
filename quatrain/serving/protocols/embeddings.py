"""`/v1/embeddings`: OpenAI's embeddings, with models whose head is `embedding`."""

from __future__ import annotations

import base64
import struct
from typing import Any, Literal

from pydantic import Field

from quatrain.models.io.sentence_transformers import text_tokens
from quatrain.serving.conversation import Service, check_text
from quatrain.serving.errors import ApiError
from quatrain.serving.models import Loaded
from quatrain.serving.protocols.common import Form
from quatrain.serving.protocols.events import Json, unless_gone


class EmbeddingsForm(Form):
    """A request for the vectors of texts."""

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]] = Field(union_mode="left_to_right")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


async def answer(service: Service, form: EmbeddingsForm, request: Any) -> Any:
    """The response to a request."""
    return Json(await unless_gone(request, _whole(service, form)))


async def _whole(service: Service, form: EmbeddingsForm) -> dict[str, Any]:
    texts = [form.input] if isinstance(form.input, str) else form.input
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "input: must be a text or a list of texts, not empty.", param="input")
    if len(texts) > service.settings.max_messages:
        raise ApiError(
            400, f"input: {len(texts):,} texts; a request may have {service.settings.max_messages:,}.", param="input"
        )
    for place, text in enumerate(texts):
        check_text(text, f"input.{place}")
        if not text:
            raise ApiError(400, f"input.{place}: empty; give a text.", param="input")
    async with service.registry.use(form.model) as (loaded, _):
        if loaded.model.config.head != "embedding" or loaded.tokenizer is None:
            raise ApiError(
                400,
                f"This model has the head {loaded.model.config.head}, which gives no embeddings; serve one with the "
                "head embedding.",
                param="model",
            )
        size = loaded.model.config.vector_size
        if form.dimensions is not None and form.dimensions > size:
            raise ApiError(400, f"dimensions: the vectors of this model have {size}.", param="dimensions")
        vectors, count = await service.in_thread(_embed, loaded, texts, form.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, form.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    model = form.model or service.registry.default
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": count, "total_tokens": count}}


def _embed(loaded: Loaded, texts: list[str], size: int | None) -> tuple[list[list[float]], int]:
    """The vectors of texts, cut to `size` numbers, and the number of the texts' tokens."""
    with loaded.lock:
        predictions = list(loaded.pipeline("sentence-embeddings").predict(texts, truncate_dim=size))
    count = sum(length for length, _ in text_tokens(loaded.model, loaded.tokenizer, texts))
    return [each.value for each in predictions], count


def _written(vector: list[float], format: str) -> Any:
    """A vector as a list, or as little-endian float32 in base64."""
    return vector if format == "float" else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
