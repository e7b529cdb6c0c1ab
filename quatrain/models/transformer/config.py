"""The configuration of a transformer: sizes and named choices.

A family (`quatrain.models.families`) converts a Hugging Face `config.json` to a `ModelConfig` and back. The stack
(`quatrain.models.transformer.stack`) is built from a `ModelConfig` alone.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.transformer.frontend import Frontend

CacheFormat = Literal["int8", "int4"]
"""The formats of a rounded KV cache (`cache_forms`)."""

MAX_SIZE = 2**31 - 1
"""The largest size or id: the maximum of a signed 32-bit integer."""

MAX_EXPERTS = 100_000
"""Maximum number of experts of a layer, each of them a module; the largest published models have some hundred."""

MAX_LAYERS = 2_000
"""Maximum number of layers; the deepest published transformer has 1,000 (Wang et al. 2022, arXiv 2203.00555)."""

CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": ("decoder", "encoder", "encoder-decoder"),
    "head": (
        "causal",
        "masked",
        "pretraining",
        "next_sentence",
        "seq2seq",
        "sequence_classification",
        "token_classification",
        "question_answering",
        "multiple_choice",
        "image_classification",
        "distilled_classification",
        "replaced_tokens",
        "contrastive",
        "embedding",
        "value",
        "none",
    ),
    "position": (
        "rotary",
        "learned",
        "learned_relative",
        "sinusoidal",
        "alibi",
        "relative",
        "disentangled",
        "none",
    ),
    "embedding_projection": ("tokens", "all"),
    "padding_positions": ("counted", "skipped"),
    "norm": ("rms", "rms_offset", "rms_without_parameters", "layer", "layer_without_bias", "layer_without_parameters"),
    "norm_position": ("pre", "post", "sandwich", "output"),
    "residual": ("sequential", "parallel", "parallel_shared"),
    "feed_forward": ("gated", "plain", "none"),
    "activation": ("silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu_squared", "tanh"),
    "attention_bias": ("none", "qkv", "output", "all", "all_but_key"),
    "rotary_layout": ("halves", "swapped", "interleaved"),
    "attention_scale_by_layer": ("constant", "inverse"),
    "query_key_norm": ("none", "head", "each_head", "whole"),
    "pooling": ("first", "last", "mean", "mean_sqrt", "weighted_mean", "max", "eos"),
    "problem_type": ("single_label", "multi_label", "regression"),
    "head_bias": ("none", "learned", "fixed"),
    "padding_embedding": ("learned", "fixed"),
}
"""The allowed values of each choice. Those that need an explanation:

| field | value | meaning |
|---|---|---|
| head | `replaced_tokens` | for each token, whether another one was there (ELECTRA) |
| position | `learned_relative` | a learned table, and T5's bias by distance in every layer (MPNet) |
| | `disentangled` | scores between contents and distances (DeBERTa: He et al. 2021, arXiv 2006.03654) |
| embedding_projection | `tokens` | a narrower token embedding is projected, and the last hidden states back (OPT) |
| | `all` | positions, token types and norm are as narrow; the result is projected, with a bias (ALBERT) |
| padding_positions | `skipped` | padding tokens take no position (RoBERTa) |
| norm | `rms_offset` | RMSNorm that multiplies by 1 + weight (Gemma) |
| norm_position | `pre`, `post`, `sandwich` | x + f(norm(x)), norm(x + f(x)), x + norm(f(norm(x))) |
| | `output` | x + norm(f(x)) (OLMo 2) |
| residual | `parallel` | x + attention(norm1(x)) + feed_forward(norm2(x)) |
| | `parallel_shared` | the same with one norm for both |
| attention_bias | `qkv`, `output` | no bias in the output projection; in that projection alone |
| | `all_but_key` | no bias in the key projection |
| rotary_layout | `swapped` | channel i + R / 2 leads its pair instead of channel i: angles turn backwards (nanochat) |
| | `interleaved` | rotated pairs are channels (2 i, 2 i + 1) instead of (i, i + R / 2) |
| attention_scale_by_layer | `inverse` | the scale is divided by the layer's number, counted from 1 |
| query_key_norm | `head` | the queries and keys of each head are normalized, with one weight for all heads |
| | `each_head` | the same, with weights of its own for each head (StableLM) |
| | `whole` | all queries of a token are normalized together, and all its keys (OLMo 2) |
| pooling | `mean_sqrt` | the sum of the states divided by the square root of their number |
| | `weighted_mean` | the mean, each token weighted by its position, counted from 1 |
| | `eos` | the state of the last end-of-sequence token |
| problem_type | `multi_label` | a text may have any number of labels |
| head_bias | `fixed` | read from the files, not trained |
| padding_embedding | `fixed` | the embedding of the padding token gets no gradient |
"""

CLASSIFICATION_HEADS = (
    "sequence_classification",
    "token_classification",
    "multiple_choice",
    "next_sentence",
    "image_classification",
    "distilled_classification",
    "value",
    "replaced_tokens",
)
"""Heads with a `score` layer that has one output per label, choice or value."""

ATTENTION_LAYERS = ("full", "sliding")
"""Types of layers whose mixer is attention, which caches keys and values."""

RECURRENT_LAYERS = ("mamba2", "mlstm", "gated_delta")
"""Types of layers whose mixer is recurrent: they have a state of constant size (`transformer.recurrence`)."""

RECURRENT_SIZES = ("recurrent_heads", "recurrent_head_dim", "recurrent_state_size", "recurrent_groups")
"""Fields that a model with recurrent layers must have."""

LANGUAGE_HEADS = ("causal", "masked", "pretraining", "seq2seq")
"""Heads that predict a token of the vocabulary at every position."""


@dataclass(frozen=True)
class RotaryScaling:
    """How the rotary frequencies are scaled to read texts longer than those of pre-training.

    kind: `linear` (Chen et al. 2023, arXiv 2306.15595), `dynamic` (NTK-aware), `yarn` (Peng et al. 2023, arXiv
    2309.00071), `longrope` (Ding et al. 2024, arXiv 2402.13753), `llama3` (Llama 3.1), `proportional` (Gemma 4: only
    the fastest pairs of channels turn, as fast as if all did). `values` holds the parameters of this kind, named as in
    the `rope_scaling` of config.json.
    """

    kind: str
    values: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """One parameter by name, or `default` if it is not set."""
        return dict(self.values).get(name, default)

    def context_length(self, max_position_embeddings: int) -> int:
        """The longest text, in tokens, that a model with `max_position_embeddings` can read with this scaling."""
        factor, original = self.get("factor") or 1, self.get("original_max_position_embeddings")
        if self.kind in ("linear", "dynamic"):
            original = max_position_embeddings
        elif self.kind != "yarn" or original is None:
            return max_position_embeddings
        return max(max_position_embeddings, int(factor * original))


ROUTERS = ("softmax", "softmax_of_chosen", "sigmoid")
"""How a router's logits become the weights of the chosen experts: `softmax` over all experts, then choose (Mixtral);
choose, then softmax over the chosen (GPT-OSS); a `sigmoid` of each, chosen with a bias that balances the load
(DeepSeek-V3, Liu et al. 2024, arXiv 2412.19437)."""


@dataclass(frozen=True)
class ExpertsConfig:
    """The mixture of experts that replaces the feed-forward network (Shazeer et al. 2017, arXiv 1701.06538).

    Raises InputError, with all problems, for values that are invalid or contradict each other.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    """Width of one expert."""
    router: str = "softmax"
    renormalize: bool = True
    """Whether the weights of the chosen experts are divided by their sum."""
    scale: float = 1.0
    """Factor of the weights of the chosen experts."""
    groups: int = 1
    groups_per_token: int = 1
    """Group-limited routing: experts are chosen from the groups whose two best experts score highest."""
    shared_intermediate_size: int = 0
    """Width of the shared expert, which every token uses; 0: none."""
    shared_gate: bool = False
    """Whether a sigmoid gate multiplies the shared expert's output (Qwen2-MoE)."""
    bias: bool = False
    """Whether the router and the experts have biases."""
    beside_dense: bool = False
    """Whether the plain feed-forward network stays, and the sum of both, each with norms of its own, is the output
    (Gemma 4). The router then reads the normalized residual stream times a learned scale, and a learned factor of each
    expert multiplies its weight."""
    clamp: float | None = None
    """Limit L of GPT-OSS's activation (min(g, L) sigmoid(1.702 min(g, L))) (clip(u, -L, L) + 1); None: the model's."""
    dense_layers: tuple[int, ...] = ()
    """Layers that have a plain feed-forward network instead."""
    capacity_factor: float | None = None
    """In training an expert takes at most this factor times the mean number of tokens; None: all (dropless)."""
    balance_loss: float = 0.0
    """Coefficient of the load-balancing loss (Fedus et al. 2021, arXiv 2101.03961) in training."""
    z_loss: float = 0.0
    """Coefficient of the router's z-loss (Zoph et al. 2022, arXiv 2202.08906) in training."""
    bias_rate: float = 0.0
    """Step of a sigmoid router's balancing bias after each optimizer step (Wang et al. 2024, arXiv 2408.15664)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense_layers", tuple(self.dense_layers))
        if problems := list(self._problems()):
            raise InputError("This mixture of experts cannot be built:", problems)

    def _problems(self) -> Iterator[str]:
        wrong = []
        for name in ("num_experts", "experts_per_token", "intermediate_size", "groups", "groups_per_token"):
            most = MAX_SIZE if name == "intermediate_size" else MAX_EXPERTS
            if not is_size(getattr(self, name), most):
                wrong.append(name)
                yield f"{name}: {format_value(getattr(self, name))}; must be a whole number from 1 to {most:,}"
        yield from _choice("router", self.router, ROUTERS)
        for name in ("scale", *(name for name in ("clamp", "capacity_factor") if getattr(self, name) is not None)):
            yield from _number(name, getattr(self, name))
        for name in ("balance_loss", "z_loss", "bias_rate"):
            if getattr(self, name) != 0:
                yield from _number(name, getattr(self, name))
        if self.bias_rate and self.router != "sigmoid":
            yield f"bias_rate: {self.bias_rate}; only a sigmoid router has a balancing bias, not {self.router!r}"
        if not wrong:
            yield from self._contradictions()

    def _contradictions(self) -> Iterator[str]:
        if self.experts_per_token > self.num_experts:
            yield f"experts_per_token: {self.experts_per_token}; must be at most num_experts ({self.num_experts})"
        if self.num_experts % self.groups:
            yield f"groups: {self.groups}; must divide num_experts ({self.num_experts})"
            return
        in_group = self.num_experts // self.groups
        if self.groups_per_token > self.groups:
            yield f"groups_per_token: {self.groups_per_token}; must be at most groups ({self.groups})"
        elif self.experts_per_token > self.groups_per_token * in_group:
            yield (
                f"experts_per_token: {self.experts_per_token}; the {self.groups_per_token} groups of a token have only "
                f"{self.groups_per_token * in_group} experts"
            )
        if self.groups > 1 and self.router != "sigmoid":
            yield f"groups: {self.groups}; group-limited routing needs a sigmoid router, not {self.router!r}"
        if self.groups > 1 and in_group < 2:
            yield f"groups: {self.groups}; a group needs at least 2 experts"


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (Liu et al. 2024, DeepSeek-V2, arXiv 2405.04434): keys and values are projected from
    a small vector of each token, which the cache stores, with one rotated key that all heads share.

    A head's queries and keys have `nope_dim` channels without positions and `rope_dim` rotated ones.
    """

    kv_rank: int
    """Width of the vector that the cache stores."""
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int = 0
    """Width of the queries' own vector; 0: queries are projected from the hidden states."""
    interleaved: bool = True
    """Whether the rotated pairs are neighbouring channels in the files."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {format_value(getattr(self, name))}; must be a whole number from 1 to {MAX_SIZE:,}"
            for name in ("kv_rank", "rope_dim", "nope_dim", "value_dim")
            if not is_size(getattr(self, name))
        ]
        if self.query_rank != 0 and not is_size(self.query_rank):
            problems.append(f"query_rank: {format_value(self.query_rank)}; must be a whole number from 0")
        if not problems and self.rope_dim % 2:
            problems.append(f"rope_dim: {self.rope_dim}; rotary positions need an even width")
        if problems:
            raise InputError("This latent attention cannot be built:", problems)


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a transformer. A size of 0, or None, means that the part does not exist.

    In an encoder-decoder the fields describe the decoder; the `encoder_` fields are those in which the encoder
    differs. Raises InputError, with all problems, for values that are invalid or contradict each other.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int = 0
    """Width of one head; 0 means hidden_size / num_attention_heads."""
    full_head_dim: int = 0
    """Width of one head in full-attention layers beside sliding ones; 0: head_dim."""
    full_key_value_heads: int = 0
    """Number of key/value heads in full-attention layers beside sliding ones; 0: num_key_value_heads."""
    architecture: str = "decoder"
    head: str = "causal"

    position: str = "rotary"
    position_offset: int = 0
    """Unused rows of the learned position table before the row of the first position."""
    padding_positions: str = "counted"
    unplaced_token_id: int | None = None
    """The token without a position where padding is skipped; None: `pad_token_id`."""
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None
    """The rotary base of the sliding-window layers, if it differs."""
    rotary_dim: int = 0
    """Channels of each head that are rotated; 0 means all."""
    rotary_layout: str = "halves"
    layers_without_positions: tuple[int, ...] = ()
    """Numbers of the layers whose queries and keys are not rotated (NoPE: Kazemnejad et al. 2023, arXiv 2305.19466)."""
    rope_scaling: RotaryScaling | None = None
    local_rope_scaling: RotaryScaling | None = None
    """The scaling of the sliding-window layers; used only with `local_rope_theta`."""
    alibi_scale: float = 1.0
    """Factor of ALiBi's slopes (1 / sqrt(head_dim) in Falcon)."""
    blocks: tuple[int, ...] = ()
    """For each layer the number of the block that computes it; layers may share a block's weights (ALBERT). Empty: each
    layer has a block of its own."""
    query_growth: float = 0.0
    """b in 1 + b ln(1 + floor(p / P)), by which queries at position p are multiplied; P is the original context length
    of `rope_scaling` (Llama 4, Ministral 3)."""
    relative_buckets: int = 32
    relative_max_distance: int = 128

    neighbour_tokens: int = 0
    """Tokens that a convolution over the embeddings sees, an odd number; its output is added to that of the first layer
    (DeBERTa v2 XL); 0: there is none."""
    neighbour_activation: str = "tanh"

    embedding_size: int = 0
    """Width of the token embedding; 0 means hidden_size. A different width is projected to hidden_size."""
    embedding_projection: str = "tokens"
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    padding_embedding: str = "learned"
    layer_embedding_size: int = 0
    """Width of a second embedding of each token, another one for every layer (Gemma 3n and 4); 0: there is none."""
    layer_vocab_size: int = 0
    """Rows of the table of these embeddings; 0: vocab_size."""
    type_vocab_size: int = 0
    """Number of token types (BERT's sentence A and B); 0: no token-type embedding."""

    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_position: str = "pre"
    first_norm: bool = True
    """Whether the attention of the first layer has a norm before it (False in ModernBERT)."""
    final_norm: bool = True
    """Whether a norm follows the last layer; `post` norms never have one."""
    residual: str = "sequential"
    residual_scale: float = 1.0
    """Factor of the output of each sublayer before it is added to the residual stream (Granite)."""
    layer_scale: bool = False
    """Whether the output of each layer is multiplied by a number that is read from the files, not trained (Gemma 4)."""

    attention_bias: str = "none"
    attention_scale: float | None = None
    """Factor of the attention scores; None means 1 / sqrt(head_dim)."""
    attention_scale_by_layer: str = "constant"
    attention_softcap: float | None = None
    """c in c * tanh(score / c)."""
    query_key_norm: str = "none"
    value_norm: bool = False
    """Whether the values of each head are divided by their root mean square."""
    keys_as_values: bool = False
    """Whether full-attention layers use the projected keys, before norm and rotation, as values."""
    shared_kv_layers: int = 0
    """How many of the last layers use the keys and values of the last layer of their type before them, and have none of
    their own (Brandon et al. 2024, arXiv 2405.12981)."""
    shared_kv_intermediate_size: int = 0
    """Width of the feed-forward networks of these layers; 0: intermediate_size."""
    attention_sinks: bool = False
    """Whether each head has a learned logit that takes a part of its attention (Agarwal et al. 2025, GPT-OSS, arXiv
    2508.10925)."""
    latent: LatentConfig | None = None
    """Multi-head latent attention; None: keys and values have projections of their own."""
    attention_gate: bool = False
    """Whether a gate, the sigmoid of a projection, multiplies the output of the heads (Qwen 3.5)."""
    sliding_window: int | None = None
    """Tokens in the window of a sliding-window layer: the last ones in a decoder, half on each side in an encoder."""
    layer_types: tuple[str, ...] = ()
    """The mixer of each layer: `full` or `sliding` attention, or one of RECURRENT_LAYERS; empty: all `sliding` if
    sliding_window is set, else all `full`."""

    recurrent_heads: int = 0
    """Heads of the recurrent layers; 0: there are no such layers."""
    recurrent_head_dim: int = 0
    """Width of the values of one head."""
    recurrent_state_size: int = 0
    """Width of its keys and queries: a head's state has recurrent_head_dim * recurrent_state_size numbers."""
    recurrent_groups: int = 0
    """Number of different keys and queries, which the heads share."""
    recurrent_bias: bool = False
    """Whether the projections of the recurrent layers have a bias."""
    conv_kernel: int = 0
    """Tokens that the causal convolution of a recurrent layer sees."""
    conv_bias: bool = False
    recurrent_gate_softcap: float | None = None
    """c in c * tanh(gate / c), for the gates of mLSTM."""
    step_limits: tuple[float, float] = (0.0, float("inf"))
    """Least and greatest step size of a Mamba layer."""

    feed_forward: str = "gated"
    activation: str = "silu"
    feed_forward_bias: bool = False
    experts: ExpertsConfig | None = None
    """The mixture of experts in place of the feed-forward network; None: there is none."""

    cross_attention: bool = False
    """Whether the layers of a decoder also attend to the output of another model's encoder, where one is given."""
    encoder_config: ModelConfig | None = None
    """The encoder of an encoder-decoder of two models, with an embedding of its own (Rothe et al. 2020, arXiv
    1907.12461); None: the encoder is of the decoder's kind."""
    decoder_family: str = ""
    """The family of the decoder of an encoder-decoder of two models."""
    encoder_vocab_size: int = 0
    """Size of the encoder's own vocabulary and embedding; 0: it shares the decoder's."""
    num_encoder_layers: int = 0
    encoder_attention_heads: int = 0
    encoder_intermediate_size: int = 0
    encoder_position: str | None = None
    """The positions of the encoder, if they differ from the decoder's."""
    decoder_start_token_id: int | None = None

    tie_word_embeddings: bool = False
    head_bias: str = "none"
    head_transform: str = "none"
    """Activation of the dense layer, followed by a norm, before a masked language head; `none`: no such layer."""
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    labels: tuple[str, ...] = ()
    """Label names of a classifier, in the order of its outputs."""
    problem_type: str = "single_label"
    pooling: str = "last"
    embedding_layers: tuple[tuple[int, str, bool], ...] = ()
    """Dense layers behind the pooling of the head `embedding`: each one's outputs, activation or `none`, and bias."""
    normalize_embedding: bool = True
    max_text_length: int = 0
    """Tokens to which texts are truncated for sentence embeddings; 0 means the whole context."""
    pooler: str = "none"
    """Activation of the dense layer between the pooled hidden state and the classifier; `none`: no such layer."""
    pooler_bias: bool = True
    pooler_norm: bool = False
    """Whether a norm follows the activation of the pooler."""
    score_bias: bool = False

    frontend: Frontend | None = None
    """How vectors are made of what is not a token (pictures, sound); None: the model reads tokens alone. A model
    without a vocabulary (`vocab_size` 0) reads nothing else; of an encoder-decoder the encoder reads it."""

    image_tower: ModelConfig | None = None
    """A second transformer whose vectors are compared with those of this one (CLIP)."""
    projection_size: int = 0
    """Width of the projection of the pooled state of an embedding; 0: it is not projected."""

    initializer_range: float = 0.02
    dropout: float = 0.0
    """Dropout probability of the embedding and of each residual branch, in training."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """Keys of the original `config.json` without effect here; they are written back unchanged."""

    def __post_init__(self) -> None:
        problems = []
        if self.attends and self.head_dim == 0 and is_size(self.num_attention_heads) and is_size(self.hidden_size):
            if self.hidden_size % self.num_attention_heads:
                heads, size = self.num_attention_heads, self.hidden_size
                problems = [f"num_attention_heads: {heads}; must divide hidden_size ({size})"]
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        for name in ("layer_types", "labels", "step_limits", "layers_without_positions", "blocks"):
            if not isinstance(getattr(self, name), tuple):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        problems += self._problems()
        if problems:
            raise InputError("This model configuration cannot be built:", problems)
        if not self.layer_types:
            kind = "full" if self.sliding_window is None else "sliding"
            object.__setattr__(self, "layer_types", (kind,) * self.num_hidden_layers)

    def _problems(self) -> Iterator[str]:
        sizes = ["vocab_size"] if self.frontend is None or self.vocab_size != 0 else []
        sizes += ["hidden_size", "num_hidden_layers", "max_position_embeddings"]
        sizes += ["intermediate_size"] if self.feed_forward != "none" else []
        sizes += ["num_attention_heads", "num_key_value_heads", "head_dim"] if self.attends else []
        sizes += list(RECURRENT_SIZES) if self.recurs else []
        sizes += ["num_encoder_layers"] if self.architecture == "encoder-decoder" else []
        sizes += ["sliding_window"] if self.sliding_window is not None else []
        wrong = []
        for name in sizes:
            most = MAX_LAYERS if name in ("num_hidden_layers", "num_encoder_layers") else MAX_SIZE
            if not is_size(getattr(self, name), most):
                wrong.append(name)
                yield f"{name}: {format_value(getattr(self, name))}; must be a whole number from 1 to {most:,}"
        for name in (
            "rotary_dim",
            "embedding_size",
            "type_vocab_size",
            "position_offset",
            "max_text_length",
            "encoder_vocab_size",
            "projection_size",
            "full_head_dim",
            "full_key_value_heads",
            "layer_embedding_size",
            "layer_vocab_size",
            "neighbour_tokens",
            "shared_kv_layers",
            "shared_kv_intermediate_size",
        ):
            if getattr(self, name) != 0 and not is_size(getattr(self, name)):
                wrong.append(name)
                yield f"{name}: {format_value(getattr(self, name))}; must be a whole number from 0 to {MAX_SIZE:,}"
        for name, allowed in CHOICES.items():
            yield from _choice(name, getattr(self, name), allowed)
        if self.encoder_position is not None:
            yield from _choice("encoder_position", self.encoder_position, CHOICES["position"])
        for name in ("head_transform", "pooler"):
            yield from _choice(name, getattr(self, name), (*CHOICES["activation"], "none"))
        for name in ("norm_eps", "rope_theta", "embedding_scale", "logit_scale", "residual_scale", "alibi_scale"):
            yield from _number(name, getattr(self, name))
        for name in ("initializer_range", "query_growth"):
            if getattr(self, name) != 0:
                yield from _number(name, getattr(self, name))
        for name in (
            "local_rope_theta",
            "attention_scale",
            "attention_softcap",
            "logit_softcap",
            "recurrent_gate_softcap",
        ):
            if getattr(self, name) is not None:
                yield from _number(name, getattr(self, name))
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            yield f"dropout: {format_value(self.dropout)}; must be at least 0 and below 1"
        if self.layer_types and not wrong:
            yield from self._layer_problems()
        if not wrong:
            yield from self._contradictions()

    def _layer_problems(self) -> Iterator[str]:
        if len(self.layer_types) != self.num_hidden_layers:
            yield f"layer_types: {len(self.layer_types)} entries; must be num_hidden_layers ({self.num_hidden_layers})"
        for kind in sorted(set(self.layer_types) - {*ATTENTION_LAYERS, *RECURRENT_LAYERS}):
            yield f"layer_types: {kind!r}; must be one of {', '.join((*ATTENTION_LAYERS, *RECURRENT_LAYERS))}"
        if "sliding" in self.layer_types and self.sliding_window is None:
            yield "sliding_window: missing; layer_types has sliding layers, which need it"

    def _contradictions(self) -> Iterator[str]:
        outside = [layer for layer in self.layers_without_positions if not 0 <= layer < self.num_hidden_layers]
        if outside:
            yield f"layers_without_positions: {outside[0]}; must be 0 to {self.num_hidden_layers - 1}"
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.recurs:
            yield from self._recurrent_problems()
        if self.attends and heads % groups:
            yield f"num_key_value_heads: {groups}; must divide num_attention_heads ({heads})"
        if self.attends and self.full_key_value_heads and heads % self.full_key_value_heads:
            yield f"full_key_value_heads: {self.full_key_value_heads}; must divide num_attention_heads ({heads})"
        if self.position == "rotary":
            for name in ("head_dim", "full_head_dim"):
                if getattr(self, name) % 2:
                    yield f"{name}: {getattr(self, name)}; rotary positions need an even width of each head"
            if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
                yield f"rotary_dim: {self.rotary_dim}; must be even and at most head_dim ({self.head_dim})"
            for base, scaling in (
                (self.rope_theta, self.rope_scaling),
                (self.local_rope_theta or self.rope_theta, self.local_rope_scaling),
            ):
                if scaling is not None and scaling.kind == "yarn" and base <= 1:
                    yield f"rope_theta: {base}; must be above 1 with yarn scaling"
            for name in ("short_factor", "long_factor"):
                factors = self.rope_scaling.get(name) if self.rope_scaling is not None else None
                pairs = (self.rotary_dim or self.full_head_dim or self.head_dim) // 2
                if factors is not None and len(factors) != pairs:
                    yield f"{name}: {len(factors)} numbers; must be {pairs}, one for each rotated pair of channels"
        if self.query_growth and (self.position != "rotary" or self.rope_scaling is None):
            yield f"query_growth: {self.query_growth}; needs rotary positions with a rope_scaling"
        yield from self._block_problems()
        if self.position == "disentangled" and not 1 < self.relative_buckets // 2 < self.relative_max_distance - 1:
            yield (
                f"relative_buckets: {self.relative_buckets}; must be at least 4, and half of it below "
                f"relative_max_distance - 1 ({self.relative_max_distance - 1})"
            )
        if self.neighbour_tokens and (self.neighbour_tokens % 2 == 0 or self.architecture != "encoder"):
            yield f"neighbour_tokens: {self.neighbour_tokens}; must be odd, in an encoder (it is a {self.architecture})"
        yield from _choice("neighbour_activation", self.neighbour_activation, CHOICES["activation"])
        if self.position in ("relative", "learned_relative"):
            yield from self._relative_problems()
        if self.position == "sinusoidal" and self.hidden_size % 2:
            yield f"hidden_size: {self.hidden_size}; sinusoidal positions need an even width"
        both = self.architecture == "encoder-decoder"
        if both and self.encoder_attention_heads and self.hidden_size % self.encoder_attention_heads:
            wrong, size = self.encoder_attention_heads, self.hidden_size
            yield f"encoder_attention_heads: {wrong}; must divide hidden_size ({size})"
        yield from self._unbuildable_choices()
        if not self.vocab_size and (self.head in LANGUAGE_HEADS or self.architecture != "encoder"):
            yield f"vocab_size: 0; needs an encoder without a language head, not {self.architecture} and {self.head}"
        if self.head == "seq2seq" and not both:
            yield f"head: 'seq2seq'; needs the architecture encoder-decoder, not {self.architecture}"
        start = self.decoder_start_token_id
        if start is not None and ((not is_size(start) and start != 0) or not 0 <= start < self.vocab_size):
            yield f"decoder_start_token_id: {format_value(start)}; must be a token id below {self.vocab_size}"
        if self.head == "causal" and self.architecture != "decoder":
            yield f"head: 'causal'; needs the architecture decoder, not {self.architecture}"
        pad = self.pad_token_id
        if pad is not None and (not isinstance(pad, int) or isinstance(pad, bool) or not -1 <= pad < self.vocab_size):
            yield f"pad_token_id: {format_value(pad)}; must be a token id below vocab_size ({self.vocab_size})"

    def _recurrent_problems(self) -> Iterator[str]:
        heads, groups = self.recurrent_heads, self.recurrent_groups
        if heads % groups:
            yield f"recurrent_groups: {groups}; must divide recurrent_heads ({heads})"
        if self.architecture != "decoder":
            yield f"layer_types: has recurrent layers, which need the architecture decoder, not {self.architecture}"
        if {"mamba2", "gated_delta"} & set(self.layer_types) and (
            not is_size(self.conv_kernel) or self.conv_kernel < 2
        ):
            yield f"conv_kernel: {format_value(self.conv_kernel)}; must be at least 2: a token and those before it"
        low, high = self.step_limits
        if not 0 <= low < high:
            yield f"step_limits: {low}, {high}; must be two numbers of at least 0, the smaller one first"

    def _relative_problems(self) -> Iterator[str]:
        """Relative positions need room for exact buckets and for logarithmic ones, in each direction of an encoder."""
        if not is_size(self.relative_buckets) or self.relative_buckets < 4:
            yield f"relative_buckets: {format_value(self.relative_buckets)}; must be a whole number of at least 4"
        elif not is_size(self.relative_max_distance) or self.relative_max_distance <= self.relative_buckets // 2:
            yield (
                f"relative_max_distance: {format_value(self.relative_max_distance)}; must be a whole number above half "
                f"of relative_buckets ({self.relative_buckets // 2})"
            )

    def _block_problems(self) -> Iterator[str]:
        """Layers must be computed by the blocks 0, 1, 2 and so on, and a block keeps no cache for several layers."""
        if not self.blocks:
            return
        if len(self.blocks) != self.num_hidden_layers:
            yield f"blocks: {len(self.blocks)} entries; must be num_hidden_layers ({self.num_hidden_layers})"
        elif set(self.blocks) != set(range(max(self.blocks) + 1)):
            yield f"blocks: {format_value(self.blocks)}; must name each of 0 to {max(self.blocks)}"
        if self.architecture != "encoder":
            yield f"blocks: layers share weights; needs the architecture encoder, not {self.architecture}"

    def _unbuildable_choices(self) -> Iterator[str]:
        """Choices that are valid alone and that the stack does not support together."""
        both = self.architecture == "encoder-decoder"
        if self.residual != "sequential" and self.norm_position != "pre":
            yield f"norm_position: {self.norm_position!r}; a {self.residual} residual needs 'pre'"
        if self.residual != "sequential" and self.feed_forward == "none":
            yield f"residual: {self.residual!r}; a model without feed_forward needs 'sequential'"
        if self.residual != "sequential" and both:
            yield f"residual: {self.residual!r}; an encoder-decoder needs 'sequential'"
        if self.latent is not None:
            yield from self._latent_problems(self.latent)
        yield from self._sharing_problems()
        if self.experts is not None and self.experts.beside_dense and self.norm_position != "sandwich":
            yield f"norm_position: {self.norm_position!r}; experts beside a dense network need 'sandwich'"
        if self.experts is not None and self.feed_forward != "gated":
            yield f"feed_forward: {self.feed_forward!r}; a mixture of experts needs 'gated'"
        if self.position == "disentangled" and self.architecture != "encoder":
            yield f"position: 'disentangled'; needs the architecture encoder, not {self.architecture}"
        if self.norm_position == "post" and not self.first_norm:
            yield "first_norm: False; needs norms before the parts, and norm_position is 'post'"
        if self.padding_positions == "skipped" and self.architecture != "encoder":
            yield f"padding_positions: 'skipped'; needs the architecture encoder, not {self.architecture}"
        if self.cross_attention and self.architecture != "decoder":
            yield f"cross_attention: true; needs the architecture decoder, not {self.architecture}"
        if self.encoder_vocab_size and not both:
            yield f"encoder_vocab_size: {self.encoder_vocab_size}; needs the architecture encoder-decoder"
        if both and self.embedding_size not in (0, self.hidden_size):
            yield f"embedding_size: {self.embedding_size}; an encoder-decoder needs hidden_size ({self.hidden_size})"

    def _sharing_problems(self) -> Iterator[str]:
        """Layers that use the keys and values of others, and sizes that differ between layers."""
        own = self.num_hidden_layers - self.shared_kv_layers
        if self.shared_kv_layers and own < 1:
            yield f"shared_kv_layers: {self.shared_kv_layers}; must be below num_hidden_layers"
        elif self.shared_kv_layers and (missing := sorted(set(self.layer_types[own:]) - set(self.layer_types[:own]))):
            yield f"shared_kv_layers: {self.shared_kv_layers}; no earlier layer has the type {missing[0]!r}"
        if self.layer_embedding_size and 0 < self.layer_vocab_size < self.vocab_size:
            yield f"layer_vocab_size: {self.layer_vocab_size}; must be at least vocab_size ({self.vocab_size})"
        special = self.shared_kv_layers or self.full_head_dim or self.full_key_value_heads or self.keys_as_values
        special = special or self.layer_embedding_size
        if special and (self.latent is not None or self.recurs or self.blocks or not self.attends):
            yield "shared_kv_layers, full_head_dim or layer_embedding_size: need layers of attention, each of its own"
        if special and self.architecture == "encoder-decoder":
            yield "shared_kv_layers, full_head_dim or layer_embedding_size: cannot be those of an encoder-decoder"
        if self.query_key_norm in ("each_head", "whole") and (self.full_head_dim or self.full_key_value_heads):
            yield f"query_key_norm: {self.query_key_norm!r}; heads of two widths need 'head' or 'none'"

    def _latent_problems(self, latent: LatentConfig) -> Iterator[str]:
        width = latent.nope_dim + latent.rope_dim
        if self.head_dim != width:
            yield f"head_dim: {self.head_dim}; must be nope_dim + rope_dim ({width}) with latent attention"
        if self.position != "rotary" or self.rotary_dim != latent.rope_dim:
            yield f"rotary_dim: {self.rotary_dim}; must be rope_dim ({latent.rope_dim}), with rotary positions"
        if self.num_key_value_heads != self.num_attention_heads:
            yield f"num_key_value_heads: {self.num_key_value_heads}; latent attention has one for each query head"
        if self.architecture == "encoder-decoder":
            yield "latent: latent attention needs a decoder or an encoder, not an encoder-decoder"

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed. A new number of layers keeps the layer type if all layers share one."""
        if "num_hidden_layers" in changes and len(set(self.layer_types)) == 1:
            windows = self.sliding_window is not None and "sliding_window" not in changes
            same = self.layer_types[:1] * changes["num_hidden_layers"] if self.recurs or windows else ()
            changes.setdefault("layer_types", same)
        if "num_hidden_layers" in changes and len(set(self.blocks)) == 1:
            changes.setdefault("blocks", (0,) * changes["num_hidden_layers"])
        return dataclasses.replace(self, **changes)

    @property
    def encoder(self) -> ModelConfig:
        """The configuration of the encoder of an encoder-decoder."""
        if self.encoder_config is not None:
            shorter = self.num_encoder_layers != self.encoder_config.num_hidden_layers
            return self.encoder_config.with_layers(range(self.num_encoder_layers)) if shorter else self.encoder_config
        heads = self.encoder_attention_heads or self.num_attention_heads
        return dataclasses.replace(
            self,
            architecture="encoder",
            head="none",
            num_hidden_layers=self.num_encoder_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=self.hidden_size // heads if self.encoder_attention_heads else self.head_dim,
            intermediate_size=self.encoder_intermediate_size or self.intermediate_size,
            position=self.encoder_position or self.position,
            encoder_position=None,
            layer_types=(),
            layers_without_positions=(),
            blocks=(),
            encoder_vocab_size=0,
            num_encoder_layers=0,
        )

    def with_layers(self, kept: Sequence[int], **changes: Any) -> ModelConfig:
        """A copy with these layers alone, in this order, each with the choices that it has here."""
        own = self.num_hidden_layers - self.shared_kv_layers
        changes.setdefault("shared_kv_layers", sum(layer >= own for layer in kept))
        if self.experts is not None:
            dense = tuple(number for number, layer in enumerate(kept) if layer in self.experts.dense_layers)
            changes.setdefault("experts", dataclasses.replace(self.experts, dense_layers=dense))
        return dataclasses.replace(
            self,
            num_hidden_layers=len(kept),
            layer_types=tuple(self.layer_types[layer] for layer in kept),
            layers_without_positions=tuple(
                number for number, layer in enumerate(kept) if layer in self.layers_without_positions
            ),
            blocks=_renumbered([self.blocks[layer] for layer in kept] if self.blocks else []),
            **changes,
        )

    def layer_shape(self, layer: int) -> tuple[Any, ...]:
        """What distinguishes a layer's weights from those of others: layers with equal shapes have equal weights."""
        kind = self.layer_types[layer]
        sparse = self.experts is not None and layer not in self.experts.dense_layers
        differs = self.full_head_dim or self.full_key_value_heads or self.keys_as_values
        kind = "full" if kind == "sliding" and not differs else kind
        return kind, sparse, self.kv_source(layer) != layer

    def attention_sizes(self, layer: int) -> tuple[int, int]:
        """The number of key/value heads of an attention layer, and the width of one head."""
        if self.layer_types[layer] != "full":
            return self.num_key_value_heads, self.head_dim
        return self.full_key_value_heads or self.num_key_value_heads, self.full_head_dim or self.head_dim

    def kv_source(self, layer: int) -> int:
        """The layer whose keys and values a layer uses: its own number, unless it shares those of an earlier one."""
        own = self.num_hidden_layers - self.shared_kv_layers
        if layer < own:
            return layer
        kind = self.layer_types[layer]
        return max(earlier for earlier in range(own) if self.layer_types[earlier] == kind)

    def cache_shape(self, layer: int) -> tuple[int, int, int]:
        """Heads of the KV cache of a layer, and the widths of what it stores in place of keys and values for each.

        With latent attention these are the one vector of a token and its rotated key.
        """
        if self.latent is not None:
            return 1, self.latent.kv_rank, self.latent.rope_dim
        heads, width = self.attention_sizes(layer)
        return heads, width, width

    @property
    def caching_layers(self) -> list[int]:
        """The layers that store keys and values: those with attention that do not use another layer's."""
        return [
            layer
            for layer, kind in enumerate(self.layer_types)
            if kind in ATTENTION_LAYERS and self.kv_source(layer) == layer
        ]

    @property
    def num_labels(self) -> int:
        """Outputs of the `score` layer: 2 for a span (start and end), 1 for a choice or a value, else one per label."""
        if self.head in ("question_answering", "next_sentence", "pretraining"):
            return 2
        return 1 if self.head in ("multiple_choice", "value", "replaced_tokens") else len(self.labels)

    @property
    def num_blocks(self) -> int:
        """Number of blocks: that of the layers, unless layers share their weights."""
        return max(self.blocks) + 1 if self.blocks else self.num_hidden_layers

    @property
    def vector_size(self) -> int:
        """Width of the vectors of the head `embedding`."""
        return self.embedding_layers[-1][0] if self.embedding_layers else self.output_hidden_size

    @property
    def output_hidden_size(self) -> int:
        """Width of the last hidden states: `embedding_size` if they are projected back to it, else `hidden_size`."""
        return self.hidden_size if self.embedding_projection == "all" else self.embedding_size or self.hidden_size

    @property
    def context_length(self) -> int:
        """The longest text in tokens: max_position_embeddings, or more with a rotary scaling."""
        if self.position != "rotary" or self.rope_scaling is None:
            return self.max_position_embeddings
        return self.rope_scaling.context_length(self.max_position_embeddings)

    @property
    def has_position_limit(self) -> bool:
        """Whether the model cannot read texts longer than `context_length`."""
        return self.position not in ("alibi", "relative", "disentangled", "none")

    @property
    def attends(self) -> bool:
        """Whether a layer has attention."""
        return not self.layer_types or not set(self.layer_types) <= set(RECURRENT_LAYERS)

    @property
    def attention_layers(self) -> list[str]:
        """The types of the layers that have attention, in order."""
        return [kind for kind in self.layer_types if kind in ATTENTION_LAYERS]

    @property
    def recurs(self) -> bool:
        """Whether a layer is recurrent."""
        return not set(RECURRENT_LAYERS).isdisjoint(self.layer_types)

    @property
    def is_causal(self) -> bool:
        """Whether a token attends to no later token."""
        return self.architecture != "encoder"

    @property
    def supports_branches(self) -> bool:
        """Whether texts in one row may share their beginning: attention must depend on positions alone, not on slots.

        Sliding windows, biases by distance and rotary scalings by the length of the text do not allow it.
        """
        scaling = None if self.rope_scaling is None else self.rope_scaling.kind
        return (
            self.architecture == "decoder"
            and self.position in ("rotary", "learned", "sinusoidal")
            and self.padding_positions == "counted"
            and set(self.layer_types) == {"full"}
            and scaling in (None, "linear", "yarn", "llama3")
        )


def _renumbered(blocks: Sequence[int]) -> tuple[int, ...]:
    """The same blocks under the numbers 0, 1, 2 and so on, in the order of their first use."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(block, len(numbers)) for block in blocks)


def is_size(value: Any, most: int = MAX_SIZE) -> bool:
    """Whether a value is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _number(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        yield f"{name}: {format_value(value)}; must be a number above 0"


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(value, str) or value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, 1)
        yield f"{name}: {format_value(value)}; must be one of {', '.join(allowed)}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
