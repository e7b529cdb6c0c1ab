"""The config.json files of Llama, SmolLM, Mistral, Qwen, Gemma and Phi-3 as on the hub: read, counted, written."""

import copy

import pytest
import torch
import transformers

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

LLAMA2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA1 = {key: value for key, value in LLAMA2.items() if key not in ("num_key_value_heads", "rope_scaling")} | {
    "max_position_embeddings": 2048, "max_sequence_length": 2048, "pad_token_id": 0, "rms_norm_eps": 1e-06,
}  # fmt: skip
LLAMA31 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
SMOLLM = LLAMA2 | {
    "_name_or_path": "HuggingFaceTB/SmolLM-135M", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576, "initializer_range": 0.02, "intermediate_size": 1536,
    "max_position_embeddings": 2048, "mlp_bias": False, "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}  # fmt: skip
SMOLLM2 = SMOLLM | {
    "initializer_range": 0.041666666666666664, "is_llama_config": True, "max_position_embeddings": 8192,
    "pad_token_id": 2, "rope_interleaved": False, "rope_theta": 100000, "transformers.js_config": {
        "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
NEMO = MISTRAL | {
    "attention_dropout": 0.0, "head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 1024000,
    "num_hidden_layers": 40, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 131072,
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
    "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
    "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32",
    "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
EMBEDDING_GEMMA = {key: value for key, value in GEMMA3.items() if key != "sliding_window_pattern"} | {
    "_sliding_window_pattern": 6, "architectures": ["Gemma3TextModel"], "dtype": "float32", "eos_token_id": 1,
    "hidden_size": 768, "intermediate_size": 1152, "max_position_embeddings": 2048, "num_attention_heads": 3,
    "layer_types": ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(24)],
    "num_hidden_layers": 24, "use_bidirectional_attention": True,
}  # fmt: skip
PHI3 = {
    "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": False,
    "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config",
                                           "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True, "vocab_size": 32064,
}  # fmt: skip
PHI3_LONG = PHI3 | {
    "max_position_embeddings": 131072, "sliding_window": 262144,
    "rope_scaling": {"long_factor": [1.07 + n for n in range(48)], "short_factor": [1.1] * 48, "type": "longrope"},
}  # fmt: skip
PHI4_MINI = PHI3_LONG | {
    "bos_token_id": 199999, "eos_token_id": 199999, "full_attn_mod": 1, "interpolate_factor": 1,
    "lm_head_bias": False, "mlp_bias": False, "num_attention_heads": 24, "num_key_value_heads": 8,
    "pad_token_id": 199999, "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "vocab_size": 200064,
}  # fmt: skip


def _sized(base, hidden, inner, depth, heads, groups, **more):
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": depth,
             "num_attention_heads": heads, "num_key_value_heads": groups}  # fmt: skip
    return base | sizes | more


FIGURES = {
    "llama-7b": (LLAMA1, 6_738_415_616),
    "Llama-2-7b": (LLAMA2, 6_738_415_616),
    "Llama-2-13b": (_sized(LLAMA2, 5120, 13824, 40, 40, 40), 13_015_864_320),
    "Llama-2-70b": (_sized(LLAMA2, 8192, 28672, 80, 64, 8), 68_976_648_192),
    "Llama-3.1-8B": (LLAMA31, 8_030_261_248),
    "Llama-3.1-70B": (_sized(LLAMA31, 8192, 28672, 80, 64, 8), 70_553_706_496),
    "Llama-3.1-405B": (_sized(LLAMA31, 16384, 53248, 126, 128, 8), 405_853_388_800),
    "Llama-3.2-1B": (
        _sized(LLAMA31, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True), 1_235_814_400),
    "SmolLM-135M": (SMOLLM, 134_515_008),
    "SmolLM2-135M": (SMOLLM2, 134_515_008),
    "SmolLM-360M": (_sized(SMOLLM, 960, 2560, 32, 15, 5), 361_821_120),
    "SmolLM-1.7B": (_sized(SMOLLM, 2048, 8192, 24, 32, 32), 1_711_376_384),
    "Mistral-7B-v0.1": (MISTRAL, 7_241_732_096),
    "Mistral-7B-v0.3": (MISTRAL | {"sliding_window": None, "vocab_size": 32768}, 7_248_023_552),
    "Mistral-Nemo": (NEMO, 12_247_782_400),
    "Qwen2-0.5B": (QWEN2, 494_032_768),
    "Qwen2-1.5B": (_sized(QWEN2, 1536, 8960, 28, 12, 2), 1_543_714_304),
    "Qwen2.5-7B": (
        _sized(QWEN2, 3584, 18944, 28, 28, 4, tie_word_embeddings=False, vocab_size=152064), 7_615_616_512),
    "Qwen2-72B": (
        _sized(QWEN2, 8192, 29568, 80, 64, 8, tie_word_embeddings=False, vocab_size=152064), 72_706_203_648),
    "Qwen3-0.6B": (QWEN3, 596_049_920),
    "Qwen3-4B": (_sized(QWEN3, 2560, 9728, 36, 32, 8), 4_022_468_096),
    "Qwen3-8B": (_sized(QWEN3, 4096, 12288, 36, 32, 8, tie_word_embeddings=False), 8_190_735_360),
    "Qwen3-32B": (_sized(QWEN3, 5120, 25600, 64, 64, 8, tie_word_embeddings=False), 32_762_123_264),
    "gemma-2-2b": (GEMMA2, 2_614_341_888),
    "gemma-2-9b": (_sized(GEMMA2, 3584, 14336, 42, 16, 8), 9_241_705_984),
    "gemma-2-27b": (
        _sized(GEMMA2, 4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144), 27_227_128_320),
    "gemma-3-270m": (_sized(GEMMA3, 640, 2048, 18, 4, 1), 268_098_176),
    "gemma-3-1b": (GEMMA3, 999_885_952),
    "embeddinggemma-300m": (EMBEDDING_GEMMA, 302_863_104),
    "Phi-3-mini-4k": (PHI3, 3_821_079_552),
    "Phi-3-mini-128k": (PHI3_LONG, 3_821_079_552),
    "Phi-3-medium": (_sized(PHI3, 5120, 17920, 40, 40, 10), 13_960_238_080),
    "Phi-4-mini": (PHI4_MINI, 3_836_021_760),
}  # fmt: skip
EVERY = pytest.mark.parametrize(("config", "count"), FIGURES.values(), ids=FIGURES)


def read(config):
    return get_family(config["model_type"]).from_hf(config)


def their_count(config):
    """The parameters of transformers' model, none of them allocated."""
    with torch.device("meta"):
        return getattr(transformers, config["architectures"][0])(their_config(config)).num_parameters()


def their_config(config):
    """transformers' reading of a config.json; it changes what it is given."""
    settings = copy.deepcopy({key: value for key, value in config.items() if key not in ("model_type", "auto_map")})
    return transformers.AutoConfig.for_model(config["model_type"], **settings)


@EVERY
def test_counts(config, count):
    with torch.device("meta"):
        ours = Model(read(config)).num_parameters()
    assert ours == count
    assert ours == their_count(config)


@EVERY
def test_written_and_read_again(config, count):
    ours = read(config)
    written = get_family(config["model_type"]).to_hf(ours)
    assert read(written) == ours
    theirs = their_config(written).to_dict()
    assert read(theirs | {"architectures": config["architectures"]}) == ours


def test_what_the_real_ones_say():
    assert read(MISTRAL).layer_types == ("sliding",) * 32 and read(NEMO).layer_types == ("full",) * 40
    assert read(QWEN2).sliding_window is None and set(read(QWEN2).layer_types) == {"full"}
    assert read(QWEN2 | {"use_sliding_window": True}).layer_types == ("full",) * 24
    late = read(QWEN2 | {"use_sliding_window": True, "max_window_layers": 20})
    assert late.layer_types == ("full",) * 20 + ("sliding",) * 4 and late.sliding_window == 32768
    gemma = read(GEMMA2)
    assert gemma.layer_types[:3] == ("sliding", "full", "sliding")
    assert (gemma.attention_softcap, gemma.logit_softcap, gemma.attention_scale) == (50.0, 30.0, 1 / 16)
    assert gemma.tie_word_embeddings and gemma.embedding_scale == 48.0
    assert read(GEMMA3).layer_types[:6] == ("sliding",) * 5 + ("full",)
    assert (read(GEMMA3).local_rope_theta, read(GEMMA3).rope_theta) == (1e4, 1e6)
    assert read(EMBEDDING_GEMMA).architecture == "encoder"
    assert read(PHI4_MINI).rotary_dim == 96 and read(PHI3).rotary_dim == 0
    assert read(PHI3_LONG).rope_scaling.get("original_max_position_embeddings") == 4096
    assert read(LLAMA31).eos_token_id == [128001, 128008, 128009]


def test_keys_that_are_left_out_mean_what_transformers_takes_for_them():
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4,
             "num_attention_heads": 32}  # fmt: skip
    for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"):
        kind = get_family(name)
        theirs = transformers.AutoConfig.for_model(name, **sizes).to_dict()
        assert kind.from_hf(sizes | {"model_type": name}) == kind.from_hf(
            theirs | {key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id", "architectures")}
        )


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        (MISTRAL, {"layer_types": ["full_attention"] * 32}, "layer_types"),
        (QWEN2, {"layer_types": ["chunked_attention"] * 24}, "chunked_attention"),
        (QWEN2, {"layer_types": ["full_attention"] * 3}, "layer_types: 3 entries"),
        (QWEN2, {"layer_types": ["sliding_attention"] * 24}, "sliding_window"),
        (QWEN2, {"use_mrope": True}, "use_mrope"),
        (QWEN3, {"hidden_act": "mish"}, "hidden_act"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (GEMMA3, {"use_bidirectional_attention": True}, "needs the architecture decoder"),
        (PHI3, {"full_attn_mod": 2}, "full_attn_mod"),
        (PHI3, {"lm_head_bias": True}, "lm_head_bias"),
        (PHI3, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        (PHI3, {"num_key_value_heads": 5}, "num_key_value_heads: 5"),
    ],
)
def test_what_is_not_known_is_refused_by_name(base, change, named):
    with pytest.raises(InputError) as caught:
        read(base | change)
    assert named in str(caught.value)


GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3", "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "vision_config": {
        "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False},
}  # fmt: skip


def test_the_text_model_of_one_that_reads_images():
    config = read(GEMMA3_4B)
    theirs = transformers.Gemma3TextConfig(**copy.deepcopy(GEMMA3_4B["text_config"]))
    with torch.device("meta"):
        expected = transformers.Gemma3ForCausalLM(theirs).num_parameters()
        assert Model(config).num_parameters() == expected == 3_880_263_168
    assert (config.family, config.head, config.eos_token_id) == ("gemma3_text", "causal", [1, 106])
    assert (config.rope_theta, config.rope_scaling.get("factor"), config.local_rope_theta) == (1e6, 8.0, 1e4)
    with pytest.raises(InputError, match="text_config"):
        read({key: value for key, value in GEMMA3_4B.items() if key != "text_config"})


def test_its_files_are_read_and_written_as_a_text_model(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 16, "intermediate_size": 24, "vocab_size": 97, "sliding_window": 5}  # fmt: skip
    image = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    theirs = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=image, mm_tokens_per_image=4, image_token_index=96)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_folder.load(tmp_path / "theirs")
    ids = torch.randint(0, 90, (2, 19))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids)[0], expected, atol=1e-5, rtol=1e-5)
        model_folder.save(ours, tmp_path / "ours")
        back = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "ours").eval()
        torch.testing.assert_close(back(ids).logits, expected, atol=1e-5, rtol=1e-5)
    classifier = model_folder.load(tmp_path / "theirs", head="sequence_classification", labels=["no", "yes"])
    assert classifier.config.labels == ("no", "yes") and classifier.newly_initialized == ["score.weight"]
