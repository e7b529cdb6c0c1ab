"""What an architecture of llama.cpp is: names of tensors, keys of the metadata, and what it cannot compute.

The architectures themselves are in the neighbouring modules, by subject; `architectures` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families import Family, get_family
from quatrain.models.families.fresh import fresh_config
from quatrain.models.families.weights import Operation, Rename, Split, expand
from quatrain.models.gguf.operations import Interleaved
from quatrain.models.transformer.config import ModelConfig, RotaryScaling
from quatrain.models.transformer.positions import inverse_frequency

Metadata = Mapping[str, Any]
GELU = ("gelu", "gelu_tanh")
"""llama.cpp has one GELU, the tanh form from a table in half precision; logits of the exact form differ by .001."""

EMBEDDINGS = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
FEED_FORWARD = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
LEAVES = ("weight", "bias")


def named(whole: Mapping[str, str], layer: Mapping[str, str], kind: Callable[..., Any] = Rename) -> list[Operation]:
    """Operations for modules by llama.cpp's names and ours; what a model does not have is left out when it is read."""
    pairs = [(f"{theirs}.{leaf}", f"{ours}.{leaf}") for theirs, ours in whole.items() for leaf in LEAVES]
    pairs += [
        (f"blk.{{n}}.{theirs}.{leaf}", f"layers.{{n}}.{ours}.{leaf}")
        for theirs, ours in layer.items()
        for leaf in LEAVES
    ]
    return [kind(theirs, ours) for theirs, ours in pairs]


def joined(theirs: str, ours: Sequence[str], parts: str = "equal") -> list[Operation]:
    """Operations for one tensor of theirs that is several of ours, one below the other."""
    return [
        Split(f"blk.{{n}}.{theirs}.{leaf}", tuple(f"layers.{{n}}.{name}.{leaf}" for name in ours), parts=parts)
        for leaf in LEAVES
    ]


QUERY_KEY_VALUE = joined("attn_qkv", [ATTENTION[f"attn_{name}"] for name in "qkv"], parts="grouped")
NO_PROJECTIONS = {name: ours for name, ours in ATTENTION.items() if name not in ("attn_q", "attn_k", "attn_v")}
PLAIN_FEED_FORWARD = {name: ours for name, ours in FEED_FORWARD.items() if name != "ffn_gate"}
GATED_IN_ONE = joined("ffn_up", ("mlp.gate_proj", "mlp.up_proj"))
PLAIN_DECODER = [*named(EMBEDDINGS, NO_PROJECTIONS | PLAIN_FEED_FORWARD), *QUERY_KEY_VALUE]

FAMILY_KEY = "quatrain.family"
"""The key under which our files keep the family, where llama.cpp has one architecture for several."""


def _no_limits(config: ModelConfig) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    `families` are those of ours that it computes; a file is read as the first, unless `family_of` chooses by the
    metadata. `keys` are the fields of the configuration that are written as they are, by the key without the
    architecture's name.
    """

    name: str
    families: tuple[str, ...]
    operations: Callable[[ModelConfig], list[Operation]]
    norm_key: str = "attention.layer_norm_rms_epsilon"
    activations: tuple[str, ...] = ("silu",)
    heads: tuple[str, ...] = ("causal",)
    limits: Callable[[ModelConfig], Iterator[str]] = _no_limits
    """Yields what llama.cpp cannot compute of a configuration."""
    write: Callable[[ModelConfig], dict[str, Any]] | None = None
    read: Callable[[Metadata], dict[str, Any]] | None = None
    rotary: bool = True
    family_of: Callable[[Metadata], str] | None = None
    yarn_multiplier: float = 0.0
    """What llama.cpp's `yarn_log_multiplier` is for an `mscale_all_dim` of 1; 0: the architecture has no such key."""
    scales_head: bool = False
    """Whether the factor of the logits must be in the head, because llama.cpp has none."""
    classifies_by: tuple[str, ...] = ()
    """Beginnings of names of ours that belong to a classifier; files of other heads leave them out."""

    def dropped(self, config: ModelConfig) -> tuple[str, ...]:
        """Beginnings of names of tensors that a file leaves out, because the head does not use them."""
        return () if config.head == "sequence_classification" else self.classifies_by

    def scaled_head(self, config: ModelConfig, embedding: Tensor) -> dict[str, Tensor]:
        """A head for a tied model whose logits llama.cpp would not scale (T5): the embedding with the factor."""
        return (
            {"lm_head.weight": embedding * config.logit_scale} if self.scales_head and config.logit_scale != 1 else {}
        )

    def weights(self, config: ModelConfig) -> list[Operation]:
        """The operations from the tensors of a file to ours, one for each layer."""
        return expand(self.operations(config), config)

    def family(self, config: ModelConfig) -> Family:
        """The family of a configuration with the tensor names of GGUF files, which `models.io.weights` loads by."""
        family = get_family(config.family)
        heads = {name: replace(head, operations=(), prefix=None) for name, head in family.heads.items()}
        return replace(
            family, operations=self.operations, heads=heads, prefix="", aliases={}, old_names=(), other_prefixes=(),
            ignored=(r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight"),
        )  # fmt: skip

    def problems(self, config: ModelConfig) -> list[str]:
        """Why llama.cpp cannot compute a model of this configuration; empty if it can."""
        found = [] if config.activation in self.activations else [
            f"activation {config.activation}: llama.cpp computes {' or '.join(self.activations)} for {self.name}"
        ]  # fmt: skip
        if config.cross_attention:
            found.append("cross_attention: llama.cpp has no encoder for this decoder")
        if config.head not in self.heads:
            found.append(f"head {config.head}: llama.cpp has {', '.join(self.heads)} for {self.name}")
        if config.rope_scaling is not None and config.rope_scaling.kind not in SCALINGS:
            found.append(f"rope_scaling {config.rope_scaling.kind}: llama.cpp has {', '.join(SCALINGS)}")
        scaling = config.rope_scaling
        if scaling is not None and scaling.get("mscale_all_dim") and not self.yarn_multiplier:
            found.append(f"mscale, mscale_all_dim: llama.cpp computes 1 and 0 for {self.name}")
        return [*found, *self.limits(config)]

    def notes(self, config: ModelConfig) -> list[str]:
        """What llama.cpp computes a little differently, which does not prevent an export."""
        scaling = config.rope_scaling
        if scaling is None or scaling.get("truncate", True):
            return []
        return ["llama.cpp rounds the limits of YaRN's ramp to whole channels; this model's truncate is false"]

    def metadata(self, config: ModelConfig) -> dict[str, Any]:
        """The keys of a file that describe the network. Raises InputError if llama.cpp cannot compute it."""
        if problems := self.problems(config):
            raise InputError(f"llama.cpp cannot compute this {config.family} model:", problems)
        values: dict[str, Any] = {
            "block_count": config.num_encoder_layers or config.num_hidden_layers,
            "context_length": config.context_length,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            self.norm_key: float(config.norm_eps),
            "vocab_size": config.vocab_size,
        }
        if self.rotary:
            values["rope.dimension_count"] = config.rotary_dim or config.head_dim
            values["rope.freq_base"] = float(config.rope_theta)
            values |= _written_scaling(config, self.yarn_multiplier)
        values |= {} if self.write is None else self.write(config)
        return {f"{self.name}.{key}": value for key, value in values.items()} | {FAMILY_KEY: config.family}

    def config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]], more: Metadata) -> ModelConfig:
        """Our configuration from the metadata of a file and the shapes of its tensors.

        `more` holds small tensors that belong to the configuration (`rope_freqs.weight`, …), and the roles of tokens.
        Raises InputError naming every key that is missing.
        """
        own = {key.removeprefix(f"{self.name}."): value for key, value in metadata.items()}
        needed = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
        if missing := [f"{self.name}.{key}: missing" for key in needed if key not in own]:
            raise InputError(f"This {self.name} file does not describe its network:", missing)
        heads = _one(own["attention.head_count"], f"{self.name}.attention.head_count")
        sizes: dict[str, Any] = {
            "vocab_size": shapes["token_embd.weight"][0] if "token_embd.weight" in shapes else own.get("vocab_size", 0),
            "hidden_size": own["embedding_length"],
            "intermediate_size": _one(own["feed_forward_length"], f"{self.name}.feed_forward_length"),
            "num_hidden_layers": own["block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": _one(own.get("attention.head_count_kv", heads), "attention.head_count_kv"),
            "max_position_embeddings": own["context_length"],
            "head_dim": own.get("attention.key_length") or own["embedding_length"] // max(heads, 1),
            "norm_eps": float(f"{own.get(self.norm_key, 1e-5):.6g}"),
        }
        if self.rotary:
            sizes["rope_theta"] = rounded(own.get("rope.freq_base", 10000.0))
            rotated = own.get("rope.dimension_count", sizes["head_dim"])
            sizes["rotary_dim"] = 0 if rotated == sizes["head_dim"] else rotated
            sizes |= _read_scaling(own, more, sizes, self.yarn_multiplier)
        sizes |= {} if self.read is None else self.read({**own, **more, "shapes": shapes})
        family = metadata.get(FAMILY_KEY)
        if family not in self.families:
            family = self.families[0] if self.family_of is None else self.family_of(metadata)
        basic = {name: sizes[name] for name in SIZES if name in sizes}
        if not sizes["num_attention_heads"]:  # A new model has one recurrent head for each head of attention.
            heads = sizes["recurrent_heads"]
            basic |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": sizes["hidden_size"]}
        config = fresh_config(family, basic, head=sizes.pop("head", self.heads[0]))
        tied = {} if "tie_word_embeddings" in get_family(family).required else {
            "tie_word_embeddings": "output.weight" not in shapes
        }  # fmt: skip
        roles = {key: value for key, value in more.items() if key.endswith("_token_id")}
        return config.replace(**sizes, **tied, **roles)


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim")  # fmt: skip
"""The fields from which a family derives its defaults."""

SCALINGS = ("linear", "yarn", "longrope", "llama3")
"""The kinds of rotary scaling that a GGUF file can express."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Llama 3.1's parameters; a file has only the factors of the frequencies that follow from them."""


def rounded(value: float) -> float:
    """A number of a file, which is in single precision, as the number that was meant."""
    return float(f"{value:.7g}")


def without(names: Mapping[str, str], *left_out: str) -> dict[str, str]:
    """These names without some."""
    return {theirs: ours for theirs, ours in names.items() if theirs not in left_out}


def pattern(config: ModelConfig, every: int) -> Iterator[str]:
    """The problem of layers that are not sliding but for every `every`th, as llama.cpp fixes it."""
    if config.layer_types != pattern_of(config.num_hidden_layers, every):
        yield f"layer_types: llama.cpp computes full attention in every {every}th layer, sliding in the others"


def pattern_of(layers: int, every: int) -> tuple[str, ...]:
    """The types of the layers: every `every`th is full."""
    return tuple("sliding" if (layer + 1) % every else "full" for layer in range(layers))


def no_attention_bias(config: ModelConfig) -> Iterator[str]:
    """The problem of biases of attention."""
    if config.attention_bias != "none":
        yield f"attention_bias: llama.cpp has none for {config.family}"


def _one(value: Any, name: str) -> int:
    """A size that llama.cpp may give for each layer. Raises InputError if the layers differ."""
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1 or not isinstance(first := values.pop(), int):
        raise InputError(f"{name}: {format_value(value)}; must be one whole number for all layers.")
    return first


def _written_scaling(config: ModelConfig, multiplier: float) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "llama3":
        return {}
    values: dict[str, Any] = {"rope.scaling.type": scaling.kind}
    if scaling.kind != "longrope":
        values["rope.scaling.factor"] = float(scaling.get("factor") or 1.0)
    original = scaling.get("original_max_position_embeddings")
    if original is not None:
        values["rope.scaling.original_context_length"] = original
    if scaling.get("attention_factor") is not None:
        values["rope.scaling.attn_factor"] = float(scaling.get("attention_factor"))
    if scaling.kind == "yarn":
        for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if scaling.get(ours) is not None:
                values[f"rope.scaling.{theirs}"] = float(scaling.get(ours))
        if multiplier and scaling.get("mscale_all_dim"):
            values["rope.scaling.yarn_log_multiplier"] = multiplier * float(scaling.get("mscale_all_dim"))
    return values


def _read_scaling(own: Metadata, more: Metadata, sizes: Mapping[str, Any], multiplier: float) -> dict[str, Any]:
    kind = own.get("rope.scaling.type", "none")
    freqs = more.get("rope_freqs.weight")
    if freqs is not None:
        return {"rope_scaling": _llama3_of(freqs, sizes)}
    original = own.get("rope.scaling.original_context_length")
    values: dict[str, Any] = {} if original is None else {"original_max_position_embeddings": original}
    if kind in ("linear", "yarn"):
        values = {**(values if kind == "yarn" else {}), "factor": float(own.get("rope.scaling.factor", 1.0))}
    elif "rope_factors_long.weight" in more:
        kind = "longrope"
        names = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
        values |= {name: tuple(more[tensor].tolist()) for name, tensor in names.items()}
    elif kind == "none":
        return {}
    else:
        raise InputError(f"rope.scaling.type: {format_value(kind)}; must be none, linear, yarn or longrope.")
    if (factor := own.get("rope.scaling.attn_factor")) is not None:
        values["attention_factor"] = float(factor)
    for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if kind == "yarn" and own.get(f"rope.scaling.{theirs}") is not None:
            values[ours] = float(own[f"rope.scaling.{theirs}"])
    if multiplier and (everywhere := own.get("rope.scaling.yarn_log_multiplier")):
        values |= {"mscale_all_dim": rounded(everywhere / multiplier), "mscale": rounded(everywhere / multiplier)}
    return {"rope_scaling": RotaryScaling(kind, tuple(sorted(values.items())))}


def llama3_factors(config: ModelConfig) -> Tensor:
    """What the rotary frequencies of a llama3 scaling are divided by, as llama.cpp's `rope_freqs.weight`: (pairs,)."""
    return _frequencies(config, None) / _frequencies(config, config.rope_scaling)


def _frequencies(config: ModelConfig, scaling: RotaryScaling | None) -> Tensor:
    length = config.max_position_embeddings
    return inverse_frequency(config.rotary_dim or config.head_dim, config.rope_theta, scaling, length, length)[0]


def _llama3_of(freqs: Tensor, sizes: Mapping[str, Any]) -> RotaryScaling:
    """The llama3 scaling that gives these factors. Raises InputError if none of the published ones does."""
    values = {**_LLAMA3, "factor": float(freqs.max())}
    scaling = RotaryScaling("llama3", tuple(sorted(values.items())))
    config = fresh_config("llama", {name: sizes[name] for name in SIZES}).replace(
        rope_theta=sizes["rope_theta"], max_position_embeddings=sizes["max_position_embeddings"], rope_scaling=scaling
    )
    if not torch.allclose(llama3_factors(config), freqs.float(), rtol=1e-4):
        raise InputError(
            "rope_freqs.weight: these factors do not follow from Llama 3.1's scaling (low 1, high 4, 8192 positions), "
            "the only one that can be recognized."
        )
    return scaling


def scaling_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a file that express the rotary scaling of a configuration, by name."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(config)}
    if scaling.kind == "longrope":
        return {
            f"rope_factors_{name}.weight": torch.tensor(scaling.get(f"{name}_factor")) for name in ("long", "short")
        }
    return {}


def pairwise_decoder(config: ModelConfig) -> list[Operation]:
    """A decoder of Llama's names whose rotary embedding turns neighbouring channels."""
    rest = {name: ours for name, ours in ATTENTION.items() if name not in ("attn_q", "attn_k")}
    turned: list[Operation] = [
        Interleaved(f"blk.{{n}}.attn_{name}.{leaf}", f"layers.{{n}}.self_attn.{name}_proj.{leaf}", is_query=name == "q")
        for name in "qk"
        for leaf in LEAVES
    ]
    return [*named(EMBEDDINGS, rest | FEED_FORWARD), *turned]


def ignores_windows(config: ModelConfig) -> Iterator[str]:
    """llama.cpp gives these architectures full attention, which is the same for texts within the window."""
    if "sliding" in config.layer_types and (config.sliding_window or 0) < config.context_length:
        yield (
            f"sliding_window {config.sliding_window}: llama.cpp computes full attention for {config.family}, which is "
            f"equal up to {config.sliding_window} tokens; export with --context {config.sliding_window}"
        )


def even_heads(config: ModelConfig) -> Iterator[str]:
    """llama.cpp takes the width of all heads together for that of the hidden states."""
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        product = f"{config.num_attention_heads} heads of {config.head_dim}"
        yield f"head_dim: {product} are not hidden_size {config.hidden_size}, as llama.cpp needs for {config.family}"
    yield from ignores_windows(config)


def read_biases(own: Metadata) -> dict[str, Any]:
    """Biases of the projections and the feed-forward, which the metadata do not mention."""
    shapes = own["shapes"]
    return {
        "attention_bias": "all" if "blk.0.attn_output.bias" in shapes else "none",
        "feed_forward_bias": "blk.0.ffn_up.bias" in shapes,
    }
