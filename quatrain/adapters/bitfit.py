"""BitFit: nothing learns but the biases (Ben Zaken et al. 2021, arXiv 2106.10199)."""

from __future__ import annotations

from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model


def biases(model: Model) -> list[str]:
    """The names of a model's biases, of linear layers and norms. Raises InputError where it has none."""
    found = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    if not found:
        raise InputError(
            f'This adapter cannot be applied: method = "bitfit" learns biases, and {model.config.family} has none. '
            'Take "ia3", which learns about as little.'
        )
    return found
