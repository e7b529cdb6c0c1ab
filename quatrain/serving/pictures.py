"""Pictures in requests: `data:` URIs of files, decoded within limits. A server fetches nothing, and reads no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.images import read_image
from quatrain.generation.pictures import check_reads, is_picture, split_pictures
from quatrain.models.transformer.config import ModelConfig
from quatrain.serving.errors import ApiError
from quatrain.serving.settings import ServerSettings

FORM = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'


def picture_part(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A part of a message with a picture, as OpenAI's protocols have it. Raises ApiError for all but data URIs."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str):
        raise ApiError(400, f"{place}: a picture without its URL; must be {FORM}.", param=place)
    if url[:5].lower() != "data:":
        raise ApiError(
            400,
            f"{place}: {format_value(url[:60])}; this server fetches no pictures. Send the file itself: {FORM}.",
            param=place,
            code="invalid_image_url",
        )
    return {"type": "image_url", "image_url": {"url": url}, "place": place}


def opened(
    messages: Sequence[Mapping[str, Any]], config: ModelConfig, settings: ServerSettings
) -> Sequence[Mapping[str, Any]]:
    """The messages with their pictures decoded.

    Raises InputError for a model that reads text alone, and ApiError for too many pictures and for one that is broken,
    animated or too large.
    """
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    pictures = [part for part in parts if is_picture(part)]
    if not pictures:
        return messages
    check_reads(config)
    if len(pictures) > settings.max_pictures:
        raise ApiError(
            400, f"messages: {len(pictures)} pictures; a request may have {settings.max_pictures}.", param="messages"
        )
    return [
        {**message, "content": [_decoded(part, settings) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _decoded(part: Mapping[str, Any], settings: ServerSettings) -> Mapping[str, Any]:
    if not is_picture(part):
        return part
    place = str(part.get("place") or "the picture")
    _, (source,) = split_pictures([{"role": "user", "content": [part]}])
    try:
        pixels = read_image(source, place, max_pixels=settings.max_pixels, animations=False)
    except InputError as error:
        message = str(error) if str(error).startswith(place) else f"{place}: {error}"
        raise ApiError(400, message, param=place, code="invalid_image") from error
    return {"type": "image", "image": pixels}
