"""Recurrent layers: Elman's RNN (1990), the LSTM (Hochreiter and Schmidhuber 1997) and the GRU (Cho et al. 2014,
arXiv 1406.1078). They are PyTorch's own and run at its speed.

Regularization follows AWD-LSTM (Merity et al. 2017, arXiv 1708.02182): one dropout mask for a whole text, and dropped
weights from state to state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from quatrain.models.classic._network import NetworkConfig, reversed_rows

Cell = Literal["rnn", "lstm", "gru"]


class RecurrentConfig(NetworkConfig):
    """Sizes of a recurrent network. `weight_drop` is the probability of dropping a weight from state to state."""

    cell: Cell = "lstm"
    weight_drop: float = Field(default=0.0, ge=0, lt=1)


CELLS: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
CALLS: dict[str, Any] = {"rnn": torch.rnn_tanh, "lstm": torch.lstm, "gru": torch.gru}
"""PyTorch's operators behind the modules: they take weights that are not the module's own."""

LayerState = tuple[Tensor, ...]
"""The state of one layer: h (B, H), and c (B, H) for an LSTM."""


class RecurrentLayer(nn.Module):
    """One layer in one direction. `weight_drop` drops weights from state to state, once for a whole batch."""

    def __init__(self, kind: str, input_size: int, hidden_size: int, weight_drop: float = 0.0):
        super().__init__()
        self.kind, self.weight_drop = kind, weight_drop
        self.cell = CELLS[kind](input_size, hidden_size, batch_first=True)

    def start(self, rows: int) -> LayerState:
        """The state (B, H) before the first token: zeros."""
        zeros = self.cell.weight_hh_l0.new_zeros(rows, self.cell.hidden_size)
        return (zeros, zeros) if self.kind == "lstm" else (zeros,)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """The outputs (B, T, H) of x (B, T, C), and the state after the last step."""
        state = self.start(x.shape[0]) if state is None else state
        inside = [part[None].contiguous() for part in state]
        given: Any = tuple(inside) if self.kind == "lstm" else inside[0]
        if self.training and self.weight_drop:
            weights = [
                nn.functional.dropout(weight, self.weight_drop) if name.startswith("weight_hh") else weight
                for name, weight in self.cell.named_parameters()
            ]
            out, *after = CALLS[self.kind](x, given, weights, True, 1, 0.0, True, False, True)
        else:
            out, last = self.cell(x, given)
            after = list(last) if self.kind == "lstm" else [last]
        return out, tuple(part[0] for part in after)


class RecurrentStack(nn.Module):
    """Layers over each other. A bidirectional stack reads each layer's input in both directions and joins them.

    `output_size` is the width of the last layer.
    """

    def __init__(self, config: RecurrentConfig, input_size: int, *, bidirectional: bool, output_size: int):
        super().__init__()
        self.kind, self.bidirectional = config.cell, bidirectional
        sizes = [config.hidden_size] * (config.num_hidden_layers - 1) + [output_size]
        self.layers, self.backward_layers = nn.ModuleList(), nn.ModuleList()
        width = input_size
        for size in sizes:
            own = size // 2 if bidirectional else size
            self.layers.append(RecurrentLayer(self.kind, width, own, config.weight_drop))
            if bidirectional:
                self.backward_layers.append(RecurrentLayer(self.kind, width, own, config.weight_drop))
            width = size

    def new_outputs(self, rows: int, length: int) -> Tensor:
        """Room (B, T, H) for the outputs of texts that are read in groups: zeros."""
        cell: Any = self.layers[-1].cell
        room: Tensor = cell.weight_hh_l0.new_zeros(rows, length, cell.hidden_size * (2 if self.bidirectional else 1))
        return room

    def start(self, rows: int) -> list[LayerState]:
        """The state of each layer before the first token: zeros."""
        layers: Any = self.layers
        return [layer.start(rows) for layer in layers]

    def forward(
        self, x: Tensor, drop: Any, state: Sequence[LayerState] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """The outputs (B, T, H) of x (B, T, C), and the state of each layer after the last step.

        `drop` is applied between layers. `lengths` (B,) are those of texts with padding, for a bidirectional stack.
        """
        after: list[LayerState] = []
        for number, layer in enumerate(self.layers):
            if number:
                x = drop(x)
            out, last = layer(x, None if state is None else state[number])
            after.append(last)
            if self.bidirectional:
                count = lengths if lengths is not None else torch.full((len(x),), x.shape[1], device=x.device)
                other, _ = self.backward_layers[number](reversed_rows(x, count))
                out = torch.cat((out, reversed_rows(other, count)), dim=-1)
            x = out
        return x, after


def of_equal_length(tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    """The numbers of the rows, in groups of equal length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(tokens):
        groups[len(ids)].append(row)
    return list(groups.values())


def joined(states: Sequence[Sequence[LayerState]]) -> list[LayerState]:
    """The states of single texts as those of a batch."""
    return [tuple(torch.stack(parts) for parts in zip(*layers, strict=True)) for layers in zip(*states, strict=True)]


def detached(state: Sequence[LayerState]) -> list[LayerState]:
    """A state that carries its values and no gradient: where truncated back-propagation ends."""
    return [tuple(part.detach() for part in layer) for layer in state]
