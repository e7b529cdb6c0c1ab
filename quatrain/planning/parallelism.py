"""Memory of one device when a training is spread over many: ZeRO and FSDP, tensor and pipeline parallelism.

Weights, gradients and optimizer states follow Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054): mixed-precision Adam
holds 2 + 2 + 12 bytes a parameter. Activations follow Korthikanti et al. 2022 (arXiv 2205.05198):
s b h (34 + 5 a s / h) bytes for a layer of GPT-3's shape, generalized here to grouped-query attention and gated
feed-forward layers.

These are formulas, for devices that are not here. The memory of a training on this machine is estimated by running the
training code without data: `quatrain.planning.training_memory`. `quatrain plan --verify` compares the formulas with
what a small model holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from quatrain.core.errors import InputError
from quatrain.core.wording import format_bytes
from quatrain.models.transformer.blocks import RECURRENT
from quatrain.models.transformer.config import RECURRENT_LAYERS, ModelConfig
from quatrain.models.transformer.context import ForwardContext
from quatrain.models.transformer.initialization import Uninitialized
from quatrain.models.transformer.recurrence import CHUNK
from quatrain.planning import counts

OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4, "sgd": 0}
"""Bytes of optimizer states of one parameter, without a float32 master copy (4 more in 16 bits)."""

Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Layout:
    """How devices share a training: `data` x `tensor` x `pipeline` devices.

    `zero` shards over the data-parallel devices: 1 the optimizer states, 2 also the gradients, 3 (FSDP) also the
    weights. `shard_group` limits the sharding to groups of so many devices, with copies between them (hybrid FSDP).
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    zero: int = 0
    shard_group: int | None = None
    sequence_parallel: bool = True

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)}; must be at least 1"
            for name in ("data", "tensor", "pipeline")
            if getattr(self, name) < 1
        ]
        if self.zero not in (0, 1, 2, 3):
            problems.append(f"zero: {self.zero}; must be 0, 1, 2 or 3")
        if self.shard_group is not None and not problems:
            if self.zero == 0:
                problems.append("shard_group: only with zero 1, 2 or 3: nothing is sharded without it")
            if self.shard_group < 1 or self.data % self.shard_group:
                problems.append(f"shard_group: {self.shard_group}; must divide the data-parallel devices ({self.data})")
        if problems:
            raise InputError("This layout cannot be planned:", problems)

    @property
    def devices(self) -> int:
        """All devices."""
        return self.data * self.tensor * self.pipeline

    @property
    def shards(self) -> int:
        """Devices that hold the parts of one copy of what is sharded."""
        return 1 if self.zero == 0 else self.shard_group or self.data

    def check(self, config: ModelConfig) -> None:
        """Raises InputError, with all problems, if the model's shapes cannot be split so."""
        problems = []
        for name in ("num_attention_heads", "intermediate_size"):
            if getattr(config, name) % self.tensor:
                problems.append(f"tensor: {self.tensor}; must divide {name} ({getattr(config, name):,})")
        if self.pipeline > config.num_hidden_layers:
            problems.append(f"pipeline: {self.pipeline}; must be at most the {config.num_hidden_layers} layers")
        if problems:
            raise InputError("This layout does not fit the model:", problems)


@dataclass(frozen=True)
class Step:
    """What one device computes at a time: `micro_batch` texts of `context` tokens, and what it keeps for the backward
    pass. `flash`: attention scores are not stored. `chunked_loss`: logits are not stored either."""

    micro_batch: int = 1
    context: int = 2048
    precision: str = "bfloat16"
    optimizer: str = "adamw"
    checkpointing: Checkpointing = "none"
    flash: bool = True
    chunked_loss: bool = True
    fused_gate: bool = False
    """A gated feed-forward layer computes act(gate) again instead of keeping it."""
    offload: bool = False
    """Optimizer states are held in host memory."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)}; must be at least 1"
            for name in ("micro_batch", "context")
            if getattr(self, name) < 1
        ]
        if self.precision not in ("float32", "bfloat16", "float16"):
            problems.append(f"precision: {self.precision!r}; must be float32, bfloat16 or float16")
        if self.optimizer not in OPTIMIZER_BYTES:
            problems.append(f"optimizer: {self.optimizer!r}; must be one of {', '.join(OPTIMIZER_BYTES)}")
        if problems:
            raise InputError("This step cannot be planned:", problems)

    @property
    def element(self) -> int:
        """Bytes of an element of weights, gradients and activations."""
        return 4 if self.precision == "float32" else 2

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer states of one parameter, with the float32 master copy of 16-bit weights."""
        return OPTIMIZER_BYTES[self.optimizer] + (0 if self.element == 4 else 4)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device with the most of them. `host`: optimizer states in host memory, not in the total."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    host: float = 0

    @property
    def total(self) -> float:
        """All parts on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes by part, and the total."""
        return asdict(self) | {"total": self.total}

    def rows(self, step: Step, layout: Layout) -> Iterator[list[str]]:
        """Lines of a table: what, how much, formula."""
        split = layout.tensor * layout.pipeline
        of = f" / {split}" if split > 1 else ""
        sharded = [f" / {layout.shards} shards" if layout.zero >= least else "" for least in (3, 2, 1)]
        yield ["weights", format_bytes(self.weights), f"{step.element} N{of}{sharded[0]}"]
        yield ["gradients", format_bytes(self.gradients), f"{step.element} N{of}{sharded[1]}"]
        place = " in host memory" if step.offload else ""
        yield [
            f"optimizer{place}", format_bytes(self.host or self.optimizer), f"{step.state_bytes} N{of}{sharded[2]}"
        ]  # fmt: skip
        yield ["activations", format_bytes(self.activations), f"checkpointing: {step.checkpointing}"]
        if self.logits:
            yield ["logits", format_bytes(self.logits), f"tokens x vocabulary x {step.element + 4}"]
        yield ["memory of one device", format_bytes(self.total), "the sum"]


def state_memory(parameters: float, step: Step, layout: Layout) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer states on one device, for a bare number of parameters."""
    own = parameters / (layout.tensor * layout.pipeline)
    weights = step.element * own / (layout.shards if layout.zero >= 3 else 1)
    gradients = step.element * own / (layout.shards if layout.zero >= 2 else 1)
    return weights, gradients, step.state_bytes * own / layout.shards


def placed(
    step: Step, weights: float, gradients: float, optimizer: float, activations: float = 0.0, logits: float = 0.0
) -> DeviceMemory:
    """These bytes on the device; the optimizer states on the host if the step offloads them."""
    there, host = (0.0, optimizer) if step.offload else (optimizer, 0.0)
    return DeviceMemory(weights, gradients, there, activations, logits, host)


def layer_activation_bytes(config: ModelConfig, step: Step, tensor: int = 1, sequence_parallel: bool = True) -> float:
    """Bytes that one decoder layer keeps for the backward pass of one micro-batch.

    Counted: the input of every norm, matrix product, activation function and gate, attention scores unless `flash`, and
    with dropout its masks. Tensor parallelism divides what attention and feed-forward hold inside; sequence parallelism
    also the rest.
    """
    tokens = step.micro_batch * step.context
    e, h, f = step.element, config.hidden_size, config.intermediate_size
    queries, keys = _attention_widths(config)
    spread = tensor if sequence_parallel else 1
    if step.checkpointing == "full":
        return tokens * e * h / spread
    norms = {"pre": 2, "post": 2, "sandwich": 4, "output": 2}[config.norm_position]
    if config.feed_forward == "none":
        norms //= 2
    blocks = (
        1 if config.residual == "parallel_shared" or config.feed_forward == "none" else 2
    )  # inputs of attention and feed-forward, shared or not
    norms -= 1 if config.residual != "sequential" else 0  # both norms of a parallel layer read the same input
    outside = e * (norms + blocks) * h + (2 * h if config.dropout else 0)
    mixed = e * (2 * queries + 2 * keys)  # queries, keys, values, and the input of the output projection
    if config.query_key_norm != "none":
        mixed += e * (queries + keys)
    if config.value_norm:
        mixed += e * keys
    if (second := config.layer_embedding_size) > 0:
        outside += e * (2 * h + 5 * second)
    attending = len(config.attention_layers)
    inside = attending / config.num_hidden_layers * mixed + recurrent_activation_bytes(config, step)
    if config.feed_forward == "gated":
        gates = 3 if step.fused_gate else 4
        if (experts := config.experts) is not None:  # Each expert's tokens are copies, and its output is weighted.
            sparse = experts.experts_per_token * (gates * experts.intermediate_size + 2 * h)
            sparse += gates * (experts.shared_intermediate_size + f * experts.beside_dense)
            dense = sum(layer < config.num_hidden_layers for layer in experts.dense_layers) / config.num_hidden_layers
            inside += e * (dense * gates * f + (1 - dense) * sparse)
        else:
            inside += e * gates * f
    elif config.feed_forward == "plain":
        inside += e * (1 if config.activation in ("relu", "tanh") else 2) * f
    distances = counts.compared_distances(config, step.context)
    if step.checkpointing == "none" and (distances or not step.flash):  # No flash kernel knows distances.
        scores = (1 if config.attention_softcap is None else 2) * e + ((e + 1) if config.dropout else 0)
        inside += config.num_attention_heads * step.context * scores
        # Scores with distances, both ways; queries and keys beside those of attention; projected distances.
        inside += 2 * e * (config.num_attention_heads * distances + bool(distances) * queries)
        inside += 2 * e * distances * queries / tokens
    return tokens * (outside / spread + inside / tensor)


def _attention_widths(config: ModelConfig) -> tuple[float, float]:
    """Channels of the queries and of the keys of a layer, as means over the layers with attention."""
    sizes = [config.attention_sizes(layer) for layer in range(config.num_hidden_layers)]
    if config.num_hidden_layers and (config.full_head_dim or config.full_key_value_heads or config.shared_kv_layers):
        own = [config.kv_source(layer) == layer for layer in range(config.num_hidden_layers)]
        keys = sum(heads * width for (heads, width), has in zip(sizes, own, strict=True) if has)
        queries = config.num_attention_heads * sum(width for _, width in sizes)
        return queries / config.num_hidden_layers, keys / config.num_hidden_layers
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim


def recurrent_activation_bytes(config: ModelConfig, step: Step) -> float:
    """Bytes per token that the mixers of recurrent layers keep besides their input, as a mean over all layers.

    Counted on the mixers themselves, on the meta device: what a scan keeps has no short formula. It grows linearly with
    the number of chunks.
    """
    kinds = Counter(kind for kind in config.layer_types if kind in RECURRENT_LAYERS)
    tokens = min(step.context, 2 * CHUNK)
    total = 0.0
    for kind, layers in kinds.items():
        with torch.device("meta"), Uninitialized():
            mixer: nn.Module = RECURRENT[kind](config, config.layer_types.index(kind))
            mixer = mixer.to(torch.float32 if step.element == 4 else torch.bfloat16)
            x = torch.empty(1, tokens, config.hidden_size, dtype=next(mixer.parameters()).dtype)
        without = {tensor.untyped_storage()._cdata for tensor in (x, *mixer.parameters())}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = mixer(x, ForwardContext({}))
        total += layers * sum(each.untyped_storage().nbytes() for key, each in kept.items() if key not in without)
        del output
    return total / tokens / config.num_hidden_layers


def device_memory(config: ModelConfig, step: Step, layout: Layout = Layout()) -> DeviceMemory:
    """Memory of the fullest device. Raises InputError for a context beyond the model's, and for impossible splits.

    Pipeline stages hold as many micro-batches in flight as there are stages (the 1F1B schedule), so that the first
    stage holds the activations of all layers for one micro-batch. With zero 3 two layers' weights are whole at a time:
    the one that computes and the next, which is gathered meanwhile.
    """
    if step.context > config.max_position_embeddings:
        raise InputError(
            f"context: {step.context:,}; must be at most the model's longest, {config.max_position_embeddings:,}"
        )
    layout.check(config)
    weights, gradients, optimizer = state_memory(counts.parameters(config), step, layout)
    layers = config.num_hidden_layers + (config.num_encoder_layers if config.architecture == "encoder-decoder" else 0)
    per_layer = layer_activation_bytes(config, step, layout.tensor, layout.sequence_parallel)
    activations = per_layer * layers
    if layout.zero >= 3:
        parts = counts.parameters_by_part(config)
        matrices = sum(parts.get(part, 0) for part in counts.LAYER_PARTS)
        weights += 2 * step.element * matrices / layers / layout.tensor
    if step.checkpointing == "full":  # one layer is computed again in full
        whole = replace(step, checkpointing="none")
        activations += layer_activation_bytes(config, whole, layout.tensor, layout.sequence_parallel)
    tokens = step.micro_batch * step.context
    logits = 0.0 if step.chunked_loss else tokens * config.vocab_size * (step.element + 4) / layout.tensor
    return placed(step, weights, gradients, optimizer, activations, logits)


LARGEST_MICRO_BATCH = 2**24
"""The largest micro-batch that is looked for."""


def largest_micro_batch(config: ModelConfig, step: Step, layout: Layout, memory: float) -> int:
    """The largest micro-batch that fits into `memory` bytes of a device; 0 if not even one text does.

    Memory grows by the same bytes with each further text.
    """
    one, two = (device_memory(config, replace(step, micro_batch=size), layout).total for size in (1, 2))
    if one > memory:
        return 0
    return min(1 + int((memory - one) // (two - one)), LARGEST_MICRO_BATCH)


def largest_model(memory: float, step: Step, layout: Layout = Layout(), *, share: float = 0.8) -> float:
    """The most parameters whose weights, gradients and states take at most `share` of a device's memory.

    The rest is left for activations. The three parts are linear in the number of parameters.
    """
    return share * memory / placed(step, *state_memory(1.0, step, layout)).total
