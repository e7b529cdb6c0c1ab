"""Model folders: whole ones come back bit for bit, broken ones are told in full."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import gpt2, llama, random_model, save_random

from quatrain.core.errors import InputError, QuatrainError
from quatrain.models.io import model_folder

TOKENS = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}
LLAMA, GPT2 = llama(**TOKENS), gpt2(**TOKENS)
FAMILIES = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])


@pytest.fixture
def folder(tmp_path):
    return save_random(LLAMA, tmp_path / "model")


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder, edit):
    tensors = load_file(folder / model_folder.WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / model_folder.WEIGHTS)


def problems_of(folder):
    with pytest.raises(InputError) as caught:
        model_folder.load(folder)
    return caught.value


@FAMILIES
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 9000])
def test_bit_for_bit(config, tied, shard_bytes, tmp_path):
    model = random_model(config.replace(tie_word_embeddings=tied))
    model_folder.save(model, tmp_path, shard_bytes=shard_bytes)
    again = model_folder.load(tmp_path)
    assert again.config == model.config and not again.training
    ours, read = model.state_dict(), again.state_dict()
    assert set(ours) == set(read) and all(torch.equal(ours[name], read[name]) for name in ours)
    assert (again.lm_head.weight is again.embed_tokens.weight) == tied
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 2) == (shard_bytes == 9000)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_sharded_folders_load_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = random_model(LLAMA)
    model_folder.save(model, tmp_path, shard_bytes=9000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids)[0], atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="9KB")
    assert (tmp_path / "theirs" / model_folder.INDEX).exists()
    again = model_folder.load(tmp_path / "theirs").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_whole_after_sharded_and_back(tmp_path):
    first, second = random_model(LLAMA), random_model(LLAMA, 1)
    model_folder.save(first, tmp_path, shard_bytes=9000)
    model_folder.save(second, tmp_path)
    assert torch.equal(model_folder.load(tmp_path).lm_head.weight, second.lm_head.weight)
    model_folder.save(first, tmp_path, shard_bytes=9000)
    assert torch.equal(model_folder.load(tmp_path).lm_head.weight, first.lm_head.weight)
    model_folder.save(first, tmp_path, shard_bytes=20000)
    index = json.loads((tmp_path / model_folder.INDEX).read_text())
    assert {path.name for path in tmp_path.glob("*.safetensors")} == set(index["weight_map"].values())


def test_loaded_weights_outlive_the_file(folder):
    model = model_folder.load(folder)
    before = model.lm_head.weight.clone()
    (folder / model_folder.WEIGHTS).write_bytes(b"\0" * (folder / model_folder.WEIGHTS).stat().st_size)
    assert torch.equal(model.lm_head.weight, before)


def test_special_token_ids_are_kept(folder):
    config = model_folder.load_config(folder)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, [2, 3], 0)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 3]


def test_every_wrong_name_and_shape_is_told(folder):
    def edit(tensors):
        tensors["strange.weight"] = torch.zeros(2)
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]

    rewrite(folder, edit)
    assert sorted(problems_of(folder).problems) == [
        "model.layers.1.mlp.up_proj.weight: missing",
        "model.norm.weight: missing",
        "strange.weight: unexpected",
    ]
    save_random(LLAMA, folder)

    def reshape(tensors):
        tensors["model.norm.weight"] = torch.zeros(31)
        tensors["lm_head.weight"] = torch.zeros(60, 33)

    rewrite(folder, reshape)
    problems = sorted(problems_of(folder).problems)
    assert problems[0].startswith("lm_head.weight: has shape (60, 33), config.json says (60, 32)")
    assert problems[1].startswith("norm.weight: has shape (31,)")


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.99])
def test_truncated_weights(folder, keep):
    data = (folder / model_folder.WEIGHTS).read_bytes()
    (folder / model_folder.WEIGHTS).write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert any(
        words in problems_of(folder).message for words in ("incomplete or invalid safetensors file", "an empty file")
    )


def test_missing_shard(tmp_path):
    model_folder.save(random_model(LLAMA), tmp_path, shard_bytes=9000)
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1:3]
    for path in lost:
        path.unlink()
    assert problems_of(tmp_path).problems == [f"{path.name}: missing" for path in lost]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../x.safetensors"}}']
)
def test_broken_index(tmp_path, text):
    model_folder.save(random_model(LLAMA), tmp_path, shard_bytes=9000)
    (tmp_path / model_folder.INDEX).write_text(text)
    assert model_folder.INDEX in str(problems_of(tmp_path))


def test_pickled_weights_are_refused(folder):
    (folder / model_folder.WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "pickled" in problems_of(folder).message and "pytorch_model.bin" in problems_of(folder).message


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_broken_config(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in problems_of(folder).message


def test_what_is_no_model_folder(tmp_path):
    assert "no such model folder" in problems_of(tmp_path / "nothing").message
    assert "no config.json" in problems_of(tmp_path).message
    save_random(LLAMA, tmp_path)
    (tmp_path / model_folder.WEIGHTS).unlink()
    assert "no model.safetensors" in problems_of(tmp_path).message


def test_options_that_would_change_the_network_are_refused_by_name(folder):
    change(folder, sliding_window=4096, attention_dropout=0.1, use_qk_norm=True)
    assert sorted(problem.split(":")[0] for problem in problems_of(folder).problems) == [
        "sliding_window",
        "use_qk_norm",
    ]
    change(folder, sliding_window=None, use_qk_norm=False, rope_scaling={"rope_type": "llama4", "factor": 8.0})
    assert "llama4" in problems_of(folder).message


def test_missing_options_are_told(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"], config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert sorted(problem.split(":")[0] for problem in problems_of(folder).problems) == ["hidden_size", "vocab_size"]


@pytest.mark.parametrize(("name", "nearest"), [("lama", "llama"), ("gpt-2", "gpt2"), ("gpt_neo_x", "gpt_neox")])
def test_an_unknown_family_is_told_with_the_nearest_first(folder, name, nearest):
    change(folder, model_type=name)
    assert f"It knows: {nearest}" in problems_of(folder).message


def test_gpt2_files_without_prefix_and_with_old_buffers(tmp_path):
    model = random_model(GPT2)
    model_folder.save(model, tmp_path)

    def edit(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
        tensors["h.1.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(tmp_path, edit)
    again = model_folder.load(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_failed_save_leaves_the_old_folder_whole(folder, monkeypatch):
    before = (folder / model_folder.WEIGHTS).read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(QuatrainError, match="disk is full"):
        save_random(LLAMA, folder, seed=1)
    monkeypatch.undo()
    assert (folder / model_folder.WEIGHTS).read_bytes() == before
    model_folder.load(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "generation_config.json", model_folder.WEIGHTS}
