"""LoRA adapters as GGUF files: written, read back over their base, and loaded by llama.cpp where it is installed."""

import pytest
import torch
from gguf import GGUFReader
from tiny_models import llama, random_model

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.peft_files import load_adapter, save_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.core.gguf_file import GgufFile
from quatrain.export.exporter import ExportSettings, export
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.families import get_family
from quatrain.models.families.fresh import fresh_config
from quatrain.models.io import model_folder
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over 13 lazy dogs. Don't PANIC: Café, naïve! \n\n  def f(x): return x + 1\n" * 3
SIZES = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
CASES = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {},
    "phi3": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {"intermediate_size": 128},
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], vocab_size=400, chat_template="chatml")


def adapted(place, tokenizer, family, **settings):
    """A base folder, and the folder of an adapter over it whose weights all matter."""
    mapping = get_family(family)
    config = fresh_config(family, SIZES | CASES[family], head="causal")
    changes = {"query_pre_attn_scalar": 8, "sliding_window": 5} if family == "gemma2" else {}
    model_folder.save(random_model(mapping.from_hf(mapping.to_hf(config) | changes), scale=0.1), place / "base")
    tokenizer.save(place / "base")
    model, _ = load_model(place / "base")
    apply_adapter(
        model, AdapterSettings(**{"method": "lora", "rank": 3, "alpha": 8, "target_modules": "all-linear"} | settings)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in adapter_layers(model):
            layer.lora_B.copy_(0.1 * torch.randn(layer.lora_B.shape, generator=generator))
    save_adapter(model, place / "adapter", base_model=str(place / "base"))
    tokenizer.save(place / "adapter")
    return model.eval(), place / "adapter"


@pytest.mark.parametrize("family", CASES)
def test_an_adapter_of_every_family_is_read_back(family, tokenizer, tmp_path):
    model, folder = adapted(tmp_path, tokenizer, family, use_rslora=family == "qwen3")
    done = export(folder, "gguf-adapter", tmp_path / "out", ExportSettings(format="F32"))
    assert all(check.ok for check in done.checks) and "logits" in {check.name for check in done.checks}
    (path,) = done.files
    metadata = GgufFile(path).metadata
    assert (metadata["general.type"], metadata["adapter.type"]) == ("adapter", "lora")
    # The reference reader of the format agrees on shapes: A has the inputs as its fastest dimension, B the rank.
    tensors = {each.name: each.shape.tolist() for each in GGUFReader(path).tensors}
    thin = tensors["blk.0.attn_output.weight.lora_a"], tensors["blk.0.attn_output.weight.lora_b"]
    assert thin == ([model.config.num_attention_heads * model.config.head_dim, 3], [3, 32])
    base, _ = load_model(tmp_path / "base")
    load_adapter(base, path)
    ids = torch.randint(2, 400, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(base(ids)[0], model(ids)[0], atol=1e-5, rtol=1e-5)
        assert (load_model(tmp_path / "base")[0](ids)[0] - model(ids)[0]).abs().max() > 0.01


def test_the_file_is_an_adapter_of_the_engine_and_of_the_verbs(tokenizer, tmp_path, capsys):
    model, folder = adapted(tmp_path, tokenizer, "llama", target_modules=("q_proj", "v_proj"))
    assert main(["export", str(folder), "--to", "gguf-adapter", "--out", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    (path,) = (tmp_path / "out").glob("*-lora-F16.gguf")
    assert f"--lora {path.name}" in shown
    engine = Engine.load(tmp_path / "base", adapters={"mine": path})
    params, prompt = SamplingParams(8), [5, 6, 7, 8]
    assert engine.generate([prompt], params, adapters="mine")[0].ids == Engine(model).generate([prompt], params)[0].ids
    words = ["--adapters", f"mine={path}", "--adapter", "mine", "--max-new-tokens", "3", "--quiet", "--no-stream"]
    assert main(["generate", str(tmp_path / "base"), "The quick", *words]) == 0
    assert capsys.readouterr().out.startswith("The quick")
    assert main(["generate", str(path), "The quick"]) == 2  # an adapter alone is no model
    assert "holds adapter, not a model; give its base model" in " ".join(capsys.readouterr().err.split())


def test_what_has_no_place_is_refused_by_name(tokenizer, tmp_path):
    _, folder = adapted(tmp_path / "dora", tokenizer, "llama", method="dora")
    with pytest.raises(InputError, match=r"dora: llama\.cpp adds LoRA alone; merge it"):
        export(folder, "gguf-adapter", tmp_path / "out")
    with pytest.raises(InputError, match="no adapter over one"):
        export(tmp_path / "dora/base", "gguf-adapter", tmp_path / "out")
    _, folder = adapted(tmp_path / "lora", tokenizer, "llama")
    done = export(folder, "gguf-adapter", tmp_path / "out")
    other = random_model(llama(vocab_size=400, hidden_size=64))
    with pytest.raises(InputError, match=r"blk.0.attn_k.weight: lora_a \[3, 32\] and lora_b .* do not fit"):
        load_adapter(other, done.files[0])
    shallow = random_model(llama(vocab_size=400, num_hidden_layers=1, intermediate_size=64))
    with pytest.raises(InputError, match=r"blk\.1\.attn_k\.weight: no layer of the model"):
        load_adapter(shallow, done.files[0])
    whole = export(tmp_path / "lora/base", "gguf", tmp_path / "file")
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_adapter(other, whole.files[0])
