"""Families whose config.json holds the config.json of others: a model of several parts, each on the same stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.mapping import COMMON, Family
from quatrain.models.families.value_types import type_errors
from quatrain.models.families.weights import Computed, Operation, Split, Stacked, expand
from quatrain.models.transformer.config import ModelConfig


@dataclass(frozen=True)
class NestedFamily(Family):
    """A family of parts. `join` makes one configuration of those of the parts, and `part` gives them back."""

    parts: Mapping[str, Callable[[Mapping[str, Any]], tuple[Family, str]]] = field(default_factory=dict)
    """For each part, by its key in config.json: its family and head, from the part's config.json."""
    join: Callable[[Mapping[str, ModelConfig], Mapping[str, Any]], dict[str, Any]] = lambda parts, raw: {}
    """The fields of the whole configuration, from those of the parts and the config.json; `base` is the first part."""
    split: Callable[[ModelConfig], dict[str, ModelConfig]] = lambda config: {}
    """The configurations of the parts; `extra` of the first stands in that of the whole under the part's key."""
    places: Mapping[str, Callable[[ModelConfig], tuple[str, str]]] = field(default_factory=dict)
    """For each part, by its key: the prefix of its weights in the files, and in the model."""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each part, by its key: the values of keys that its config.json may lack."""

    def from_hf(self, config: Mapping[str, Any], *, head: str | None = None) -> ModelConfig:
        """Our configuration from a config.json. Raises InputError naming everything missing or unknown at once."""
        head = head or self.head_of(config)
        problems = [*self._unknown({key: value for key, value in config.items() if key not in self.parts}),
                    *type_errors(config, self.value_types)]  # fmt: skip
        configs: dict[str, ModelConfig] = {}
        for key, choose in self.parts.items():
            inner = config.get(key) or {}
            try:
                if not isinstance(inner, Mapping):
                    raise InputError(f"{format_value(inner)}; must be a table")
                inner = {**self.defaults.get(key, {}), **inner}
                family, of_part = choose(inner)
                configs[key] = family.from_hf(inner, head=of_part)
            except InputError as error:
                problems += [f"{key}: {problem}" for problem in error.problems or [error.message]]
        if problems:
            raise InputError(f"This {self.name} config.json cannot be used:", problems)
        base = next(iter(configs.values()))
        extra: dict[str, Any] = {key: config[key] for key in config if key in self.harmless}
        extra |= {key: part.extra for key, part in configs.items() if part is base}
        fields = {**self.join(configs, config), **self.heads[head].settings, "extra": extra, "family": self.name}
        return base.replace(head=head, **fields)

    def to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """The config.json of our configuration, with those of the parts in it."""
        written: dict[str, Any] = {"model_type": self.name, "architectures": [self.heads[config.head].architecture]}
        written |= {key: config.extra[key] for key in self.harmless if key in config.extra}
        for key, part in self.split(config).items():
            family = self.parts[key]({"model_type": part.family})[0]
            written[key] = family.to_hf(part)
            written[key].pop("architectures")
        return written | (self.write(config) if self.write is not None else {})

    def weights(self, config: ModelConfig) -> list[Operation]:
        """The weight operations of all parts, and those of the head."""
        found: list[Operation] = []
        for key, part in self.split(config).items():
            theirs, ours = self.places[key](part)
            family = self.parts[key]({"model_type": part.family})[0]
            body = family.operations(part) if callable(family.operations) else family.operations
            found += [within(operation, theirs, ours) for operation in expand(body, part)]
        return [*found, *expand(self.heads[config.head].operations, config)]

    def _unknown(self, config: Mapping[str, Any]) -> list[str]:
        """Unknown options of the outer config.json; token ids and sizes stand in the parts."""
        return super()._unknown({key: value for key, value in config.items() if key not in COMMON})


def within(operation: Operation, theirs: str, ours: str) -> Operation:
    """An operation with a prefix before the names in the files, and one before those in the model."""
    changed = operation.prefixed(theirs)
    if isinstance(changed, Computed):
        return changed
    if isinstance(changed, Split | Stacked):
        return replace(changed, ours=tuple(ours + name for name in changed.ours))
    return replace(changed, ours=ours + changed.ours)
