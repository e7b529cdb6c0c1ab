"""Any valid shape of any family builds, counts as transformers counts, and survives config.json both ways."""

import functools

import battery
import pytest
import torch
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.transformer.settings import WITHOUT_ATTENTION
from quatrain.models.transformer.stack import Model
from quatrain.planning import counts

HEADS = (1, 2, 3, 4, 6)


def language_cases():
    """One case of each class that transformers has for a family's heads, as a base for random sizes."""
    found = {}
    for case in battery.all_cases():
        found.setdefault((case.model, case.head), case)
    return [case for (_, head), case in found.items() if head is None]


@functools.cache
def names_of(config_class):
    """The sizes of a transformers configuration under its own names, by Hugging Face's usual ones."""
    attributes = config_class.attribute_map
    own = {"num_attention_heads": "num_heads"} if config_class.model_type in WITHOUT_ATTENTION else attributes
    return {name: own.get(name, name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")}


@st.composite
def shapes(draw, case):
    """The case's settings with other sizes that are valid together."""
    names, sizes = names_of(getattr(transformers, case.config)), dict(case.settings)
    heads = draw(st.sampled_from(HEADS))
    partly = case.config in (
        "GPTNeoXConfig", "PhiConfig", "Phi3Config", "StableLmConfig", "Glm4Config", "Qwen3_5TextConfig"
    )  # fmt: skip
    width = (8 if partly else 2) * draw(st.integers(1, 5))
    changes = {names["num_attention_heads"]: heads, names["hidden_size"]: heads * width}
    changes[names["num_hidden_layers"]] = draw(st.integers(1, 3))
    changes["vocab_size"] = draw(st.integers(5, 200))
    for name in ("num_key_value_heads",):
        if name in sizes:
            changes[name] = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    for name in ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"):
        if name in sizes:
            changes[name] = draw(st.integers(1, 70))
    for name in ("encoder_attention_heads", "decoder_attention_heads"):
        if name in sizes:
            changes[name] = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    for name in ("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"):
        if name in sizes:
            changes[name] = draw(st.integers(1, 3))
    for name in ("max_position_embeddings", "n_positions"):
        if name in sizes:
            changes[name] = draw(st.integers(8, 99))
    for name in ("head_dim", "d_kv"):
        if name in sizes:
            changes[name] = width
    for name in ("sliding_window", "local_attention"):
        if sizes.get(name):
            changes[name] = 2 * draw(st.integers(1, 40))
    if "num_kv_shared_layers" in sizes:
        # The last layer attends fully, and a layer that shares keys needs an earlier one of its type
        count, kinds = changes[names["num_hidden_layers"]], ("full_attention", "sliding_attention")
        shared = draw(st.integers(0, count - 1))
        own = [draw(st.sampled_from(kinds)) for _ in range(count - shared - 1)]
        own.insert(draw(st.integers(0, len(own))) if shared else len(own), "full_attention")
        sharing = [draw(st.sampled_from(own)) for _ in range(shared - 1)] + ["full_attention"] * (shared > 0)
        changes |= {"num_kv_shared_layers": shared, "layer_types": own + sharing}
    if "vocab_size_per_layer_input" in sizes:
        changes["vocab_size_per_layer_input"] = changes["vocab_size"] + draw(st.integers(0, 20))
    if case.config == "Mamba2Config":
        changes |= {"head_dim": 2 * width, "n_groups": draw(st.sampled_from([1, heads]))}
    if "attention_types" in sizes:
        changes["attention_types"] = [[["local"], changes[names["num_hidden_layers"]]]]
    if "rotary_dim" in sizes:
        changes["rotary_dim"] = 2
    if "word_embed_proj_dim" in sizes:
        changes["word_embed_proj_dim"] = draw(st.sampled_from([heads * width, 10]))
    for name in ("rope_parameters", "rope_scaling", "layer_types", "position_embedding_type", "pooler_hidden_size"):
        sizes.pop(name, None)
    return sizes | changes


@pytest.mark.parametrize("case", language_cases(), ids=str)
@given(data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_shapes(case, data):
    sizes = data.draw(shapes(case))
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    try:
        theirs = getattr(transformers, case.config)(**tokens | sizes)
    except (ValueError, TypeError, KeyError):
        assume(False)
    written = theirs.to_dict() | {"architectures": [case.model]}
    config = get_family(theirs.model_type).from_hf(written)
    ours = counts.built(config)
    with torch.device("meta"):
        reference = getattr(transformers, case.model)(theirs)
    # transformers counts Marian's computed table of positions among its parameters
    theirs_count = sum(
        parameter.numel()
        for name, parameter in reference.named_parameters()
        if config.position != "sinusoidal" or "embed_positions" not in name
    )
    assert ours.num_parameters() == theirs_count
    assert counts.parameters(config) == ours.num_parameters()
    kind = get_family(config.family)
    again = kind.to_hf(config)
    assert kind.from_hf(again) == config
    assert kind.to_hf(kind.from_hf(again)) == again
    # transformers reads what we write as the same network
    back = type(theirs).from_dict(again)
    with torch.device("meta"):
        reread = getattr(transformers, case.model)(back)
    shapes_of = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in reread.state_dict().items()} == shapes_of


@pytest.mark.parametrize("case", language_cases(), ids=str)
def test_a_config_that_lacks_a_needed_size_or_contradicts_itself_is_told(case):
    theirs = battery.theirs(case).config
    kind, written = get_family(theirs.model_type), theirs.to_dict() | {"architectures": [case.model]}
    kind.from_hf(written)
    needed = [key.theirs for key in kind.keys if key.default is ...]
    assert needed
    with pytest.raises(InputError) as caught:
        kind.from_hf({name: value for name, value in written.items() if name not in needed})
    told = {problem.split(":")[0] for problem in caught.value.problems}
    assert set(needed) <= told
    with pytest.raises(InputError) as caught:
        kind.from_hf(written | {"use_wavelets": True, "num_wavelets": 3})
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == ["num_wavelets", "use_wavelets"]
    hidden = next((key.theirs for key in kind.keys if key.ours == "hidden_size"), "hidden_size")
    with pytest.raises(InputError):
        kind.from_hf(written | {hidden: 0})
    with pytest.raises(InputError):
        kind.from_hf(written | {hidden: "many"})


@pytest.mark.parametrize("name", battery.text_families())
def test_every_family_has_its_cases(name):
    assert any(getattr(transformers, case.config).model_type == name for case in battery.all_cases())


@pytest.mark.parametrize("case", language_cases(), ids=str)
def test_fresh_weights_say_something_finite_and_differ_by_seed(case):
    theirs = battery.theirs(case).config
    config = get_family(theirs.model_type).from_hf(theirs.to_dict() | {"architectures": [case.model]})
    one, other = (Model(config).initialize(seed) for seed in (0, 1))
    assert not torch.equal(one.embed_tokens.weight, other.embed_tokens.weight)
    assert all(parameter.isfinite().all() for parameter in one.parameters())
