"""What can be said of a model whose family is not known here: its new options, and the known families nearest to it.

The distance of two architectures is read off their files alone: the keys of config.json, values that a family refuses,
and the names and number of the weights.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value, printable
from quatrain.models.families import families
from quatrain.models.families.mapping import COMMON, GENERATION, REQUIRED, Family
from quatrain.models.families.weights import Operation, expand

TEXT_MODEL = ("text_config", "llm_config", "language_config")
"""Keys under which a model of images or sounds has the config.json of its language model."""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""The number of a layer or expert in the name of a weight."""


@dataclass(frozen=True)
class Nearness:
    """How near one known family is. All texts are complete lines.

    score: between 0 and 1, mostly the mean of the shares of keys and weights. keys: share of the options that the
    family knows, where an option that few families know counts more. values: share of these whose value it accepts.
    weights: share of the names of weights that it has, None without weight files.
    """

    family: str
    score: float
    keys: float
    values: float
    weights: float | None
    new: tuple[str, ...]
    """Options that this family does not know."""
    refused: tuple[str, ...]
    """Values that it does not accept, and options that it needs and the config.json lacks."""
    other_weights: tuple[str, ...]
    """Names of weights that it does not have, * for a number."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class UnknownFamily:
    """A model type that is not known here."""

    model_type: str
    new: tuple[str, ...]
    """Options that no known family has."""
    nearest: tuple[Nearness, ...]
    """The known families, the nearest first."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model_type": self.model_type,
            "new_options": list(self.new),
            "nearest": [each.as_dict() for each in self.nearest],
        }


def unknown_family(config: Mapping[str, Any], weight_names: Collection[str] = (), most: int = 3) -> UnknownFamily:
    """Compares a config.json of an unknown model type, and the names of its weights, with every known family."""
    model_type = str(config.get("model_type"))
    config = next((config[key] for key in TEXT_MODEL if isinstance(config.get(key), Mapping)), config)
    options = {key: value for key, value in config.items() if key not in COMMON | GENERATION}
    knowing = Counter(key for family in families().values() for key in _keys(family))
    names = Counter(NUMBER.sub("*", name) for name in weight_names)
    found = [_nearness(family, options, knowing, names) for family in families().values()]
    found.sort(key=lambda each: -each.score)
    new = tuple(_option(key, value) for key, value in options.items() if key not in knowing)
    return UnknownFamily(model_type, new, tuple(found[:most]))


def unknown_family_lines(found: UnknownFamily) -> list[str]:
    """The comparison in words."""
    lines = [f"model_type {printable(found.model_type)}: no family that Quatrain knows. Nothing was loaded.", ""]
    if found.new:
        lines += ["Options that are new, known to no family here:", *(f"  {line}" for line in found.new), ""]
    else:
        lines += ["Every option is known to some family here.", ""]
    lines.append("Nearest families:")
    for each in found.nearest:
        weights = "" if each.weights is None else f", {each.weights:.0%} of the weights' names"
        shares = f"{each.keys:.0%} of the options, {each.values:.0%} of their values{weights}"
        lines.append(f"  {each.family}: {each.score:.2f} ({shares})")
    nearest = found.nearest[0]
    known = [line for line in nearest.new if line not in found.new]
    for title, entries in (
        (f"Options of other families, which {nearest.family} lacks:", known),
        (f"What {nearest.family} would refuse:", list(nearest.refused)),
        (f"Weights that {nearest.family} does not have:", list(nearest.other_weights)),
    ):
        if entries:
            lines += ["", title, *(f"  {line}" for line in entries[:20])]
            lines += [f"  and {len(entries) - 20} more"] if len(entries) > 20 else []
    lines += ["", "docs/adding-a-family.md adds a family step by step."]
    return lines


def _keys(family: Family) -> set[str]:
    """Every option that a family knows, without those of all families."""
    own = {key.theirs for key in family.keys} | set(family.reads) | set(family.required) | family.harmless
    return own - COMMON - GENERATION


def _nearness(
    family: Family, options: Mapping[str, Any], knowing: Mapping[str, int], names: Mapping[str, int]
) -> Nearness:
    own, count = _keys(family), len(families())

    def weight(key: str) -> float:
        """An option that every family has says little."""
        return math.log(1 + count / knowing.get(key, 1))

    total = sum(map(weight, options)) + sum(weight(key.theirs) for key in family.keys if _is_missing(key, options))
    known = [key for key in options if key in own]
    keys = sum(map(weight, known)) / total if total else 0.0
    refused = _refused(family, {key: options[key] for key in known})
    missing = [
        f"{key.theirs}: missing; a {family.name} config needs it" for key in family.keys if _is_missing(key, options)
    ]
    values = 1 - min(len(refused), len(known)) / len(known) if known else 0.0
    shares, other, weights = [keys, values], [], None
    if names:
        patterns = _weight_patterns(family, options)
        other = [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)]
        weights = 1 - sum(names[name] for name in other) / sum(names.values())
        shares.append(weights)
    new = tuple(_option(key, value) for key, value in options.items() if key not in own)
    asked = {key.theirs for key in family.keys} | set(family.reads) | set(family.required)
    covered = sum(key in options for key in asked) / len(asked)
    score = 0.9 * sum(shares) / len(shares) + 0.05 * values + 0.05 * covered  # The last two decide between equals.
    return Nearness(family.name, score, keys, values, weights, new, (*refused, *missing), tuple(other))


def _is_missing(key: Any, options: Mapping[str, Any]) -> bool:
    return key.default is REQUIRED and options.get(key.theirs) is None


def _refused(family: Family, options: Mapping[str, Any]) -> list[str]:
    """The values of known options that a family does not accept."""
    try:
        family.from_hf({**options, "model_type": family.name})
    except InputError as error:
        problems = error.problems or (error.message,)
        return [problem for problem in problems if not problem.partition(": ")[2].startswith("missing;")]
    return []


def _weight_patterns(family: Family, options: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """The names of a family's weights, with and without the prefix of its body; * for a number."""
    own = {key: value for key, value in options.items() if key in _keys(family)}
    operations: Sequence[Operation] = [] if callable(family.operations) else family.operations
    try:
        config = family.from_hf({**own, "model_type": family.name})
        body = family.operations(config) if callable(family.operations) else operations
        operations = expand(body, config)
    except InputError:  # The layers of a configuration that cannot be made are not known.
        pass
    sources = [name for operation in operations for name in operation.sources]
    prefixes = {"", family.prefix, *family.other_prefixes}
    found = [prefix + name for prefix in prefixes for name in sources]
    found += [name for head in family.heads.values() for operation in head.operations for name in operation.sources]
    found += [*family.aliases]
    plain = {NUMBER.sub("*", re.sub(r"\{\w\}", "*", name)) for name in found}
    ignored = [re.compile(pattern.replace(r"\d+", r"\*")) for pattern in family.ignored]
    return [*(re.compile(re.escape(name)) for name in plain), *ignored]


def _option(key: str, value: Any) -> str:
    return f"{printable(key[:80])}: {format_value(value)}"
