"""Frontends: ways to make vectors out of what is not a token, such as pictures and sound.

A frontend is all that another modality adds to the transformer. The stack reads its vectors as it reads embedded
tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn


class Frontend(Protocol):
    """The sizes of a frontend: a frozen dataclass that is part of a `ModelConfig`, in a module of its modality."""

    @property
    def num_vectors(self) -> int:
        """The vectors that one input becomes, at the size that the model was made for."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input of that size."""
        ...

    def build(self, config: Any) -> nn.Module:
        """The module: features (B, …) to vectors (B, T, embedding_size) with their positions; `config` is the model's.

        A module of a decoder that also reads tokens has `token_id`: its vectors replace the embeddings of that token.
        """
        ...
