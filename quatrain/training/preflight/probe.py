"""What a model keeps of a batch for the backward pass, by passing a row or two through one or two of its blocks.

Counting tensors by hand goes wrong with every new kernel. The blocks of a model are alike and its rows independent, so
that what a few rows keep in one and in two blocks gives what all rows keep in all: the real code is asked, at a small
part of a step's cost.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quatrain.adaptation import lora
from quatrain.adaptation.settings import AdapterSettings
from quatrain.errors import QuatrainError
from quatrain.models.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.stack import Model
from quatrain.planning.counts import BYTES
from quatrain.planning.memory import Activations
from quatrain.text.batches import Batch
from quatrain.training.acceleration import activation_checkpointing
from quatrain.training.chunked_loss import CHUNK, chunked, chunking, language_loss
from quatrain.training.objectives import Objective
from quatrain.training.precision import DTYPES
from quatrain.training.settings import TrainSettings

SMALL_VOCABULARY = 256
"""Rows of the embedding while the blocks alone are asked."""
ASKED = (32, 96)
"""Tokens that the head is asked with."""
ROWS = (1, 3)
"""Rows that the blocks are asked with."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that come to be within it, while they live: `live` now, `peak` at most."""

    def __init__(self, own: nn.Module | None = None):
        super().__init__()
        self.live = self.peak = 0
        tensors = [] if own is None else [*own.parameters(), *own.buffers()]
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return found

    def note(self, tensor: Tensor) -> None:
        """Counts a tensor's storage unless it is known."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def built(config: ModelConfig, adapter: AdapterSettings | None = None, precision: str = "float32") -> Model:
    """A model in training mode whose weights are zeros, with an adapter where one is given."""
    with torch.device("meta"):
        model = Model(config)
    model = model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    if adapter is not None:
        lora.apply(model, adapter)
    return model.to(DTYPES[precision]).train()


def ask(
    config: ModelConfig,
    settings: TrainSettings,
    objective: Objective,
    *,
    rows: int,
    length: int,
    precision: str,
    adapter: AdapterSettings | None = None,
    decoder_length: int | None = None,
) -> Activations:
    """What `rows` rows of `length` tokens keep, and need for a moment, in this model's training."""
    config = config.with_(dropout=settings.dropout)
    block, body = _body(config, settings, rows, length, precision, adapter, decoder_length or length)
    head = _head(config, settings, objective, rows, decoder_length or length, precision, adapter)
    return Activations(body.body, head.logits, head.head, block, body.first)


def _body(
    config: ModelConfig,
    settings: TrainSettings,
    rows: int,
    length: int,
    precision: str,
    adapter: AdapterSettings | None,
    decoder_length: int,
) -> tuple[int, Activations]:
    """What the blocks keep: what they need for a moment in the backward pass, and what they keep (all, the first)."""
    kept: dict[tuple[int, int], int] = {}
    needed: dict[int, int] = {}
    for layers in (1, 2):
        model = built(_shortened(config, layers), adapter, precision)
        for count in ROWS:
            kept[layers, count], peak = _through(model, settings, count, length, decoder_length)
            if layers == 1:
                needed[count] = peak - kept[layers, count]
    less, more = ROWS
    one, two = ((kept[layers, more] - kept[layers, less]) / (more - less) for layers in (1, 2))
    fixed = max(0.0, kept[1, less] - less * one)
    for_a_moment = max(0.0, (needed[more] - needed[less]) / (more - less))
    deep = max(config.num_hidden_layers, config.num_encoder_layers)
    if config.architecture == "encoder-decoder":
        deep = round((config.num_hidden_layers + config.num_encoder_layers) / 2)
    whole = rows * (one + (two - one) * (deep - 1)) + fixed
    return round(rows * for_a_moment), Activations(body=round(whole), first=round(rows * one))


def _shortened(config: ModelConfig, layers: int) -> ModelConfig:
    """The same with few layers and a small vocabulary, whose special tokens have no part in it."""
    changes: dict[str, Any] = {"num_hidden_layers": layers, "layer_types": config.layer_types[:1] * layers}
    if config.num_encoder_layers:
        changes["num_encoder_layers"] = layers
    if config.vocab_size > SMALL_VOCABULARY:
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        changes |= {"vocab_size": SMALL_VOCABULARY, **{name: None for name in names}}
    return config.with_(**changes)


def _through(model: Model, settings: TrainSettings, rows: int, length: int, decoder_length: int) -> tuple[int, int]:
    """Bytes kept after a forward pass, and at the peak of the backward pass, gradients of weights not counted."""
    ids = torch.ones((rows, length), dtype=torch.long)
    inputs: dict[str, Tensor] = {}
    if model.config.architecture == "encoder-decoder":
        inputs["decoder_input_ids"] = torch.ones((rows, decoder_length), dtype=torch.long)
    with _forgetting(model), activation_checkpointing(model, settings.activation_checkpointing):
        live = LiveBytes(model)
        with live:
            hidden = model.hidden_states(ids, **inputs)
            kept = live.live
            if hidden.requires_grad:
                hidden.backward(torch.ones_like(hidden))
    return kept, live.peak


@contextmanager
def _forgetting(model: nn.Module) -> Iterator[None]:
    """Within it the gradient of a weight is forgotten as soon as it is there."""

    def forget(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [
        parameter.register_post_accumulate_grad_hook(forget)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _head(
    config: ModelConfig,
    settings: TrainSettings,
    objective: Objective,
    rows: int,
    length: int,
    precision: str,
    adapter: AdapterSettings | None,
) -> Activations:
    """What the head keeps (as `logits`) and needs for a moment (as `head`)."""
    if config.head not in LANGUAGE_HEADS:
        return Activations()
    tokens, width = rows * length, BYTES[precision]
    with chunking(settings.chunked_loss):
        in_chunks = chunked(tokens * config.vocab_size) and chunks_its_loss(objective)
    if in_chunks:
        chunk = min(CHUNK["cpu"], tokens * config.vocab_size)
        learns = adapter is None
        # Gradients of states and weight are made in the forward pass and wait for the backward pass, in float32.
        waiting = tokens * config.output_size * width + (4 * config.vocab_size * config.output_size if learns else 0)
        return Activations(logits=waiting, head=chunk * (4 + 2 * width))
    kept, needed = ([_say(config, count, precision)[which] for count in ASKED] for which in (0, 1))
    slope = (ASKED[1] - ASKED[0]) / tokens
    logits = max(0.0, (kept[1] - kept[0]) / slope)
    return Activations(logits=round(logits), head=round(max(0.0, (needed[1] - needed[0]) / slope - logits)))


def _say(config: ModelConfig, tokens: int, precision: str) -> tuple[int, int]:
    """Bytes kept after the head's forward pass over so many tokens, and at its peak."""
    model = built(config.with_(num_hidden_layers=1, layer_types=config.layer_types[:1]), None, precision)
    labels = torch.ones((1, tokens), dtype=torch.long)
    hidden = torch.zeros(1, tokens, config.hidden_size, dtype=DTYPES[precision], requires_grad=True)
    live = LiveBytes(model)
    with _forgetting(model), chunking(False), live:
        live.note(labels)
        live.note(hidden)
        before = live.live
        kept = _loss_of(model, hidden, labels, live)
    return kept - before, live.peak - before


def _loss_of(model: Model, hidden: Tensor, labels: Tensor, live: LiveBytes) -> int:
    loss = language_loss(model, hidden, labels).sum()
    kept = live.live
    loss.backward()
    return kept


def chunks_its_loss(objective: Objective) -> bool:
    """Whether an objective computes the loss of tokens in chunks where it is told to: seen by what it keeps."""
    try:
        return _keeps(objective, True) < _keeps(objective, False) / 2
    except (QuatrainError, AttributeError, TypeError):  # an objective whose batches are of another kind
        return False


def _keeps(objective: Objective, mode: bool) -> int:
    config = ModelConfig(
        family="llama", vocab_size=4096, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    model = built(config)
    ids = torch.ones((4, 32), dtype=torch.long)
    saved: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with chunking(mode), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective.loss(model, Batch(ids, ids))
    return sum(saved.values())
