"""Mixtures of experts: the routing of transformers' routers, ties included; capacity; losses; who gets a gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import tiny

from quatrain.core.errors import InputError
from quatrain.data.batches import TokenBatch
from quatrain.models.families import get_family
from quatrain.models.transformer.config import ExpertsConfig
from quatrain.models.transformer.context import Routing
from quatrain.models.transformer.experts import (
    MixtureOfExperts,
    Router,
    load_balancing_loss,
    router_z_loss,
)
from quatrain.models.transformer.stack import Model
from quatrain.training.objectives import Causal

WEIGHTS = "model.safetensors"
TOKENS, WIDTH, EXPERTS = 40, 8, 6


def router(**choices) -> Router:
    config = ExpertsConfig(num_experts=EXPERTS, experts_per_token=3, intermediate_size=4, **choices)
    return Router(WIDTH, config)


def their_router(name: str, **changes):
    """The router of a family of transformers with our sizes."""
    import importlib

    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    config_class, router_class = {
        "mixtral": ("MixtralConfig", "MixtralTopKRouter"),
        "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeTopKRouter"),
        "granitemoe": ("GraniteMoeConfig", "GraniteMoeTopKRouter"),
        "gpt_oss": ("GptOssConfig", "GptOssTopKRouter"),
        "deepseek_v3": ("DeepseekV3Config", "DeepseekV3TopkRouter"),
    }[name]
    count = {"qwen2_moe": "num_experts", "deepseek_v3": "n_routed_experts"}.get(name, "num_local_experts")
    sizes = {"hidden_size": WIDTH, count: EXPERTS, "num_experts_per_tok": 3}
    return getattr(module, router_class)(getattr(module, config_class)(**sizes | changes))


ROUTERS = [
    ("mixtral", {}, {}),
    ("qwen2_moe", {"norm_topk_prob": False}, {"renormalize": False}),
    ("qwen2_moe", {"norm_topk_prob": True}, {}),
    ("granitemoe", {}, {"router": "softmax_of_chosen"}),
    ("gpt_oss", {}, {"router": "softmax_of_chosen", "bias": True}),
    ("deepseek_v3", {"n_group": 3, "topk_group": 2},
     {"router": "sigmoid", "groups": 3, "groups_per_token": 2, "scale": 2.5}),
    ("deepseek_v3", {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
     {"router": "sigmoid", "renormalize": False}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "choices"), ROUTERS, ids=[f"{n} {i}" for i, (n, *_) in enumerate(ROUTERS)])
@pytest.mark.parametrize("ties", [False, True])
def test_routing_is_that_of_transformers(name, changes, choices, ties):
    torch.manual_seed(0)
    theirs, ours = their_router(name, **changes), router(**choices)
    with torch.no_grad():
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            tensor.normal_()
        x = torch.randn(TOKENS, WIDTH)
        if ties:  # equal experts, and tokens to whom all experts are equal
            for tensor in (*theirs.parameters(), *theirs.buffers()):
                tensor[1::2] = tensor[::2].clone()
            x[::4] = 0
    ours.load_state_dict(theirs.state_dict(), strict=True)
    logits, weights, experts = theirs(x)
    routing = ours(x)
    assert torch.equal(routing.logits, logits.float()) and torch.equal(routing.experts, experts)
    torch.testing.assert_close(routing.weights, weights)


def mixture(seed: int = 0, **changes) -> tuple[Model, torch.Tensor]:
    """A tiny Mixtral with random weights, and ids (2, 12)."""
    config = get_family("mixtral").from_hf(tiny("mixtral"))
    assert config.experts is not None
    model = Model(config.replace(experts=dataclasses.replace(config.experts, **changes))).initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model, torch.randint(0, 32, (2, 12), generator=generator)


def test_an_idle_expert_gets_no_gradient():
    model, ids = mixture()
    layer = model.layers[1].mlp
    with torch.no_grad():
        layer.gate.weight[2] = -layer.gate.weight[:2].sum(0) * 100  # sometimes chosen
    routings: list[Routing] = []
    model.hidden_states(ids, routing=routings).square().sum().backward()
    for block, routing in zip(model.layers, routings, strict=True):
        for number, expert in enumerate(block.mlp.experts):
            used = bool((routing.experts == number).any())
            assert all((weight.grad is not None) == used for weight in expert.parameters())
    alone, _ = mixture()
    with torch.no_grad():
        for block in alone.layers:
            block.mlp.gate.weight.zero_()  # All experts tie, so that each token has the same two.
    routings = []
    alone.hidden_states(ids, routing=routings).square().sum().backward()
    idle = [n for n in range(4) if not (routings[0].experts == n).any()]
    assert len(idle) == 2
    assert all(weight.grad is None for n in idle for weight in alone.layers[0].mlp.experts[n].parameters())


def test_a_dropped_token_gets_nothing_of_the_expert_and_gives_it_no_gradient():
    model, _ = mixture(capacity_factor=0.5, num_experts=2, experts_per_token=1)
    layer = model.layers[0].mlp.train()
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[0, 0] = 1.0
    x = torch.randn(1, 8, 8, requires_grad=True)
    with torch.no_grad():
        x[..., 0] = 1.0  # Every token wants expert 0, which takes 2: half of its mean of 4.
    output = layer(x)
    assert (output[0, :2] != 0).any(-1).all() and (output[0, 2:] == 0).all()
    output.sum().backward()
    assert (x.grad[0, :2] != 0).any(-1).all() and (x.grad[0, 2:] == 0).all()
    assert all(weight.grad is None for weight in layer.experts[1].parameters())
    assert (layer.eval()(x)[0] != 0).any(-1).all(), "outside of training nothing is dropped"


@given(tokens=st.integers(1, 30), factor=st.floats(0.1, 5.0), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_capacity_keeps_first_choices_and_early_tokens(tokens, factor, seed):
    torch.manual_seed(seed)
    free, limited = router().train(), router(capacity_factor=factor).train()
    limited.load_state_dict(free.state_dict())
    x = torch.randn(tokens, WIDTH)
    wanted, kept = free(x).experts, limited(x).experts
    capacity = -(-factor * (tokens * 3 / EXPERTS) // 1)
    for expert in range(EXPERTS):
        places = [(choice, token) for choice in range(3) for token in range(tokens) if wanted[token, choice] == expert]
        assert [place for place in places if kept[place[1], place[0]] == expert] == places[: int(capacity)]


def test_losses_are_those_of_transformers():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    torch.manual_seed(0)
    logits = tuple(torch.randn(2 * 7, EXPERTS) * 2 for _ in range(3))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    for text in (None, mask):
        flat = None if text is None else text.flatten().bool()
        routings = [Routing(each, each.topk(2).indices, each.topk(2).values, flat) for each in logits]
        torch.testing.assert_close(
            load_balancing_loss(routings), load_balancing_loss_func(logits, EXPERTS, 2, text), atol=1e-6, rtol=1e-6
        )
    torch.testing.assert_close(
        router_z_loss([Routing(each, each.topk(2).indices, each.topk(2).values) for each in logits]),
        router_z_loss_func(torch.stack(logits)),
    )


def test_the_objective_adds_the_losses_in_training_alone():
    model, ids = mixture(balance_loss=0.5, z_loss=0.25)
    batch = TokenBatch({"input_ids": ids}, ids.roll(-1, 1))
    objective = Causal()
    plain, weight, metrics = objective.loss(model.eval(), batch)
    assert metrics == {}
    total, _, metrics = objective.loss(model.train(), batch)
    expected = plain / weight + 0.5 * metrics["load_balance"] / weight + 0.25 * metrics["router_z"] / weight
    torch.testing.assert_close(total / weight, expected)
    assert metrics["busiest_expert"] / weight >= 1 and 0 <= metrics["idle_experts"] / weight < 1
    total.backward()
    assert all(bool(block.mlp.gate.weight.grad.any()) for block in model.layers)


def test_a_balancing_bias_evens_the_load():
    torch.manual_seed(0)
    even = router(router="sigmoid", bias_rate=0.01).train()
    with torch.no_grad():
        even.weight[0] += 2.0
    x = torch.randn(400, WIDTH) + 0.5

    def busiest() -> float:
        return float(torch.bincount(even(x).experts.flatten(), minlength=EXPERTS).max()) / (400 * 3 / EXPERTS)

    before = busiest()
    for _ in range(150):
        even(x)
        even.after_optimizer_step(lambda loads: [float(load) for load in loads])
    assert not even.load.any() and "load" not in even.state_dict()
    assert before > 1.5 and busiest() < 1.15


def test_padding_is_computed_by_no_expert():
    model, ids = mixture()
    segments = torch.ones_like(ids)
    segments[1, 5:] = 0
    routings: list[Routing] = []
    with torch.no_grad():
        padded = model.hidden_states(ids, segments=segments, routing=routings)
        torch.testing.assert_close(padded[1, :5], model.hidden_states(ids[1:, :5])[0], atol=1e-5, rtol=1e-5)
    assert all((routing.experts.view(2, 12, 2)[1, 5:] == 4).all() for routing in routings)


def test_what_cannot_be_built_is_told_at_once():
    with pytest.raises(InputError) as caught:
        ExpertsConfig(num_experts=4, experts_per_token=5, intermediate_size=0, router="hash", scale=-1.0)
    told = {problem.split(":")[0] for problem in caught.value.problems}
    assert told == {"intermediate_size", "router", "scale"}
    with pytest.raises(InputError) as caught:
        ExpertsConfig(num_experts=6, experts_per_token=7, intermediate_size=4, groups=4, bias_rate=0.1)
    told = {problem.split(":")[0] for problem in caught.value.problems}
    assert told == {"experts_per_token", "groups", "bias_rate"}
    with pytest.raises(InputError, match="feed_forward: 'plain'"):
        get_family("mixtral").from_hf(tiny("mixtral")).replace(feed_forward="plain")
    assert isinstance(mixture()[0].layers[0].mlp, MixtureOfExperts)


def test_layers_of_further_tokens_are_kept_and_written_back(tmp_path):
    """DeepSeek-V3's files end with a layer that predicts the token after the next: unused here, and not lost."""
    from safetensors.torch import load_file, save_file

    from quatrain.models.io import model_folder

    config = get_family("deepseek_v3").from_hf(tiny("deepseek_v3") | {"num_nextn_predict_layers": 1})
    model_folder.save(Model(config).initialize(0), tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    further = {
        f"model.layers.{config.num_hidden_layers}.{name}": torch.randn(4, 4, generator=generator)
        for name in ("eh_proj.weight", "enorm.weight", "self_attn.o_proj.weight", "shared_head.head.weight")
    }
    save_file(tensors | further, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    model = model_folder.load(tmp_path / "plain")
    assert set(model.unused_tensors) == set(further)
    assert model.num_parameters() == sum(weight.numel() for weight in Model(config).parameters())
    model_folder.save(model, tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == tensors.keys() | further.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in (tensors | further).items())
    assert model_folder.read_config(tmp_path / "again")["num_nextn_predict_layers"] == 1
    save_file(tensors | {"model.layers.0.surprise": further[next(iter(further))]}, tmp_path / "plain" / WEIGHTS)
    with pytest.raises(InputError, match="surprise: unexpected"):
        model_folder.load(tmp_path / "plain")


def test_a_step_reads_the_used_experts_alone_and_a_cache_is_small():
    """Decoding with latent attention: the absorbed step gives what a whole reading gives, from the small cache."""
    from quatrain.models.transformer.kv_cache import KVCache

    config = get_family("deepseek_v3").from_hf(tiny("deepseek_v3"))
    model = Model(config).initialize(0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = KVCache(config, 2, 9)
    with torch.inference_mode():
        model(ids[:, :6], cache=cache)
        steps = [model(ids[:, place : place + 1], cache=cache)[0] for place in range(6, 9)]
        torch.testing.assert_close(torch.cat(steps, 1), model(ids)[0][:, 6:], atol=1e-5, rtol=1e-5)
    assert cache.nbytes == 2 * 2 * 9 * (4 + 2) * 4  # layers, rows, tokens, kv_rank + rope_dim, bytes


def test_the_load_of_the_experts_is_drawn():
    from quatrain.evaluation.expert_load import expert_load, load_figure
    from quatrain.evaluation.report.figures import DRAWN

    model, ids = mixture()
    load = expert_load(model.eval(), ids)
    assert load.shape == (2, 4)
    torch.testing.assert_close(load.sum(1), torch.full((2,), 4.0))
    figure = load_figure(model, ids.flatten().tolist())
    assert figure is not None and figure["rows"] == ["layer 0", "layer 1"] and len(figure["values"][0]) == 4
    assert "layer 1" in DRAWN[figure["kind"]](figure)
    dense = Model(get_family("llama").from_hf(tiny("llama")))
    assert load_figure(dense, [1, 2, 3]) is None
    with pytest.raises(InputError, match="has no experts"):
        expert_load(dense, ids)
