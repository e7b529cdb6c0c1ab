"""The targets beside GGUF: ONNX with a cache, Ollama's Modelfile, MLX's layout, plain folders; adapters; the verb."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from tiny_models import random_model
from tokenizers import Tokenizer as Backend

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.peft_files import save_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.core.gguf_file import write_gguf
from quatrain.export import mlx, onnx
from quatrain.export.exporter import ExportSettings, export, exporters
from quatrain.export.go_template import TRIALS, turn_template
from quatrain.loading.model import load_model
from quatrain.models.families import get_family
from quatrain.models.families.fresh import fresh_config
from quatrain.models.io import model_folder
from quatrain.models.io.safetensors_reader import SafetensorsReader
from quatrain.tokenizers.gguf import SPLITS, closest_split, to_metadata
from quatrain.tokenizers.samples import FIXTURES, random_texts
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = (
    "The quick brown fox jumps over 13 lazy dogs. Don't PANIC: Café, naïve, 日本語! \n\n  def f(x): return x + 1\n" * 3
)
SIZES = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 96, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], vocab_size=400, chat_template="chatml")


def make(place, tokenizer, family="llama", head="causal", changes=None, **sizes):
    mapping = get_family(family)
    config = fresh_config(family, SIZES | sizes, head=head)
    config = mapping.from_hf(mapping.to_hf(config) | (changes or {}), head=head)
    model_folder.save(random_model(config, scale=0.1), place)
    tokenizer.save(place)
    return place


def test_the_targets_are_found_by_their_place():
    assert sorted(exporters()) == ["gguf", "gguf-adapter", "hf", "mlx", "ollama", "onnx"]


@pytest.mark.parametrize(
    ("family", "head", "changes"),
    [
        ("bert", "sequence_classification", {}),
        ("t5", "seq2seq", {}),
        ("mixtral", "causal", {"num_local_experts": 3, "num_hidden_layers": 1, "sliding_window": None}),
    ],
)
def test_onnx_computes_the_same_with_its_cache(family, head, changes, tokenizer, tmp_path):
    """Logits to 1e-4 of the largest, and 16 greedy ids one step each."""
    folder = make(tmp_path / "model", tokenizer, family, head, changes, num_hidden_layers=1)
    done = export(folder, "onnx", tmp_path / "out")
    found = {check.name: check for check in done.checks}
    assert all(check.ok for check in done.checks) and found["token ids"].result == "20 of 20 texts equal"
    if head in ("causal", "seq2seq"):
        assert found["greedy ids"].result == "16 of 16 equal"
    else:
        runtime = onnx.OnnxRuntime(done.out, load_model(folder)[0].config)
        session = runtime._sessions["model"]
        ids = np.array([[5, 6, 7, 1, 1], [8, 9, 10, 11, 12]])
        mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        whole = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})[0]
        with torch.inference_mode():
            ours = load_model(folder)[0](torch.tensor([[5, 6, 7]]))[0]
        assert np.allclose(whole[0], ours[0].numpy(), atol=1e-5)


def test_an_onnx_decoder_has_a_cache_and_its_int8_form_is_smaller_and_close(tokenizer, tmp_path):
    """The proof reads the text in two steps; int8 weights are made of the written graph, as --format int8 does."""
    folder = make(tmp_path / "model", tokenizer, "gemma2", changes={"sliding_window": 5, "query_pre_attn_scalar": 16})
    done = export(folder, "onnx", tmp_path / "out")
    found = {check.name: check for check in done.checks}
    assert all(check.ok for check in done.checks) and found["greedy ids"].result == "16 of 16 equal"
    config, ids = load_model(folder)[0].config, list(range(5, 25))
    whole, file = onnx.OnnxRuntime(done.out, config).outputs(ids), done.out / "model.onnx"
    before = file.stat().st_size
    onnx._quantize(file)
    small = onnx.OnnxRuntime(done.out, config).outputs(ids)
    assert file.stat().st_size < 0.7 * before and not list(done.out.glob("float-*"))
    assert 0 < float((small - whole).abs().max() / whole.abs().max()) < onnx.TOLERANCES["int8"]


def test_onnx_refuses_what_changes_with_the_length(tokenizer, tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = make(tmp_path / "model", tokenizer, changes={"rope_parameters": rope})
    with pytest.raises(InputError, match="rope_scaling dynamic: its frequencies change with the length"):
        export(folder, "onnx", tmp_path / "out")


@pytest.mark.parametrize("name", ["chatml", "llama-3", "gemma", "phi-3", "plain"])
def test_the_go_template_equals_the_chat_template(name):
    tokenizer = Tokenizer.train([TEXT], vocab_size=300, chat_template=name)
    template = turn_template(tokenizer)
    assert template is not None and template.source().count("{{ .Content }}") == 3
    assert template.render(TRIALS[1]).count("Be brief.") == 1


def test_a_chat_template_that_does_more_has_no_go_template(tokenizer):
    """One that numbers its messages, and Alpaca, whose preamble a system message replaces: not approximated."""
    assert turn_template(Tokenizer.train([TEXT], vocab_size=300, chat_template="alpaca")) is None
    changed = Tokenizer(tokenizer.backend, tokenizer.config)
    changed.chat_template = "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}"
    assert turn_template(changed) is None


def test_ollama_gets_a_modelfile(tokenizer, tmp_path):
    folder = make(tmp_path / "model", tokenizer)
    done = export(folder, "ollama", tmp_path / "out")
    text = (done.out / "Modelfile").read_text()
    assert text.startswith(f'FROM ./{done.files[0].name}\nTEMPLATE """') and "num_ctx 96" in text
    assert 'PARAMETER stop "<|im_end|>"' in text and 'PARAMETER stop "<|endoftext|>"' in text
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in text and "generation" not in text
    assert {check.runtime for check in done.checks} >= {"quatrain", "Modelfile"}


def test_a_model_without_a_chat_template_continues_texts_in_ollama(tmp_path):
    plain = Tokenizer.train([TEXT], vocab_size=400)
    done = export(make(tmp_path / "model", plain), "ollama", tmp_path / "out")
    assert 'TEMPLATE """{{ .Prompt }}"""' in (done.out / "Modelfile").read_text()


@pytest.mark.parametrize("form", mlx.TOLERANCES)
def test_mlx_holds_the_same_model(form, tokenizer, tmp_path):
    done = export(make(tmp_path / "model", tokenizer), "mlx", tmp_path / "out", ExportSettings(format=form))
    assert all(check.ok for check in done.checks)
    config = json.loads((done.out / "config.json").read_text())
    assert config.get("quantization", {}).get("bits") == mlx.BITS.get(form)


MLX = {
    "ministral3": {}, "mixtral": {"sliding_window": None}, "qwen3_moe": {}, "granitemoe": {}, "olmo2": {},
    "gpt2": {"n_inner": 256}, "gptj": {"n_inner": 256}, "starcoder2": {"sliding_window": None}, "mamba2": {},
    "gemma2": {"sliding_window": 96, "query_pre_attn_scalar": 16}, "smollm3": {}, "stablelm": {}, "phi3": {},
    "cohere2": {},
}  # fmt: skip
MLX_SIZES = {
    "stablelm": {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2},
    "cohere2": {"num_hidden_layers": 4},
}  # fmt: skip
"""Families of which mlx-lm needs something of its own, and some others."""


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed (pip install mlx[cpu])")
@pytest.mark.parametrize("family", MLX)
def test_mlx_lm_computes_the_same(family, tokenizer, tmp_path):
    folder = make(tmp_path / "model", tokenizer, family, changes=MLX[family], **MLX_SIZES.get(family, {}))
    done = export(folder, "mlx", tmp_path / "out", ExportSettings(format="float16"))
    ours, theirs = (
        {check.name: check.result for check in done.checks if check.runtime == name} for name in ("quatrain", "mlx-lm")
    )
    assert theirs["greedy ids"] == ours["greedy ids"]


def test_mlx_folders_have_the_names_and_keys_of_mlx_lm(tokenizer, tmp_path):
    """GPT-2's names without a prefix and `n_ctx`; routers in float; what mlx-lm computes otherwise is refused."""
    gpt2 = export(make(tmp_path / "gpt2", tokenizer, "gpt2", changes=MLX["gpt2"]), "mlx", tmp_path / "a")
    with SafetensorsReader(gpt2.out) as files:
        assert "h.0.attn.c_attn.weight" in files
    assert json.loads((gpt2.out / "config.json").read_text())["n_ctx"] == 96
    folder = make(tmp_path / "mixtral", tokenizer, "mixtral", changes=MLX["mixtral"])
    mixed = export(folder, "mlx", tmp_path / "b", ExportSettings(format="8bit", force=True))
    with SafetensorsReader(mixed.out) as files:
        assert "model.layers.0.block_sparse_moe.gate.scales" not in files
        assert "model.layers.0.block_sparse_moe.experts.0.w1.scales" in files
    window = make(tmp_path / "window", tokenizer, "mistral", changes={"sliding_window": 8})
    with pytest.raises(InputError, match="mlx-lm computes full attention for mistral"):
        export(window, "mlx", tmp_path / "c")


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.12), (8, 0.008)])
def test_mlx_groups_are_restored(bits, limit):
    """Within a step of each weight; zeros stay zero, and the edge of a group is exact up to float16."""
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    parts = mlx.quantized(weight, bits)
    assert parts["weight"].dtype == torch.uint32 and parts["weight"].shape == (8, 128 * bits // 32)
    restored = mlx.dequantized(parts["weight"], parts["scales"], parts["biases"], bits)
    assert torch.equal(restored[0], weight[0])
    assert float((restored - weight).norm() / weight.norm()) < limit
    steps = parts["scales"].float().abs().repeat_interleave(64, dim=1)
    assert ((restored - weight).abs() <= 1.01 * steps + 0.005).all()


def test_an_adapter_is_merged_into_what_is_exported(tokenizer, tmp_path):
    base = make(tmp_path / "base", tokenizer)
    model = load_model(base)[0]
    apply_adapter(model, AdapterSettings(method="lora", rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    save_adapter(model, tmp_path / "adapter", base_model=str(base))
    done = export(tmp_path / "adapter", "gguf", tmp_path / "out", ExportSettings(format="F32"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected, found = model.eval()(ids)[0], load_model(done.out)[0](ids)[0]
        assert torch.allclose(expected, found, atol=1e-4)
        assert not torch.allclose(load_model(base)[0](ids)[0], found, atol=1e-2)


def test_a_quantized_model_is_exported_as_float(tokenizer, tmp_path):
    from quatrain.compression import methods

    model = load_model(make(tmp_path / "base", tokenizer))[0]
    methods.quantize(model, "int8")
    model_folder.save(model, tmp_path / "small")
    tokenizer.save(tmp_path / "small")
    done = export(tmp_path / "small", "hf", tmp_path / "out")
    assert "quantization_config" not in json.loads((done.out / "config.json").read_text())


def test_ten_thousand_random_texts_have_the_same_ids(tmp_path):
    """GPT-2's words with digits alone, which `quatrain` trains by default: exactly llama.cpp's rule smollm."""
    tokenizer = Tokenizer.train([TEXT], vocab_size=400)
    metadata = to_metadata(tokenizer, 400)
    assert metadata.metadata["tokenizer.ggml.pre"] == "smollm" and not metadata.notes

    with (tmp_path / "tokenizer.gguf").open("wb") as file:
        write_gguf(file, {"general.architecture": "llama", **metadata.metadata}, [])
    read = Tokenizer.load(tmp_path / "tokenizer.gguf")
    texts = [*FIXTURES, *random_texts(10_000, seed=1)]
    assert read.encode_batch(texts) == tokenizer.encode_batch(texts)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_other_kinds_of_tokenizers_are_read_back(kind, tmp_path):
    tokenizer = Tokenizer.train(
        [TEXT.lower() * 3], kind=kind, vocab_size=400, split_digits=False, lowercase=kind == "wordpiece"
    )

    metadata = to_metadata(tokenizer, tokenizer.vocab_size)
    with (tmp_path / "tokenizer.gguf").open("wb") as file:
        write_gguf(file, {"general.architecture": "bert", **metadata.metadata}, [])
    read = Tokenizer.load(tmp_path / "tokenizer.gguf")
    texts = ["the quick brown fox", "lazy dogs", "café"]
    assert [read.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("kind", ["word", "char"])
def test_tokenizers_that_llama_cpp_does_not_have_are_refused(kind):
    tokenizer = Tokenizer.train([TEXT], kind=kind, vocab_size=400)
    with pytest.raises(InputError, match=r"a tokenizer of (whole words|single characters)"):
        to_metadata(tokenizer, 1000)


def test_a_rule_of_its_own_is_written_with_the_closest_and_said():
    """A tokenizer with an unknown step, here digits that stay together after a split by punctuation."""
    tokenizer = Tokenizer.train([TEXT], vocab_size=400)
    description = json.loads(tokenizer.backend.to_str())
    description["pre_tokenizer"]["pretokenizers"][0] = {"type": "Split", "pattern": {"Regex": "[aeiou]"},
                                                        "behavior": "Isolated", "invert": False}  # fmt: skip
    odd = Tokenizer(Backend.from_str(json.dumps(description)), {})
    name, differing = closest_split(description)
    assert name in SPLITS and 0 < len(differing) < 520
    assert any(f"{len(differing)} of 520 sample texts differ, such as" in note for note in to_metadata(odd, 400).notes)


def test_free_spaces_are_written_so_that_names_and_keywords_have_the_same_ids(tmp_path):
    """The quickstart's tokenizer: " SELECT" is one token, " Sam" two; no rule of llama.cpp does that."""
    texts = ["SELECT name FROM people WHERE city = 'Sam' AND age > 30 ", "who is Sam? when did Bob visit Seoul "] * 20
    tokenizer = Tokenizer.train(texts, vocab_size=340, spaces="free")
    assert "ĠSELECT" not in tokenizer.backend.get_vocab() and {"ĠFROM", "ĠWHERE"} <= set(tokenizer.backend.get_vocab())
    written = to_metadata(tokenizer, 340)
    assert any("written without words" in note for note in written.notes)
    with (tmp_path / "tokenizer.gguf").open("wb") as file:
        write_gguf(file, {"general.architecture": "llama", **written.metadata}, [])
    read = Tokenizer.load(tmp_path / "tokenizer.gguf")
    for text in (*texts[:2], "list Samuel, Fred and Wendy FROM Fargo WHERE  x\n AND(SELECT 12 FROM a)"):
        assert read.encode(text) == tokenizer.encode(text) and read.decode(read.encode(text)) == text


def test_the_verb_prints_the_proof_and_refuses(tokenizer, tmp_path, capsys):
    folder = make(tmp_path / "model", tokenizer)
    words = ["export", str(folder), "--to", "gguf"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == str(tmp_path / "model-gguf") and all(check["ok"] for check in result["checks"])
    assert main(words) == 2 and "is not empty" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "again"), "--format", "Q4_K"]) == 0
    shown = capsys.readouterr().out
    assert "greedy ids" in shown and "do not divide: written in" in shown and "written  " in shown
