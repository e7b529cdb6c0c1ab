"""LoRA and quantization on recurrent layers: PEFT reads the adapters, quantized states step as they scan."""

import functools

import battery
import pytest
import tiny_models
import torch

from quatrain.adapters import peft_files
from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.settings import AdapterSettings
from quatrain.compression import methods
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.kv_cache import KVCache

MIXERS = {
    "mamba2": ("in_proj",),  # PEFT refuses adapters on the output projection of Mamba: its kernel reads the weight.
    "xlstm": ("q_proj", "v_proj", "input_gate", "o_proj"),
    "qwen3_5": ("qkv_proj", "z_proj", "decay_proj", "o_proj"),
}
IDS = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))


@functools.cache
def case_of(family):
    return next(case for case in battery.all_cases() if case.name.startswith(family))


@pytest.mark.parametrize("family", MIXERS)
def test_peft_reads_our_lora_of_recurrent_layers(family, tmp_path):
    from peft import PeftModel

    case = case_of(family)
    model = battery.ours(case, tmp_path / "base")
    apply_adapter(model, AdapterSettings(rank=2, alpha=6.0, dropout=0.0, target_modules=MIXERS[family]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, layer in adapter_layers(model):
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)
    model(IDS, IDS)[1].sum().backward()
    assert {path.rsplit(".", 1)[1] for path, _ in adapter_layers(model) if ".mixer." in path} == set(MIXERS[family])
    assert all(layer.lora_B.grad.abs().sum() > 0 for _, layer in adapter_layers(model))
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    reference = type(battery.theirs(case)).from_pretrained(tmp_path / "base")
    reference = PeftModel.from_pretrained(reference, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = reference(IDS).logits
        torch.testing.assert_close(model(IDS)[0], expected, atol=1e-5, rtol=1e-5)
        cache = KVCache(model.config, 2, 11)
        steps = [model(IDS[:, :4], cache=cache)[0], *(model(IDS[:, [t]], cache=cache)[0] for t in range(4, 11))]
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("family", MIXERS)
def test_quantized_recurrent_layers_step_as_they_scan(family, method, tmp_path):
    more = {"logit_softcap": 30.0} if family == "xlstm" else {}
    model = tiny_models.random_model(getattr(tiny_models, family)(**more))
    with torch.no_grad():
        expected = model(IDS)[0]
        assert any(".mixer." in name for name in methods.quantize(model, method))
        found = model(IDS)[0]
        assert float((found - expected).norm() / expected.norm()) < {"int8": 0.1, "int4": 0.8}[method]
        cache = KVCache(model.config, 2, 11)
        steps = torch.cat([model(IDS[:, [place]], cache=cache)[0] for place in range(11)], dim=1)
        torch.testing.assert_close(steps, found, atol=1e-4, rtol=1e-4)
        if family == "qwen3_5":  # Its files join queries and gates.
            with pytest.raises(InputError, match=r"q_proj.*has no place for that"):
                model_folder.save(model, tmp_path)
            return
        model_folder.save(model, tmp_path)
        assert torch.equal(load_model(tmp_path)[0](IDS)[0], found)
