"""Every key that transformers' config classes know is honoured, harmless for a reason, or refused by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from tiny_configs import tiny
from transformers import CONFIG_MAPPING, PretrainedConfig

from quatrain.core.errors import InputError
from quatrain.models.families import families, get_family
from quatrain.models.families.harmless import WHY
from quatrain.models.families.mapping import COMMON, GENERATION
from quatrain.models.families.value_types import COMMON as TYPED


def known_to_transformers(name: str) -> dict[str, Any]:
    """Every key of the class of a family, its base class among them, with the default."""
    config = CONFIG_MAPPING[name]()
    base = inspect.signature(PretrainedConfig.__init__).parameters
    keys = {key: parameter.default for key, parameter in base.items() if key not in ("self", "kwargs")}
    keys |= {key: vars(config).get(key) for key in inspect.signature(type(config)).parameters}
    keys |= {key: None for key in type(config).attribute_map}
    return keys | config.to_dict()


@pytest.mark.parametrize("name", sorted(families()))
def test_every_key_of_transformers_is_honoured_harmless_or_refused(name: str) -> None:
    kind = families()[name]
    honoured = {key.theirs for key in kind.keys} | set(kind.reads) | set(kind.required) | set(TYPED) | GENERATION
    for key, default in known_to_transformers(name).items():
        if key in honoured:
            continue
        if key in kind.harmless | COMMON:
            assert WHY[key]
            continue
        assert default in (None, False, 0, [], {}, ()), f"{name}: {key} = {default!r} is new; read it or say why not"
        with pytest.raises(InputError, match=key):
            get_family(name).from_hf(tiny(name) | {key: 7})


@pytest.mark.parametrize("name", sorted(families()))
def test_every_harmless_key_has_a_reason(name: str) -> None:
    read = set(families()[name].reads)
    assert {key for key in families()[name].harmless | COMMON if key not in WHY} <= set(TYPED) | read


def test_a_reason_is_given_for_keys_that_a_family_has_only() -> None:
    assert set(WHY) <= COMMON.union(*(kind.harmless for kind in families().values()))


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("value", [1, "yes", 50.0])
def test_options_that_only_one_of_two_families_knows(name: str, value: Any) -> None:
    key = {"gemma2": "use_bidirectional_attention", "gemma3_text": "attn_logit_softcapping"}[name]
    with pytest.raises(InputError, match=key):
        get_family(name).from_hf(tiny(name) | {key: value})
