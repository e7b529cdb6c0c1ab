"""The patch embedding: a picture becomes a sequence of vectors, one for each square of pixels.

ViT: Dosovitskiy et al. 2020 (arXiv 2010.11929). The distillation token: DeiT, Touvron et al. 2020 (arXiv 2012.12877).
Mean pooling without a class token: I-JEPA, Assran et al. 2023 (arXiv 2301.08243).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError


@dataclass(frozen=True)
class Patches:
    """The sizes of a patch embedding: `image_size` and `patch_size` are (height, width) in pixels.

    `class_token` and `distillation_token` say which learned vectors precede the patches; `bias`: of the projection.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    num_channels: int = 3
    class_token: bool = True
    distillation_token: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        small = [name for name, side, patch in zip(("height", "width"), self.image_size, self.patch_size, strict=True)
                 if side < patch]  # fmt: skip
        if small:
            raise InputError(
                f"patch_size: {_by(self.patch_size)}; must be at most image_size ({_by(self.image_size)}) in "
                f"{' and '.join(small)}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        return height // patch_height, width // patch_width

    @property
    def num_extra(self) -> int:
        """The vectors before those of the patches."""
        return self.class_token + self.distillation_token

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one picture of `image_size`."""
        return self.num_channels, *self.image_size

    @property
    def num_vectors(self) -> int:
        """Patches of a picture of `image_size`, and the vectors before them."""
        return self.grid[0] * self.grid[1] + self.num_extra

    def build(self, config: Any) -> PatchEmbedding:
        """The module, for vectors of the model's width."""
        return PatchEmbedding(self, config.embedding_size or config.hidden_size)


class PatchEmbedding(nn.Module):
    """Pictures (B, C, H, W) to vectors (B, T, width): a projection of each patch, plus its position.

    A patch is multiplied with one matrix, which a convolution with the stride of its kernel does. A picture of another
    size than the model's has other positions: the table is interpolated to its grid of patches.
    """

    def __init__(self, patches: Patches, width: int):
        super().__init__()
        self.patches = patches
        size = patches.patch_size
        self.projection = nn.Conv2d(patches.num_channels, width, size, stride=size, bias=patches.bias)
        self.class_token = nn.Parameter(torch.zeros(width)) if patches.class_token else None
        self.distillation_token = nn.Parameter(torch.zeros(width)) if patches.distillation_token else None
        self.position_table = nn.Parameter(torch.zeros(patches.num_vectors, width))

    def forward(self, features: Tensor) -> Tensor:
        """Raises InputError for another shape, another number of channels, and pictures smaller than a patch."""
        grid = self.grid_of(features)
        vectors = self.projection(features.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)
        tokens: list[Tensor] = [token for token in (self.class_token, self.distillation_token) if token is not None]
        if tokens:
            first = torch.stack(tokens).to(vectors.dtype).expand(len(vectors), -1, -1)
            vectors = torch.cat((first, vectors), dim=1)
        return vectors + self.positions(grid).to(vectors.dtype)

    def resize(self, image_size: tuple[int, int]) -> Patches:
        """Makes this a module for pictures of another size: its position table is interpolated. Returns its sizes."""
        patches = replace(self.patches, image_size=image_size)
        with torch.no_grad():
            self.position_table = nn.Parameter(self.positions(patches.grid).clone())
        self.patches = patches
        return patches

    def grid_of(self, features: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of pictures (B, C, H, W). Raises InputError as `forward`."""
        channels, (height, width) = self.patches.num_channels, self.patches.patch_size
        if features.dim() != 4 or features.shape[1] != channels:
            raise InputError(
                f"features: have shape {tuple(features.shape)}; must be pictures (B, {channels}, height, width)."
            )
        rows, columns = features.shape[2] // height, features.shape[3] // width
        if not rows or not columns:
            raise InputError(
                f"features: pictures of {features.shape[2]}x{features.shape[3]} pixels; must be at least one patch, "
                f"{height}x{width}."
            )
        return rows, columns

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position vectors (T, width) of a grid of patches and of the tokens before it.

        The target of the interpolation is the size, never a factor: 14 rows times 61 / 14 in floating point give 60.
        """
        if grid == self.patches.grid:
            return self.position_table
        extra = self.patches.num_extra
        first, table = self.position_table[:extra], self.position_table[extra:]
        square = table.view(1, *self.patches.grid, -1).permute(0, 3, 1, 2)
        scaled = F.interpolate(square.float(), size=grid, mode="bicubic", align_corners=False).to(table.dtype)
        return torch.cat((first, scaled.flatten(2)[0].t()), dim=0)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
