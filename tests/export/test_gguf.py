"""GGUF files: every family that llama.cpp knows written and read back, number formats, tokenizers, and broken files.

llama.cpp itself is compared where llama-cpp-python is installed, which CI does not have.
"""

import hashlib
import struct

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from tiny_models import random_model

from quatrain.compression.ggml_blocks import ENCODERS, encode
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.gguf_file import FORMATS, GgufFile
from quatrain.export.exporter import ExportSettings, export
from quatrain.export.llama import LlamaCpp, is_installed
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.families import get_family
from quatrain.models.families.fresh import fresh_config
from quatrain.models.gguf.architectures import architecture_of
from quatrain.models.io import model_folder
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = (
    "The quick brown fox jumps over 13 lazy dogs. Don't PANIC: Café, naïve, 日本語! \n\n  def f(x): return x + 1\n" * 3
)
SIZES = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 5}
OLMO3 = {
    "full_attention": YARN | {"rope_theta": 500000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25, "logits_scaling": 2.0}
STABLELM = {"use_qkv_bias": True}
MINISTRAL3 = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
DEEPSEEK = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 16,
    "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_group": 2, "topk_group": 1, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
CASES = {
    "llama": ("llama", "causal", GROUPED, {}),
    "llama tied, wide heads": ("llama", "causal", GROUPED | {"head_dim": 16}, {"tie_word_embeddings": True}),
    "llama biases": ("llama", "causal", GROUPED, {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("llama", "causal", {}, {"rope_parameters": LLAMA3, "max_position_embeddings": 131072}),
    "llama yarn": ("llama", "causal", {}, {"rope_parameters": YARN}),
    "mistral": ("mistral", "causal", GROUPED, {"sliding_window": None}),
    "qwen2": ("qwen2", "causal", GROUPED, {}),
    "qwen3": ("qwen3", "causal", GROUPED | {"head_dim": 16}, {}),
    "qwen2 experts": ("qwen2_moe", "causal", GROUPED, {"norm_topk_prob": False}),
    "qwen3 experts": ("qwen3_moe", "causal", GROUPED | {"head_dim": 16}, {}),
    "gemma2": ("gemma2", "causal", GROUPED, GEMMA),
    "gemma3": ("gemma3_text", "causal", GROUPED | {"num_hidden_layers": 7}, GEMMA),
    "phi": ("phi", "causal", {}, {}),
    "phi3": ("phi3", "causal", GROUPED, {}),
    "gpt2": ("gpt2", "causal", {}, {}),
    "gpt_neox": ("gpt_neox", "causal", {}, {}),
    "gpt_neox sequential": ("gpt_neox", "causal", {}, {"use_parallel_residual": False}),
    "bloom": ("bloom", "causal", {"intermediate_size": 128}, {}),
    "mixtral": ("mixtral", "causal", GROUPED, {"sliding_window": None, "num_local_experts": 4}),
    "olmoe": ("olmoe", "causal", {}, {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False}),
    "olmo2": ("olmo2", "causal", GROUPED, {}),
    "olmo3": ("olmo3", "causal", GROUPED | {"num_hidden_layers": 4}, {"sliding_window": 5, "rope_parameters": OLMO3}),
    "smollm3": ("smollm3", "causal", GROUPED | {"num_hidden_layers": 5}, {}),
    "granite": ("granite", "causal", GROUPED, GRANITE | {"attention_bias": True}),
    "granite experts": ("granitemoe", "causal", GROUPED, GRANITE | {"num_local_experts": 4}),
    "glm4": ("glm4", "causal", GROUPED, {"head_dim": 8}),
    "cohere2": ("cohere2", "causal", GROUPED | {"num_hidden_layers": 5}, {"sliding_window": 5}),
    "falcon": ("falcon", "causal", {"num_key_value_heads": 1}, {}),
    "falcon 40B": ("falcon", "causal", GROUPED, {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2}),
    "stablelm": ("stablelm", "causal", {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 2}, STABLELM),
    "stablelm 12B": (
        "stablelm",
        "causal",
        {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1},
        {"qk_layernorm": True, "use_parallel_residual": True},
    ),
    "starcoder2": ("starcoder2", "causal", GROUPED, {"sliding_window": None}),
    "ministral3": ("ministral3", "causal", GROUPED, {"rope_parameters": MINISTRAL3}),
    "gpt-oss": (
        "gpt_oss",
        "causal",
        GROUPED,
        {"num_local_experts": 4, "rope_scaling": YARN | {"truncate": True}, "sliding_window": 5},
    ),
    "deepseek": ("deepseek_v3", "causal", {"num_hidden_layers": 3}, DEEPSEEK),
    "mamba2": ("mamba2", "causal", {}, {}),
    "qwen3.5": ("qwen3_5_text", "causal", GROUPED | {"num_hidden_layers": 5, "head_dim": 16}, {}),
    "bert": ("bert", "embedding", {}, {}),
    "nomic-bert": ("nomic_bert", "embedding", {}, {}),
    "roberta": ("roberta", "embedding", {}, {}),
    "distilbert": ("distilbert", "embedding", {}, {}),
    "modernbert": ("modernbert", "embedding", {}, {}),
    "t5": ("t5", "seq2seq", {}, {}),
    "mt5": ("mt5", "seq2seq", {}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
ODD = {
    "narrow": ("llama", "causal", {"hidden_size": 40, "head_dim": 10}, {}),
    "window": ("mistral", "causal", {}, {"sliding_window": 5}),
}
"""Models that a file cannot hold as they are."""


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], vocab_size=400, chat_template="chatml")


def make(place, tokenizer, name):
    family, head, sizes, changes = (CASES | ODD)[name]
    mapping = get_family(family)
    config = fresh_config(family, SIZES | sizes, head=head)
    config = mapping.from_hf(mapping.to_hf(config) | changes, head=head)
    model_folder.save(random_model(config, scale=0.1), place)
    tokenizer.save(place)
    return place


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_every_family_holds_the_same_model(name, tokenizer, tmp_path):
    """Written in float32: our reader gives every tensor back bit for bit, but for those that llama.cpp stores as 1 +
    weight or as -exp(weight), which are rounded once, and for a head that holds the factor of the logits (T5).
    """
    folder = make(tmp_path / "model", tokenizer, name)
    done = export(folder, "gguf", tmp_path / "out", ExportSettings(format="F32"))
    assert all(check.ok for check in done.checks) and {"logits", "outputs"} & {check.name for check in done.checks}
    before, after = load_model(folder)[0], load_model(done.out)[0]
    ours, theirs = before.state_dict(), after.state_dict()
    unused = {"embed_positions.weight": before.config.position_offset}  # rows that no token uses
    if before.config.logit_scale != after.config.logit_scale:
        assert before.config.tie_word_embeddings and not after.config.tie_word_embeddings
        ours["lm_head.weight"] = ours["embed_tokens.weight"] * before.config.logit_scale
    rounds = name.startswith(("gemma", "mamba2", "qwen3.5"))
    for key in theirs:
        one, other = (each[key][unused.get(key, 0) :] for each in (ours, theirs))
        assert torch.allclose(one, other, rtol=0, atol=1e-6 if rounds else 0), key
    assert before.config.family == after.config.family


def test_numbers_equal_those_of_the_gguf_package(tokenizer, tmp_path):
    """The package of llama.cpp reads our files: metadata, shapes and dequantized weights."""
    done = export(make(tmp_path / "model", tokenizer, "llama"), "gguf", tmp_path / "out", ExportSettings(format="Q8_0"))
    reader, ours = GGUFReader(done.files[0]), GgufFile(done.files[0])
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in ours.metadata.items()
    }
    assert fields["llama.attention.head_count_kv"] == 2 and fields["general.file_type"] == 7
    model = load_model(done.out)[0]
    for tensor in reader.tensors:
        entry = ours.tensors[tensor.name]
        assert tuple(reversed([int(size) for size in tensor.shape])) == entry.shape
        assert tensor.tensor_type.name == entry.format
    down = next(each for each in reader.tensors if each.name == "blk.1.ffn_down.weight")
    assert torch.equal(
        torch.from_numpy(quants.dequantize(down.data, down.tensor_type)),
        model.state_dict()["layers.1.mlp.down_proj.weight"],
    )


OF_LLAMA_CPP = {
    "Q8_0": ("ebe3b80e3bb8c844", "ebe3b80e3bb8c844"),
    "Q4_0": ("ec22ae89ed99c49d", "b7c80865d67a90c8"),
    "Q4_1": ("f83658b07e411c78", "e1dc7978ae9922ad"),
    "Q5_0": ("67c290d013e70bb8", "a728143ffc61f4be"),
    "Q5_1": ("21bd703ab3b88aeb", "f8b66cf450790928"),
    "Q2_K": ("22f8ff4f03467b37", "88ba8f668f9cecd6"),
    "Q3_K": ("ace5c2257f12e3c3", "022cd38cec898e3c"),
    "Q4_K": ("471b0c31642980eb", "ff4773d09b4c25d2"),
    "Q5_K": ("a15b0e7c43922de0", "949244692bdb568d"),
    "Q6_K": ("a667f7b02e727368", "0d3e7b99623b10f5"),
}
"""SHA-256 (its beginning) of what llama.cpp's `ggml_quantize_chunk` makes of `hard_weights`; then with importance."""


def hard_weights():
    """Nearly normal weights from whole numbers, and rows that are hard; the importance of their columns."""
    draw = np.random.default_rng(7)
    values = draw.integers(-1000, 1001, (12, 40, 512)).sum(0).astype(np.float32) / 65536
    values[0, :256], values[1], values[2, :] = 0, -0.25, np.arange(512) % 16 / 64
    values[3, 5], values[4] = 60, np.abs(values[4])
    importance = draw.integers(1, 1000, 512).astype(np.float32) / 128
    return values, importance


@pytest.mark.parametrize("name", OF_LLAMA_CPP)
def test_blocks_are_those_of_llama_cpp_with_and_without_importance(name):
    values, importance = hard_weights()
    found = tuple(
        hashlib.sha256(encode(values, name, given).tobytes()).hexdigest()[:16] for given in (None, importance)
    )
    assert found == OF_LLAMA_CPP[name]


LIMITS = {"F16": 0.0003, "BF16": 0.002, "Q8_0": 0.0055, "Q4_0": 0.0899, "Q4_1": 0.0813, "Q5_0": 0.0447, "Q5_1": 0.04,
          "Q4_K": 0.075, "Q5_K": 0.038, "Q6_K": 0.019, "Q3_K": 0.16, "Q2_K": 0.31, "MXFP4": 0.13}  # fmt: skip
SIMPLE = ("F16", "BF16", "MXFP4", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def weights(rows=64, width=512, seed=0):
    """Normal weights, and rows that are hard: zeros, equal ones, halves between two steps, one large one."""
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    hard = np.zeros((4, width), dtype=np.float32)
    hard[1], hard[2], hard[3, 7] = -0.3, np.arange(width) % 16 - 7.5, 1000
    return values, hard


@pytest.mark.parametrize("name", SIMPLE)
def test_blocks_are_those_of_llama_cpp(name):
    """The `gguf` package encodes these formats bit for bit as llama.cpp does."""
    values = np.concatenate(weights())
    expected = quants.quantize(values, GGMLQuantizationType[name])
    assert np.array_equal(encode(values, name), np.ascontiguousarray(expected).reshape(-1).view(np.uint8))


@pytest.mark.parametrize("name", LIMITS)
def test_the_error_on_normal_weights_is_that_of_the_format(name):
    values, _ = weights()
    data = encode(values, name).reshape(len(values), -1)
    restored = quants.dequantize(data, GGMLQuantizationType[name])
    assert np.linalg.norm(restored - values) / np.linalg.norm(values) <= LIMITS[name]


def test_importance_lowers_the_weighted_error():
    """For every format that searches: the error weighed by importance is smaller than without the matrix."""
    values, importance = hard_weights()
    for name in ("Q4_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K"):
        errors = []
        for given in (None, importance):
            data = encode(values, name, given).reshape(len(values), -1)
            errors.append(
                float((importance * (quants.dequantize(data, GGMLQuantizationType[name]) - values) ** 2).sum())
            )
        assert errors[1] < errors[0], name


def test_experts_stored_in_mxfp4_are_kept(tokenizer, tmp_path):
    """GPT-OSS's own weights: of a mixture the experts become MXFP4, the rest Q8_0; other models are refused."""
    folder = make(tmp_path / "model", tokenizer, "gpt-oss")
    model = load_model(folder)[0]
    state = model.state_dict()
    experts = [name for name in state if ".experts." in name and name.endswith("weight")]
    with torch.no_grad():
        for name in experts:
            blocks = encode(state[name].numpy(), "MXFP4").reshape(len(state[name]), -1)
            state[name].copy_(torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType.MXFP4)))
    model_folder.save(model, folder)
    done = export(folder, "gguf", tmp_path / "out", ExportSettings(format="MXFP4"))
    after = load_model(done.out)[0].state_dict()
    assert all(torch.equal(state[name], after[name]) for name in experts)
    assert {entry.format for entry in GgufFile(done.files[0]).tensors.values()} == {"MXFP4", "Q8_0", "F32"}
    with pytest.raises(InputError, match="is for the experts of a mixture"):
        export(make(tmp_path / "plain", tokenizer, "llama"), "gguf", None, ExportSettings(format="MXFP4"))


def test_rows_that_blocks_do_not_divide_are_refused_by_the_encoder():
    with pytest.raises(InputError, match="row of 48 weights; Q8_0 has blocks of 32"):
        encode(np.zeros((2, 48), dtype=np.float32), "Q8_0")
    with pytest.raises(InputError, match='format "Q9"; must be one of F32'):
        encode(np.zeros((2, 32), dtype=np.float32), "Q9")


def test_rows_that_blocks_do_not_divide_are_named(tokenizer, tmp_path):
    folder = make(tmp_path / "model", tokenizer, "narrow")
    done = export(folder, "gguf", tmp_path / "out", ExportSettings(format="Q8_0"))
    assert any(
        "rows of 40 weights, which Q8_0's blocks of 32 do not divide: written in F16" in note for note in done.notes
    )
    kinds = {entry.format for entry in GgufFile(done.files[0]).tensors.values()}
    assert kinds == {"F16", "F32", "Q8_0"}


def test_what_llama_cpp_cannot_compute_is_refused_before_anything_is_written(tokenizer, tmp_path):
    folder = make(tmp_path / "model", tokenizer, "window")
    with pytest.raises(InputError, match=r"sliding_window 5: llama\.cpp computes full attention"):
        export(folder, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    done = export(folder, "gguf", tmp_path / "out", ExportSettings(context=5))
    assert GgufFile(done.files[0]).metadata["llama.context_length"] == 5


@pytest.mark.parametrize(
    ("family", "reason"), [("opt", "llama.cpp does not compute it"), ("gemma4_text", "has gemma4")]
)
def test_families_without_files_are_refused_with_the_reason(family, reason):
    with pytest.raises(InputError, match=reason):
        architecture_of(family)


def test_a_file_that_computes_something_else_is_refused(tokenizer, tmp_path, monkeypatch):
    """A wrong scale in every block: the proof must see it, remove the files and say what differs."""
    folder = make(tmp_path / "model", tokenizer, "llama")
    true = ENCODERS["Q8_0"]

    def halved(blocks, importance):
        return true(blocks / 2, importance)

    monkeypatch.setitem(ENCODERS, "Q8_0", halved)
    with pytest.raises(QuatrainError, match="does not compute what the model computes"):
        export(folder, "gguf", tmp_path / "out", ExportSettings(format="Q8_0"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    assert export(folder, "gguf", tmp_path / "out", ExportSettings(format="Q8_0", force=True)).files[0].is_file()


def test_a_gguf_file_is_a_model(tokenizer, tmp_path):
    """By its path and by its folder: the same greedy text, tokenizer, chat template and stop tokens."""
    folder = make(tmp_path / "model", tokenizer, "qwen3")
    done = export(folder, "gguf", tmp_path / "out", ExportSettings(format="F32"))
    params = SamplingParams(max_new_tokens=8)
    texts = [
        Engine.load(str(place)).generate(["The quick"], params)[0].text for place in (folder, done.out, done.files[0])
    ]
    assert texts[0] == texts[1] == texts[2]
    read = load_model(done.files[0])[1]
    assert [read.encode(text) for text in (TEXT, "Café", "  a")] == [
        tokenizer.encode(text) for text in (TEXT, "Café", "  a")
    ]
    assert read.stop_ids == tokenizer.stop_ids and "endgeneration" not in read.chat_template
    assert Engine.load(str(done.out)).render([{"role": "user", "content": "Hi"}]) == Engine.load(str(folder)).render(
        [{"role": "user", "content": "Hi"}]
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: b"GGML" + data[4:], "does not begin with GGUF"),
        (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "version 9"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
        (lambda data: data[:200], "ends within its header|more than the file holds"),
        (lambda data: data[:-4000], "is not in the file"),
        (lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:], "announces"),
        (lambda data: data[:24] + struct.pack("<Q", 2**62) + data[32:], "more than the file holds"),
        (lambda data: data.replace(b"general.architecture", b"general.architecturE"), "general.architecture: "),
        (lambda data: data.replace(b"llama.block_count", b"llama.block_counT"), "llama.block_count: missing"),
        (lambda data: data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_Q.weight"), "blk.0.attn_q.weight: missing"),
    ],
)
def test_a_damaged_file_is_refused_by_name(damage, message, tokenizer, tmp_path):
    done = export(make(tmp_path / "model", tokenizer, "llama"), "gguf", tmp_path / "out")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(damage(done.files[0].read_bytes()))
    with pytest.raises(InputError, match=message):
        load_model(bad)


def test_two_files_in_a_folder_are_told_apart(tokenizer, tmp_path):
    done = export(make(tmp_path / "model", tokenizer, "llama"), "gguf", tmp_path / "out")
    (done.out / "other.gguf").write_bytes(done.files[0].read_bytes())
    with pytest.raises(InputError, match="holds 2 GGUF models"):
        load_model(done.out)


def test_an_export_into_a_folder_that_is_not_empty_is_refused(tokenizer, tmp_path):
    folder = make(tmp_path / "model", tokenizer, "llama")
    with pytest.raises(InputError, match="is not empty"):
        export(folder, "gguf", folder)
    with pytest.raises(InputError, match='--to "tar"; must be one of'):
        export(folder, "tar", tmp_path / "out")
    with pytest.raises(InputError, match='--format "Q9": gguf has F16'):
        export(folder, "gguf", tmp_path / "out", ExportSettings(format="Q9"))


@pytest.mark.skipif(not is_installed(), reason="llama-cpp-python is not installed (it builds for minutes)")
@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_same(name, tokenizer, tmp_path):
    """Greedy ids equal ours in F16 for every family that both know; of encoders, the vector of a text."""
    folder = make(tmp_path / "model", tokenizer, name)
    done = export(folder, "gguf", tmp_path / "out", ExportSettings(format="F16"))
    found = {check.name: check for check in done.checks if check.runtime == "llama.cpp"}
    assert found["token ids"].ok and (found.get("logits") or found["outputs"]).ok
    assert CASES[name][1] == "embedding" or found["greedy ids"].result == "16 of 16 equal"
    assert all(FORMATS[entry.format] for entry in GgufFile(done.files[0]).tensors.values())


@pytest.mark.skipif(not is_installed(), reason="llama-cpp-python is not installed (it builds for minutes)")
def test_llama_cpp_answers_a_conversation_with_the_same_text(tokenizer, tmp_path):
    """The Ollama form of a model: chat template, special tokens and stops of the file, by llama.cpp."""
    folder = make(tmp_path / "model", tokenizer, "llama")
    done = export(folder, "ollama", tmp_path / "out", ExportSettings(format="F16"))
    messages = [{"role": "user", "content": "The quick brown fox"}]
    ours = Engine.load(str(folder)).chat([messages], SamplingParams(max_new_tokens=12))[0].text
    # A random model writes broken characters, which llama.cpp leaves out.
    assert LlamaCpp(done.files[0], 64).answer(messages, 12).strip() == ours.replace("\ufffd", "").strip()
