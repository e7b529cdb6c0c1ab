"""Settings of parameter-efficient adaptation; names as in PEFT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from quatrain.settings import Settings


class AdapterSettings(Settings):
    """LoRA (Hu et al., 2021): `targets` names linear layers by the end of their path, or "all-linear".

    `tokens` = "special" lets the embedding's rows of the tokenizer's special tokens learn too, so that the marks of a
    chat that pretraining never saw, the end of a turn above all, can be said; "none" leaves the embedding frozen.
    """

    method: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | Annotated[tuple[str, ...], Strict(False)] = "all-linear"
    tokens: Literal["special", "none"] = "special"
