"""llama.cpp's architectures: how the metadata and the tensors of a GGUF file map to our configuration and weights.

An `Architecture` says the names of the tensors (reversible operations, as a family's), the keys of the metadata, and
what llama.cpp cannot compute. Its constants are llama.cpp's: where its code fixes a number (Gemma 2 has a full layer
after each sliding one), a configuration with another number is refused, because the file could not express it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families import Family, get_family
from quatrain.models.families.fresh import fresh_config
from quatrain.models.families.weights import Operation, Rename, Split, Stacked, expand
from quatrain.models.gguf.operations import Interleaved, PlusOne, SkippedRows
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig, RotaryScaling
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
GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "attention_output_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "feed_forward_output_layernorm",
}


def _llama(config: ModelConfig) -> list[Operation]:
    rest = {name: ours for name, ours in ATTENTION.items() if name not in ("attn_q", "attn_k")}
    turned: list[Operation] = [
        Interleaved(f"blk.{{n}}.attn_{name}.{leaf}", f"layers.{{n}}.self_attn.{name}_proj.{leaf}", is_query=name == "q")
        for name in "qk"
        for leaf in LEAVES
    ]
    return [*named(EMBEDDINGS, rest | FEED_FORWARD), *turned]


def _qwen(config: ModelConfig) -> list[Operation]:
    return named(EMBEDDINGS, ATTENTION | FEED_FORWARD | HEAD_NORMS)


def _qwen_moe(config: ModelConfig) -> list[Operation]:
    experts: list[Operation] = [
        Stacked(f"blk.{{n}}.ffn_{name}_exps.weight", (f"layers.{{n}}.mlp.experts.{{x}}.{name}_proj.weight",))
        for name in ("gate", "up", "down")
    ]
    shared = {f"ffn_{name}_shexp": f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")}
    router = {"ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate"}
    norm = {"ffn_norm": FEED_FORWARD["ffn_norm"]}
    return [*named(EMBEDDINGS, ATTENTION | norm | HEAD_NORMS | shared | router), *experts]


def _gemma(config: ModelConfig) -> list[Operation]:
    plain = {name: ours for name, ours in (ATTENTION | FEED_FORWARD).items() if name not in GEMMA_NORMS}
    embeddings = {name: ours for name, ours in EMBEDDINGS.items() if name != "output_norm"}
    return [*named(embeddings, plain), *named({"output_norm": "norm"}, GEMMA_NORMS | HEAD_NORMS, PlusOne)]


def _phi2(config: ModelConfig) -> list[Operation]:
    layer = {name: ours for name, ours in (ATTENTION | PLAIN_FEED_FORWARD).items() if name != "ffn_norm"}
    return named(EMBEDDINGS, layer)


def _phi3(config: ModelConfig) -> list[Operation]:
    layer = NO_PROJECTIONS | {name: FEED_FORWARD[name] for name in ("ffn_norm", "ffn_down")}
    return [*named(EMBEDDINGS, layer), *QUERY_KEY_VALUE, *GATED_IN_ONE]


def _gpt2(config: ModelConfig) -> list[Operation]:
    return [*PLAIN_DECODER, Rename("position_embd.weight", "embed_positions.weight")]


def _bloom(config: ModelConfig) -> list[Operation]:
    return [*PLAIN_DECODER, *named({"token_embd_norm": "embedding_norm"}, {})]


def _bert(config: ModelConfig) -> list[Operation]:
    whole = {
        "token_embd": "embed_tokens", "token_embd_norm": "embedding_norm", "token_types": "embed_token_types",
        "cls": "pooler.dense", "cls.output": "score",
    }  # fmt: skip
    layer = ATTENTION | PLAIN_FEED_FORWARD
    layer = {name: ours for name, ours in layer.items() if name not in ("attn_norm", "ffn_norm")}
    norms = {"attn_output_norm": "input_layernorm", "layer_output_norm": "post_attention_layernorm"}
    return [*named(whole, layer | norms), SkippedRows("position_embd.weight", "embed_positions.weight")]


def _modern_bert(config: ModelConfig) -> list[Operation]:
    whole = {"token_embd": "embed_tokens", "token_embd_norm": "embedding_norm", "output_norm": "norm",
             "cls": "pooler.dense", "cls.norm": "pooler.norm", "cls.output": "score"}  # fmt: skip
    layer = NO_PROJECTIONS | {name: FEED_FORWARD[name] for name in ("ffn_norm", "ffn_down")}
    return [*named(whole, layer), *QUERY_KEY_VALUE, *GATED_IN_ONE]


def _t5(config: ModelConfig) -> list[Operation]:
    def side(theirs: str, ours: str, mark: str) -> list[Operation]:
        layer = {"attn_o" if name == "attn_output" else name: our for name, our in (ATTENTION | FEED_FORWARD).items()}
        if theirs == "dec":
            layer |= {f"cross_attn_{name}": f"cross_attn.{name}_proj" for name in "qkvo"}
            layer["cross_attn_norm"] = "cross_attn_layernorm"
        operations: list[Operation] = [
            Rename(f"{theirs}.blk.{mark}.{name}.weight", f"{ours}layers.{mark}.{our}.weight")
            for name, our in layer.items()
        ]
        operations.append(Rename(f"{theirs}.blk.0.attn_rel_b.weight", f"{ours}relative_bias.weight"))
        return [*operations, Rename(f"{theirs}.output_norm.weight", f"{ours}norm.weight")]

    shared: list[Operation] = [Rename("token_embd.weight", "embed_tokens.weight")]
    if config.architecture == "encoder":
        return [*shared, *side("enc", "", "{n}")]
    return [*shared, Rename("output.weight", "lm_head.weight"), *side("enc", "encoder.", "{e}"),
            *side("dec", "", "{n}")]  # fmt: skip


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
    classifies_by: tuple[str, ...] = ()
    """Beginnings of names of ours that belong to a classifier; files of other heads leave them out."""

    def dropped(self, config: ModelConfig) -> tuple[str, ...]:
        """Beginnings of names of tensors that a file leaves out, because the head does not use them."""
        return () if config.head == "sequence_classification" else self.classifies_by

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
        if config.head not in self.heads:
            found.append(f"head {config.head}: llama.cpp has {', '.join(self.heads)} for {self.name}")
        if config.rope_scaling is not None and config.rope_scaling.kind not in SCALINGS:
            found.append(f"rope_scaling {config.rope_scaling.kind}: llama.cpp has {', '.join(SCALINGS)}")
        return [*found, *self.limits(config)]

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
            values |= _written_scaling(config)
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
            "head_dim": own.get("attention.key_length") or own["embedding_length"] // heads,
            "norm_eps": float(f"{own.get(self.norm_key, 1e-5):.6g}"),
        }
        if self.rotary:
            sizes["rope_theta"] = float(f"{own.get('rope.freq_base', 10000.0):.7g}")
            rotated = own.get("rope.dimension_count", sizes["head_dim"])
            sizes["rotary_dim"] = 0 if rotated == sizes["head_dim"] else rotated
            sizes |= _read_scaling(own, more, sizes)
        sizes |= {} if self.read is None else self.read({**own, **more, "shapes": shapes})
        family = metadata.get(FAMILY_KEY)
        if family not in self.families:
            family = self.families[0] if self.family_of is None else self.family_of(metadata)
        basic = {name: sizes[name] for name in SIZES if name in sizes}
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


def _one(value: Any, name: str) -> int:
    """A size that llama.cpp may give for each layer. Raises InputError if the layers differ."""
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1 or not isinstance(first := values.pop(), int):
        raise InputError(f"{name}: {format_value(value)}; must be one whole number for all layers.")
    return first


def _written_scaling(config: ModelConfig) -> dict[str, Any]:
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
    return values


def _read_scaling(own: Metadata, more: Metadata, sizes: Mapping[str, Any]) -> dict[str, Any]:
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


def _ignores_windows(config: ModelConfig) -> Iterator[str]:
    """llama.cpp gives these architectures full attention, which is the same for texts within the window."""
    if "sliding" in config.layer_types and (config.sliding_window or 0) < config.context_length:
        yield (
            f"sliding_window {config.sliding_window}: llama.cpp computes full attention for {config.family}, which is "
            f"equal up to {config.sliding_window} tokens; export with --context {config.sliding_window}"
        )


def _even_heads(config: ModelConfig) -> Iterator[str]:
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        product = f"{config.num_attention_heads} heads of {config.head_dim}"
        yield f"head_dim: {product} are not hidden_size {config.hidden_size}, as llama.cpp needs for {config.family}"
    yield from _ignores_windows(config)


def _read_biases(own: Metadata) -> dict[str, Any]:
    """Biases of the projections and the feed-forward, which the metadata do not mention."""
    shapes = own["shapes"]
    return {
        "attention_bias": "all" if "blk.0.attn_output.bias" in shapes else "none",
        "feed_forward_bias": "blk.0.ffn_up.bias" in shapes,
    }


def _expert_limits(normalized: bool) -> Callable[[ModelConfig], Iterator[str]]:
    """What llama.cpp fixes for Qwen's mixtures: experts in every layer, and whether their weights are normalized."""

    def limits(config: ModelConfig) -> Iterator[str]:
        experts = config.experts
        if experts is not None and experts.dense_layers:
            yield "mlp_only_layers, decoder_sparse_step: llama.cpp has experts in every layer"
        if experts is not None and experts.renormalize != normalized:
            yield f"norm_topk_prob {experts.renormalize}: llama.cpp computes {normalized} for {config.family}"
        yield from _ignores_windows(config)

    return limits


def _write_experts(config: ModelConfig) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        return {}
    shared = experts.shared_intermediate_size
    return {
        "expert_count": experts.num_experts,
        "expert_used_count": experts.experts_per_token,
        "expert_feed_forward_length": experts.intermediate_size,
    } | ({"expert_shared_feed_forward_length": shared} if shared else {})


def _read_experts(normalized: bool) -> Callable[[Metadata], dict[str, Any]]:
    def read(own: Metadata) -> dict[str, Any]:
        needed = ("expert_count", "expert_used_count", "expert_feed_forward_length")
        if missing := [f"{key}: missing" for key in needed if key not in own]:
            raise InputError("This file does not describe its experts:", missing)
        shared = own.get("expert_shared_feed_forward_length", 0)
        biases = _read_biases(own)["attention_bias"] if normalized else "qkv"
        return {
            "attention_bias": biases,
            "experts": ExpertsConfig(
                num_experts=own["expert_count"],
                experts_per_token=own["expert_used_count"],
                intermediate_size=own["expert_feed_forward_length"],
                renormalize=normalized,
                shared_intermediate_size=shared,
                shared_gate=bool(shared),
                balance_loss=0.001,
            ),
        }

    return read


def _gemma_limits(every: int, large: int) -> Callable[[ModelConfig], Iterator[str]]:
    """What llama.cpp fixes for Gemma: the pattern of layers, and the attention scale (of the 27B model another)."""

    def limits(config: ModelConfig) -> Iterator[str]:
        pattern = tuple("sliding" if (layer + 1) % every else "full" for layer in range(config.num_hidden_layers))
        if config.layer_types != pattern:
            yield f"layer_types: llama.cpp computes full attention in every {every}th layer, sliding in the others"
        width = config.head_dim
        if config.num_hidden_layers == large:
            width = config.hidden_size // config.num_attention_heads
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        if abs(scale - width**-0.5) > 1e-6:
            yield f"query_pre_attn_scalar {scale**-2:.6g}: llama.cpp computes {width}"
        if config.attention_bias != "none":
            yield "attention_bias: llama.cpp has none for gemma"
        if config.local_rope_scaling is not None:
            yield "rope_scaling of the sliding layers: llama.cpp has none"

    return limits


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"attention.sliding_window": config.sliding_window}
    if config.attention_softcap is not None:
        values["attn_logit_softcapping"] = float(config.attention_softcap)
    if config.logit_softcap is not None:
        values["final_logit_softcapping"] = float(config.logit_softcap)
    if config.local_rope_theta is not None:
        values["rope.freq_base_swa"] = float(config.local_rope_theta)
    return values


def _read_gemma(every: int, large: int) -> Callable[[Metadata], dict[str, Any]]:
    def read(own: Metadata) -> dict[str, Any]:
        layers, heads = own["block_count"], own["attention.head_count"]
        width = own.get("attention.key_length") or own["embedding_length"] // heads
        if layers == large:
            width = own["embedding_length"] // heads
        caps = (("attention_softcap", "attn_logit_softcapping"), ("logit_softcap", "final_logit_softcapping"))
        found: dict[str, Any] = {
            "layer_types": tuple("sliding" if (layer + 1) % every else "full" for layer in range(layers)),
            "sliding_window": own.get("attention.sliding_window", 4096),
            "attention_scale": width**-0.5,
            **{ours: float(own[theirs]) for ours, theirs in caps if theirs in own},
        }
        if every == 6:
            found["local_rope_theta"] = float(own.get("rope.freq_base_swa", 10000.0))
        return found

    return read


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    return {"use_parallel_residual": config.residual == "parallel"}


def _read_gpt_neox(own: Metadata) -> dict[str, Any]:
    return {"residual": "parallel" if own.get("use_parallel_residual", True) else "sequential"}


def _gpt2_limits(config: ModelConfig) -> Iterator[str]:
    if config.attention_scale is not None or config.attention_scale_by_layer != "constant":
        yield "scale_attn_weights, scale_attn_by_inverse_layer_idx: llama.cpp divides by the root of the head's width"


def _phi3_limits(config: ModelConfig) -> Iterator[str]:
    # llama.cpp has windows for phi3, so only the heads are limited.
    yield from (problem for problem in _even_heads(config) if problem.startswith("head_dim"))


def _window(own: Metadata) -> dict[str, Any]:
    window = own.get("attention.sliding_window") or None
    return {"sliding_window": window, "layer_types": ()}


def _write_window(config: ModelConfig) -> dict[str, Any]:
    return {} if config.sliding_window is None else {"attention.sliding_window": config.sliding_window}


POOLINGS = {"mean": 1, "first": 2, "last": 3}
"""llama.cpp's numbers of poolings; 0 is none, 4 the rank of a classifier."""


def _write_encoder(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"attention.causal": False}
    if config.head == "sequence_classification":
        return {**values, "pooling_type": 4, "classifier.output_labels": list(config.labels)}
    return {**values, "pooling_type": POOLINGS.get(config.pooling, 0)}


def _read_encoder(own: Metadata) -> dict[str, Any]:
    kinds = {number: name for name, number in POOLINGS.items()}
    pooling = own.get("pooling_type", 1)
    if pooling == 4:
        labels = tuple(own.get("classifier.output_labels") or ("LABEL_0",))
        return {"head": "sequence_classification", "labels": labels}
    return {"head": "embedding", "pooling": kinds.get(pooling, "mean"), "pooler": "none"}


def _bert_family(own: Metadata) -> str:
    if own.get("tokenizer.ggml.model") == "t5":
        return "xlm-roberta"
    if own.get("tokenizer.ggml.model") == "gpt2":
        return "roberta"
    return "bert"


def _read_bert(own: Metadata) -> dict[str, Any]:
    shapes = own["shapes"]
    types = shapes.get("token_types.weight", (0,))[0]
    found = {**_read_encoder(own), "type_vocab_size": types}
    if "position_embd.weight" in shapes:
        found["max_position_embeddings"] = shapes["position_embd.weight"][0]
    return found


def _bert_limits(config: ModelConfig) -> Iterator[str]:
    if config.head == "sequence_classification" and config.pooler not in ("none", "tanh"):
        yield f"pooler activation {config.pooler}: llama.cpp computes tanh"
    if config.pooling not in (*POOLINGS, "eos"):
        yield f"pooling {config.pooling}: llama.cpp has {', '.join(POOLINGS)}"


def _write_modern_bert(config: ModelConfig) -> dict[str, Any]:
    values = {**_write_encoder(config), "attention.sliding_window": config.sliding_window}
    values["attention.sliding_window_pattern"] = 3
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    return values | {"rope.freq_base_swa": float(local)}


def _read_modern_bert(own: Metadata) -> dict[str, Any]:
    every = own.get("attention.sliding_window_pattern", 3)
    kinds = tuple("sliding" if layer % every else "full" for layer in range(own["block_count"]))
    return {**_read_encoder(own), "layer_types": kinds, "sliding_window": own.get("attention.sliding_window", 128),
            "pooler_norm": False, "local_rope_theta": float(own.get("rope.freq_base_swa", 10000.0))}  # fmt: skip


def _modern_bert_limits(config: ModelConfig) -> Iterator[str]:
    pattern = tuple("sliding" if layer % 3 else "full" for layer in range(config.num_hidden_layers))
    if config.layer_types != pattern:
        yield "layer_types: llama.cpp computes full attention in every 3rd layer from the first on"
    if config.norm != "layer_without_bias" or config.attention_bias != "none" or config.feed_forward_bias:
        yield "biases of norms, attention or feed-forward: llama.cpp has none for modern-bert"


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"attention.relative_buckets_count": config.relative_buckets}
    if config.architecture == "encoder-decoder":
        values["decoder_block_count"] = config.num_hidden_layers
        values["decoder_start_token_id"] = config.decoder_start_token_id or 0
    return values


def _read_t5(own: Metadata) -> dict[str, Any]:
    shapes = own["shapes"]
    gated = any(name.endswith("blk.0.ffn_gate.weight") for name in shapes)
    layers = own["block_count"]
    tied = "output.weight" not in shapes
    return {
        "num_encoder_layers": layers,
        "num_hidden_layers": own.get("decoder_block_count", layers),
        "encoder_attention_heads": own["attention.head_count"],
        "encoder_intermediate_size": own["feed_forward_length"],
        "relative_buckets": own.get("attention.relative_buckets_count", 32),
        "decoder_start_token_id": own.get("decoder_start_token_id", 0),
        "feed_forward": "gated" if gated else "plain",
        "activation": "gelu_tanh" if gated else "relu",
        "logit_scale": own["embedding_length"] ** -0.5 if tied else 1.0,
    }


def _t5_limits(config: ModelConfig) -> Iterator[str]:
    known = "gelu_tanh" if config.feed_forward == "gated" else "relu"
    if config.activation != known:
        yield f"activation {config.activation}: llama.cpp computes {known} for a {config.feed_forward} feed-forward"
    if config.relative_max_distance != 128:
        yield f"relative_attention_max_distance {config.relative_max_distance}: llama.cpp computes 128"


FAMILY_KEY = "quatrain.family"
"""The key under which our files keep the family, where llama.cpp has one architecture for several."""
ENCODER_HEADS = ("embedding", "none", "sequence_classification")

ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), _llama, limits=_ignores_windows, read=_read_biases),
    Architecture("qwen2", ("qwen2",), _qwen, limits=_even_heads),
    Architecture("qwen3", ("qwen3",), _qwen, limits=_ignores_windows, read=_read_biases),
    Architecture(
        "qwen2moe", ("qwen2_moe",), _qwen_moe, limits=_expert_limits(False), write=_write_experts,
        read=_read_experts(False),
    ),
    Architecture(
        "qwen3moe", ("qwen3_moe",), _qwen_moe, limits=_expert_limits(True), write=_write_experts,
        read=_read_experts(True),
    ),
    Architecture(
        "gemma2", ("gemma2",), _gemma, activations=GELU, limits=_gemma_limits(2, 46), write=_write_gemma,
        read=_read_gemma(2, 46),
    ),
    Architecture(
        "gemma3", ("gemma3_text",), _gemma, activations=GELU, limits=_gemma_limits(6, 62), write=_write_gemma,
        read=_read_gemma(6, 62),
    ),
    Architecture("phi2", ("phi",), _phi2, "attention.layer_norm_epsilon", GELU),
    Architecture("phi3", ("phi3",), _phi3, limits=_phi3_limits, write=_write_window, read=_window),
    Architecture("gpt2", ("gpt2",), _gpt2, "attention.layer_norm_epsilon", GELU, limits=_gpt2_limits, rotary=False),
    Architecture(
        "gptneox", ("gpt_neox",), lambda config: PLAIN_DECODER, "attention.layer_norm_epsilon", GELU,
        write=_write_gpt_neox, read=_read_gpt_neox,
    ),
    Architecture("bloom", ("bloom",), _bloom, "attention.layer_norm_epsilon", GELU, rotary=False),
    Architecture(
        "bert", ("bert", "roberta", "xlm-roberta", "camembert", "distilbert"), _bert, "attention.layer_norm_epsilon",
        GELU, ENCODER_HEADS, _bert_limits, _write_encoder, _read_bert, rotary=False, family_of=_bert_family,
        classifies_by=("pooler.",),
    ),
    Architecture(
        "modern-bert", ("modernbert",), _modern_bert, "attention.layer_norm_epsilon", GELU, ENCODER_HEADS,
        _modern_bert_limits, _write_modern_bert, _read_modern_bert, classifies_by=("pooler.",),
    ),
    Architecture(
        "t5", ("t5", "mt5"), _t5, activations=("relu", *GELU), heads=("seq2seq",), limits=_t5_limits, write=_write_t5,
        read=_read_t5, rotary=False,
    ),
)  # fmt: skip
"""What llama.cpp and this package both know."""


@cache
def _by_family() -> dict[str, Architecture]:
    return {family: each for each in ARCHITECTURES for family in each.families}


def architecture_of(family: str) -> Architecture:
    """The architecture of a family. Raises InputError, with the families that llama.cpp knows, for another."""
    if family not in _by_family():
        raise InputError(f"llama.cpp has no architecture for {family}; it has one for: {', '.join(_by_family())}.")
    return _by_family()[family]


def architecture_named(name: Any) -> Architecture:
    """The architecture that a file names. Raises InputError for one that is not known here."""
    found = next((each for each in ARCHITECTURES if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in ARCHITECTURES)
        raise InputError(f"general.architecture: {format_value(name)} is not known here; known are {known}.")
    return found
