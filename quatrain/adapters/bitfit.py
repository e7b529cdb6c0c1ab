"""BitFit: trains only the biases (Ben Zaken et al. 2021, arXiv 2106.10199)."""

from __future__ import annotations

from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model


def biases(model: Model) -> list[str]:
    """The names of a model's biases, of linear layers and norms. Raises InputError if it has none."""
    names = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    if not names:
        raise InputError(
            f'This adapter cannot be applied: method = "bitfit" trains biases, and {model.config.family} has none. '
            'Use "ia3", which trains about as few parameters.'
        )
    return names
