"""Decoding in native code: one call for a whole step of up to 64 tokens, of one sequence or of several.

A plain PyTorch step of a small model spends more time on its several hundred operations than on reading the weights,
which is all that the memory asks for. Here a step is compiled once for the processor (Numba, the extra `fast`), reads
every weight once in the bits in which it is stored, and computes attention over the KV cache as well. Weights of 4 and
8 bits are multiplied as integers: their inputs are rounded to 8 bits with a scale for each 32, as llama.cpp does.

`native_decoder` returns None for a model that the step does not cover, and `explain` why; PyTorch runs such a model.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from quatrain.models.kernels.code_cache import is_compiled, numba_problem
from quatrain.models.kernels.stored import HasStoredWeight, StoredWeight
from quatrain.models.kernels.threads import StepThreads, step_threads
from quatrain.models.modules import weights_version
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig
from quatrain.models.transformer.experts import MixtureOfExperts
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.latent_attention import NORM_EPS as LATENT_EPS
from quatrain.models.transformer.norms import BareRMSNorm, RMSNorm
from quatrain.models.transformer.positions import alibi_slopes, depends_on_length, sinusoidal_table

MAX_ROWS = 64
"""The most tokens of one step."""
FORMATS = ("float32", "bfloat16", "float16", "int8", "int4")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
PADDED = 128
MIN_BYTES = 32_000_000
"""Bytes of a model from which on native code is tried unasked."""
NativeUse = bool | Literal["compiled"] | None
"""Whether to decode natively; None and "compiled" leave it to `CacheDecoder`."""
LONG_TEXT = 1024
"""Tokens of a text past which PyTorch's attention is worth more than native products."""
TRIALS = 4
"""Steps of each way whose best decides which is taken."""


def size_of(model: nn.Module) -> int:
    """Bytes of the weights and buffers of a model."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def stored_weight(layer: nn.Module) -> StoredWeight | None:
    """The weight of a plain or quantized linear layer; None for any other, and for one that an adapter replaced."""
    if not is_readable(layer):
        return None
    if isinstance(layer, nn.Linear):
        form = DTYPES[layer.weight.dtype]
        return StoredWeight(form, layer.weight.detach(), layer.out_features, layer.in_features)
    return cast(HasStoredWeight, layer).stored_weight()


def is_readable(layer: nn.Module) -> bool:
    """Whether `stored_weight` gives the weight of a layer."""
    if type(layer) is nn.Linear:
        return layer.weight.dtype in DTYPES and layer.weight.is_contiguous()
    return isinstance(layer, HasStoredWeight) and layer.stored_format is not None


def _float_weight(layer: Any) -> StoredWeight | None:
    """The weight of a layer in a type that can be read by columns: of a quantized layer a copy in float32."""
    if isinstance(layer, nn.Linear):
        return stored_weight(layer)
    weight = layer.dequantized_weight().float().contiguous()
    return StoredWeight("float32", weight, *weight.shape)


def rounded_to_int8(weight: Tensor) -> StoredWeight:
    """A matrix (rows, columns) rounded to 8 bits with a scale for each row (as `Int8Linear`)."""
    values = weight.detach().float()
    largest = values.abs().amax(dim=1)
    largest = torch.where(largest > 0, largest, 127.0)
    numbers = (values * (127 / largest)[:, None]).round_().to(torch.int8)
    return StoredWeight("int8", numbers, weight.shape[0], weight.shape[1], largest / 127)


@cache
def _step_code() -> Any:
    """The compiled step; None without Numba, or where it fails to compile. The first call compiles for some seconds."""
    if numba_problem() is not None:
        return None
    try:
        from quatrain.models.kernels import decode_step
    except Exception as error:  # Numba raises errors of many kinds for a processor or a version it does not expect.
        logging.getLogger(__name__).warning("Native decoding is off, because its code does not compile: %s", error)
        return None
    return decode_step


def _modules_problem(model: Any) -> str | None:
    """Why the modules of a model are not what the step computes; None if they are."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has a hook"
    for name in ("trainable_tokens", "adapter_set", "transform", "encoder"):
        if getattr(model, name, None) is not None:
            return f"the model has a part that native code does not run: {name}"
    for name, module in model.layers.named_modules():
        if _is_projection(name) and not is_readable(module):
            return f"layers.{name} is a {type(module).__name__}"
    return None if type(model.lm_head) is nn.Linear else f"the head is a {type(model.lm_head).__name__}"


def _is_projection(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return "_proj" in leaf or leaf == "shared_expert_gate"


def explain(model: Any) -> str | None:
    """Why native code cannot decode with a model; None if it can."""
    config: ModelConfig = model.config
    if config.architecture != "decoder" or config.head != "causal":
        return f"a {config.architecture} with the head {config.head} is not decoded natively"
    if config.recurs:
        return "native code has no recurrent layers"
    if config.cross_attention:
        return "native code has no cross-attention"
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}; native code runs on the CPU"
    if model.embed_tokens.weight.dtype not in DTYPES:
        return f"weights are {model.embed_tokens.weight.dtype}"
    if (
        config.shared_kv_layers or config.full_head_dim or config.layer_embedding_size or config.value_norm
        or config.layer_scale or config.keys_as_values or (config.experts is not None and config.experts.beside_dense)
    ):  # fmt: skip
        return f"native code does not run the shared keys, second embeddings or widths of a {config.family} model"
    if (
        config.norm_position not in ("pre", "sandwich", "output")
        or config.position == "relative"
        or config.embedding_size not in (0, config.hidden_size)
        or config.query_key_norm not in ("none", "head", "whole")
        or config.query_growth
    ):
        return f"a block of {config.family} of this shape is not decoded natively"
    if any(depends_on_length(scaling) for scaling in (config.rope_scaling, config.local_rope_scaling)):
        return "rotary frequencies depend on the length of the text"
    problem = _modules_problem(model)
    if problem is None and _step_code() is None:
        problem = numba_problem() or "Numba cannot compile for this processor"
    return problem


def native_decoder(model: Any, *, head: str = "auto") -> NativeDecoder | None:
    """A decoder for a causal model on the CPU; None where `explain` gives a reason.

    `head`: "model" multiplies with the head's own weights; "int8" with a copy that is rounded to 8 bits; "auto" takes
    the copy where the model's linear layers are quantized. Reading the head then takes no longer than its share.
    """
    if explain(model) is not None:
        return None
    return NativeDecoder(model, head)


class NativeDecoder:
    """Decodes with a model, whose weights it reads where they are.

    Attributes: `step_bytes`, the bytes of weights that a step reads, without the embedding; `format`, how most of them
    are stored. The decoder is valid while `is_current()`: afterwards make another.
    """

    def __init__(self, model: Any, head: str = "auto"):
        self._code = _step_code()
        self._keep: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self.config: ModelConfig = model.config
        self._model = weakref.ref(model)
        self.pool: StepThreads = step_threads()
        self._version = weights_version(model)
        weights = [stored_weight(module) for name, module in model.layers.named_modules() if _is_projection(name)]
        sizes: dict[str, int] = {}
        for weight in weights:
            if weight is not None:
                sizes[weight.format] = sizes.get(weight.format, 0) + weight.data.nbytes
        self.format = max(sizes, key=lambda name: sizes[name])
        quantized = any(name in ("int8", "int4") for name in sizes)
        self.rounds_head = head == "int8" or (head == "auto" and quantized)
        self.step_bytes = 0
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._matrices: dict[int, Tensor] = {}
        """The tables of matrices by their addresses."""
        self._table = torch.zeros(self._code.S_SIZE, dtype=torch.int64)
        self._entries = self._table.numpy()
        self._layers = self._describe_layers(model)
        self._describe_model(model)
        self._cache = torch.zeros(3, len(model.layers), dtype=torch.int64)
        self._cached: tuple[list[int], list[torch.Size]] = [], []
        """Where the keys and values were in the last step, and their sizes."""
        self._rooms: dict[str, int] = {}
        """Columns of the cache of each kind of layer."""
        self._zeros, self._no_starts = torch.zeros(MAX_ROWS, dtype=torch.int64), [0] * MAX_ROWS
        self._every_row = torch.arange(MAX_ROWS)
        self._summary = torch.zeros(MAX_ROWS, self._code.PIECES * self.pool.threads * self._code.SUMMARY)
        keys, values, rooms = self._cache
        self._set_step(
            S_MODEL=self._model_table, S_KEYS=keys, S_VALUES=values, S_ROOMS=rooms, S_SUMMARY=self._summary
        )  # fmt: skip
        self.likeliest = torch.empty(4, 0)
        """Of each row of the last step: its likeliest token, the log-probability of that, the log of the sum of all
        e^x, and the token's logit (4, N) float32; the last three are not finite where a logit is not."""
        tables = [self._table, self._model_table, self._layers]
        weakref.finalize(self, self.pool.retired.append, tables).atexit = False

    def is_current(self) -> bool:
        """Whether the model is still the one that the decoder was made for: same weights, adapters and hooks."""
        model = self._model()
        return model is not None and weights_version(model) == self._version and explain(model) is None

    def step(
        self,
        tokens: Tensor,
        places: Tensor,
        slots: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        *,
        positions: Tensor | None = None,
        starts: Tensor | None = None,
        logits_of: Tensor | None = None,
    ) -> Tensor:
        """Reads B tokens and returns the logits (B, V) float32 of those after them.

        tokens (B,), B at most 64; slots (B,): the sequence that each token belongs to; places (B,): its place in the
        sequence, where its key and value are written; all int64. It attends to the places up to its own. Tokens of one
        sequence stand in order. positions (B,): those of the position embedding, by default the places. keys, values:
        for each layer (slots, num_key_value_heads, room, head_dim), of the model's dtype. In a sliding layer place p of
        row b is at p - starts[b], by default at p. logits_of (N,): the rows whose logits are wanted, by default all of
        them; the result is (N, V).
        """
        count = len(tokens)
        wanted = self._every_row[:count] if logits_of is None else logits_of
        logits = torch.empty(len(wanted), self.config.vocab_size)
        if not count:
            self.likeliest = torch.empty(4, 0)
            return logits
        positions = places if positions is None else positions
        starts = self._zeros if starts is None else starts
        arrays = [array.contiguous() for array in (tokens, places, positions, slots, starts, wanted)]
        self._follow_cache(keys, values)
        self._check(arrays[0].tolist(), arrays[1].tolist(), arrays[3].tolist(), arrays[4].tolist(), keys[0].shape[0])
        self._grow_tables(max(arrays[2].tolist()) + 1)
        self._set_step(
            S_ROWS=count,
            S_TOKENS=arrays[0],
            S_PLACES=arrays[1],
            S_POSITIONS=arrays[2],
            S_SLOTS=arrays[3],
            S_STARTS=arrays[4],
            S_ONE_EACH=int(len(set(arrays[3].tolist())) == count),
            S_CACHE_FORMAT=FORMATS.index(DTYPES[keys[0].dtype]),
            S_LOGITS=logits,
            S_HEAD_COUNT=len(wanted),
            S_HEAD_ROWS=arrays[5],
        )
        self.pool.run(self._code, self._table.data_ptr(), self.config.num_hidden_layers)
        self.likeliest = torch.empty(4, len(wanted))
        self._code.likeliest(self._table.data_ptr(), self._model_table.data_ptr(), self.likeliest.data_ptr())
        return logits

    def _follow_cache(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Notes where the cache is, if it has moved."""
        places = [tensor.data_ptr() for tensor in (*keys, *values)]
        sizes = [tensor.shape for tensor in keys]
        if (places, sizes) == self._cached:
            return
        self._cached = places, sizes
        rooms = [size[2] for size in sizes]
        self._cache.copy_(torch.tensor([places[: len(keys)], places[len(keys) :], rooms]))
        kinds = list(zip(self.config.layer_types, rooms, strict=True))
        self._rooms = {kind: min(room for own, room in kinds if own == kind) for kind, _ in kinds}

    def _check(self, tokens: list[int], places: list[int], slots: list[int], starts: list[int], most: int) -> None:
        """Raises ValueError for what would read or write outside the tables and the cache of `most` slots."""
        count, vocabulary = len(tokens), self.config.vocab_size
        if count > MAX_ROWS or len(places) != count or len(slots) != count or len(starts) < count:
            raise ValueError(f"{count} tokens, {len(places)} places, {len(slots)} slots; at most {MAX_ROWS} of each")
        if min(tokens) < 0 or max(tokens) >= vocabulary:
            raise ValueError(f"a token is not in the vocabulary of {vocabulary}")
        if min(places) < 0 or min(slots) < 0 or max(slots) >= most:
            raise ValueError("a place or a slot is outside the cache")
        for kind, room in self._rooms.items():
            own = starts if kind == "sliding" else self._no_starts
            if any(not start <= place < start + room for place, start in zip(places, own, strict=False)):
                raise ValueError(f"a place is outside the {room} of a {kind} layer's cache")

    def _set_step(self, **values: Tensor | int) -> None:
        for name, value in values.items():
            self._entries[getattr(self._code, name)] = value if isinstance(value, int) else value.data_ptr()

    def _held(self, tensor: Tensor) -> int:
        self._keep.append(tensor)
        return tensor.data_ptr()

    def _buffer(self, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        self._buffers.append(torch.zeros(*shape, dtype=dtype))
        return self._buffers[-1].data_ptr()

    def _matrix(self, weight: StoredWeight | None, bias: Tensor | None) -> int:
        """The address of the table of a matrix; of an empty one for None."""
        code, table = self._code, torch.zeros(self._code.M_SIZE, dtype=torch.int64)
        if weight is not None:
            form = FORMATS.index(weight.format)
            if weight.format == "int4" and weight.group != PADDED:
                form = code.INT4_SMALL_GROUPS
            table[code.M_ADDRESS], table[code.M_FORMAT] = self._held(weight.data), form
            table[code.M_ROWS], table[code.M_COLUMNS] = weight.rows, weight.columns
            table[code.M_ROW_BYTES] = weight.data.nbytes // weight.rows
            self.step_bytes += weight.data.nbytes
            if weight.scale is not None:
                table[code.M_SCALE] = self._held(weight.scale.contiguous())
                table[code.M_SCALE_ROW] = weight.scale.nbytes // weight.rows
                table[code.M_GROUP] = weight.group
                self.step_bytes += weight.scale.nbytes
            if bias is not None:
                table[code.M_BIAS] = self._held(bias.detach().float().contiguous())
        self._matrices[table.data_ptr()] = table
        return self._held(table)

    def _linear(self, layer: Any) -> int:
        if layer is None:
            return self._matrix(None, None)
        return self._matrix(stored_weight(layer), layer.bias)

    def _norm(self, norm: Any) -> tuple[int, int]:
        """Weight and bias of a norm in float32; (-1, 0) where there is no norm, 0 for what it does not have."""
        if norm is None or isinstance(norm, nn.Identity):
            return -1, 0
        weight: Any = getattr(norm, "weight", None)
        bias: Any = getattr(norm, "bias", None)
        if isinstance(norm, BareRMSNorm):
            weight = torch.ones(max(self.config.hidden_size, self.config.num_attention_heads * self.config.head_dim))
        if isinstance(norm, RMSNorm):
            weight = weight.detach().float() + norm.offset
        addresses = [0 if x is None else self._held(x.detach().float().contiguous()) for x in (weight, bias)]
        return addresses[0], addresses[1]

    def _describe_layers(self, model: Any) -> Tensor:
        code, config = self._code, self.config
        table = torch.zeros(len(model.layers), code.L_SIZE, dtype=torch.int64)
        for row, block in zip(table, model.layers, strict=True):
            attention = block.self_attn
            for column, layer in self._attention_layers(attention):
                by_columns = column == code.L_EXPAND and layer is not None
                row[column] = self._matrix(_float_weight(layer), None) if by_columns else self._linear(layer)
            if isinstance(block.mlp, MixtureOfExperts):
                self._describe_experts(row, block.mlp)
            else:
                row[code.L_GATE], row[code.L_UP], row[code.L_DOWN] = self._feed_forward(block.mlp)
            if attention.sinks is not None:
                row[code.L_SINKS] = self._held(attention.sinks.detach().float().contiguous())
            shared = config.residual == "parallel_shared"
            for column, norm in (
                (code.L_NORM, block.input_layernorm),
                (code.L_MLP_NORM, block.input_layernorm if shared else block.post_attention_layernorm),
            ):
                row[column], row[column + 1] = self._norm(norm)
            for column, norm in (
                (code.L_OUT_NORM, block.attention_output_layernorm),
                (code.L_DOWN_NORM, block.feed_forward_output_layernorm),
                (code.L_QUERY_NORM, getattr(attention, "q_norm", getattr(attention, "q_a_layernorm", None))),
                (code.L_KEY_NORM, attention.kv_a_layernorm if config.latent else attention.k_norm),
            ):
                if norm is not None:
                    row[column], row[column + 1] = self._norm(norm)
            row[code.L_WINDOW] = attention.window or 0
            row[code.L_SCALE] = self._held(torch.tensor([attention.scale]))
        return table

    def _attention_layers(self, attention: Any) -> list[tuple[int, Any]]:
        """The linear layers of an attention, each with its column of the table."""
        code, latent = self._code, self.config.latent
        if latent is None:
            names = {"q_proj": code.L_QUERY, "k_proj": code.L_KEY, "v_proj": code.L_VALUE}
        else:
            names = {"kv_a_proj_with_mqa": code.L_KEY, "kv_b_proj": code.L_EXPAND}
            names |= {"q_a_proj": code.L_QUERY, "q_b_proj": code.L_QUERY_B} if latent.query_rank else {
                "q_proj": code.L_QUERY}  # fmt: skip
        columns = (code.L_QUERY, code.L_KEY, code.L_VALUE, code.L_QUERY_B, code.L_EXPAND)
        layers = {column: getattr(attention, name) for name, column in names.items()}
        return [(code.L_OUT, attention.o_proj), *((column, layers.get(column)) for column in columns)]

    def _feed_forward(self, mlp: Any) -> tuple[int, int, int]:
        """The addresses of the matrices of a feed-forward network: gate, up and down."""
        return self._linear(mlp.gate_proj), self._linear(mlp.up_proj), self._linear(mlp.down_proj)

    def _describe_experts(self, row: Tensor, mixture: MixtureOfExperts) -> None:
        """Router, experts and shared expert in a layer's row of the table. A step reads the chosen experts alone."""
        code, router, config = self._code, mixture.gate, mixture.gate.config
        before = self.step_bytes
        matrices = [self._feed_forward(expert) for expert in mixture.experts]
        read = (self.step_bytes - before) * config.experts_per_token // config.num_experts
        self.step_bytes = before + read
        if mixture.shared_expert is not None:
            matrices.append(self._feed_forward(mixture.shared_expert))
        table = torch.tensor(matrices)
        row[code.L_EXPERTS] = self._held(table)
        weight = router.weight.detach().contiguous()
        weight = weight.float() if config.router == "sigmoid" else weight
        row[code.L_ROUTER] = self._matrix(StoredWeight(DTYPES[weight.dtype], weight, *weight.shape), router.bias)
        if isinstance(router.e_score_correction_bias, Tensor):
            row[code.L_ROUTER_BIAS] = self._held(router.e_score_correction_bias.float().contiguous())
        if mixture.shared_expert_gate is not None:
            row[code.L_SHARED_GATE] = self._linear(mixture.shared_expert_gate)
        readers = [matrix for gate, up, _ in matrices for matrix in (gate, up)] + [int(row[code.L_SHARED_GATE])]
        tables = [self._matrices[reader] for reader in readers if reader]
        formats = {int(table[code.M_FORMAT]) for table in tables if table[code.M_ADDRESS]}
        row[code.L_EXPERT_FORMATS] = sum(1 << form for form in formats)

    def _describe_model(self, model: Any) -> None:
        code, config = self._code, self.config
        table = self._model_table = torch.zeros(code.G_SIZE, dtype=torch.int64)

        def put(**values: int) -> None:
            for name, value in values.items():
                table[getattr(code, name)] = value

        embedding, head = model.embed_tokens.weight, model.lm_head
        scale = torch.tensor(config.embedding_scale, dtype=embedding.dtype).item()
        experts = config.experts
        floats = [config.norm_eps, scale, config.attention_softcap or 0.0, config.logit_scale,
                  config.logit_softcap or 0.0, config.residual_scale, experts.scale if experts else 1.0,
                  (experts.clamp if experts else None) or 0.0, LATENT_EPS]  # fmt: skip
        put(
            G_LAYERS=self._layers.data_ptr(), G_NUM_LAYERS=len(model.layers), G_HIDDEN=config.hidden_size,
            G_INNER=config.intermediate_size, G_HEADS=config.num_attention_heads, G_KV_HEADS=config.num_key_value_heads,
            G_HEAD_DIM=config.head_dim, G_ROTARY_DIM=config.rotary_dim or config.head_dim, G_VOCAB=config.vocab_size,
            G_LAYER_NORM=int(config.norm.startswith("layer")),
            G_RESIDUAL=("sequential", "parallel", "parallel_shared").index(config.residual),
            G_ACTIVATION=code.ACTIVATIONS.index(config.activation),
            G_FLOATS=self._held(torch.tensor(floats)), G_EMBEDDING=self._held(embedding.detach()),
            G_EMBEDDING_FORMAT=FORMATS.index(DTYPES[embedding.dtype]), G_THREADS=self.pool.threads,
            G_NORMS_WHOLE=int(config.query_key_norm == "whole"),
            G_ROTARY_LAYOUT=code.ROTARY_LAYOUTS.index(config.rotary_layout), G_MIX_DIM=config.head_dim,
            G_PROJECTED=(config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim,
        )  # fmt: skip
        if latent := config.latent:
            put(
                G_LATENT=latent.kv_rank, G_PLAIN_DIM=latent.nope_dim, G_MIX_DIM=latent.value_dim,
                G_QUERY_RANK=latent.query_rank, G_ROTARY_DIM=latent.rope_dim, G_ROTARY_LAYOUT=int(latent.interleaved),
                G_PROJECTED=(latent.query_rank or config.num_attention_heads * config.head_dim) + latent.kv_rank
                + latent.rope_dim,
            )  # fmt: skip
        weight = rounded_to_int8(head.weight) if self.rounds_head else stored_weight(head)
        put(G_HEAD=self._matrix(weight, head.bias))
        table[code.G_NORM], table[code.G_NORM_BIAS] = self._norm(model.norm)
        if model.embedding_norm is not None:
            table[code.G_EMBEDDING_NORM], table[code.G_EMBEDDING_NORM_BIAS] = self._norm(model.embedding_norm)
        if model.embed_positions is not None:
            positions = model.embed_positions.weight.detach().float().contiguous()
            put(G_POSITIONS=self._held(positions), G_POSITION_OFFSET=config.position_offset)
        elif config.position == "sinusoidal":
            positions = sinusoidal_table(config.max_position_embeddings, config.hidden_size)
            put(G_POSITIONS=self._held(positions))
        elif config.position == "alibi":
            put(G_ALIBI=self._held(alibi_slopes(config.num_attention_heads) * config.alibi_scale))
        if model.logits_bias is not None:
            put(G_LOGITS_BIAS=self._held(model.logits_bias.detach().float().contiguous()))
        self._allocate(put)
        if config.position == "rotary":
            self._rotary = model._rotary
            self._grow_tables(min(config.context_length, 2048))

    def _allocate(self, put: Callable[..., None]) -> None:
        """The buffers of a step's activations, each row ending in zeros up to a multiple of 128 elements."""
        config, latent = self.config, self.config.latent
        mix_dim = config.head_dim if latent is None else latent.value_dim
        # A line more than the elements take: rows a power of two apart would share a few sets of the first cache.
        size, inner, mixed = (
            _padded(width) + 16
            for width in (
                config.hidden_size, config.intermediate_size, config.num_attention_heads * mix_dim
            )
        )  # fmt: skip
        heads = int(self._model_table[self._code.G_PROJECTED])
        experts = config.experts
        wide = 0 if experts is None else max(experts.intermediate_size, experts.shared_intermediate_size)
        query_vector = _padded(latent.query_rank if latent else 0) + 16
        largest, byte = max(size, inner, mixed, query_vector, _padded(wide) + 16), torch.uint8
        rows = {"G_X": size, "G_NORMED": size, "G_MIXED_OUT": size, "G_DOWN_OUT": size, "G_QKV": heads,
                "G_MIXED": mixed, "G_WIDE": inner, "G_UP": inner}  # fmt: skip
        for name, width in rows.items():
            put(**{name: self._buffer(MAX_ROWS, width)})
        put(G_X_STRIDE=4 * size, G_QKV_STRIDE=4 * heads, G_MIXED_STRIDE=4 * mixed, G_WIDE_STRIDE=4 * inner)
        # Inputs in the formats of weights: those of the down projection stand behind the others.
        places = 0 if experts is None else MAX_ROWS * (experts.experts_per_token + 1)
        for name, bytes_ in (("G_BF16", 2), ("G_INT8", 3), ("G_INT4", 2)):
            stride = bytes_ * (largest - 16) + 64
            rows_of = 2 * (MAX_ROWS + places)
            put(**{name: self._buffer(rows_of, stride, dtype=byte), f"{name}_STRIDE": stride})
        if experts is not None:
            self._allocate_experts(experts, put, size, _padded(wide) + 16, places)
        scratch = 4 * (2 * config.head_dim + 128)
        if latent is not None:
            scratch = 4 * (2 * latent.kv_rank + latent.rope_dim + 256)
            queries = config.num_attention_heads * config.head_dim
            put(
                G_QUERY_VECTOR=self._buffer(MAX_ROWS, query_vector), G_QUERY_VECTOR_STRIDE=4 * query_vector,
                G_QUERIES=self._buffer(MAX_ROWS, queries),
            )  # fmt: skip
        put(G_SCRATCH=self._buffer(self.pool.threads, scratch, dtype=byte), G_SCRATCH_STRIDE=scratch)

    def _allocate_experts(
        self, experts: ExpertsConfig, put: Callable[..., None], size: int, wide: int, places: int
    ) -> None:
        """What the router says, and the activations of `places` rows of experts."""
        code, count, chosen = self._code, experts.num_experts, experts.experts_per_token
        routes = _padded(2 * count + 1 + chosen + 1 + experts.groups)
        activation = code.CLAMPED if experts.clamp is not None else code.ACTIVATIONS.index(self.config.activation)
        put(
            G_EXPERTS=count, G_CHOSEN=chosen, G_SHARED=int(experts.shared_intermediate_size > 0),
            G_ROUTER=code.ROUTERS.index(experts.router), G_RENORMALIZE=int(experts.renormalize),
            G_GROUPS=experts.groups if experts.router == "sigmoid" else 1, G_GROUPS_CHOSEN=experts.groups_per_token,
            G_EXPERT_INNER=max(experts.intermediate_size, experts.shared_intermediate_size),
            G_EXPERT_ACTIVATION=activation,
            G_ROUTES=self._buffer(MAX_ROWS, routes), G_ROUTES_STRIDE=4 * routes,
            G_PLACES=self._buffer(MAX_ROWS, 2 * (chosen + 1), dtype=torch.int64),
            G_USED=self._buffer(1 + 4 * (count + 1), dtype=torch.int64),
            G_GATHERED=self._buffer(places, size), G_EXPERT_OUT=self._buffer(places, size),
            G_EXPERT_WIDE=self._buffer(places, wide), G_EXPERT_UP=self._buffer(places, wide), G_EXPERT_STRIDE=4 * wide,
        )  # fmt: skip

    def _grow_tables(self, length: int) -> None:
        """Makes the rotary tables of each kind of layer as long as the positions that a step reads."""
        if self.config.position != "rotary" or (self._tables and length <= len(next(iter(self._tables.values()))[0])):
            return
        size = min(max(2 * length, 2048), max(self.config.context_length, length))
        half = (self.config.rotary_dim or self.config.head_dim) // 2
        for kind in set(self.config.layer_types):
            cos, sin = self._rotary[kind].tables(size, 0)
            self._tables[kind] = cos[:, :half].contiguous(), sin[:, :half].contiguous()
        for number, (row, kind) in enumerate(zip(self._layers, self.config.layer_types, strict=True)):
            if number in self.config.layers_without_positions:
                continue
            row[self._code.L_COS], row[self._code.L_SIN] = (table.data_ptr() for table in self._tables[kind])


class CacheDecoder:
    """A native decoder over the slots of one KV cache: the next token of texts that are stored there.

    `use`: whether to decode natively; None decides by measuring a step of either way, for models whose weights take
    more than MIN_BYTES (loading the code takes a second, which a small model does not win back). "compiled" is for
    processes that answer people: as None, but a small model is decoded natively if the code is compiled already.
    `refresh` decides, and again when the model has changed; call it before each batch of texts. `decoder` is None where
    PyTorch decodes, and `reason` says why. `steps` and `seconds` count native steps.
    """

    def __init__(self, model: Any, cache: KVCache, use: NativeUse = None):
        self.model, self.cache, self.use = model, cache, use
        self.decoder: NativeDecoder | None = None
        self.reason = "nothing was decoded yet"
        self.measured: dict[str, float] = {}
        """Seconds of one step natively and in PyTorch, where they decided."""
        self.steps, self.seconds = 0, 0.0
        self.likeliest: Tensor | None = None
        """Of the logits that `decode` has returned: what `NativeDecoder.likeliest` says, (4, N)."""
        self.weights_version: tuple[tuple[int, int], ...] | None = None
        """That of the model when `refresh` was last called."""

    def refresh(self) -> None:
        """Decides again if the weights, adapters or hooks of the model have changed since the last time."""
        version = weights_version(self.model)
        if version == self.weights_version and (self.decoder is None or explain(self.model) is None):
            return
        self.weights_version, self.decoder = version, None
        self.reason = self._reason() or ""
        if self.reason:
            return
        self.decoder = NativeDecoder(self.model)
        if self.use is None or (self.use == "compiled" and size_of(self.model) >= MIN_BYTES):
            self.measured = _measured(self.model, self.decoder)
            if self.measured["native"] >= self.measured["torch"]:
                self.decoder, self.reason = None, "PyTorch is faster here"

    def _reason(self) -> str | None:
        if self.use is False:
            return "switched off"
        if self.cache.form is not None:
            return f"the KV cache is rounded to {self.cache.form}, which native code does not read"
        size = size_of(self.model)
        if self.use is None and size < MIN_BYTES:
            return f"the model's {size / 1e6:.0f} MB are not worth loading native code"
        if self.use == "compiled" and size < MIN_BYTES and not is_compiled():
            return "the native code is not compiled yet; `import quatrain.models.kernels.decode_step` compiles it"
        return explain(self.model)

    def bandwidth(self) -> float:
        """Bytes of weights that native steps have read in a second; 0 before the first."""
        if self.decoder is None or not self.seconds:
            return 0.0
        return self.decoder.step_bytes * self.steps / self.seconds

    def reads_prompt(self, length: int) -> bool:
        """Whether native code reads prompts of texts of so many tokens. PyTorch is faster in bfloat16, for long texts
        and with experts, which every step would read again. Nothing else matters, so that a prompt is always read in
        the same way.
        """
        decoder = self.decoder
        if decoder is None or self.model.soft_prompt is not None:
            return False
        return decoder.format != "bfloat16" and length <= LONG_TEXT and decoder.config.experts is None

    def decode(self, tokens: Tensor, slots: Sequence[int], logits_of: Sequence[int] | None = None) -> Tensor | None:
        """Logits (B, V) in float32 after one more token (B,) in each slot; None if PyTorch has to run this step.

        A slot may occur several times, with tokens that follow each other. Keys and values are written after the tokens
        that the slots hold, for which there is room; the caller counts the new tokens. `logits_of`, in ascending order:
        the tokens whose logits (N, V) are wanted, by default all.
        """
        cache, decoder = self.cache, self.decoder
        if decoder is None or cache.segments is not None:
            return None
        lengths_of: list[int] = []
        counted: dict[int, int] = {}
        for slot in slots:
            counted[slot] = counted.get(slot, cache.lengths[slot] - 1) + 1
            lengths_of.append(counted[slot])
        lengths = torch.tensor(lengths_of)
        starts = None
        if cache.window is not None:
            starts = torch.tensor([cache.starts[slot] for slot in slots])
            room = min(keys.shape[2] for keys, window in zip(cache.keys, cache.windows, strict=True) if window)
            if int((lengths - starts).max()) >= room:  # The window has to move first.
                return None
        places, every, likeliest, start = torch.tensor(list(slots)), [], [], time.perf_counter()
        for begin in range(0, len(tokens), MAX_ROWS):
            part = slice(begin, begin + MAX_ROWS)
            own = None if starts is None else starts[part]
            wanted = None
            if logits_of is not None:
                chosen = [index - begin for index in logits_of if begin <= index < begin + MAX_ROWS]
                wanted = torch.tensor(chosen, dtype=torch.long)
            every.append(
                decoder.step(
                    tokens[part], lengths[part], places[part], cache.keys, cache.values, starts=own, logits_of=wanted
                )
            )
            likeliest.append(decoder.likeliest)
        self.likeliest = likeliest[0] if len(likeliest) == 1 else torch.cat(likeliest, dim=1)
        if logits_of is None:
            self.steps, self.seconds = self.steps + len(every), self.seconds + time.perf_counter() - start
        return every[0] if len(every) == 1 else torch.cat(every)


@torch.inference_mode()
def _measured(model: Any, decoder: NativeDecoder) -> dict[str, float]:
    """Seconds of the best of several steps of one token, in PyTorch and then natively.

    One after the other and not in turns: PyTorch's threads go on spinning for a while after a step, on the cores that
    the native step's helpers need.
    """
    ids, slots = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    best = {}
    for name in ("torch", "native"):
        cache = KVCache(model.config, 1, TRIALS + 2, dtype=model.embed_tokens.weight.dtype)
        seconds = []
        for place in range(TRIALS + 1):
            start = time.perf_counter()
            if name == "torch":
                model.lm_logits(model.hidden_states(ids, cache=cache)[:, -1])
            else:
                decoder.step(ids[0], torch.tensor([place]), slots, cache.keys, cache.values)
            seconds.append(time.perf_counter() - start)
        best[name] = min(seconds[1:])  # the first step chooses its kernels
    return best


@cache
def memory_bandwidth() -> float:
    """Bytes that all threads together read from memory in a second: the best of eight sums over 128 MB."""
    numbers, best = torch.ones(1 << 25), math.inf
    for _ in range(8):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return numbers.nbytes / best


def _padded(size: int) -> int:
    return -(-size // PADDED) * PADDED
