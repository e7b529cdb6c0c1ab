"""Cross-entropy in chunks is the plain one: losses and every gradient, for every kind of head, whatever the chunk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.core.errors import InputError
from quatrain.models.families.fresh import fresh_config
from quatrain.models.transformer.heads import token_loss
from quatrain.models.transformer.stack import Model
from quatrain.training import chunked_loss
from quatrain.training.chunked_loss import chunking, summed_language_loss
from quatrain.training.precision import Precision

SIZES = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def plain_config(**changes):
    return llama(**{"intermediate_size": 64, "tie_word_embeddings": True, **SIZES, **changes})


HEADS = {
    "tied": lambda: Model(plain_config()),
    "own": lambda: Model(plain_config(tie_word_embeddings=False)),
    "bias": lambda: Model(plain_config(head_bias="learned")),
    "softcap": lambda: Model(plain_config(logit_softcap=0.5)),
    "scale": lambda: Model(plain_config(logit_scale=0.25)),
    "scale and softcap and bias": lambda: Model(plain_config(logit_scale=3.0, logit_softcap=2.0, head_bias="learned")),
    "bert's transform": lambda: Model(fresh_config("bert", {**SIZES, "intermediate_size": 64}, head="masked")),
    "t5": lambda: Model(fresh_config("t5", {**SIZES, "intermediate_size": 64}, head="seq2seq")),
    "bart's fixed bias": lambda: Model(fresh_config("bart", {**SIZES, "intermediate_size": 64}, head="seq2seq")),
}


def ready(model, seed=0):
    """The model with weights drawn, the head's too, which may begin at zero."""
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (model.lm_head.weight, model.lm_head.bias, model.logits_bias):
            if tensor is not None:
                tensor.normal_(std=0.3, generator=generator)
    return model


def drawn(model, *, rows=3, length=17, share=0.6, seed=0):
    """Hidden states, and labels of which a share is learned."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, model.config.hidden_size, generator=generator, requires_grad=True)
    labels = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) > share] = -100
    return hidden, labels


def head_gradients(model, hidden, loss):
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found["hidden"] = hidden.grad.clone()
    model.zero_grad()
    hidden.grad = None
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = max(1.0, float(gradient.abs().max()))
        assert (found[name] - gradient).abs().max() <= 1e-6 * largest, name


def small_chunks(monkeypatch, logits):
    monkeypatch.setattr(chunked_loss, "CHUNK", {"cpu": logits, "else": logits})
    monkeypatch.setattr(chunked_loss, "TOKENS", {"cpu": 40, "else": 40})
    monkeypatch.setattr(chunked_loss, "CHUNK_ELEMENTS", {"cpu": 7 * 32, "else": 7 * 32})


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("logits", [101, 700, 1 << 20])
def test_the_sum_and_its_gradients_are_the_plain_ones(kind, logits, monkeypatch):
    small_chunks(monkeypatch, logits)
    model = ready(HEADS[kind]())
    hidden, labels = drawn(model)
    plain = token_loss(model.lm_logits(hidden), labels).sum()
    expected = head_gradients(model, hidden, plain)
    with chunking(True):
        found = summed_language_loss(model, hidden, labels)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    assert_same(head_gradients(model, hidden, found), expected)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    factor=st.sampled_from([1.0, 0.125, 7.5]),
    logits=st.integers(1, 3000),
)
def test_any_shape_mask_and_chunk(rows, length, share, factor, logits):
    model = ready(Model(plain_config()))
    hidden, labels = drawn(model, rows=rows, length=length, share=share, seed=rows * length)
    plain = token_loss(model.lm_logits(hidden), labels).sum()
    expected = head_gradients(model, hidden, plain * factor)
    with pytest.MonkeyPatch.context() as patch, chunking(True):
        small_chunks(patch, logits)
        found = summed_language_loss(model, hidden, labels)
        assert found.item() == pytest.approx(plain.item(), rel=1e-6, abs=1e-6)
        assert_same(head_gradients(model, hidden, found * factor), expected)


def test_an_adapted_head_is_said_in_parts(monkeypatch):
    small_chunks(monkeypatch, 4 * 101)
    model = ready(Model(plain_config(tie_word_embeddings=False)))
    apply_adapter(model, AdapterSettings(rank=4, target_modules=("lm_head",)), seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("_B"):
            torch.nn.init.normal_(parameter)
    hidden, labels = drawn(model)
    plain = token_loss(model.lm_logits(hidden), labels).sum()
    expected = head_gradients(model, hidden, plain)
    assert any("lora" in name for name in expected)
    with chunking(True):
        found = summed_language_loss(model, hidden, labels)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    assert_same(head_gradients(model, hidden, found), expected)


@pytest.mark.parametrize("way", ["plain", "summed"])
@pytest.mark.parametrize("kind", ["tied", "own", "bias", "scale and softcap and bias", "bart's fixed bias"])
def test_rows_that_learn_get_what_the_whole_matrix_would(kind, way, monkeypatch):
    small_chunks(monkeypatch, 5 * 101)
    whole, model = ready(HEADS[kind]()), ready(HEADS[kind]())
    ids = [3, 50, 100]
    model.requires_grad_(False)
    train_tokens(model, ids)
    rows = model.trainable_tokens.head_table
    with torch.no_grad():
        rows.normal_(generator=torch.Generator().manual_seed(7))
        whole.lm_head.weight[ids] = rows
    hidden, labels = drawn(model, share=0.8)
    plain = token_loss(whole.lm_logits(hidden), labels).sum()
    expected = head_gradients(whole, hidden, plain)
    with chunking(way != "plain"):
        found = summed_language_loss(model, hidden, labels)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    own = "embed_tokens" if kind in ("tied", "bias", "scale and softcap and bias", "bart's fixed bias") else "lm_head"
    matrix = "embed_tokens.weight" if own == "embed_tokens" else "lm_head.weight"
    wanted = {"hidden": expected["hidden"], f"trainable_tokens.{own}": expected[matrix][ids]}
    assert_same(head_gradients(model, hidden, found), wanted)


def test_a_frozen_head_gets_no_gradient():
    model = ready(Model(plain_config(tie_word_embeddings=False)))
    model.lm_head.weight.requires_grad_(False)
    hidden, labels = drawn(model)
    with chunking(True):
        summed_language_loss(model, hidden, labels).backward()
    assert model.lm_head.weight.grad is None and hidden.grad.abs().sum() > 0


def test_narrow_types_are_as_near_to_float32_as_plain_ones(monkeypatch):
    small_chunks(monkeypatch, 8 * 101)
    exact = ready(Model(plain_config()))
    hidden, labels = drawn(exact, rows=8, length=30)
    expected = head_gradients(exact, hidden, token_loss(exact.lm_logits(hidden), labels).sum())
    for dtype in (torch.bfloat16, torch.float16):
        model = ready(Model(plain_config())).to(dtype)
        narrow = hidden.detach().to(dtype).requires_grad_()
        apart = []
        for mode in (False, True):
            with chunking(mode):
                found = head_gradients(model, narrow, summed_language_loss(model, narrow, labels))
            assert all(gradient.dtype == dtype for gradient in found.values())
            apart.append({name: (found[name].float() - expected[name]).norm() for name in expected})
        assert all(apart[1][name] <= 1.5 * apart[0][name] + 1e-3 for name in expected)


def test_a_fixed_bias_is_as_narrow_as_the_weights_that_train():
    """The trainer narrows parameters; a buffer stays in float32."""
    model = ready(HEADS["bart's fixed bias"]())
    hidden, labels = drawn(model)
    exact = token_loss(model.lm_logits(hidden), labels).sum()
    weights = Precision(model, torch.bfloat16)
    assert model.logits_bias.dtype == torch.float32
    narrow = hidden.detach().bfloat16().requires_grad_()
    assert model.lm_logits(narrow).dtype == torch.bfloat16
    with chunking(True):
        found = summed_language_loss(model, narrow, labels)
    found.backward()
    assert found.item() == pytest.approx(exact.item(), rel=2e-2) and narrow.grad.dtype == torch.bfloat16
    weights.close()


def test_without_gradients_nothing_is_kept():
    model = ready(Model(plain_config()))
    hidden, labels = drawn(model)
    with chunking(True), torch.no_grad():
        loss = summed_language_loss(model, hidden, labels)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(token_loss(model.lm_logits(hidden), labels).sum().item(), rel=1e-6)


def test_the_logits_never_exist_at_once(monkeypatch):
    """The largest tensor that the chunked loss makes, forward and backward, has the rows of a chunk."""
    small_chunks(monkeypatch, 101 * 6)
    model = ready(Model(plain_config()))
    hidden, labels = drawn(model, rows=10, length=50, share=1.0)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[1] == 101:
                self.rows = max(self.rows, out.shape[0])
            return out

    with chunking(True), Largest() as seen:
        summed_language_loss(model, hidden, labels).backward()
    assert 0 < seen.rows <= max(6, model.config.hidden_size)


def test_auto_is_for_large_logits_and_the_mode_ends_with_its_block():
    assert not chunked_loss.chunked(chunked_loss.LARGE - 1) and chunked_loss.chunked(chunked_loss.LARGE)
    with chunking(False):
        assert not chunked_loss.chunked(1 << 40)
        with chunking(True):
            assert chunked_loss.chunked(1)
        assert not chunked_loss.chunked(1 << 40)
    assert chunked_loss.chunked(1 << 40)


@pytest.mark.parametrize("mode", [True, False])
def test_labels_that_do_not_fit_are_refused_alike(mode):
    model = ready(Model(plain_config()))
    hidden, labels = drawn(model)
    with chunking(mode):
        with pytest.raises(InputError, match="must be 0 to 100"):
            summed_language_loss(model, hidden, labels.masked_fill(labels >= 0, 101))
        with pytest.raises(InputError, match="shape"):
            summed_language_loss(model, hidden, labels[:, 1:])
