"""Real weights: the 260K-parameter TinyStories model of llama2.c tells its published story through our engine."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model

DATA = os.environ.get("QUATRAIN_DATA")
FOLDER = Path(DATA or ".") / "models" / "stories260K"
pytestmark = pytest.mark.skipif(
    not (FOLDER / "stories260K.bin").is_file(), reason="QUATRAIN_DATA holds no models/stories260K"
)


def read_model():
    """llama2.c's version 0: seven int32, then float32 tensors, each stacked over layers."""
    data = (FOLDER / "stories260K.bin").read_bytes()
    hidden, inner, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", data[:28])
    config = ModelConfig(
        family="llama", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context, norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    values = torch.from_numpy(np.frombuffer(data, dtype="<f4", offset=28).copy())
    place = 0

    def take(*shape):
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return values[place - count : place].view(shape)

    kv = kv_heads * config.head_dim
    names = [("embed_tokens", (vocabulary, hidden)), ("input_layernorm", (layers, hidden)),
             ("self_attn.q_proj", (layers, hidden, hidden)), ("self_attn.k_proj", (layers, kv, hidden)),
             ("self_attn.v_proj", (layers, kv, hidden)), ("self_attn.o_proj", (layers, hidden, hidden)),
             ("post_attention_layernorm", (layers, hidden)), ("mlp.gate_proj", (layers, inner, hidden)),
             ("mlp.down_proj", (layers, hidden, inner)), ("mlp.up_proj", (layers, inner, hidden)),
             ("norm", (hidden,))]  # fmt: skip
    tensors = {}
    for name, shape in names:
        tensor = take(*shape)
        if name in ("embed_tokens", "norm"):
            tensors[f"{name}.weight"] = tensor
            continue
        for layer in range(layers):
            one = tensor[layer]
            if name.endswith(("q_proj", "k_proj")):
                # From pairs (2i, 2i + 1) that turn together to pairs (i, i + D/2).
                one = one.view(-1, config.head_dim // 2, 2, hidden).transpose(1, 2).reshape(-1, hidden)
            tensors[f"layers.{layer}.{name}.weight"] = one
    assert place + 2 * context * config.head_dim // 2 == len(values), "the two rotary tables end the file"
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"]
    model = Model(config)
    model.load_state_dict(tensors)
    return model.eval()


class Pieces:
    """The 512 pieces of tok512.bin; enough of a tokenizer to turn ids into text."""

    bos_id, eos_id = 1, 2
    special_ids, stop_ids = frozenset({0, 1, 2}), frozenset({2})

    def __init__(self):
        data = (FOLDER / "tok512.bin").read_bytes()
        self.pieces, place = [], 4
        while place < len(data):
            (length,) = struct.unpack("i", data[place + 4 : place + 8])
            self.pieces.append(data[place + 8 : place + 8 + length])
            place += 8 + length

    def decode(self, ids, *, skip_special_tokens=True):
        parts = [bytes([int(self.pieces[i][3:5], 16)]) if 3 <= i < 259 else self.pieces[i] for i in ids if i > 2]
        return b"".join(parts).decode("utf-8", errors="replace").removeprefix(" ")

    def encode(self, text, *, special_tokens=False):
        return [1] if special_tokens and not text else [0]

    def token_to_id(self, token):
        return None


@pytest.fixture(scope="module")
def model():
    return read_model()


def test_greedy_story(model, tmp_path):
    expected = (FOLDER / "greedy_200.txt").read_text(encoding="utf-8")
    model_folder.save(model, tmp_path)
    for network in (model, model_folder.load(tmp_path)):
        engine = Engine(network, Pieces())
        (story,) = engine.generate([""], SamplingParams(max_new_tokens=200))
        assert story.text.startswith(expected) and len(story.text) - len(expected) < 12
        assert "".join(engine.stream("", SamplingParams(max_new_tokens=200))) == story.text
    prompts = [[1], [1, *story.ids[:20]], [1, *story.ids[:50]]]
    together = engine.generate(prompts, SamplingParams(max_new_tokens=100))
    assert together[1].ids == story.ids[20:120] and together[2].ids == story.ids[50:150]


def test_int8_tells_nearly_the_same(model):
    from quatrain.compression import methods

    small = read_model()
    methods.quantize(small, "int8")
    ids = torch.tensor([[1, *Engine(model, Pieces()).generate([""], SamplingParams(150))[0].ids]])
    with torch.no_grad():
        plain, rounded = (each(ids[:, :-1], ids[:, 1:])[1].mean() for each in (model, small))
    assert abs(float(rounded - plain)) < 0.02


def test_half_of_the_weights_go_in_the_published_order(model):
    """SparseGPT loses least, then Wanda, then magnitude in each layer, then in the whole model (Sun et al. 2023)."""
    from quatrain.compression.pruning.unstructured import prune

    sampled = Engine(model, Pieces()).generate(
        [[1]] * 16, SamplingParams(max_new_tokens=160, temperature=1.0, ignore_eos=True), seeds=range(16)
    )
    texts = torch.tensor([[1, *each.ids] for each in sampled])
    learned, held_out = texts[:10], texts[10:]

    def loss(network):
        with torch.no_grad():
            return float(network(held_out[:, :-1], held_out[:, 1:])[1].mean())

    losses = [loss(model)]
    for method in ("sparsegpt", "wanda", "magnitude", "magnitude-global"):
        pruned = read_model()
        prune(pruned, method, 0.5, batches=[{"input_ids": learned}])
        losses.append(loss(pruned))
    assert losses == sorted(losses), losses
    assert losses[1] < losses[3] - 0.5, "calibration is worth more than half a nat"
