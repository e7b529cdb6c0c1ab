"""The hand-written passes: values and gradients equal to PyTorch's own, in float64 by finite differences too."""

import pytest
import torch
from tiny_models import llama
from torch.nn import functional as F

from quatrain.models.kernels import cpu
from quatrain.models.transformer.positions import rotate
from quatrain.models.transformer.stack import Model


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def compare(ours, theirs, inputs, atol):
    """Runs both on their own copies and compares the values and all gradients for a random direction."""
    mine, other = leaves(*inputs), leaves(*inputs)
    a, b = ours(*mine), theirs(*other)
    direction = torch.randn_like(a)
    (a * direction).sum().backward()
    (b * direction).sum().backward()
    torch.testing.assert_close(a, b, atol=atol, rtol=0)
    for x, y in zip(mine, other, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=atol, rtol=0)


def test_rms_norm():
    torch.manual_seed(0)
    inputs = torch.randn(3, 5, 16) * 3, torch.rand(16) + 0.5
    compare(
        lambda x, w: cpu.RMSNormFunction.apply(x, w, 1e-5), lambda x, w: F.rms_norm(x, (16,), w, 1e-5), inputs, 1e-5
    )


def test_swiglu():
    torch.manual_seed(0)
    inputs = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    compare(cpu.SwiGLUFunction.apply, lambda gate, up: F.silu(gate) * up, inputs, 1e-6)
    assert torch.autograd.gradcheck(cpu.SwiGLUFunction.apply, leaves(*(tensor.double() for tensor in inputs)))


@pytest.mark.parametrize("of_rows", [False, True])
@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("direction", [1, -1])
def test_rotating_by_hand(of_rows, width, direction):
    """Angles of all rows or of each, heads alone or in groups, the rest of a head as it is."""
    angles = torch.randn(*((2,) if of_rows else ()), 9, 4)
    for heads in ((3,), (3, 2)):
        source, target = torch.randn(2, 9, *heads, width), torch.empty(2, 9, *heads, width)
        spread = angles.view(*angles.shape[:-1], *(1 for _ in heads), 4)
        cos, sin = spread.cos(), spread.sin()
        cpu._rotate(source, target, cos, sin, direction)
        first, second = source[..., :4], source[..., 4:8]
        expected = first * cos - direction * second * sin, second * cos + direction * first * sin
        torch.testing.assert_close(target[..., :8], torch.cat(expected, dim=-1))
        assert torch.equal(target[..., 8:], source[..., 8:])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("turned", [0, 4, 8])
@pytest.mark.parametrize("slots", [9, 5])
@pytest.mark.parametrize("learned", [None, (1, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention(packed, turned, slots, learned, softcap):
    torch.manual_seed(0)
    batch, length, heads, width, scale = 2, 9, 3, 8, 0.7
    shapes = [(batch, length, heads, width), (batch, slots, heads, width), (batch, slots, heads, width)]
    inputs = [torch.randn(shape) for shape in shapes]
    inputs += [] if learned is None else [torch.randn(*learned, length, slots)]
    if turned and slots != length:
        pytest.skip("queries and keys of different lengths are not turned")
    angles = torch.randn(length, turned // 2)
    angles = torch.cat((angles, angles), -1)
    cos, sin = angles.cos(), angles.sin()
    segments = torch.tensor([[1] * 4 + [2] * 5, [0] * 2 + [1] * 7])
    mask = segments[:, :, None] == segments[:, None, :slots]
    mask = mask | ~mask.any(-1, keepdim=True)
    tables = (cos[:, None, : turned // 2], sin[:, None, : turned // 2]) if turned else (None, None)

    def added(bias):
        if not packed:
            return bias[0] if bias else None
        bias = bias[0] if bias else torch.zeros(1, 1, length, slots)
        return bias.masked_fill(~mask[:, None], float("-inf"))

    def ours(query, key, value, *bias):
        return cpu.AttentionFunction.apply(query, key, value, *tables, added(bias), scale, softcap)

    def theirs(query, key, value, *bias):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if turned:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        scores = query @ key.mT * scale
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        bias = added(bias)
        mixed = (scores if bias is None else scores + bias).softmax(-1) @ value
        return mixed.transpose(1, 2).reshape(batch, length, -1)

    compare(ours, theirs, inputs, 1e-5)


@pytest.mark.parametrize("length", [8, 9, 3])
@pytest.mark.parametrize("learned", [None, (1, 3), (2, 1)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_causal_attention_by_blocks(length, learned, softcap, monkeypatch):
    """Blocks of queries over the keys up to their last: the same as over all keys, also with a learned bias."""
    monkeypatch.setattr(cpu, "BLOCK", 4)
    torch.manual_seed(0)
    inputs = [torch.randn(2, length, 3, 8) for _ in range(3)]
    inputs += [] if learned is None else [torch.randn(*learned, length, length)]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    angles = torch.randn(length, 1, 4)

    def attention(causal):
        def run(query, key, value, *bias):
            added = (bias[0] if bias else torch.zeros(1, 1, length, length)).masked_fill(later, float("-inf"))
            tables = angles.cos(), angles.sin()
            return cpu.AttentionFunction.apply(query, key, value, *tables, added, 0.7, softcap, causal)

        return run

    compare(attention(True), attention(False), inputs, 1e-5)
    if learned is None:

        def alone(query, key, value):
            return cpu.AttentionFunction.apply(query, key, value, angles.cos(), angles.sin(), None, 0.7, softcap, True)

        compare(alone, attention(False), inputs, 1e-5)
    assert len(cpu._blocks(9, 9, True)) == 3 and len(cpu._blocks(9, 9, False)) == 1


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_queries_that_share_a_head_of_keys(groups, rows, causal, softcap, monkeypatch):
    """As if each query had its own, whose gradients are added up: no key is repeated."""
    monkeypatch.setattr(cpu, "BLOCK", 4)
    torch.manual_seed(0)
    length, heads = 9, 6
    inputs = [torch.randn(2, length, count, 8) for count in (heads, groups, groups)]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else torch.zeros(length, length) > 0
    added = torch.randn(rows, 1, length, length).masked_fill(hidden, float("-inf")) if rows else None
    angles = torch.randn(length, 1, 4)
    tables = angles.cos(), angles.sin()
    kept = []

    def run(query, key, value, alone=False):
        if alone:
            key, value = (x.repeat_interleave(heads // groups, dim=2) for x in (key, value))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
            return cpu.AttentionFunction.apply(query, key, value, *tables, added, 0.7, softcap, causal)

    compare(run, lambda *given: run(*given, alone=True), inputs, 1e-5)
    assert kept[1] == kept[2] == (2, groups, length, 8)


def test_a_bias_by_the_head_has_keys_of_every_head():
    config = llama(num_attention_heads=4, num_key_value_heads=2, position="alibi")
    model = Model(config).initialize(0)
    ids = torch.randint(1, 60, (2, 12))
    model(ids, ids)[1].sum().backward()
    mine = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "supports", lambda x: False)
        model(ids, ids)[1].sum().backward()
    for one, parameter in zip(mine, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=2e-4, rtol=1e-4)


def test_blocks_of_causal_attention_compute_no_later_keys(monkeypatch):
    """What is kept for the backward pass shrinks to the blocks on and below the diagonal."""
    query = torch.randn(1, 16, 1, 8, requires_grad=True)
    added = torch.zeros(1, 1, 16, 16).masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), float("-inf"))
    monkeypatch.setattr(cpu, "BLOCK", 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        cpu.AttentionFunction.apply(query, query, query, None, None, added, 1.0, None, True)
    assert [shape[-2:] for shape in kept if len(shape) == 3] == [(4, 4), (4, 8), (4, 12), (4, 16)]


def test_the_stack_gives_the_same_with_and_without_them(monkeypatch):
    ids, labels = torch.randint(0, 60, (2, 20)), torch.randint(0, 60, (2, 20))
    found = []
    for own in (True, False):
        if not own:
            monkeypatch.setattr(cpu, "supports", lambda x: False)
        model = Model(llama(num_hidden_layers=3)).initialize(1)
        logits, loss = model(ids, labels)
        loss.sum().backward()
        found.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0)


def test_long_texts_take_the_path_that_keeps_no_scores():
    model = Model(llama(num_hidden_layers=1, max_position_embeddings=8192))

    def by_hand(length):
        return model._masks(None, 0, torch.zeros(1, length, 32), None, None)["full"].use_cpu_kernel

    assert by_hand(64) and not by_hand(8192)
    with torch.no_grad():
        assert not by_hand(64)


def test_soft_cap():
    torch.manual_seed(0)
    inputs = (torch.randn(3, 5, 16) * 40,)
    compare(lambda x: cpu.SoftCapFunction.apply(x, 30.0), lambda x: torch.tanh(x / 30.0) * 30.0, inputs, 1e-5)
    assert torch.autograd.gradcheck(
        lambda x: cpu.SoftCapFunction.apply(x, 3.0), leaves(*(tensor.double() for tensor in inputs))
    )
