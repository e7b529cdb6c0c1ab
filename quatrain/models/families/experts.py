"""What the families of mixtures of experts share: the keys of their config.json and the weights of their experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.models.families.llama import BODY
from quatrain.models.families.weights import Operation, Rename, Stacked, renames
from quatrain.models.transformer.config import ExpertsConfig, ModelConfig

ATTENTION: Sequence[Operation] = [operation for operation in BODY if ".mlp." not in operation.theirs]
"""The weights of a decoder without its feed-forward networks."""

DENSE: Sequence[Operation] = [operation for operation in BODY if ".mlp." in operation.theirs]
"""The weights of plain feed-forward networks, in the layers that have no experts."""

HEAD_NORMS: Sequence[Operation] = [
    Rename(f"layers.{{n}}.self_attn.{name}.weight", f"layers.{{n}}.self_attn.{name}.weight")
    for name in ("q_norm", "k_norm")
]
"""The norms of queries and keys."""

OUTPUT_KEYS = frozenset({"output_router_logits", "router_jitter_noise"})
"""Keys without effect: what transformers returns, and noise in training whose default is 0."""

TRAINING = {
    "router_aux_loss_coef": "balance_loss",
    "router_z_loss_coef": "z_loss",
    "expert_capacity_factor": "capacity_factor",
    "router_bias_update_rate": "bias_rate",
}
"""Keys that matter in training, and our fields. transformers has the first; the others are written if they are set."""


def expert_weights(names: Mapping[str, str], block: str = "mlp", router: str = "gate.weight") -> list[Operation]:
    """The weights of router and experts, stored one by one as `block.experts.{x}.NAME`.

    `names` maps our projections to theirs.
    """
    theirs, ours = f"layers.{{n}}.{block}", "layers.{n}.mlp"
    operations: list[Operation] = [Rename(f"{theirs}.{router}", f"{ours}.gate.weight")]
    for own, name in names.items():
        operations += renames(f"{theirs}.experts.{{x}}.{name}", f"{ours}.experts.{{x}}.{own}", ("weight",))
    return operations


SAME_NAMES = {name: name for name in ("gate_proj", "up_proj", "down_proj")}
"""Experts whose projections have our names in the files."""


def stacked_weights(theirs: Mapping[str, tuple[str, ...]], block: str, own_block: str = "mlp") -> list[Operation]:
    """The weights of experts that the files store as one tensor; `theirs` maps its name to our projections in it."""
    return [
        Stacked(
            f"layers.{{n}}.{block}.{name}",
            tuple(f"layers.{{n}}.{own_block}.experts.{{x}}.{own}.weight" for own in ours),
        )
        for name, ours in theirs.items()
    ]


def shared_weights(theirs: str) -> list[Operation]:
    """The weights of the shared expert, which the files call `theirs`."""
    return [
        operation
        for name in SAME_NAMES
        for operation in renames(f"layers.{{n}}.mlp.{theirs}.{name}", f"layers.{{n}}.mlp.shared_expert.{name}")
    ]


def experts_of(config: ModelConfig) -> ExpertsConfig:
    """The mixture of experts of a configuration; a family of mixtures always has one."""
    if config.experts is None:
        raise ValueError(f"a {config.family} configuration without experts")
    return config.experts


def training_fields(config: Mapping[str, Any], balance_loss: float) -> dict[str, Any]:
    """The fields of `TRAINING`, with the family's default of the load-balancing loss."""
    found = {ours: float(config[key]) for key, ours in TRAINING.items() if config.get(key) is not None}
    return {"balance_loss": balance_loss} | found


def training_keys(experts: ExpertsConfig) -> dict[str, Any]:
    """The keys of `TRAINING`; those that transformers does not have only if they are set."""
    written = {key: getattr(experts, ours) for key, ours in TRAINING.items()}
    return {key: value for number, (key, value) in enumerate(written.items()) if not number or value}


def first(config: Mapping[str, Any], default: Any, *keys: str) -> Any:
    """The value of the first of these keys that is there and not null, else the default."""
    return next((config[key] for key in keys if config.get(key) is not None), default)
