"""Settings of parameter-efficient fine-tuning. Keys are named as in PEFT where PEFT has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict

from quatrain.core.settings import Listing, Problem, Settings
from quatrain.core.wording import format_value

LOW_RANK = ("lora", "dora", "loha", "lokr")
LAYER_METHODS = (*LOW_RANK, "ia3", "bottleneck")
PROMPT_METHODS = ("prompt", "p-tuning", "prefix")


class AdapterSettings(Settings):
    """Which parameters of a model are trained, and by which method. The rest of the model is frozen.

    Methods over linear layers: `lora`, `dora`, `loha`, `lokr`, `ia3`, `bottleneck`. `target_modules` names the layers:
    the ends of their paths, patterns with `*`, or "all-linear" (every linear layer but the head). The default is
    "all-linear"; for `ia3` it is the key, value and down projections, for `bottleneck` the attention output and down
    projections. A bottleneck is a network of width `bottleneck_dim` behind its layer.

    Methods that train weights of the model: `bitfit` (its biases) and `last-layers` (its last `num_layers` blocks and
    everything after them).

    Soft prompts: `prompt` puts `num_virtual_tokens` trained embeddings before the input, initialized from `init_text`
    or at random; `p-tuning` puts them behind a network of width `bottleneck_dim`; `prefix` trains keys and values in
    every layer. Soft prompts and bottlenecks cannot be merged into the weights.

    `quantize_base` stores the frozen linear layers as "nf4" (LoRA over NF4 is QLoRA), "int4" or "int8".

    `modules_to_save` are modules that are trained whole beside the adapter, named by the ends of their paths; a newly
    initialized head always is. `trainable_tokens` = "special" also trains the embedding rows of the tokenizer's special
    tokens, so that a model can learn chat markers that pre-training never saw; "none" freezes the whole embedding.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "stabilized": "use_rslora",
        "factor": "decompose_factor",
        "both": "decompose_both",
        "length": "num_virtual_tokens",
        "text": "init_text",
        "hidden": "bottleneck_dim",
        "layers": "num_layers",
        "targets": "target_modules",
        "base": "quantize_base",
        "tokens": "trainable_tokens",
    }

    method: Literal[
        "lora", "dora", "loha", "lokr", "ia3", "bottleneck", "bitfit", "last-layers", "prompt", "p-tuning", "prefix"
    ] = "lora"  # fmt: skip
    rank: int = Field(default=16, ge=1, le=1_000_000)
    alpha: float = Field(default=32.0, gt=0, le=1e18)
    use_rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank), as rsLoRA does (lora, dora)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the adapter's input (lora, dora)")
    decompose_factor: int = Field(
        default=-1,
        ge=-1,
        le=1_000_000,
        description="side of the small Kronecker factor; -1: about the square root of the layer's (lokr)",
    )
    decompose_both: bool = Field(default=False, description="make the small Kronecker factor low-rank too (lokr)")
    num_virtual_tokens: int = Field(
        default=20, ge=1, le=65_536, description="trained positions before the input (soft prompts)"
    )
    init_text: str | None = Field(
        default=None, min_length=1, description="text whose embeddings initialize the prompt (prompt)"
    )
    bottleneck_dim: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="width of the network (p-tuning, prefix, bottleneck); 0: the method's default",
    )
    num_layers: int = Field(default=1, ge=1, description="last blocks to train (last-layers)")
    target_modules: str | Annotated[tuple[str, ...], Strict(False)] | None = None
    quantize_base: Literal["float", "nf4", "int8", "int4"] = Field(
        default="float", description="storage of the frozen linear layers; nf4: QLoRA"
    )
    modules_to_save: Listing[str] = ()
    trainable_tokens: Literal["special", "none"] = "special"

    @property
    def slots(self) -> int:
        """Positions that a soft prompt takes before every input; 0 for other methods."""
        return self.num_virtual_tokens if self.method in PROMPT_METHODS else 0

    @property
    def trains_base_weights(self) -> bool:
        """Whether weights of the model itself are trained: without the adapter it is not the model before."""
        return self.method in ("bitfit", "last-layers") or bool(self.modules_to_save)

    def learns_special_tokens(self, head: str) -> bool:
        """Whether the embedding rows of special tokens train beside the adapter, in a model with this head."""
        return self.trainable_tokens == "special" and self.method not in PROMPT_METHODS and head == "causal"

    def conflicts(self) -> Iterator[Problem]:
        only = {
            "rank": LOW_RANK,
            "alpha": LOW_RANK,
            "use_rslora": ("lora", "dora"),
            "dropout": ("lora", "dora"),
            "decompose_factor": ("lokr",),
            "decompose_both": ("lokr",),
            "num_layers": ("last-layers",),
            "target_modules": LAYER_METHODS,
            "num_virtual_tokens": PROMPT_METHODS,
            "init_text": ("prompt",),
            "bottleneck_dim": ("p-tuning", "prefix", "bottleneck"),
        }
        for name, methods in only.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and self.method not in methods:
                users = " or ".join(map(format_value, methods))
                text = f"{format_value(value)}; only method = {users} uses it: leave it out"
                yield Problem((name,), text, (("method",),))
        if self.quantize_base != "float" and self.method not in LAYER_METHODS:
            text = f'"{self.quantize_base}"; method = "{self.method}" trains weights of the model, which must be float'
            yield Problem(("quantize_base",), text, (("method",),))
        if self.decompose_factor == 0:
            yield Problem(
                ("decompose_factor",), "0; must be at least 1, or -1 for about the square root of the layer's side"
            )
