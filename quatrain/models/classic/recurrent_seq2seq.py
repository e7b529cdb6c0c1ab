"""Recurrent encoder-decoders: without attention (Sutskever et al. 2014, arXiv 1409.3215; Cho et al. 2014), with
additive attention (Bahdanau et al. 2015, arXiv 1409.0473) and with multiplicative attention (Luong et al. 2015,
arXiv 1508.04025).

Without attention the whole source has to fit into the encoder's last state: the bottleneck. With attention each step of
the decoder reads a weighted mean of all states of the source. Bahdanau's decoder computes it before its cell, from the
state of the step before, so its steps run one by one. Luong's computes it behind the cell, for all steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.classic._network import Network, check_ids, lengths_of
from quatrain.models.classic._recurrent import LayerState, RecurrentConfig, RecurrentStack, joined, of_equal_length
from quatrain.models.classic.base import StateModel
from quatrain.models.transformer.heads import IGNORE_INDEX


class RecurrentSeq2SeqConfig(RecurrentConfig):
    """A recurrent encoder-decoder. `attention`: how the decoder reads the source beside the encoder's last state."""

    heads: ClassVar[tuple[str, ...]] = ("seq2seq",)
    architecture: ClassVar[str] = "encoder-decoder"

    model_type: str = "recurrent-seq2seq"
    head: str = "seq2seq"
    attention: Literal["none", "bahdanau", "luong"] = "none"

    @property
    def num_encoder_layers(self) -> int:
        """Layers of the encoder."""
        return self.num_hidden_layers


@dataclass
class Memory:
    """What the decoder reads of the sources: states (B, S, C) and which of them are words (B, S)."""

    states: Tensor
    inside: Tensor
    keys: Tensor | None = None
    """The states as Bahdanau's attention compares them (B, S, H), computed once."""


@dataclass
class SourceState:
    """The state of one text in generation: of each decoder layer, and the source's states (S, C)."""

    layers: list[LayerState]
    source: Tensor


class Attention(nn.Module):
    """Weights over the source's states for each state of the decoder.

    `bahdanau`: v tanh(W s + U h); `luong`: s W h.
    """

    def __init__(self, kind: str, state_size: int, memory_size: int):
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(state_size, state_size if kind == "bahdanau" else memory_size, bias=False)
        if kind == "bahdanau":
            self.key = nn.Linear(memory_size, state_size)
            self.value = nn.Linear(state_size, 1, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """The source's states (B, S, C) as they are compared."""
        return self.key(memory) if self.kind == "bahdanau" else memory

    def forward(self, states: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Weighted means (B, T, C) of the memory for states (B, T, H), and the weights (B, T, S): each row sums to 1,
        and padding has 0.
        """
        keys = self.keys(memory.states) if memory.keys is None else memory.keys
        if self.kind == "bahdanau":
            sums = self.query(states)[:, :, None] + keys[:, None]
            scores = self.value(torch.tanh(sums))[..., 0]
        else:
            scores = self.query(states) @ keys.transpose(1, 2)
        weights = scores.masked_fill(~memory.inside[:, None], -torch.inf).softmax(-1)
        return weights @ memory.states, weights


class RecurrentSeq2Seq(Network, StateModel):
    """A bidirectional encoder and a decoder that starts from its last states."""

    Config: ClassVar[Any] = RecurrentSeq2SeqConfig

    def __init__(self, config: RecurrentSeq2SeqConfig):
        super().__init__(config)
        width, hidden = config.embedding_width, 2 * (config.hidden_size // 2)
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.source_stack = RecurrentStack(config, width, bidirectional=True, output_size=hidden)
        kind, layers = self.source_stack.kind, config.num_hidden_layers
        parts = 2 if kind == "lstm" else 1
        self.bridge = nn.ModuleList(nn.Linear(hidden, config.hidden_size) for _ in range(parts * layers))
        self.attention = None
        if config.attention != "none":
            self.attention = Attention(config.attention, config.hidden_size, hidden)
        reads = width + (hidden if config.attention == "bahdanau" else 0)
        self.stack = RecurrentStack(config, reads, bidirectional=False, output_size=config.hidden_size)
        joined_size = config.hidden_size + (hidden if self.attention is not None else 0)
        self.output = nn.Linear(joined_size, config.output_hidden_size)
        self.add_head(config.output_hidden_size)
        self.recorded: list[Tensor] | None = None
        """If it is a list, the attention weights (B, T, S) of each call are added to it."""

    def encode(self, input_ids: Tensor, segments: Tensor | None = None) -> tuple[Memory, list[LayerState]]:
        """The memory of sources (B, S), and the decoder's first states."""
        check_ids(input_ids, self.config.vocab_size)
        lengths = lengths_of(input_ids, segments)
        embedded = self.drop(self.embed_tokens(input_ids))
        states, _ = self.source_stack(embedded, self.drop, lengths=lengths)
        inside = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
        states = self.drop(states)
        start = self._first_states(states, lengths)
        keys = None if self.attention is None else self.attention.keys(states)
        return Memory(states, inside, keys), start

    def _first_states(self, states: Tensor, lengths: Tensor) -> list[LayerState]:
        """The decoder's states before its first token, from the last state of each direction of the encoder."""
        half = states.shape[2] // 2
        rows = torch.arange(len(states), device=states.device)
        ends = torch.cat((states[rows, lengths.clamp(min=1) - 1, :half], states[:, 0, half:]), dim=1)
        parts = [torch.tanh(layer(ends)) for layer in self.bridge]
        if self.source_stack.kind != "lstm":
            return [(part,) for part in parts]
        return [(h, c) for h, c in zip(parts[::2], parts[1::2], strict=True)]

    def decode(self, input_ids: Tensor, memory: Memory, state: Sequence[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """Hidden states (B, T, C) for the decoder's tokens (B, T), and its states after them."""
        embedded = self.drop(self.embed(input_ids))
        if self.attention is None:
            out, after = self.stack(embedded, self.drop, state)
        elif self.attention.kind == "luong":
            out, after = self.stack(embedded, self.drop, state)
            read, weights = self.attention(out, memory)
            self._record(weights)
            out = torch.cat((out, read), dim=-1)
        else:
            out, after = self._step_by_step(embedded, memory, list(state))
        return self.drop(torch.tanh(self.output(out))), after

    def _step_by_step(
        self, embedded: Tensor, memory: Memory, state: list[LayerState]
    ) -> tuple[Tensor, list[LayerState]]:
        """Bahdanau's decoder: what a step reads of the source depends on the state before it."""
        if self.attention is None:
            raise ValueError("a decoder without attention runs all steps at once")
        outputs, seen = [], []
        masks: dict[int, Tensor] = {}

        def drop(x: Tensor) -> Tensor:
            # One mask between the layers for all steps of the text.
            if not self.training or not self.config.dropout:
                return x
            if x.shape[2] not in masks:
                masks[x.shape[2]] = self.drop(torch.ones_like(x))
            return x * masks[x.shape[2]]

        for step in range(embedded.shape[1]):
            read, weights = self.attention(state[-1][0][:, None], memory)
            out, state = self.stack(torch.cat((embedded[:, step : step + 1], read), dim=-1), drop, state)
            outputs.append(torch.cat((out, read), dim=-1))
            seen.append(weights)
        self._record(torch.cat(seen, dim=1))
        return torch.cat(outputs, dim=1), state

    def _record(self, weights: Tensor) -> None:
        if self.recorded is not None:
            self.recorded.append(weights.detach())

    def forward(
        self, input_ids: Tensor, labels: Any = None, *, segments: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if inputs.get("decoder_input_ids") is None and isinstance(labels, Tensor):
            inputs["decoder_input_ids"] = self._shifted(labels)
        return super().forward(input_ids, labels, segments=segments, **inputs)

    def _shifted(self, labels: Tensor) -> Tensor:
        """The decoder's input for labels (B, T): the start token, then all labels but the last."""
        start = self.config.decoder_start_token_id
        if start is None:
            raise InputError("decoder_start_token_id: missing in this model's configuration; give decoder_input_ids.")
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == IGNORE_INDEX, start)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        segments: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """The decoder's hidden states (B, T, C) for sources (B, S) and its own tokens (B, T)."""
        if decoder_input_ids is None:
            raise InputError("An encoder-decoder needs decoder_input_ids, or labels to derive them from.")
        memory, state = self.encode(input_ids, segments)
        return self.decode(decoder_input_ids, memory, state)[0]

    @torch.no_grad()
    def attention_weights(self, source: Sequence[int], target: Sequence[int]) -> Tensor | None:
        """The attention weights (T, S) with which each token of the target is predicted; None without attention."""
        if self.attention is None:
            return None
        start = self.config.decoder_start_token_id or 0
        ids = torch.tensor([list(source)], device=self.device)
        decoder_ids = torch.tensor([[start, *target[:-1]]], device=self.device)
        was_training, self.recorded = self.training, []
        self.eval()
        try:
            self.hidden_states(ids, decoder_input_ids=decoder_ids)
            return self.recorded[0][0]
        finally:
            self.recorded = None
            self.train(was_training)

    def start(self, count: int, sources: Sequence[Sequence[int]] | None = None) -> list[Any]:
        if sources is None or len(sources) != count:
            raise InputError("An encoder-decoder needs the source of each text.")
        states: list[Any] = [None] * count
        for rows in of_equal_length(sources):
            ids = torch.tensor([list(sources[row]) for row in rows], device=self.device)
            memory, start = self.encode(ids)
            for place, row in enumerate(rows):
                layers = [tuple(part[place] for part in layer) for layer in start]
                states[row] = SourceState(layers, memory.states[place])
        return states

    def advance(self, states: Sequence[Any], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[Any]]:
        width = max(map(len, tokens))
        hidden = self.output.weight.new_zeros(len(tokens), width, self.config.output_hidden_size)
        after: list[Any] = [None] * len(tokens)
        for rows in of_equal_length(tokens):
            ids = torch.tensor([list(tokens[row]) for row in rows], device=self.device)
            memory = self._memory([states[row].source for row in rows])
            found, new = self.decode(ids, memory, joined([states[row].layers for row in rows]))
            hidden[rows, : ids.shape[1]] = found
            for place, row in enumerate(rows):
                layers = [tuple(part[place] for part in layer) for layer in new]
                after[row] = SourceState(layers, states[row].source)
        return hidden, after

    def state_bytes(self) -> int:
        return sum(part.nbytes for layer in self.stack.start(1) for part in layer)

    def _memory(self, sources: Sequence[Tensor]) -> Memory:
        states = nn.utils.rnn.pad_sequence(list(sources), batch_first=True)
        lengths = torch.tensor([len(source) for source in sources], device=states.device)
        return Memory(states, torch.arange(states.shape[1], device=states.device) < lengths[:, None])


MODEL = RecurrentSeq2Seq
