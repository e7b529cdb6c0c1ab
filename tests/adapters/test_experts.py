"""LoRA and quantization on experts: PEFT's files of a mixture, merging, quantized experts that a step computes."""

from dataclasses import replace

import battery
import pytest
import torch

from quatrain.adapters import peft_files
from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.settings import AdapterSettings
from quatrain.compression import methods
from quatrain.core.errors import InputError
from quatrain.models.io import model_folder

CASES = {case.name: case for case in battery.all_cases() if case.name in ("mixtral plain", "qwen3_moe plain")}


def with_lora(case, folder, targets):
    model = battery.ours(case, folder)
    apply_adapter(model, AdapterSettings(rank=2, alpha=6.0, dropout=0.0, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, layer in adapter_layers(model):
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("name", CASES)
def test_peft_reads_our_lora_of_experts(name, tmp_path):
    """PEFT joins the adapters of the experts, as transformers 5 joins their weights."""
    from peft import PeftModel

    case = CASES[name]
    model = with_lora(case, tmp_path / "base", ("gate_proj", "up_proj", "down_proj"))
    assert sum(".experts." in path for path, _ in adapter_layers(model)) == len(list(adapter_layers(model))) > 6
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    reference = type(battery.theirs(case)).from_pretrained(tmp_path / "base", attn_implementation="eager")
    reference = PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    ids, _ = battery.batch(case)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], reference(ids).logits, atol=1e-5, rtol=1e-5)
        again = battery.ours(case, tmp_path / "again")
        peft_files.load_adapter(again, tmp_path / "adapter")
        torch.testing.assert_close(again(ids)[0], model(ids)[0])


@pytest.mark.parametrize("method", ["int8", "int4", "nf4"])
def test_quantized_experts_compute_and_are_stored(method, tmp_path):
    case = replace(CASES["qwen3_moe plain"], name="qwen3_moe wide")
    case = replace(case, settings=case.settings | {"moe_intermediate_size": 32})
    model = battery.ours(case, tmp_path / "base")
    ids, _ = battery.batch(case)
    with torch.no_grad():
        expected = model(ids)[0]
        names = methods.quantize(model, method)
        assert any(".experts.3.down_proj" in name for name in names) and not any(n[-5:] == ".gate" for n in names)
        found = model(ids)[0]
        assert float((found - expected).norm() / expected.norm()) < 0.35
    model_folder.save(model, tmp_path / "small")
    from quatrain.loading.model import load_model

    again, _ = load_model(tmp_path / "small")
    with torch.no_grad():
        torch.testing.assert_close(again(ids)[0], found, atol=1e-5, rtol=1e-5)


def test_experts_stored_as_one_tensor_have_no_peft_file(tmp_path):
    case = next(case for case in battery.all_cases() if case.name == "granitemoe plain")
    model = with_lora(case, tmp_path / "base", ("up_proj",))
    with pytest.raises(InputError, match="experts of a layer as one tensor"):
        peft_files.save_adapter(model, tmp_path / "adapter")
