"""Prompts with pictures, for a decoder that reads them (LLaVA): what stands in the messages, and what the model reads.

A picture stands where the text has the image token; the model reads as many of these as the picture becomes vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.records import Messages
from quatrain.models.transformer.config import ModelConfig

KEYS = ("image", "image_url", "url", "path", "base64", "data")
"""The keys of a part of a message that may hold its picture."""


class PictureIds(list[int]):
    """The ids of a prompt with its pictures: `features` (N, C, H, W), each of which has its image tokens in the ids."""

    def __init__(self, ids: Sequence[int], features: torch.Tensor):
        super().__init__(ids)
        self.features = features


def features_of(prompt: Sequence[int]) -> torch.Tensor | None:
    """The pictures of a prompt; None for one of text alone."""
    return prompt.features if isinstance(prompt, PictureIds) else None


def reads_pictures(config: ModelConfig) -> bool:
    """Whether a model is a decoder that reads pictures beside its text."""
    return config.architecture == "decoder" and config.frontend is not None and bool(config.vocab_size)


def check_reads(config: ModelConfig) -> None:
    """Raises InputError for a model that reads text alone."""
    if not reads_pictures(config):
        raise InputError(
            f"This {config.family} model reads text alone, and cannot see a picture. Leave the picture out, or use a "
            "model that reads pictures, such as LLaVA."
        )


def expanded(ids: Sequence[int], features: torch.Tensor, config: ModelConfig) -> PictureIds:
    """The ids of a prompt with one image token for each picture, or all of them, with all of them.

    Raises InputError for another number of image tokens.
    """
    frontend: Any = config.frontend
    token, each, count = frontend.token_id, frontend.num_vectors, len(features)
    found = ids.count(token)
    if found == count * each:
        return PictureIds(ids, features)
    if found != count:
        raise InputError(
            f"pictures: {count}, and the prompt has {found} image tokens (id {token}); must have one for each picture."
        )
    whole = [each_id for one in ids for each_id in ([token] * each if one == token else [one])]
    return PictureIds(whole, features)


def split_pictures(messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], list[Any]]:
    """Messages whose pictures are taken out of their parts, as chat templates read them, and the pictures in order.

    A picture is a part {"type": "image", "image": …} or OpenAI's {"type": "image_url", "image_url": {"url": …}}; it is
    anything that `quatrain.data.images.read_image` takes. Messages without pictures are returned as they are. Raises
    InputError for a part of a picture that holds none.
    """
    pictures: list[Any] = []
    changed: list[Mapping[str, Any]] = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list) or not any(map(is_picture, content)):
            changed.append(message)
            continue
        parts = []
        for part in content:
            if is_picture(part):
                pictures.append(_picture_of(part, number))
                part = {"type": "image"}
            parts.append(part)
        changed.append({**message, "content": parts})
    if not pictures:
        return messages, []
    return messages.of(changed) if isinstance(messages, Messages) else changed, pictures  # type: ignore[arg-type]


def is_picture(part: Any) -> bool:
    """Whether a part of a message is a picture."""
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url", "input_image")


def _picture_of(part: Mapping[str, Any], number: int) -> Any:
    for key in KEYS:
        value = part.get(key)
        if isinstance(value, Mapping):
            value = value.get("url")
        if value is not None:
            return value
    raise InputError(f'message {number}: a part {format_value(dict(part), 60)} has no picture; give it as "image"')
