"""Over any tree of modules and any pattern: what is named gets its adapter, what is not is left, nothing is silent."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama
from torch import nn

from quatrain.adapters.apply import LAYERS, apply_adapter, count_trainable_parameters, merge_adapters
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.targets import find_targets, linear_names
from quatrain.core.errors import InputError
from quatrain.models.modules import is_in_head
from quatrain.models.transformer.stack import Model

TREE = st.recursive(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.booleans()),
    lambda inner: st.dictionaries(st.text("abx_", min_size=1, max_size=3), inner, min_size=1, max_size=3),
    max_leaves=8,
)
"""A linear layer by its sizes, or a module of named modules."""
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2}, "dora": {"rank": 2}, "loha": {"rank": 2}, "lokr": {"rank": 1}, "ia3": {}, "bottleneck": {},
}  # fmt: skip


def built(tree: Any) -> nn.Module:
    if isinstance(tree, tuple):
        return nn.Linear(tree[0], tree[1], bias=tree[2])
    module = nn.Module()
    for name, inner in tree.items():
        module.add_module(name, built(inner))
    return module


def model_with(tree: Any) -> Model:
    """A model whose blocks are any tree of modules."""
    model = Model(llama(num_hidden_layers=1))
    model.layers = nn.ModuleList([built({"top": tree})])
    return model


@settings(max_examples=150, deadline=None)
@given(TREE, st.lists(st.text("abx_.*0", min_size=1, max_size=6), min_size=1, max_size=3))
def test_a_pattern_names_what_it_says_or_is_an_error(tree: Any, patterns: list[str]) -> None:
    model = model_with(tree)
    names = linear_names(model)
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in names)

    def named(pattern: str) -> set[str]:
        return {n for n in names if n == pattern or n.endswith(f".{pattern}") or fnmatchcase(n, pattern)}

    silent = [pattern for pattern in patterns if not named(pattern)]
    tied = "lm_head" in set().union(*map(named, patterns)) and model.config.tie_word_embeddings
    if silent or tied:
        with pytest.raises(InputError) as caught:
            find_targets(model, patterns)
        told = "\n".join(caught.value.problems)
        assert all(repr(pattern) in told for pattern in silent) and told.count("did you mean") == len(silent)
        return
    assert find_targets(model, patterns) == [name for name in names if any(name in named(p) for p in patterns)]
    assert find_targets(model, "all-linear") == [name for name in names if not is_in_head(name)]


@settings(max_examples=100, deadline=None)
@given(TREE, st.sampled_from(sorted(METHODS)), st.data())
def test_any_tree_takes_any_method(tree: Any, method: str, data: st.DataObject) -> None:
    """Named layers have adapters and only those learn; a fresh one changes nothing; merging gives the tree back."""
    assert set(METHODS) == set(LAYERS)
    model = model_with(tree)
    inside = [name for name in linear_names(model) if name.startswith("layers.")]
    chosen = data.draw(st.lists(st.sampled_from(inside), min_size=1, unique=True))
    inputs = {name: torch.randn(3, model.get_submodule(name).in_features) for name in inside}  # type: ignore[arg-type]
    with torch.no_grad():
        before = {name: model.get_submodule(name)(x) for name, x in inputs.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    apply_adapter(model, AdapterSettings(**{"method": method, "target_modules": tuple(chosen)} | METHODS[method]))  # type: ignore[arg-type]
    over = dict(adapter_layers(model))
    assert set(over) == set(chosen)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {f"{name}.{own}" for name, layer in over.items() for own in layer.adapter_parameters()}
    trained = [parameter for layer in over.values() for parameter in layer.adapter_parameters().values()]
    assert count_trainable_parameters(model)[0] == sum(parameter.numel() for parameter in trained)
    with torch.no_grad():
        for name, x in inputs.items():
            torch.testing.assert_close(model.get_submodule(name)(x), before[name], atol=1e-5, rtol=1e-4)
        for layer in over.values():
            for parameter in layer.adapter_parameters().values():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        moved = {name: model.get_submodule(name)(x) for name, x in inputs.items()}
    if method == "bottleneck":
        with pytest.raises(InputError, match="cannot be merged"):
            merge_adapters(model)
        return
    assert set(merge_adapters(model)) == set(chosen)
    assert {name: tuple(parameter.shape) for name, parameter in model.named_parameters()} == shapes
    with torch.no_grad():
        for name, x in inputs.items():
            torch.testing.assert_close(model.get_submodule(name)(x), moved[name], atol=1e-4, rtol=1e-4)
