"""Settings of parameter-efficient adaptation; names as in PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Strict

from quatrain.core.settings import Listing, Problem, Settings, quote

LOW_RANK = ("lora", "dora", "loha", "lokr")
OVER_LINEAR = (*LOW_RANK, "ia3", "bottleneck")
PROMPTS = ("prompt", "p-tuning", "prefix")


class AdapterSettings(Settings):
    """How a model is adapted, and how little of it learns.

    Over linear layers: `lora`, `dora`, `loha`, `lokr`, `ia3` and `bottleneck`; `targets` names the layers by the end of
    their path, by a pattern, or "all-linear" (all but the head), which is meant where nothing is said; `ia3` then means
    keys, values and the projection out of the feed-forward part, `bottleneck` the projections out of attention and of
    the feed-forward part, behind which it is a network of width `hidden`. Of the model itself: `bitfit`, its biases,
    and `last-layers`, its last `layers` blocks with what follows them. Before what it reads: `prompt`, `length`
    embeddings, which begin as those of a `text` or at random; `p-tuning`, the same behind a network of width `hidden`;
    `prefix`, keys and values of every layer. Prompts and bottlenecks are no weights, and are not merged into a model.

    With `base` = "nf4" the frozen layers take four bits a weight, and LoRA over them is QLoRA; "int4" and "int8" are
    whole numbers of four and eight bits.

    `modules_to_save` are parts that learn whole beside it, by the beginning of their path; a fresh head is one always.
    `tokens` = "special" lets the embedding's rows of the tokenizer's special tokens learn too, so that the marks of a
    chat that pretraining never saw, the end of a turn above all, can be said; "none" leaves the embedding frozen.
    """

    method: Literal[
        "lora", "dora", "loha", "lokr", "ia3", "bottleneck", "bitfit", "last-layers", "prompt", "p-tuning", "prefix"
    ] = "lora"  # fmt: skip
    rank: int = Field(default=16, ge=1, le=1_000_000)
    alpha: float = Field(default=32.0, gt=0, le=1e18)
    stabilized: bool = Field(default=False, description="alpha over the rank's root: rsLoRA (lora, dora)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapter's input (lora, dora)")
    factor: int = Field(
        default=-1, ge=-1, le=1_000_000, description="sides of the small factor, -1 for about the root (lokr)"
    )
    both: bool = Field(default=False, description="the small factor is of low rank too (lokr)")
    length: int = Field(default=20, ge=1, le=65_536, description="slots that are read before a text (prompts)")
    text: str | None = Field(default=None, min_length=1, description="whose tokens the slots begin as (prompt)")
    hidden: int = Field(
        default=0, ge=0, le=1_000_000, description="width of the network (p-tuning, prefix, bottleneck); 0: as usual"
    )
    layers: int = Field(default=1, ge=1, description="blocks that learn (last-layers)")
    targets: str | Annotated[tuple[str, ...], Strict(False)] | None = None
    base: Literal["float", "nf4", "int8", "int4"] = Field(
        default="float", description="how frozen linear layers are held; nf4: QLoRA"
    )
    modules_to_save: Listing[str] = ()
    tokens: Literal["special", "none"] = "special"

    @property
    def slots(self) -> int:
        """Places that a soft prompt takes before every text."""
        return self.length if self.method in PROMPTS else 0

    def learns_special_tokens(self, head: str) -> bool:
        """Whether the rows of special tokens learn beside it, in a model with this head."""
        return self.tokens == "special" and self.method not in PROMPTS and head == "causal"

    def conflicts(self) -> Iterator[Problem]:
        only = {
            "rank": LOW_RANK,
            "alpha": LOW_RANK,
            "stabilized": ("lora", "dora"),
            "dropout": ("lora", "dora"),
            "factor": ("lokr",),
            "both": ("lokr",),
            "layers": ("last-layers",),
            "targets": OVER_LINEAR,
            "length": PROMPTS,
            "text": ("prompt",),
            "hidden": ("p-tuning", "prefix", "bottleneck"),
        }
        for name, methods in only.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and self.method not in methods:
                shown = list(value) if isinstance(value, tuple) else value
                text = f"{quote(shown)}; only method = {' or '.join(map(quote, methods))} reads it: leave it out"
                yield Problem((name,), text, (("method",),))
        if self.base != "float" and self.method not in OVER_LINEAR:
            text = f'"{self.base}"; method = "{self.method}" learns the weights themselves, which must be float'
            yield Problem(("base",), text, (("method",),))
        if self.factor == 0:
            yield Problem(("factor",), "0; must be at least 1, or -1 for about the root of a layer's size")
