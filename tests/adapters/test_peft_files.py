"""Adapters go to PEFT and come from PEFT: same logits, same gradients, for both families."""

import json

import pytest
import torch
from tiny_models import gpt2, llama, save_random

from quatrain.adapters import peft_files, state
from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.peft_layers import file_layers
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

LLAMA, GPT2 = llama(), gpt2()
FAMILIES = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base(config, tmp_path):
    return save_random(config, tmp_path / "base")


def theirs(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base).eval()


def ours(base, targets="all-linear", rank=4):
    model = model_folder.load(base)
    apply_adapter(model, AdapterSettings(rank=rank, alpha=8.0, dropout=0.0, target_modules=targets), seed=1)
    with torch.no_grad():
        for number, (_, layer) in enumerate(adapter_layers(model)):
            layer.lora_B.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    return model


def agree(mine, reference):
    with torch.no_grad():
        torch.testing.assert_close(mine(IDS)[0], reference(IDS).logits, atol=1e-5, rtol=1e-5)


@FAMILIES
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("o_proj", "layers.1.*")])
def test_ours_to_peft_and_back(config, base, tmp_path, targets):
    from peft import PeftModel

    model = ours(base, targets)
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    reference = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter")
    agree(model, reference)
    agree(model, reference.merge_and_unload())
    again, tokenizer = load_model(tmp_path / "adapter")
    assert tokenizer is None
    mine, read = state.trained_tensors(model), state.trained_tensors(again)
    assert list(mine) == list(read) or set(mine) == set(read)
    assert all(torch.equal(mine[name], read[name]) for name in mine)
    with torch.no_grad():
        torch.testing.assert_close(again(IDS)[0], model(IDS)[0], atol=1e-6, rtol=1e-6)


@FAMILIES
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"down_proj": 2, "c_fc": 2}, "alpha_pattern": {"q_proj": 3, "c_attn": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_peft_to_ours_logits_and_gradients(config, base, tmp_path, options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = ["q_proj", "o_proj", "down_proj"] if config.family == "llama" else ["c_attn", "c_proj", "c_fc"]
    reference = get_peft_model(
        theirs(base), LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False,
                                 fan_in_fan_out=config.family == "gpt2", task_type="CAUSAL_LM", **options))  # fmt: skip
    reference.save_pretrained(tmp_path / "adapter")
    model, _ = load_model(tmp_path / "adapter")
    agree(model, reference)
    torch.nn.functional.cross_entropy(reference(IDS).logits.flatten(0, 1), LABELS.flatten()).backward()
    model(IDS, LABELS)[1].mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = file_layers(model.config)
    compared = 0
    for name, parameter in reference.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, kind = name.removeprefix(peft_files.PREFIX).removesuffix(".default.weight").rpartition(".")
        parts = [gradients[f"{part}.{kind}"] for part in layers[path].parts]
        combined = torch.cat(parts) if kind == "lora_B" else sum(parts)
        torch.testing.assert_close(combined, parameter.grad, atol=1e-5, rtol=1e-4)
        compared += 1
    assert compared == 2 * len(set(targets)) * 2 + (4 if config.family == "gpt2" else 0)


@pytest.fixture
def adapter(tmp_path):
    save_random(LLAMA, tmp_path / "base")
    peft_files.save_adapter(ours(tmp_path / "base", ("q_proj",)), tmp_path / "adapter", base_model="../base")
    return tmp_path / "adapter"


def change(adapter, **values):
    path = adapter / peft_files.ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_short_target_names(adapter):
    config = json.loads((adapter / peft_files.ADAPTER_CONFIG).read_text())
    assert config["target_modules"] == ["q_proj"]
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_options_that_are_not_known_are_refused_by_name(adapter):
    change(adapter, bias="all", use_qalora=True, layer_replication=[[0, 1]], exclude_modules=["o_proj"])
    with pytest.raises(InputError) as caught:
        load_model(adapter)
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == [
        "bias",
        "layer_replication",
        "use_qalora",
    ]
    change(adapter, peft_type="ADALORA")
    with pytest.raises(InputError, match="ADALORA"):
        load_model(adapter)


def test_missing_base(adapter):
    change(adapter, base_model_name_or_path="nobody/nothing")
    with pytest.raises(InputError, match="nobody/nothing"):
        load_model(adapter)
    change(adapter, base_model_name_or_path=None)
    with pytest.raises(InputError, match="does not say its base model"):
        load_model(adapter)


def test_broken_tensors_are_all_told_and_nothing_is_changed(adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / peft_files.WEIGHTS)
    first = f"{peft_files.PREFIX}model.layers.0.self_attn.q_proj"
    del tensors[f"{first}.lora_B.weight"]
    tensors[f"{peft_files.PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 5)
    tensors[f"{peft_files.PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)
    tensors[f"{peft_files.PREFIX}model.layers.9.self_attn.q_proj.lora_B.weight"] = torch.zeros(32, 4)
    tensors["strange"] = torch.zeros(2, 2)
    save_file(tensors, adapter / peft_files.WEIGHTS)
    model = model_folder.load(tmp_path / "base")
    with pytest.raises(InputError) as caught:
        peft_files.load_adapter(model, adapter)
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for part in ("strange: unexpected", f"{first}: lora_B.weight: missing", "layers.9", "must be (4, 32): wrong shape"):
        assert part in text
    assert not list(adapter_layers(model)) and all(parameter.requires_grad for parameter in model.parameters())
    (adapter / peft_files.WEIGHTS).write_bytes(b"half")
    with pytest.raises(InputError, match="incomplete or invalid safetensors file"):
        peft_files.load_adapter(model, adapter)
    (adapter / peft_files.WEIGHTS).unlink()
    with pytest.raises(InputError, match="missing"):
        peft_files.load_adapter(model, adapter)


def test_a_model_without_adapter_is_not_written(tmp_path):
    with pytest.raises(InputError, match="no adapter"):
        peft_files.save_adapter(Model(LLAMA), tmp_path)
