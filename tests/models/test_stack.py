"""However a text is given to the stack (in parts, padded, packed with others), it reads the same."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import gpt2, llama, random_model

from quatrain.core.errors import InputError
from quatrain.models.transformer.kv_cache import KVCache

LLAMA, GPT2 = llama(max_position_embeddings=48), gpt2(max_position_embeddings=48)
MODELS = {config.family: random_model(config) for config in (LLAMA, GPT2)}
FAMILIES = pytest.mark.parametrize("name", MODELS)


def ids(*shape, seed=0):
    return torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@FAMILIES
@given(cuts=st.lists(st.integers(1, 22), max_size=4, unique=True))
@settings(max_examples=15, deadline=None)
def test_cached_parts_equal_the_whole(name, cuts):
    model, text = MODELS[name], ids(2, 23)
    with torch.no_grad():
        whole = model(text)[0]
        cache = KVCache(model.config, 2, 30)
        borders = [0, *sorted(cuts), 23]
        parts = [model(text[:, a:b], cache=cache)[0] for a, b in pairwise(borders)]
    close(torch.cat(parts, 1), whole)
    assert cache.length == 23


@FAMILIES
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("grad", [False, True])
def test_padding_changes_nothing(name, side, grad):
    model = MODELS[name]
    lengths = [3, 11, 7]
    texts = [ids(length, seed=length) for length in lengths]
    batch = torch.zeros(3, 11, dtype=torch.long)
    segments, positions = torch.zeros_like(batch), torch.zeros_like(batch)
    for row, text in enumerate(texts):
        place = slice(11 - len(text), 11) if side == "left" else slice(0, len(text))
        batch[row, place], segments[row, place] = text, 1
        positions[row, place] = torch.arange(len(text))
    with torch.set_grad_enabled(grad):
        found = model(batch, positions=positions, segments=segments)[0]
        for row, text in enumerate(texts):
            close(found[row][segments[row] == 1], model(text[None])[0][0])
        garbage = torch.where(segments == 0, 59, batch)
        again = model(garbage, positions=positions, segments=segments)[0]
        assert torch.equal(found[segments == 1], again[segments == 1])
        assert torch.isfinite(found).all()


@FAMILIES
def test_left_padding_with_cache(name):
    model = MODELS[name]
    long, short = ids(1, 12), ids(1, 5, seed=3)
    batch = torch.zeros(2, 9, dtype=torch.long)
    batch[0], batch[1, 4:] = long[0, :9], short[0]
    segments = torch.ones_like(batch)
    segments[1, :4] = 0
    positions = torch.stack([torch.arange(9), (torch.arange(9) - 4).clamp(min=0)])
    cache = KVCache(model.config, 2, 16)
    more = ids(2, 2, seed=5)
    more[0] = long[0, 9:11]
    with torch.no_grad():
        model(batch, positions=positions, segments=segments, cache=cache)
        for step in range(2):
            logits = model(more[:, step : step + 1], positions=torch.tensor([[9 + step], [5 + step]]), cache=cache)[0]
        close(logits[0, -1], model(long[:, :11])[0][0, -1])
        close(logits[1, -1], model(torch.cat([short, more[1:]], 1))[0][0, -1])
        cache.select(torch.tensor([1]))
        last = model(ids(1, 1, seed=9), positions=torch.tensor([[7]]), cache=cache)[0]
        close(last[0, -1], model(torch.cat([short, more[1:], ids(1, 1, seed=9)], 1))[0][0, -1])


@FAMILIES
@pytest.mark.parametrize("grad", [False, True])
def test_packed_texts_do_not_leak(name, grad):
    model = MODELS[name]
    first, second = ids(1, 8), ids(1, 10, seed=1)
    packed = torch.cat([first, second], 1)
    segments = torch.tensor([[1] * 8 + [2] * 10])
    positions = torch.cat([torch.arange(8), torch.arange(10)])[None]
    with torch.set_grad_enabled(grad):
        found = model(packed, positions=positions, segments=segments)[0]
        close(found[:, :8], model(first)[0])
        close(found[:, 8:], model(second)[0])
        changed = packed.clone()
        changed[0, 2] = (changed[0, 2] + 1) % 60
        other = model(changed, positions=positions, segments=segments)[0]
        assert torch.equal(other[:, 8:], found[:, 8:])
        assert not torch.equal(other[:, 2:8], found[:, 2:8])


@FAMILIES
def test_packed_gradients_equal_unpacked(name):
    model = MODELS[name]
    first, second = ids(1, 8), ids(1, 10, seed=1)
    segments = torch.tensor([[1] * 8 + [2] * 10])
    positions = torch.cat([torch.arange(8), torch.arange(10)])[None]

    def gradients(*batches):
        model.zero_grad()
        for text, options in batches:
            model(text, (text + 1) % 60, **options)[1].sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    packed = gradients((torch.cat([first, second], 1), {"positions": positions, "segments": segments}))
    apart = gradients((first, {}), (second, {}))
    for together, alone in zip(packed, apart, strict=True):
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@FAMILIES
@given(at=st.integers(0, 19), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_no_token_sees_the_future(name, at, seed):
    model, text = MODELS[name], ids(1, 20, seed=seed)
    changed = text.clone()
    changed[0, at] = (changed[0, at] + 1) % 60
    with torch.no_grad():
        before, after = model(text)[0], model(changed)[0]
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at], after[:, at])


@FAMILIES
def test_inference_first_then_training(name):
    model = random_model(MODELS[name].config)
    with torch.inference_mode():
        model(ids(1, 5))
    model(ids(1, 5), ids(1, 5, seed=1))[1].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("position", ["rotary", "alibi", "relative", "disentangled"])
def test_grouped_heads_are_repeated_heads(position):
    """A key head that two query heads share acts as two equal ones, distances included."""
    config = llama(architecture="encoder", head="none", position=position)
    grouped, whole = random_model(config), random_model(config.replace(num_key_value_heads=4))
    weights = {
        name: tensor.view(2, 8, -1).repeat_interleave(2, 0).flatten(0, 1)
        if "k_proj" in name or "v_proj" in name
        else tensor
        for name, tensor in grouped.state_dict().items()
    }
    whole.load_state_dict(weights)
    with torch.no_grad():
        close(grouped(ids(2, 23))[0], whole(ids(2, 23))[0])


@FAMILIES
def test_too_long_a_text_is_told_with_counts(name):
    model = MODELS[name]
    with pytest.raises(InputError, match=r"has 49 tokens.*reads at most 48"):
        model(ids(1, 49))
    cache = KVCache(model.config, 1, 60)
    with torch.no_grad():
        model(ids(1, 40), cache=cache)
        with pytest.raises(InputError, match="40 cached, 9 new"):
            model(ids(1, 9), cache=cache)


def test_dropout_acts_in_training_only():
    model = random_model(LLAMA.replace(dropout=0.3))
    with torch.no_grad():
        assert torch.equal(model(ids(1, 9))[0], MODELS["llama"](ids(1, 9))[0])
        model.train()
        assert not torch.equal(model(ids(1, 9))[0], model(ids(1, 9))[0])


def test_configurations_that_cannot_be_built():
    with pytest.raises(InputError) as caught:
        LLAMA.replace(activation="sillu", num_key_value_heads=3, dropout=1.0, head_dim=5, norm="batch")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for part in (
        "did you mean silu",
        "must divide num_attention_heads",
        "even width",
        "dropout",
        "rms, rms_offset, rms_without_parameters",
    ):
        assert part in text
    with pytest.raises(InputError, match="vocab_size"):
        LLAMA.replace(vocab_size=0)
