"""LoRA layers: what they compute, what they train, how targets are named, and that merging changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model
from torch import nn

from quatrain.adapters import state
from quatrain.adapters.apply import apply_adapter, count_trainable_parameters, merge_adapters
from quatrain.adapters.dora import DoRALinear
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.lora import LoRALinear
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.targets import find_targets
from quatrain.compression.int4 import Int4Linear
from quatrain.compression.int8 import Int8Linear
from quatrain.compression.nf4 import NF4Linear
from quatrain.core.errors import InputError, QuatrainError
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

CONFIG = llama(tie_word_embeddings=True)


def options(**changes):
    return AdapterSettings(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"} | changes)


def adapted(**changes):
    model = random_model(CONFIG)
    apply_adapter(model, options(**changes), seed=1)
    with torch.no_grad():
        for number, (_, layer) in enumerate(adapter_layers(model)):
            layer.lora_B.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    return model


IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))

BASES = {"plain": nn.Linear, "biased": nn.Linear, "nf4": NF4Linear, "int8": Int8Linear, "int4": Int4Linear}


@pytest.mark.parametrize("of_x", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BASES)
def test_one_function_does_what_base_and_adapter_do(kind, dtype, of_x, monkeypatch):
    torch.manual_seed(0)
    linear = nn.Linear(128, 96, bias=kind in ("biased", "nf4"))
    base = linear if BASES[kind] is nn.Linear else BASES[kind].from_linear(linear)
    layer = LoRALinear(base, rank=4, alpha=8.0)
    with torch.no_grad():
        layer.lora_A.normal_(0, 0.2)
        layer.lora_B.normal_(0, 0.2)
    layer.to(dtype)
    outer = torch.randn(3, 7, 96)

    def learn(together):
        calls = []
        monkeypatch.setattr(LoRALinear, "after", lambda self, *given: calls.append(1) or after(self, *given))
        if not together:
            monkeypatch.setattr(LoRALinear, "_can_fuse", lambda self, x: False)
        x = torch.randn(3, 7, 128, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_(of_x)
        found = layer(x)
        (found.float() * outer).sum().backward()
        assert len(calls) == (not together)
        gradients = [x.grad, layer.lora_A.grad, layer.lora_B.grad]
        layer.zero_grad()
        monkeypatch.undo()
        return [found.detach(), *gradients]

    after = LoRALinear.after
    mine, theirs = learn(True), learn(False)
    assert (mine[1] is None) == (theirs[1] is None) == (not of_x)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}
    for one, other in zip(mine, theirs, strict=True):
        if one is not None:
            assert one.dtype == dtype
            torch.testing.assert_close(one, other, **close)
    assert not of_x or torch.equal(mine[0], theirs[0])  # else a quantized base may take its way without gradients


@pytest.mark.parametrize("why", ["dropout", "autocast", "base that learns", "other dtype", "dora"])
def test_the_one_function_leaves_what_it_cannot_do(why):
    kind = DoRALinear if why == "dora" else LoRALinear
    layer = kind(nn.Linear(8, 8), rank=2, alpha=2.0, dropout=0.5 if why == "dropout" else 0.0)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    x = torch.randn(3, 8)
    if why == "base that learns":
        layer.base.requires_grad_(True)
    if why == "other dtype":
        layer.base.to(torch.bfloat16)
        x = x.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=why == "autocast"):
        assert not layer._can_fuse(x)
        layer(x).float().sum().backward()
    assert layer.lora_B.grad.abs().sum() > 0
    assert (layer.base.weight.grad is not None) == (why == "base that learns")


@given(rank=st.integers(1, 9), alpha=st.sampled_from([1.0, 8.0, 32.0]), bias=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_forward_is_the_formula(rank, alpha, bias, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(7, 5, bias=bias)
    x = torch.randn(2, 3, 7)
    layer = LoRALinear(linear, rank, alpha)
    layer.reset_parameters(None)
    torch.testing.assert_close(layer(x), linear(x), atol=0, rtol=0)
    with torch.no_grad():
        layer.lora_B.normal_()
    expected = linear(x) + alpha / rank * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    before = layer(x)
    torch.testing.assert_close(layer.merge()(x), before, atol=1e-5, rtol=1e-5)


def test_starts_as_the_base_and_seeds_decide():
    plain = random_model(CONFIG)
    first, second, other = (random_model(CONFIG) for _ in range(3))
    names = apply_adapter(first, options(), seed=1)
    apply_adapter(second, options(), seed=1)
    apply_adapter(other, options(), seed=2)
    assert len(names) == 14 and "lm_head" not in names
    with torch.no_grad():
        torch.testing.assert_close(first(IDS)[0], plain(IDS)[0], atol=0, rtol=0)
    mine, same, differs = (state.trained_tensors(model) for model in (first, second, other))
    assert all(torch.equal(mine[name], same[name]) for name in mine)
    assert not torch.equal(mine[f"{names[0]}.lora_A"], differs[f"{names[0]}.lora_A"])
    for name in mine:
        if name.endswith("lora_A"):
            bound = mine[name].shape[1] ** -0.5
            assert 0.8 * bound < mine[name].abs().max() <= bound


def test_only_the_adapter_trains():
    model = adapted(target_modules=("q_proj", "v_proj"))
    _, loss = model(IDS, IDS)
    loss.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"layers.{n}.self_attn.{p}_proj.lora_{m}" for n in (0, 1) for p in "qv" for m in "AB"}
    count = 2 * (4 * (32 + 32) + 4 * (32 + 16))
    trainable, total, percent = count_trainable_parameters(model)
    assert (trainable, total) == (count, Model(CONFIG).num_parameters() + count)
    assert percent == pytest.approx(100 * count / total)


def test_merged_equals_unmerged_and_is_a_plain_model(tmp_path):
    model = adapted()
    with torch.no_grad():
        before = model(IDS)[0]
        with pytest.raises(QuatrainError, match="merge adapters first"):
            model_folder.save(model, tmp_path)
        assert len(merge_adapters(model)) == 14
        torch.testing.assert_close(model(IDS)[0], before, atol=1e-5, rtol=1e-5)
    assert not list(adapter_layers(model))
    assert set(model.state_dict()) == set(Model(CONFIG).state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model_folder.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(model_folder.load(tmp_path)(IDS)[0], model(IDS)[0])


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 14),
        (["q_proj"], 2),
        ("mlp.up_proj", 2),
        (["layers.0.*"], 7),
        (["q_proj", "layers.1.self_attn.q_proj"], 2),
    ],
)
def test_targets(targets, count):
    assert len(find_targets(Model(CONFIG), targets)) == count


def test_unknown_targets_are_told_with_near_names():
    with pytest.raises(InputError) as caught:
        find_targets(Model(CONFIG), ["q_prj", "c_attn", "o_proj", "lm_head"])
    first, second, third = caught.value.problems
    assert "'q_prj'" in first and "did you mean q_proj" in first
    assert "'c_attn'" in second and "gate_proj" in second
    assert "lm_head shares its weight" in third
    with pytest.raises(InputError, match="empty"):
        find_targets(Model(CONFIG), [])


def test_dropout_only_in_training():
    model = adapted(dropout=0.5)
    with torch.no_grad():
        assert torch.equal(model(IDS)[0], model(IDS)[0])
        model.train()
        assert not torch.equal(model(IDS)[0], model(IDS)[0])


def test_bfloat16_base_and_autocast():
    model = adapted()
    with torch.no_grad():
        expected = model(IDS)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model(IDS)[0].float(), expected, atol=0.2, rtol=0.05)
        model.embed_tokens.to(torch.bfloat16)
        for module in model.modules():
            if isinstance(module, nn.Linear | type(model.norm)):
                module.to(torch.bfloat16)
        assert next(layer.lora_A.dtype for _, layer in adapter_layers(model)) == torch.float32
        logits = model(IDS)[0]
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), expected, atol=0.2, rtol=0.05)


def test_checkpointed_tensors_come_back(tmp_path):
    model, fresh = adapted(), random_model(CONFIG)
    apply_adapter(fresh, options(), seed=9)
    state.save(model, tmp_path)
    state.load(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(fresh(IDS)[0], model(IDS)[0])
    other = random_model(CONFIG)
    apply_adapter(other, options(target_modules=("q_proj",), rank=2), seed=9)
    before = {name: tensor.clone() for name, tensor in state.trained_tensors(other).items()}
    with pytest.raises(InputError) as caught:
        state.load(other, tmp_path)
    told = "\n".join(caught.value.problems)
    assert "unexpected" in told and "has shape (4, 32), the model (2, 32)" in told
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.trained_tensors(other).items())
    (tmp_path / state.FILE).write_bytes(b"half")
    with pytest.raises(InputError, match="incomplete or invalid safetensors file"):
        state.load(other, tmp_path)
