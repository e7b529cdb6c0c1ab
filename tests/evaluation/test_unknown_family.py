"""What is said of a model whose family is not known: its new options, and the nearest known families."""

import json

import battery
import pytest
import torch
from safetensors.torch import save_file
from tiny_configs import tiny

from quatrain.cli.inspect import inspect
from quatrain.evaluation.inspection.unknown_family import unknown_family, unknown_family_lines
from quatrain.models.families import get_family

TWINS = {"xlm-roberta": "roberta", "camembert": "roberta", "mt5": "t5"}
"""Families whose keys, values and weights are those of another one."""


def files(name):
    """The config.json and the names of the weights of a tiny model."""
    family = get_family(name)
    config = family.from_hf(tiny(name))
    return family.to_hf(config), [source for operation in family.weights(config) for source in operation.sources]


@pytest.mark.parametrize("name", battery.text_families())
def test_a_renamed_family_is_nearest_to_itself(name):
    config, weights = files(name)
    found = unknown_family(config | {"model_type": "nova", "use_wavelets": True}, weights)
    nearest = found.nearest[0]
    assert TWINS.get(nearest.family, nearest.family) == TWINS.get(name, name)
    assert found.new == ("use_wavelets: true",) and nearest.new == found.new
    assert nearest.refused == () and nearest.other_weights == () and nearest.values == 1.0


def test_values_and_weights_tell_families_apart():
    config, weights = files("llama")
    renamed = config | {"model_type": "nova", "hidden_act": "wave", "vocab_size": None}
    odd = [*weights, "model.layers.0.self_attn.q_gate.weight", "model.layers.1.self_attn.q_gate.weight"]
    nearest = next(each for each in unknown_family(renamed, odd, most=99).nearest if each.family == "llama")
    assert [problem.split(":")[0] for problem in nearest.refused] == ["hidden_act", "vocab_size"]
    assert nearest.other_weights == ("model.layers.*.self_attn.q_gate.weight",)
    assert nearest.weights == pytest.approx(1 - 2 / len(odd)) and nearest.values < 1


def test_an_option_of_another_family_is_not_new():
    config, weights = files("llama")
    found = unknown_family(config | {"model_type": "nova", "final_logit_softcapping": 30.0}, weights)
    assert found.new == () and found.nearest[0].new == ("final_logit_softcapping: 30.0",)
    text = "\n".join(unknown_family_lines(found))
    assert "Every option is known" in text and "Options of other families" in text


def test_the_language_model_of_images_is_compared():
    config, _ = files("qwen3")
    found = unknown_family({"model_type": "nova-vision", "text_config": config, "vision_config": {"depth": 3}})
    assert found.model_type == "nova-vision" and found.nearest[0].family == "qwen3" and found.new == ()


@pytest.mark.parametrize("config", [{}, {"model_type": "nova"}, {"model_type": "nova", "layers": [[1], {"a": None}]}])
def test_hardly_any_options(config):
    found = unknown_family(config)
    assert len(found.nearest) == 3 and unknown_family_lines(found)


@pytest.mark.parametrize("with_weights", [True, False])
def test_the_verb_tells_before_it_refuses(with_weights, tmp_path, capsys):
    config, weights = files("llama")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "nova", "use_wavelets": True}))
    if with_weights:
        save_file({name: torch.zeros(1) for name in weights}, tmp_path / "model.safetensors")
    assert inspect(str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "use_wavelets: true" in shown and "Nearest families:\n  llama" in shown
    assert inspect(str(tmp_path), json_lines=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new_options"] == ["use_wavelets: true"] and found["nearest"][0]["family"] == "llama"
    assert (found["nearest"][0]["weights"] == 1.0) == with_weights
