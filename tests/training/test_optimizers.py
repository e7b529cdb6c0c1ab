"""Muon against its definition, the groups of parameters, and the schedules."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import llama

from quatrain.core.errors import InputError
from quatrain.core.settings import parse
from quatrain.models.families.fresh import fresh_config
from quatrain.models.transformer.stack import Model
from quatrain.training.optimizers import AdamW, Muon, make_optimizers, orthogonalize, set_learning_rate
from quatrain.training.schedules import learning_rate_ratio
from quatrain.training.settings import TrainSettings


def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_directions():
    torch.manual_seed(0)
    for shape in ((3, 24, 40), (2, 40, 24), (1, 16, 16)):
        matrices = torch.randn(shape)
        found = orthogonalize(matrices, dtype=torch.float32)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.4 and values.max() < 1.6
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        overlap = (found * (left @ right)).sum() / found.norm() / (left @ right).norm()
        assert overlap > 0.9


def test_muon_is_nesterov_momentum_orthogonalised_with_decoupled_decay():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(8, 12))
    start, momentum = parameter.detach().clone(), torch.zeros(8, 12)
    optimizer = Muon([parameter], learning_rate=0.1, weight_decay=0.5, dtype=torch.float32)
    expected = start
    for _ in range(3):
        gradient = torch.randn(8, 12)
        parameter.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalize((0.1 * gradient + 0.9 * momentum)[None], dtype=torch.float32)[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 12**0.5 * update
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=0)


def test_matrices_of_one_shape_do_not_mix():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(6, 6)) for _ in range(3)]
    alone = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    gradients = [torch.randn(6, 6) for _ in parameters]
    together = Muon(parameters, learning_rate=0.1, dtype=torch.float32)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    together.step()
    for parameter, other, gradient in zip(parameters, alone, gradients, strict=True):
        other.grad = gradient.clone()
        Muon([other], learning_rate=0.1, dtype=torch.float32).step()
        torch.testing.assert_close(parameter, other, atol=1e-6, rtol=0)


def test_blocks_go_to_muon_the_rest_to_adamw_and_only_matrices_decay():
    model = Model(llama())
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adamw = make_optimizers(
        dict(model.named_parameters()), TrainSettings(steps=1, warmup_steps=0, optimizer="muon"), dtype=torch.float32
    )
    in_muon = {names[parameter] for group in muon.param_groups for parameter in group["params"]}
    assert in_muon == {name for name in names.values() if name.startswith("layers.") and "proj" in name}
    decay = {names[parameter]: group["weight_decay"] for group in adamw.param_groups for parameter in group["params"]}
    assert decay["embed_tokens.weight"] > 0 and decay["lm_head.weight"] > 0
    assert all(value == 0 for name, value in decay.items() if "norm" in name)
    assert len(in_muon) + len(decay) == len(names)


SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("family", "head"),
    [("llama", None), ("gpt2", None), ("bert", "masked"), ("t5", "seq2seq"), ("bart", "seq2seq"), ("bloom", None)],
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_in_one_group_and_biases_and_norms_never_decay(family, head, optimizer):
    model = Model(fresh_config(family, SIZES, head=head))
    trainable = dict(model.named_parameters())
    names = {parameter: name for name, parameter in trainable.items()}
    wanted = TrainSettings(steps=1, warmup_steps=0, optimizer=optimizer, weight_decay=0.3)
    optimizers = make_optimizers(trainable, wanted, dtype=torch.float32)
    seen = [
        (names[parameter], group["weight_decay"], type(each))
        for each in optimizers
        for group in each.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _, _ in seen) == sorted(trainable)
    for name, decay, _ in seen:
        plain = name.endswith("bias") or "norm" in name or trainable[name].dim() < 2
        assert decay == (0.0 if plain else 0.3), name
    by_muon = {name for name, _, kind in seen if kind is Muon}
    if optimizer == "muon":
        assert by_muon == {name for name in trainable if "layers." in name and "proj" in name and "weight" in name}
        assert any(name.startswith("encoder.") for name in by_muon) == (model.encoder is not None)
    else:
        assert not by_muon


@given(
    st.integers(1, 500), st.integers(0, 50), st.sampled_from(["constant", "linear", "cosine", "wsd"]), st.floats(0, 1)
)
def test_schedules_rise_then_never_rise_again(steps, warmup_steps, schedule, minimum):
    warmup_steps = min(warmup_steps, steps)
    shares = [
        learning_rate_ratio(step, steps=steps, schedule=schedule, warmup_steps=warmup_steps, min_ratio=minimum)
        for step in range(steps)
    ]
    assert all(0 <= value <= 1 for value in shares)
    assert shares[:warmup_steps] == sorted(shares[:warmup_steps])
    assert all(a >= b - 1e-12 for a, b in zip(shares[warmup_steps:], shares[warmup_steps + 1 :], strict=False))
    if schedule != "constant" and steps > warmup_steps:
        assert shares[-1] == pytest.approx(minimum)


def test_cosine_by_hand():
    assert [round(learning_rate_ratio(step, steps=4, schedule="cosine"), 4) for step in range(4)] == [
        0.8536,
        0.5,
        0.1464,
        0.0,
    ]
    assert [
        learning_rate_ratio(step, steps=10, schedule="wsd", decay_ratio=0.5, warmup_steps=2)
        for step in (0, 1, 2, 4, 5, 7, 9)
    ] == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.8, 0.4, 0.0])


def test_our_adamw_steps_as_torchs():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2)]
    optimizers = [kind([weight], lr=0.01, fused=True) for kind, weight in zip((AdamW, torch.optim.AdamW), weights)]
    for _ in range(3):
        gradient = torch.randn(3, 4)
        for weight, optimizer in zip(weights, optimizers):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(*weights)


def test_training_does_not_import_torchs_compiler():
    """It costs 100 MB and seconds of every run, for nothing that is compiled."""
    code = """
import sys, torch
from quatrain.core.errors import InputError
from quatrain.core.settings import parse
from quatrain.models.families.fresh import fresh_config
from quatrain.planning.counts import built
from quatrain.training.optimizers import make_optimizers
from quatrain.training.settings import TrainSettings
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
assert next(built(fresh_config("llama", sizes | {"max_position_embeddings": 32})).parameters()).is_meta
weight = torch.nn.Parameter(torch.ones(4, 4))
for optimizer in make_optimizers({"layers.0.w.weight": weight, "w": torch.nn.Parameter(torch.ones(4))},
                                 TrainSettings(steps=1, optimizer="muon"), dtype=torch.float32):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_mup_scales_the_rates_of_matrices_by_width(optimizer: str) -> None:
    """AdamW's by base / width, Muon's by its root; embeddings, norms and biases keep the rate."""
    model = Model(llama(hidden_size=32, intermediate_size=64, tie_word_embeddings=False))
    weights = dict(model.named_parameters())
    names = {parameter: name for name, parameter in weights.items()}

    def rates(**changes) -> dict[str, float]:
        settings = TrainSettings(steps=1, warmup_steps=0, optimizer=optimizer, learning_rate=0.01, **changes)
        optimizers = make_optimizers(weights, settings, dtype=torch.float32)
        set_learning_rate(optimizers, 0.01)
        return {names[each]: group["lr"] for o in optimizers for group in o.param_groups for each in group["params"]}

    plain, scaled = rates(), rates(mup_base_width=8)
    assert plain.keys() == scaled.keys() == weights.keys() and set(plain.values()) == {0.01}
    for name, rate in scaled.items():
        kept = weights[name].dim() < 2 or name == "embed_tokens.weight"
        by_muon = optimizer == "muon" and name.startswith("layers.")
        assert rate == pytest.approx(0.01 * (1.0 if kept else 0.5 if by_muon else 0.25)), name
    assert rates(mup_base_width=32) == plain


def test_mup_needs_an_embedding_and_a_head_of_their_own() -> None:
    model = Model(llama(tie_word_embeddings=True))
    settings = TrainSettings(steps=1, warmup_steps=0, mup_base_width=8)
    with pytest.raises(InputError, match=r"lm_head\.weight must be trained.*tie_word_embeddings = false"):
        make_optimizers(dict(model.named_parameters()), settings, dtype=torch.float32)
    with pytest.raises(InputError, match="mup_base_width: 8; its rates are those of"):
        parse(TrainSettings, {"steps": 1, "warmup_steps": 0, "schedule": "constant", "optimizer": "sgd",
                              "mup_base_width": 8}, what="train")  # fmt: skip
