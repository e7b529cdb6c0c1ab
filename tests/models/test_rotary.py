"""Rotary frequencies under every scaling are those of transformers, however a config.json says them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model

from quatrain.core.errors import InputError
from quatrain.models.families import get_family, rope
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import RotaryScaling
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.positions import inverse_frequency
from quatrain.models.transformer.stack import Model

transformers = pytest.importorskip("transformers")
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

SIZES = {"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 48}  # fmt: skip

FACTORS = st.floats(1.0, 64.0)
NUMBERS = {
    "linear": st.fixed_dictionaries({"factor": FACTORS}),
    "dynamic": st.fixed_dictionaries({"factor": FACTORS}),
    "llama3": st.fixed_dictionaries(
        {
            "factor": FACTORS,
            "low_freq_factor": st.floats(0.5, 2.0),
            "high_freq_factor": st.floats(2.5, 8.0),
        },
        optional={"original_max_position_embeddings": st.integers(2, 9000)},
    ),
    "yarn": st.fixed_dictionaries(
        {"factor": FACTORS},
        optional={
            "original_max_position_embeddings": st.integers(2, 9000),
            "attention_factor": st.floats(0.1, 3.0),
            "beta_fast": st.floats(8.0, 64.0),
            "beta_slow": st.floats(0.5, 4.0),
            "mscale": st.floats(0.1, 2.0),
            "mscale_all_dim": st.floats(0.1, 2.0),
            "truncate": st.booleans(),
        },
    ),
    "longrope": st.fixed_dictionaries(
        {},
        optional={
            "factor": FACTORS,
            "original_max_position_embeddings": st.integers(2, 9000),
            "attention_factor": st.floats(0.1, 3.0),
        },
    ),
}


def lists(pairs):
    return {
        "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
        "long_factor": [1.0 + 0.7 * pair for pair in range(pairs)],
    }


@pytest.mark.parametrize("kind", NUMBERS)
@given(data=st.data(), pairs=st.integers(2, 64), theta=st.floats(50.0, 1e6), positions=st.integers(16, 9000),
       length=st.integers(1, 40000))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_frequencies_are_those_of_transformers(kind, data, pairs, theta, positions, length):
    numbers = data.draw(NUMBERS[kind]) | (lists(pairs) if kind == "longrope" else {})
    theirs = transformers.LlamaConfig(
        hidden_size=8 * pairs, num_attention_heads=4, max_position_embeddings=positions,
        rope_parameters={"rope_type": kind, "rope_theta": theta, **numbers})  # fmt: skip
    expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, seq_len=length)
    ours = rope.read({"rope_theta": theta, "rope_scaling": {"type": kind, **numbers}})
    found, ours_factor = inverse_frequency(2 * pairs, ours["rope_theta"], ours["rope_scaling"], length, positions)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert ours_factor == pytest.approx(factor)


@pytest.mark.parametrize("kind", NUMBERS)
def test_one_meaning_in_every_layout(kind):
    numbers = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {"factor": 4.0}
    numbers |= lists(4) if kind == "longrope" else {}
    layouts = [
        {"rope_theta": 500.0, "rope_scaling": {"type": kind, **numbers}},
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": kind, "type": kind, **numbers}},
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": kind, **numbers, "finetuned": True}},
        {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **numbers}},
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": kind, "rope_theta": 500, "partial_rotary_factor": 1.0,
                                                **numbers}},
        {"rope_scaling": {"rope_type": kind, "rope_theta": 500.0, **numbers}, "partial_rotary_factor": None},
    ]  # fmt: skip
    configs = [get_family("llama").from_hf(SIZES | layout) for layout in layouts]
    assert configs[0].rope_theta == 500.0 and configs[0].rope_scaling.kind == kind
    assert all(config == configs[0] for config in configs)
    assert get_family("llama").from_hf(get_family("llama").to_hf(configs[0])) == configs[0]


@pytest.mark.parametrize("plain", [{}, {"rope_scaling": None}, {"rope_scaling": {"type": "default"}},
                                   {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}])  # fmt: skip
def test_no_scaling(plain):
    config = get_family("llama").from_hf(SIZES | plain)
    assert config.rope_scaling is None and config.rope_theta == 10000.0


def test_the_length_of_pretraining_beside_the_scaling_counts_more():
    inside = {"type": "longrope", **lists(4), "original_max_position_embeddings": 12}
    config = get_family("llama").from_hf(SIZES | {"rope_scaling": inside, "original_max_position_embeddings": 20})
    assert config.rope_scaling.get("original_max_position_embeddings") == 20
    phi = SIZES | {"model_type": "phi3", "rope_scaling": inside | {"type": "su"}}
    assert get_family("phi3").from_hf(phi).rope_scaling.get("original_max_position_embeddings") == 4096
    old = get_family("phi3").from_hf(phi | {"original_max_position_embeddings": 12})
    assert old.rope_scaling.kind == "longrope" and old.rope_scaling.get("original_max_position_embeddings") == 12


GEMMA = SIZES | {"model_type": "gemma3_text", "head_dim": 8}


def test_a_base_for_each_type_of_layer():
    linear = {"rope_type": "linear", "factor": 8.0}
    old = {"rope_theta": 500, "rope_local_base_freq": 90, "rope_scaling": linear}
    new = {"rope_parameters": {"full_attention": {**linear, "rope_theta": 500},
                               "sliding_attention": {"rope_type": "default", "rope_theta": 90}}}  # fmt: skip
    first, second = (get_family("gemma3_text").from_hf(GEMMA | layout) for layout in (old, new))
    assert first == second
    assert (first.rope_theta, first.local_rope_theta, first.local_rope_scaling) == (500.0, 90.0, None)
    assert first.rope_scaling == RotaryScaling("linear", (("factor", 8.0),))
    plain = get_family("gemma3_text").from_hf(GEMMA)
    assert (plain.rope_theta, plain.local_rope_theta, plain.rope_scaling) == (1e6, 1e4, None)
    with pytest.raises(InputError, match="for each type of layer") as caught:
        get_family("gemma3_text").from_hf(GEMMA | {"rope_parameters": {"rope_theta": 500, "rope_type": "default"}})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        ({"type": "linear"}, ["factor: missing"]),
        ({"type": "linear", "factor": "4"}, ['factor: "4"']),
        ({"type": "dynamic", "factor": -2.0}, ["factor: -2.0"]),
        ({"type": "yarn", "factor": 4.0, "truncate": 1, "beta": 2}, ["truncate: 1", "beta: unknown parameter"]),
        ({"type": "llama3", "factor": 8.0}, ["high_freq_factor: missing", "low_freq_factor: missing"]),
        ({"type": "longrope", "short_factor": [1.0] * 4}, ["long_factor: missing"]),
        ({"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, "x"]}, ['long_factor: [1.0, "x"]']),
        ({"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0]}, ["long_factor: 1 numbers"]),
    ],
)
def test_every_wrong_number_is_told(scaling, told):
    with pytest.raises(InputError) as caught:
        get_family("llama").from_hf(SIZES | {"rope_scaling": scaling})
    problems = sorted(caught.value.problems)
    assert len(problems) == len(told)
    assert all(problem.startswith(begin) for problem, begin in zip(problems, sorted(told), strict=True))


def test_unknown_scalings_bases_and_parts_are_refused():
    for wrong, named in [
        ({"rope_scaling": {"type": "stretched", "factor": 2.0}}, '"stretched"'),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "4 of 8 channels"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "4 of 8 channels"),
    ]:
        with pytest.raises(InputError, match=named):
            get_family("llama").from_hf(SIZES | wrong)


CONFIG = llama(max_position_embeddings=16)


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 16),
        (RotaryScaling("linear", (("factor", 3.0),)), 48),
        (RotaryScaling("dynamic", (("factor", 2.5),)), 40),
        (RotaryScaling("yarn", (("factor", 4.0), ("original_max_position_embeddings", 16))), 64),
        (RotaryScaling("yarn", (("factor", 4.0), ("original_max_position_embeddings", 4))), 16),
        (RotaryScaling("llama3", (("factor", 4.0), ("high_freq_factor", 4.0), ("low_freq_factor", 1.0))), 16),
    ],
)
def test_texts_as_long_as_the_scaling_stretches(scaling, length):
    model = Model(CONFIG.replace(rope_scaling=scaling)).eval()
    assert model.config.context_length == length
    padded = torch.ones(1, length, dtype=torch.long)
    padded[0, 0] = 0
    with torch.no_grad():
        assert model(torch.zeros(1, length, dtype=torch.long), segments=padded)[0].isfinite().all()
        with pytest.raises(InputError, match=f"{length + 1} tokens"):
            model(torch.zeros(1, length + 1, dtype=torch.long))


def pair(theirs, folder):
    """A random model of transformers, and the same read by us."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    theirs.save_pretrained(folder)
    return theirs.eval(), model_folder.load(folder)


def test_a_dynamic_base_grows_with_the_text_as_theirs_does(tmp_path):
    rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    config = transformers.LlamaConfig(**SIZES | {"max_position_embeddings": 9, "rope_parameters": rope_parameters})
    theirs, ours = pair(transformers.LlamaForCausalLM(config), tmp_path)
    ids = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))
    past, cache = transformers.DynamicCache(), KVCache(ours.config, 2, 20)
    bounds = [(0, 7), *((end, end + 1) for end in range(7, 20))]
    with torch.no_grad():
        for start, end in bounds:
            expected = theirs(ids[:, start:end], past_key_values=past).logits
            found = ours(ids[:, start:end], cache=cache)[0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def greedy(model, ids, count):
    cache = KVCache(model.config, ids.shape[0], ids.shape[1] + count)
    new = ids
    with torch.inference_mode():
        for _ in range(count):
            new = model(new, cache=cache)[0][:, -1:].argmax(-1)
            ids = torch.cat((ids, new), 1)
    return ids


def test_greedy_past_the_length_of_pretraining(tmp_path):
    settings = {
        "original_max_position_embeddings": 12, "pad_token_id": 0, "eos_token_id": None,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0, **lists(4)},
    }  # fmt: skip
    config = transformers.Phi3Config(**SIZES | settings)
    theirs, ours = pair(transformers.Phi3ForCausalLM(config), tmp_path)
    ids = torch.randint(1, 61, (2, 6), generator=torch.Generator().manual_seed(0))
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert torch.equal(greedy(ours, ids, 20), expected)
    rows = KVCache(ours.config, 2, 26)
    with torch.inference_mode():  # a row that leaves takes its tokens with it
        ours(expected[:, :10], cache=rows)
        rows.select(torch.tensor([1]))
        found = ours(expected[1:, 10:14], cache=rows)[0]
        torch.testing.assert_close(found, ours(expected[1:, :14])[0][:, 10:], atol=1e-5, rtol=1e-5)


def test_each_text_has_the_frequencies_of_its_own_length():
    numbers = {name: tuple(value) for name, value in lists(4).items()} | {"original_max_position_embeddings": 9}
    model = random_model(CONFIG.replace(rope_scaling=RotaryScaling("longrope", tuple(sorted(numbers.items())))))
    torch.manual_seed(0)
    texts = [torch.randint(0, 60, (1, length)) for length in (16, 5, 9, 11)]
    alone = [model(text)[0][0] for text in texts]
    assert not torch.allclose(alone[0][:9], model(texts[0][:, :9])[0][0], atol=1e-3)
    for side in ("left", "right"):
        ids, segments = torch.zeros(4, 16, dtype=torch.long), torch.zeros(4, 16, dtype=torch.long)
        for row, text in enumerate(texts):
            place = slice(16 - text.shape[1], 16) if side == "left" else slice(0, text.shape[1])
            ids[row, place], segments[row, place] = text[0], 1
        found = model(ids, segments=segments)[0]
        for row, expected in enumerate(alone):
            torch.testing.assert_close(found[row][segments[row] == 1], expected, atol=1e-5, rtol=1e-5)
    packed = torch.cat(texts[1:3], 1)
    found = model(packed, segments=torch.tensor([[1] * 5 + [2] * 9]))[0][0]
    torch.testing.assert_close(found, torch.cat(alone[1:3]), atol=1e-5, rtol=1e-5)
    # decoded together, each text grows past the length of pretraining at its own step
    ids, segments = torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
    ids[0], ids[1, 5:], segments[1, :5] = texts[0][0, :8], texts[3][0, :3], 0
    cache = KVCache(model.config, 2, 16)
    with torch.inference_mode():
        found = model(ids, segments=segments, cache=cache)[0][:, -1]
        for step in range(8):
            for row, length in ((0, 8 + step), (1, 3 + step)):
                expected = model(texts[(0, 3)[row]][:, :length])[0][0, -1]
                torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
            new = torch.stack((texts[0][0, 8 + step], texts[3][0, 3 + step]))[:, None]
            found = model(new, positions=torch.tensor([[8 + step], [3 + step]]), cache=cache)[0][:, -1]


def test_the_factor_on_cosines_is_in_the_tables():
    scaling = RotaryScaling("yarn", (("factor", 4.0), ("original_max_position_embeddings", 16)))
    model = Model(CONFIG.replace(rope_scaling=scaling))
    cos, sin = model._rotary["full"].tables(5, 5)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, (0.1 * math.log(4.0) + 1) ** 2))
