"""Every method is PEFT's: its folders are read there and PEFT's here, same logits, same steps, after training too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import gpt2, llama, save_random
from torch import Tensor, nn

from quatrain.adapters import peft_files, state
from quatrain.adapters.apply import (
    adapters_disabled,
    apply_adapter,
    count_trainable_parameters,
    fully_trained_parameters,
    merge_adapters,
)
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.lokr import kronecker_sides
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CONFIGS = {"llama": llama(), "gpt2": gpt2()}
PUBLIC: dict[str, Any] = {
    "phi3": lambda: transformers.Phi3Config(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "bloom": lambda: transformers.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4),
}  # fmt: skip
"""Families whose files fuse layers: side by side, and heads in turns."""

IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(1))
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8.0},
    "rslora": {"method": "lora", "rank": 4, "alpha": 8.0, "use_rslora": True},
    "dora": {"rank": 4, "alpha": 8.0},
    "loha": {"rank": 3, "alpha": 6.0},
    "lokr": {"rank": 2, "alpha": 6.0},
    "lokr-both": {"method": "lokr", "rank": 1, "alpha": 2.0, "decompose_both": True, "decompose_factor": 8},
    "ia3": {},
}


def settings_of(name: str, **more: Any) -> AdapterSettings:
    return AdapterSettings(**{"method": name} | SETTINGS[name] | more)


def base_of(family: str, folder: Path) -> Path:
    """A small random model of a family as a folder, whose weights are large enough to matter."""
    if family in PUBLIC:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(PUBLIC[family]())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                offset = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                parameter.copy_(offset + 0.2 * torch.randn(parameter.shape))
        model.save_pretrained(folder)
        return folder
    return save_random(CONFIGS[family], folder)


@torch.no_grad()
def stirred(model: Model) -> Model:
    """Every trained number moved from where it began."""
    generator = torch.Generator().manual_seed(3)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(base: Path, name: str, **more: Any) -> Model:
    model = model_folder.load(base)
    apply_adapter(model, settings_of(name, **more), seed=1)
    return stirred(model)


def reference_of(base: Path, folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=True)


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


POSSIBLE = [
    *((family, name) for family in ("llama",) for name in SETTINGS),
    *((family, name) for family in ("gpt2", "bloom") for name in ("lora", "rslora", "dora", "ia3")),
    *(("phi3", name) for name in ("lora", "dora", "loha", "ia3")),
]


@pytest.mark.parametrize(("family", "name"), POSSIBLE)
def test_our_folder_is_read_by_peft_and_again_by_us(family: str, name: str, tmp_path: Path) -> None:
    base = base_of(family, tmp_path / "base")
    model = adapted(base, name)
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    reference = reference_of(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        mine = model(IDS)[0]
        close(mine, reference(IDS).logits)
        again, _ = load_model(tmp_path / "adapter")
        close(again(IDS)[0], mine)
        merged = reference.merge_and_unload()
        close(mine, merged(IDS).logits)


@pytest.mark.parametrize(("family", "name"), POSSIBLE)
def test_a_step_is_that_of_peft(family: str, name: str, tmp_path: Path) -> None:
    """One step of plain gradient descent from the same place: every trained tensor, as the files hold it."""
    base = base_of(family, tmp_path / "base")
    # PEFT's layer over several fused ones learns the zeros between our blocks too: others are compared.
    fused = family in ("gpt2", "phi3", "bloom")
    model = adapted(base, name, target_modules=("o_proj", "down_proj") if fused else "all-linear")
    peft_files.save_adapter(model, tmp_path / "before", base_model="../base")
    reference = reference_of(base, tmp_path / "before").eval()  # without GPT-2's dropout
    for parameters, loss in (
        (model.parameters(), model(IDS, LABELS)[1].mean()),
        (reference.parameters(), nn.functional.cross_entropy(reference(IDS).logits.flatten(0, 1), LABELS.flatten())),
    ):
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.requires_grad:
                    parameter.sub_(0.1 * parameter.grad)
    peft_files.save_adapter(model, tmp_path / "after", base_model="../base")
    reference.save_pretrained(str(tmp_path / "theirs"))
    from safetensors.torch import load_file

    ours, theirs = (load_file(tmp_path / folder / peft_files.WEIGHTS) for folder in ("after", "theirs"))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        close(ours[key], tensor)
    with torch.no_grad():
        close(model.eval()(IDS)[0], reference.eval()(IDS).logits)


CLASSES = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, target_modules="all-linear"),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, use_rslora=True,
                                      target_modules=["q_proj", "down_proj"]),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, use_dora=True,
                                    target_modules=["q_proj", "down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=16, init_weights=False, target_modules=["q_proj", "down_proj"]),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=16, init_weights=False, target_modules=["q_proj", "down_proj"]),
    "lokr-both": lambda: peft.LoKrConfig(r=1, alpha=16, init_weights=False, decompose_both=True, decompose_factor=8,
                                         target_modules=["q_proj", "down_proj"]),
    "ia3": lambda: peft.IA3Config(init_ia3_weights=False, target_modules=["q_proj", "down_proj"],
                                  feedforward_modules=["down_proj"]),
    "saved": lambda: peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"],
                                     modules_to_save=["norm", "lm_head"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_pefts_folder_is_read_by_us(name: str, tmp_path: Path) -> None:
    base = base_of("llama", tmp_path / "base")
    torch.manual_seed(0)
    reference = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), CLASSES[name]())
    if name == "saved":
        with torch.no_grad():
            for key, parameter in reference.named_parameters():
                if "modules_to_save.default" in key:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    reference.peft_config["default"].base_model_name_or_path = "../base"
    reference.save_pretrained(str(tmp_path / "theirs"))
    model, _ = load_model(tmp_path / "theirs")
    with torch.no_grad():
        close(model(IDS)[0], reference.eval()(IDS).logits)
    peft_files.save_adapter(model, tmp_path / "ours", base_model="../base")
    with torch.no_grad():
        close(model(IDS)[0], reference_of(base, tmp_path / "ours").eval()(IDS).logits)


METHODS = [*SETTINGS, "bottleneck", "bitfit", "last-layers"]


def any_settings(name: str, **more: Any) -> AdapterSettings:
    return settings_of(name, **more) if name in SETTINGS else AdapterSettings(method=name, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_what_trains_moves_and_nothing_else_by_a_bit(name: str, tmp_path: Path) -> None:
    model = model_folder.load(base_of("gpt2" if name == "bitfit" else "llama", tmp_path / "base"))
    plain = model(IDS)[0].detach()
    apply_adapter(model, any_settings(name), seed=1)
    with torch.no_grad():
        close(model(IDS)[0], plain)  # a fresh adapter changes nothing
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model.train()(IDS, LABELS)[1].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for key, parameter in model.named_parameters():
        # A bias of keys has no gradient: softmax does not see it.
        same = torch.equal(parameter, before[key])
        assert same == (key not in trained) or key.endswith("k_proj.bias"), key
    model.eval()
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    state.save(model, tmp_path / "state")
    with torch.no_grad():
        learned = model(IDS)[0]
        again, _ = load_model(tmp_path / "adapter")
        assert torch.equal(again(IDS)[0], learned) or name == "rslora"
        close(again(IDS)[0], learned)
        resumed = model_folder.load(tmp_path / "base")
        apply_adapter(resumed, any_settings(name), seed=2)
        state.load(resumed, tmp_path / "state")
        assert torch.equal(resumed(IDS)[0], learned)
        if name == "bottleneck":
            with pytest.raises(InputError, match="cannot be merged"):
                merge_adapters(model)
            with adapters_disabled(model):
                close(model(IDS)[0], plain)
            close(model(IDS)[0], learned)
            return
        merge_adapters(model)
        assert not list(adapter_layers(model))
        close(model(IDS)[0], learned)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_bottleneck_is_that_of_the_paper_over_transformers(family: str, tmp_path: Path) -> None:
    """The tensors of our file put behind the layers of transformers' model, as the paper's figure 2 says."""
    from safetensors.torch import load_file

    base = base_of(family, tmp_path / "base")
    model = model_folder.load(base)
    changed = apply_adapter(model, AdapterSettings(method="bottleneck", bottleneck_dim=6), seed=1)
    assert len(changed) == 4 and {name.rpartition(".")[2] for name in changed} == {"o_proj", "down_proj"}
    stirred(model)
    peft_files.save_adapter(model, tmp_path / "adapter", base_model="../base")
    reference = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    own: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(tmp_path / "adapter" / peft_files.WEIGHTS).items():
        path, _, part = name.removeprefix(peft_files.PREFIX).partition(".bottleneck_")
        own.setdefault(path, {})[part] = tensor
    for path, each in own.items():

        def behind(module: Any, inputs: Any, output: Tensor, each: dict[str, Tensor] = each) -> Tensor:
            inside = nn.functional.gelu(output @ each["down"].T + each["down_bias"])
            return output + inside @ each["up"].T + each["up_bias"]

        reference.get_submodule(path).register_forward_hook(behind)
    with torch.no_grad():
        close(model(IDS)[0], reference(IDS).logits)
    again, _ = load_model(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(IDS)[0], model(IDS)[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_head_learns_whole_and_is_saved(name: str, tmp_path: Path) -> None:
    base = base_of("gpt2", tmp_path / "base")
    if name in ("loha", "lokr", "lokr-both"):
        base = base_of("llama", tmp_path / "llama")
    model = model_folder.load(base, head="sequence_classification", labels=("no", "yes"), seed=1)
    apply_adapter(model, any_settings(name), seed=1)
    assert "score.weight" in fully_trained_parameters(model)
    stirred(model)
    peft_files.save_adapter(model, tmp_path / "adapter", base_model=str(base))
    again = model_folder.load(base, head="sequence_classification", labels=("no", "yes"), seed=2)
    peft_files.load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        close(again(IDS)[0], model(IDS)[0])
    config = json.loads((tmp_path / "adapter" / peft_files.ADAPTER_CONFIG).read_text())
    assert config["task_type"] == "SEQ_CLS" and "score" in config["modules_to_save"]
    if name not in ("bottleneck", "bitfit", "last-layers"):
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, pad_token_id=0)
        theirs.config.pad_token_id = 0
        reference = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
        ids = IDS.clamp(min=1)  # no padding
        with torch.no_grad():
            close(model(ids)[0], reference(ids).logits)


@given(st.integers(1, 5000), st.sampled_from([-1, 2, 4, 7, 8, 16, 100]))
def test_factors_are_those_of_lycoris(size: int, factor: int) -> None:
    from peft.tuners.lokr.layer import factorization

    assert kronecker_sides(size, factor) == tuple(factorization(size, factor))
    assert math.prod(kronecker_sides(size, factor)) == size


def test_what_peft_cannot_hold_is_said(tmp_path: Path) -> None:
    model = adapted(base_of("gpt2", tmp_path / "base"), "loha")
    with pytest.raises(InputError, match="cannot be written for PEFT") as caught:
        peft_files.save_adapter(model, tmp_path / "adapter")
    assert any("store transposed" in problem for problem in caught.value.problems)
    fused = adapted(base_of("phi3", tmp_path / "phi3"), "lokr")
    with pytest.raises(InputError) as caught:
        peft_files.save_adapter(fused, tmp_path / "adapter")
    assert any("fuses 3 layers" in problem for problem in caught.value.problems)


def test_settings_that_say_nothing_are_refused() -> None:
    from quatrain.runs.recipe import loads

    recipe = """
name = "x"
[data]
source = "x.jsonl"
[[stage]]
kind = "finetune"
train = { steps = 1 }
adapter = { method = "ia3", rank = 4, num_layers = 2, dropout = 0.1 }
"""
    with pytest.raises(InputError) as caught:
        loads(recipe)
    told = "\n".join(caught.value.problems)
    assert all(f"{name}" in told for name in ("rank", "num_layers", "dropout")) and 'method = "last-layers"' in told


def test_parts_and_layers_that_are_not_there(tmp_path: Path) -> None:
    model = model_folder.load(base_of("llama", tmp_path / "base"))
    with pytest.raises(InputError, match="cannot be applied") as caught:
        apply_adapter(model, AdapterSettings(modules_to_save=("nrm", "lm_heat")))
    assert "'nrm' names no module; did you mean norm" in caught.value.problems[0]
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(InputError, match="num_layers: 3; the model has 2"):
        apply_adapter(model, AdapterSettings(method="last-layers", num_layers=3))
    with pytest.raises(InputError, match="llama has none"):
        apply_adapter(model, AdapterSettings(method="bitfit"))
    with pytest.raises(InputError, match="cannot be applied") as caught:
        apply_adapter(model, AdapterSettings(modules_to_save=("q_proj",)))
    assert "is trained in full and would have an adapter too" in caught.value.problems[0]


def test_layers_in_few_bits_do_not_learn_whole(tmp_path: Path) -> None:
    from quatrain.compression import methods

    ways: list[dict[str, Any]] = [{"method": "last-layers"}, {"modules_to_save": ("layers.1.mlp.up_proj",)}]
    for how in [*ways, {"modules_to_save": ("mlp",)}]:
        model = model_folder.load(base_of("llama", tmp_path / "base"))
        methods.quantize(model, "int8")
        with pytest.raises(InputError, match="cannot be applied") as caught:
            apply_adapter(model, AdapterSettings(**how))
        assert "is quantized to int8 and cannot be trained" in caught.value.problems[0]


def test_counts(tmp_path: Path) -> None:
    model = model_folder.load(base_of("llama", tmp_path / "base"))
    whole = count_trainable_parameters(model)[1]
    apply_adapter(model, AdapterSettings(method="last-layers", num_layers=1))
    trained, total, _ = count_trainable_parameters(model)
    assert total == whole
    block = sum(parameter.numel() for parameter in model.layers[1].parameters())
    assert trained == block + 32 + 60 * 32  # the last norm and the head
    model = model_folder.load(tmp_path / "base")
    apply_adapter(model, AdapterSettings(method="ia3"))
    assert count_trainable_parameters(model)[0] == 2 * (16 + 16 + 48)


def model_of(config: Any, architecture: str, folder: Path, **changes: Any) -> Model:
    """A model of a public configuration, without its weights."""
    config.architectures = [architecture]
    config.save_pretrained(folder)
    with torch.device("meta"):
        return Model(model_folder.load_config(folder).replace(**changes))


def test_counts_of_gpt2_with_two_classes(tmp_path: Path) -> None:
    """Raschka 2024, Build a Large Language Model (From Scratch), appendix E: a head with a bias, queries, keys and
    values as layers of their own, all linear layers adapted, the head among them.
    """
    config = transformers.GPT2Config(num_labels=2)
    model = model_of(config, "GPT2ForSequenceClassification", tmp_path, score_bias=True)
    assert count_trainable_parameters(model)[1] == 124_441_346
    apply_adapter(model, AdapterSettings(rank=16, alpha=16.0, target_modules=("*",)))
    assert count_trainable_parameters(model)[0] == 2_666_528


def test_counts_of_mt0_small(tmp_path: Path) -> None:
    """The figures of PEFT's guide for bigscience/mt0-small, whose shape is mT5-small's."""
    config = transformers.MT5Config(
        vocab_size=250_112, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6
    )  # fmt: skip
    # The model's file says that its head is untied; today's transformers does not write that.
    model = model_of(config, "MT5ForConditionalGeneration", tmp_path, tie_word_embeddings=False)
    apply_adapter(model, AdapterSettings(rank=64, target_modules=("q_proj", "v_proj")))
    trainable, total, percent = count_trainable_parameters(model)
    assert (trainable, total) == (2_752_512, 302_929_280) and f"{percent:.4f}" == "0.9086"
