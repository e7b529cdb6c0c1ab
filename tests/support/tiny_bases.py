"""Small random models as folders, which adapters are put over."""

from __future__ import annotations

from pathlib import Path

import torch

from quatrain.models import hub
from quatrain.models.config import ModelConfig
from quatrain.models.stack import Model


def save_random(config: ModelConfig, folder: Path) -> Path:
    """Writes a model of this shape whose weights are large enough to matter; returns the folder."""
    model, generator = Model(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + 0.2 * torch.randn(parameter.shape, generator=generator))
    hub.save(model, folder)
    return folder
