"""Pictures for a decoder: a vision tower and a projector make vectors that stand among those of the tokens.

LLaVA: Liu et al. 2023 (arXiv 2304.08485), whose projector is one linear layer, and LLaVA 1.5 (arXiv 2310.03744), whose
projector is a network of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.feed_forward import ACTIVATIONS
from quatrain.models.transformer.stack import Model

SELECTIONS = ("default", "full")
"""Which vectors of the tower are read: all but the first, its class token, or all."""
PROJECTORS = ("linear", "mlp")


@dataclass(frozen=True)
class PictureTokens:
    """The frontend of a decoder that reads pictures: the vectors of a picture replace the tokens `token_id`.

    `tower` is the vision tower. Its vectors are the hidden states before or after its layers, number `layer` as
    transformers counts them: 0 are those before the first layer, -1 those after the last, without the tower's last
    norm. Raises InputError, with all problems, for values that do not fit the tower.
    """

    tower: ModelConfig
    token_id: int
    layer: int = -2
    selection: str = "default"
    projector: str = "mlp"
    activation: str = "gelu"
    """Between the two layers of the projector."""
    bias: bool = True
    decoder_family: str = "llama"
    """The family of the decoder, whose names its files have."""

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise InputError("This vision tower cannot be used:", problems)

    def _problems(self) -> Iterator[str]:
        layers = self.tower.num_hidden_layers
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or not -layers - 1 <= self.layer <= layers:
            yield (
                f"layer: {format_value(self.layer)}; must be one number from {-layers - 1} to {layers}, "
                f"for a tower of {layers} layers"
            )
        for name, allowed in (("selection", SELECTIONS), ("projector", PROJECTORS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in allowed:
                yield f"{name}: {format_value(getattr(self, name))}; must be one of {', '.join(allowed)}"
        if self.tower.frontend is None:
            yield f"tower: a {self.tower.family} model reads no pictures"
        elif self.selection == "default" and self.tower.frontend.num_vectors < 2:
            yield "selection: 'default'; leaves no vector of a picture that is one patch; must be 'full'"

    @property
    def depth(self) -> int:
        """The layers of the tower that run."""
        return self.layer if self.layer >= 0 else self.tower.num_hidden_layers + 1 + self.layer

    @property
    def num_vectors(self) -> int:
        """The vectors, and tokens, of one picture."""
        return self._of_tower.num_vectors - (self.selection == "default")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one picture."""
        return self._of_tower.input_shape

    @property
    def _of_tower(self) -> Any:
        return self.tower.frontend

    def build(self, config: Any) -> ProjectedPictures:
        """The module, for vectors of the decoder's width."""
        return ProjectedPictures(self, config.embedding_size or config.hidden_size)


class ProjectedPictures(nn.Module):
    """Pictures (B, C, H, W) to vectors (B, T, width) for a decoder: those of the tower, through the projector."""

    def __init__(self, sizes: PictureTokens, width: int):
        super().__init__()
        self.sizes, self.token_id = sizes, sizes.token_id
        self.tower = Model(sizes.tower)
        self.linear_1 = nn.Linear(sizes.tower.hidden_size, width, bias=sizes.bias)
        self.linear_2 = nn.Linear(width, width, bias=sizes.bias) if sizes.projector == "mlp" else None
        self.activation = ACTIVATIONS[sizes.activation]

    def forward(self, features: Tensor) -> Tensor:
        """Raises InputError for pictures of another size than the tower's, which would become more or fewer vectors."""
        if tuple(features.shape[1:]) != self.sizes.input_shape:
            raise InputError(
                f"features: have shape {tuple(features.shape)}; must be pictures (B, "
                f"{', '.join(map(str, self.sizes.input_shape))})."
            )
        return self.project(self.selected(features))

    def selected(self, features: Tensor) -> Tensor:
        """The tower's vectors (B, T, C) that the projector reads."""
        hidden: Tensor = self.tower.run(self.tower.vectors_of(features), depth=self.sizes.depth)
        return hidden[:, 1:] if self.sizes.selection == "default" else hidden

    def project(self, hidden: Tensor) -> Tensor:
        """Vectors of the tower (…, C) to vectors of the decoder (…, width)."""
        hidden = self.linear_1(hidden)
        projected: Tensor = hidden if self.linear_2 is None else self.linear_2(self.activation(hidden))
        return projected
