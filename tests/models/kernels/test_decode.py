"""Native decoding gives PyTorch's logits, for every family's block, every stored format and any batch."""

import math
import os
from dataclasses import replace
from typing import Any

import forks
import pytest
import torch
from tiny_configs import GROUPED, MORE_GROUPED, tiny
from tiny_models import bloom, gpt2, llama, random_model

from quatrain.compression import methods
from quatrain.compression.layer import QuantizedLinear
from quatrain.generation import fused
from quatrain.models.families import get_family
from quatrain.models.kernels import decode
from quatrain.models.kernels.decode import MAX_ROWS, CacheDecoder, explain, native_decoder, stored_weight
from quatrain.models.kernels.stored import StoredWeight
from quatrain.models.kernels.threads import StepThreads
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model

pytest.importorskip("numba")
pytestmark = pytest.mark.xdist_group("native")

DECODERS = [name for name in (*GROUPED, *MORE_GROUPED) if name not in ("stablelm", "ministral3", "gemma4_text")]
DECODERS += ["gpt2", "bloom", "opt", "gpt_neox", "gptj"]
WIDE = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "vocab_size": 203}
"""Wide enough for groups of 128, and not a multiple of any vector."""


def ids_of(model: Model, rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def decoded(model: Model, ids: torch.Tensor, prompt: int, head: str = "model") -> torch.Tensor:
    """Logits (B, T - prompt, V) after each token past the prompt, decoded natively one by one."""
    decoder = native_decoder(model, head=head)
    assert decoder is not None, explain(model)
    cache = KVCache(model.config, len(ids), ids.shape[1], dtype=model.embed_tokens.weight.dtype)
    model(ids[:, :prompt], cache=cache)
    steps, slots = [], torch.arange(len(ids))
    for place in range(prompt, ids.shape[1]):
        places = torch.full((len(ids),), place)
        steps.append(decoder.step(ids[:, place], places, slots, cache.keys, cache.values))
    return torch.stack(steps, 1)


@torch.inference_mode()
def largest_error(model: Model, rows: int = 3, prompt: int = 5, new: int = 4) -> float:
    """The largest difference from PyTorch's logits, as a share of the largest of those."""
    ids = ids_of(model, rows, prompt + new)
    expected = model(ids)[0][:, prompt:].float()
    return float((decoded(model, ids, prompt) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", DECODERS)
def test_every_family(name: str) -> None:
    model = random_model(get_family(name).from_hf(tiny(name) | ({"sliding_window": 16} if name == "gpt_oss" else {})))
    assert explain(model) is None
    assert largest_error(model) < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        llama(**WIDE),
        llama(rotary_dim=4, attention_bias="all", feed_forward_bias=True),
        llama(position="none", query_key_norm="head", tie_word_embeddings=True),
        llama(position="sinusoidal", logit_softcap=5.0, attention_softcap=3.0, logit_scale=0.5),
        llama(norm_position="sandwich", norm="rms_offset", embedding_scale=5.5, activation="gelu"),
        llama(residual="parallel", norm="layer"),
        llama(residual="parallel_shared", norm="layer_without_bias", activation="tanh"),
        llama(norm="layer_without_parameters", activation="relu", feed_forward="plain"),
        llama(sliding_window=7, layer_types=("sliding", "full")),
        gpt2(),
        bloom(embedding_norm=False, num_attention_heads=8, num_key_value_heads=8),
    ],
    ids=lambda config: f"{config.family}-{config.position}-{config.norm}-{config.residual}",
)
def test_every_choice(config) -> None:
    assert largest_error(random_model(config)) < 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_narrow_floats(dtype: torch.dtype, limit: float) -> None:
    """Near to float32 with the same rounded weights, and nearer than PyTorch is."""
    exact = random_model(llama(**WIDE), scale=0.1)
    ids = ids_of(exact, 3, 12)
    with torch.inference_mode():
        narrow = random_model(llama(**WIDE), scale=0.1).to(dtype)
        rounded = random_model(llama(**WIDE), scale=0.1).to(dtype).float()
        expected, plain = rounded(ids)[0][:, 5:], narrow(ids)[0][:, 5:].float()
    found = decoded(narrow, ids, 5)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < limit * scale
    assert float((found - expected).square().mean()) <= float((plain - expected).square().mean())


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Inputs (…, in) rounded to 8 bits with a scale for each 32."""
    groups = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]


@torch.inference_mode()
def largest_error_of_integers(config, method: str, **options) -> float:
    """As `largest_error`, from PyTorch's logits with the same rounding of every quantized layer's inputs."""
    model, reference = random_model(config, scale=0.1), random_model(config, scale=0.1)
    for each in (model, reference):
        methods.quantize(each, method, **options)
    for name, module in reference.eval().named_modules():
        if isinstance(module, QuantizedLinear) and not name.endswith("kv_b_proj"):
            module.register_forward_pre_hook(lambda _, arguments: (rounded(arguments[0]),))
    ids = ids_of(model.eval(), 3, 7)
    caches = [KVCache(config, 3, 8) for _ in range(2)]
    for cache in caches:
        reference(ids[:, :6], cache=cache)
    expected = reference(ids[:, 6:], cache=caches[0])[0][:, -1]
    decoder = native_decoder(model, head="model")
    assert decoder is not None and decoder.format == method
    found = decoder.step(ids[:, 6], torch.full((3,), 6), torch.arange(3), caches[1].keys, caches[1].values)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("method", "options"), [("int8", {}), *(("int4", {"group": size}) for size in (128, 64, 32))])
def test_integers(method: str, options: dict[str, int]) -> None:
    config = llama(**WIDE | {"intermediate_size": 384, "num_key_value_heads": 4})
    assert largest_error_of_integers(config, method, **options) < 2e-3


@pytest.mark.parametrize(("method", "hidden"), [("int8", 72), ("int8", 40), ("int4", 96), ("int4", 32)])
def test_integers_of_sizes_that_no_vector_divides(method: str, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in memory behind the scales, here NaN, is not read."""

    def guarded(layer: torch.nn.Module) -> StoredWeight | None:
        weight = stored_weight(layer)
        if weight is None or weight.scale is None:
            return weight
        padded = torch.nn.functional.pad(weight.scale.flatten(), (0, 8), value=math.nan)
        return replace(weight, scale=padded[:-8].view_as(weight.scale))

    monkeypatch.setattr(decode, "stored_weight", guarded)
    config = llama(hidden_size=hidden, intermediate_size=160, num_attention_heads=2, num_key_value_heads=2)
    options = {"group": 32} if method == "int4" else {}
    assert largest_error_of_integers(config, method, **options) < 2e-3


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_rounding_inputs_and_head_costs_less_than_rounding_weights(method: str) -> None:
    """The error of 8-bit inputs and of an 8-bit head is small beside that of the weights."""
    config = llama(**WIDE | {"intermediate_size": 384, "num_key_value_heads": 4})
    exact, model = random_model(config, scale=0.1), random_model(config, scale=0.1)
    methods.quantize(model, method)
    ids = ids_of(model, 4, 24)
    with torch.inference_mode():
        expected, plain = exact(ids)[0][:, 4:], model.eval()(ids)[0][:, 4:]
    found = decoded(model, ids, 4, head="auto")
    of_weights, of_both = ((x - expected).square().mean().sqrt() for x in (plain, found))
    assert float(of_both) < 1.5 * float(of_weights)


@pytest.mark.parametrize("method", [None, "int8", "int4"])
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others(method: str | None) -> None:
    """Bit for bit, whatever else is decoded in the same step."""
    model = random_model(llama(**WIDE | {"num_key_value_heads": 4, "intermediate_size": 384})).to(torch.bfloat16)
    if method is not None:
        methods.quantize(model, method)
    ids = ids_of(model.eval(), 11, 6)
    decoder = native_decoder(model)
    assert decoder is not None
    cache = KVCache(model.config, 11, 8, dtype=torch.bfloat16)
    model(ids[:, :5], cache=cache)
    places = torch.full((11,), 5)
    together = decoder.step(ids[:, 5], places, torch.arange(11), cache.keys, cache.values)
    likeliest = decoder.likeliest
    torch.testing.assert_close(likeliest, fused.choose(together, None))
    assert torch.equal(likeliest[0].long(), together.argmax(-1))
    for rows in ([0], [3], [1, 2], [10, 4, 7], [0, 1, 2, 3, 4, 5, 6]):
        own = torch.tensor(rows)
        alone = decoder.step(ids[own, 5], places[own], own, cache.keys, cache.values)
        assert torch.equal(alone, together[own]) and torch.equal(decoder.likeliest, likeliest[:, own])


@torch.inference_mode()
def test_several_tokens_of_a_text_at_once() -> None:
    model = random_model(llama(**WIDE))
    ids = ids_of(model, 2, 12)
    decoder = native_decoder(model)
    assert decoder is not None
    cache = KVCache(model.config, 2, 12)
    model(ids[:, :4], cache=cache)
    tokens, places = ids[:, 4:].flatten(), torch.arange(4, 12).repeat(2)
    slots, last = torch.arange(2).repeat_interleave(8), torch.tensor([7, 15])
    found = decoder.step(tokens, places, slots, cache.keys, cache.values, logits_of=last)
    assert torch.allclose(found, model(ids)[0][:, -1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_slots_of_different_lengths_and_more_than_a_step_holds() -> None:
    model = random_model(llama(sliding_window=6, layer_types=("sliding", "full")))
    lengths = [1 + number % 5 for number in range(MAX_ROWS + 3)]
    cache = KVCache(model.config, len(lengths), 12)
    ids = ids_of(model, len(lengths), 8)
    for slot, length in enumerate(lengths):
        model(ids[slot : slot + 1, :length], cache=cache.rows(slot, 1))
    decoder = CacheDecoder(model, cache, use=True)
    decoder.refresh()
    next_tokens = torch.stack([ids[slot, length] for slot, length in enumerate(lengths)])
    found = decoder.decode(next_tokens, range(len(lengths)))
    assert found is not None
    for slot, length in enumerate(lengths):
        expected = model(ids[slot : slot + 1, : length + 1])[0][0, -1]
        assert torch.allclose(found[slot], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_prompts_longer_than_a_step() -> None:
    """Texts of different lengths behind what is stored; the logits after the last token of each."""
    model = random_model(llama(**WIDE | {"max_position_embeddings": 128}))
    cache = KVCache(model.config, 3, 128)
    decoder = CacheDecoder(model, cache, use=True)
    decoder.refresh()
    assert decoder.reads_prompt(100) and not decoder.reads_prompt(100_000)
    ids = ids_of(model, 3, 100)
    model(ids[1:2, :4], cache=cache.rows(1, 1))
    tokens = torch.cat((ids[0], ids[1, 4:9], ids[2, :1]))
    slots = [0] * 100 + [1] * 5 + [2]
    found, expected = decoder.decode(tokens, slots, [99, 104, 105]), model(ids)[0]
    assert found is not None
    wanted = torch.stack((expected[0, 99], expected[1, 8], expected[2, 0]))
    assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_window_that_has_to_move_is_left_to_torch() -> None:
    model = random_model(llama(sliding_window=3))
    cache = KVCache(model.config, 1, 12)
    decoder = CacheDecoder(model, cache, use=True)
    decoder.refresh()
    ids = ids_of(model, 1, 12)
    model(ids[:, :5], cache=cache)
    assert decoder.decode(ids[:, 5], [0]) is not None
    cache.lengths[0] += 1
    assert decoder.decode(ids[:, 6], [0]) is None


@torch.inference_mode()
def test_nothing_outside_the_cache_is_touched() -> None:
    model = random_model(llama())
    decoder = native_decoder(model)
    assert decoder is not None
    cache = KVCache(model.config, 2, 4)
    for token, place, slot in ((60, 0, 0), (-1, 0, 0), (0, 4, 0), (0, -1, 0), (0, 0, 2)):
        with pytest.raises(ValueError):
            decoder.step(*(torch.tensor([x]) for x in (token, place, slot)), cache.keys, cache.values)


def test_it_notices_changes() -> None:
    model = random_model(llama())
    decoder = native_decoder(model)
    assert decoder is not None and decoder.is_current()
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight.mul_(2)
    assert not decoder.is_current()
    decoder = native_decoder(model)
    assert decoder is not None
    hook = model.layers[0].register_forward_hook(lambda *_: None)
    assert not decoder.is_current() and "hook" in str(explain(model))
    hook.remove()
    assert decoder.is_current()


def test_what_it_does_not_cover_is_named() -> None:
    from quatrain.adapters.lora import LoRALinear

    assert "float64" in str(explain(random_model(llama()).double()))
    scaling = get_family("llama").from_hf(tiny("llama") | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})
    assert "length" in str(explain(random_model(scaling)))
    model = random_model(llama())
    model.layers[1].mlp.up_proj = LoRALinear(model.layers[1].mlp.up_proj, rank=2, alpha=2)
    assert "layers.1.mlp.up_proj is a LoRALinear" in str(explain(model))
    assert native_decoder(model) is None
    model = random_model(gpt2(cross_attention=True))
    assert explain(model) == "native code has no cross-attention" and native_decoder(model) is None


def mixture(name: str, **changes) -> ModelConfig:
    """A mixture of 6 experts, wide enough for groups of 128; its shared expert is wider than the others."""
    sizes = WIDE | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 72, "num_key_value_heads": 4}
    sizes |= {"shared_expert_intermediate_size": 136} if name == "qwen2_moe" else {"head_dim": 32}
    return get_family(name).from_hf(tiny(name) | sizes | changes)


@pytest.mark.parametrize("threads", [1, 3])
def test_experts_with_several_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense and sparse layers, a shared expert wider than the others, and more rows than experts."""
    monkeypatch.setattr(decode, "step_threads", lambda: StepThreads(threads))
    config = mixture("qwen2_moe", mlp_only_layers=[0], num_hidden_layers=3)
    assert largest_error(random_model(config), rows=11) < 1e-5


def test_a_sigmoid_router_that_chooses_groups() -> None:
    config = mixture("qwen3_moe")
    assert config.experts is not None
    experts = replace(config.experts, router="sigmoid", groups=3, groups_per_token=2, scale=2.5, num_experts=9)
    model = random_model(replace(config, experts=experts))
    for block in model.layers:
        block.mlp.gate.e_score_correction_bias.copy_(torch.linspace(-0.3, 0.3, 9))
    assert largest_error(model, rows=5) < 1e-5


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_quantized_experts(method: str) -> None:
    config = mixture("qwen2_moe", moe_intermediate_size=128, shared_expert_intermediate_size=256)
    assert largest_error_of_integers(config, method) < 2e-3


@torch.inference_mode()
def test_a_step_reads_the_chosen_experts_alone() -> None:
    """And a row does not depend on the others, bit for bit, though they share experts."""
    model = random_model(mixture("qwen2_moe")).to(torch.bfloat16)
    ids, cache = ids_of(model, 9, 6), KVCache(model.config, 9, 8, dtype=torch.bfloat16)
    decoder = native_decoder(model)
    assert decoder is not None
    bytes_of = {name: sum(p.nbytes for p in part.parameters()) for name, part in model.layers[0].mlp.named_children()}
    unread = 2 * bytes_of["experts"] * (6 - 3) // 6 + model.embed_tokens.weight.nbytes
    every = sum(p.nbytes for p in model.parameters() if p.dim() > 1)
    assert decoder.step_bytes == every - unread
    model(ids[:, :5], cache=cache)
    places = torch.full((9,), 5)
    together = decoder.step(ids[:, 5], places, torch.arange(9), cache.keys, cache.values)
    for rows in ([0], [3], [8, 1], [4, 7, 2, 0]):
        own = torch.tensor(rows)
        assert torch.equal(decoder.step(ids[own, 5], places[own], own, cache.keys, cache.values), together[own])


LATENT = {
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize("changes", [{"q_lora_rank": 40}, {"q_lora_rank": None, "rope_interleave": False}])
def test_latent_attention(changes: dict[str, Any]) -> None:
    sizes = WIDE | LATENT | {"moe_intermediate_size": 72} | changes
    assert largest_error(random_model(get_family("deepseek_v3").from_hf(tiny("deepseek_v3") | sizes))) < 1e-5


def test_quantized_latent_attention() -> None:
    """What projects latent vectors to keys and values is read by columns: a copy in float32."""
    sizes = WIDE | LATENT | {"moe_intermediate_size": 128, "v_head_dim": 32, "q_lora_rank": 64}
    assert largest_error_of_integers(get_family("deepseek_v3").from_hf(tiny("deepseek_v3") | sizes), "int8") < 2e-3


@torch.inference_mode()
def test_broken_weights_reach_the_logits() -> None:
    for value in (math.nan, math.inf):
        for method in (None, "int8"):
            model = random_model(llama(**WIDE))
            if method:
                methods.quantize(model, method)
            model.layers[1].input_layernorm.weight[3] = value
            logits = decoded(model.eval(), ids_of(model, 1, 4), 2)
            assert not bool(torch.isfinite(logits.logsumexp(-1)).all())


@pytest.mark.parametrize("threads", [1, 3])
@torch.inference_mode()
def test_the_likeliest_token_of_odd_logits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of equal ones, and no numbers where a logit is NaN, infinite, or none has a probability."""
    monkeypatch.setattr(decode, "step_threads", lambda: StepThreads(threads))
    model = random_model(gpt2(vocab_size=203, tie_word_embeddings=False, head_bias="learned"))
    decoder = native_decoder(model)
    assert decoder is not None and model.lm_head is not None
    cache = KVCache(model.config, 1, 4)
    size = decoder.config.vocab_size
    model.lm_head.weight.zero_()

    def likeliest(bias: torch.Tensor) -> list[float]:
        model.lm_head.bias.copy_(bias)
        step = native_decoder(model)
        assert step is not None
        zero = torch.zeros(1, dtype=torch.long)
        logits = step.step(zero, zero, zero, cache.keys, cache.values)
        assert torch.equal(logits[0].isnan(), bias.isnan())
        return step.likeliest[:, 0].tolist()

    bias = torch.zeros(size)
    assert likeliest(bias) == pytest.approx([0, -math.log(size), math.log(size), 0])
    for first in (201, 120, 17, 2):
        bias[first] = 3.0
        total = float(bias.logsumexp(0))
        assert likeliest(bias) == pytest.approx([first, 3 - total, total, 3], rel=1e-5)
    for end in (13, 59, 100):  # Three threads: pieces of the head without any probability.
        bias[:end] = -math.inf
        found = likeliest(bias)
        assert found[0] == (17 if end < 17 else 120) and found[2] == pytest.approx(float(bias.logsumexp(0)), rel=1e-5)
    assert likeliest(bias)[0] == 120 and likeliest(bias)[2] == pytest.approx(float(bias.logsumexp(0)), rel=1e-5)
    for place in (0, 99, 100, 150, 202):
        for value in (math.nan, math.inf):
            broken = bias.clone()
            broken[place] = value
            assert not math.isfinite(likeliest(broken)[2])
    assert not math.isfinite(likeliest(torch.full((size,), -math.inf))[2])


@pytest.mark.slow
def test_other_processors() -> None:
    """The same without the instructions of AVX-512, as on older processors."""
    words = ["-m", "pytest", "-q", "-x", __file__, "-k", "every_choice or int4 or int8 or row"]
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}
    done = forks.run(words, env=environment)  # whose Numba is not imported yet
    assert done.returncode == 0, done.stdout[-3000:]
