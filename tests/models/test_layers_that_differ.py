"""Layers that share keys and values, have heads of two widths or embed tokens themselves (Gemma 4)."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_configs import tiny

from quatrain.adapters import prompts
from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.induction import copying_scores
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.vocabulary import resize_vocabulary
from quatrain.training.acceleration import activation_checkpointing

CONFIG = get_family("gemma4_text").from_hf(
    tiny("gemma4_text")
    | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
       "sliding_window": 5, "use_double_wide_mlp": True}
)  # fmt: skip
IDS = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    found = Model(CONFIG)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return found


def gradients(model):
    model.zero_grad()
    model(IDS, IDS.roll(-1, 1))[1].sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_recomputed_blocks_give_lent_keys_the_same_gradients(model):
    kept = gradients(model)
    with activation_checkpointing(model):
        again = gradients(model)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert kept["layers.0.self_attn.k_proj.weight"].abs().sum() > 0
    assert "layers.2.self_attn.k_proj.weight" not in kept


@pytest.mark.parametrize(("form", "tolerance"), [(None, 1e-5), ("int8", 0.1)])
def test_only_layers_with_keys_of_their_own_have_a_cache(model, form, tolerance):
    cache = KVCache(CONFIG, 2, 9, form=form)
    assert [keys.shape[1:3] for keys in cache.keys] == [(1, 9), (1, 9), (0, 0), (0, 0)]
    if form is None:
        assert [keys.shape[3] for keys in cache.keys[:2]] == [4, 8]
    with torch.inference_mode():
        whole = model(IDS)[0]
        steps = torch.cat([model(IDS[:, [place]], cache=cache)[0] for place in range(9)], dim=1)
    torch.testing.assert_close(steps, whole, atol=tolerance, rtol=tolerance)


def test_a_vocabulary_grows_with_the_second_embeddings(model, tmp_path):
    with torch.no_grad():
        before = model(IDS)[0]
        assert resize_vocabulary(model, 35) == [32, 33, 34]
        after = model(torch.full_like(IDS, 34))[0]
        torch.testing.assert_close(model(IDS)[0][..., :32], before)
    assert after.shape[-1] == 35 and after.isfinite().all()
    model_folder.save(model, tmp_path)
    assert model_folder.load(tmp_path).config.layer_vocab_size == 35


def test_copying_scores_read_the_values_that_a_layer_uses(model):
    scores = copying_scores(model)
    assert scores.shape == (4, 2) and scores.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        model.layers[0].self_attn.v_proj.weight.mul_(-1)
    changed = copying_scores(model)
    assert torch.allclose(changed[2], -scores[2]) and torch.equal(changed[3], scores[3])


def test_soft_prompts_are_refused_by_name():
    for method in ("prefix", "prompt"):
        with pytest.raises(InputError, match="embeds tokens for every layer"):
            prompts.check(Model(CONFIG), method)


def test_the_text_model_of_a_model_that_reads_images(model, tmp_path):
    """Keys of layers that share those of others stand in some files: they are kept, and used by no one."""
    model_folder.save(model, tmp_path)
    raw, weights = get_family("gemma4_text").to_hf(CONFIG), load_file(tmp_path / "model.safetensors")
    weights = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in weights.items()}
    weights |= {"model.vision_tower.patch.weight": torch.ones(2, 2)}
    weights["model.language_model.layers.2.self_attn.k_proj.weight"] = torch.ones(4, 8)
    save_file(weights, tmp_path / "model.safetensors")
    outer = {"model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "vision_config": {}}
    write_json(tmp_path / "config.json", outer | {"text_config": raw})
    loaded = model_folder.load(tmp_path)
    assert loaded.config.family == "gemma4_text" and loaded.config.head == "causal"
    assert list(loaded.unused_tensors) == ["model.language_model.layers.2.self_attn.k_proj.weight"]
    with torch.no_grad():
        assert torch.equal(loaded(IDS)[0], model.eval()(IDS)[0])
