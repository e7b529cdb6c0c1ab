"""The config.json files of Mamba 2 and xLSTM as on the hub: read, counted, written."""

import math

import pytest
import torch
import transformers

from quatrain.models.families import get_family
from quatrain.models.transformer.recurrence import state_bytes
from quatrain.planning import counts

MAMBA2_130M = {
    "architectures": ["Mamba2ForCausalLM"], "bos_token_id": 0, "chunk_size": 256, "conv_kernel": 4, "eos_token_id": 0,
    "expand": 2, "head_dim": 64, "hidden_act": "silu", "hidden_size": 768, "initializer_range": 0.1,
    "layer_norm_epsilon": 1e-05, "model_type": "mamba2", "n_groups": 1, "norm_before_gate": True, "num_heads": 24,
    "num_hidden_layers": 24, "pad_token_id": 0, "rescale_prenorm_residual": False, "residual_in_fp32": True,
    "rms_norm": True, "state_size": 128, "tie_word_embeddings": True, "time_step_floor": 0.0001,
    "time_step_limit": [0.0, math.inf], "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 48,
    "torch_dtype": "float32", "use_bias": False, "use_cache": True, "use_conv_bias": True, "vocab_size": 50288,
}  # fmt: skip
MAMBA2_2_7B = MAMBA2_130M | {"hidden_size": 2560, "num_heads": 80, "num_hidden_layers": 64, "time_step_rank": 160}
CODESTRAL = MAMBA2_130M | {
    "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 4096, "n_groups": 8, "num_heads": 128, "num_hidden_layers": 64,
    "tie_word_embeddings": False, "time_step_rank": 256, "torch_dtype": "bfloat16", "vocab_size": 32768,
}  # fmt: skip
XLSTM_7B = {
    "add_out_norm": True, "architectures": ["xLSTMForCausalLM"], "autocast_kernel_dtype": "bfloat16",
    "bos_token_id": 0, "chunk_size": 64, "chunkwise_kernel": "chunkwise--native_autograd", "embedding_dim": 4096,
    "eos_token_id": 2, "eps": 1e-06, "ffn_proj_factor": 2.667, "ffn_round_up_to_multiple_of": 64,
    "gate_soft_cap": 15.0, "hidden_size": 4096, "inference_state_dtype": "float32", "max_inference_chunksize": 16384,
    "mode": "inference", "model_type": "xlstm", "norm_eps": 1e-06, "norm_reduction_force_float32": True,
    "num_blocks": 32, "num_heads": 8, "num_hidden_layers": 32, "output_logit_soft_cap": 30.0, "pad_token_id": 1,
    "qk_dim_factor": 0.5, "return_last_states": True, "sequence_kernel": "native_sequence__native",
    "step_kernel": "native", "tie_word_embeddings": False, "torch_dtype": "float32", "use_bias": False,
    "use_cache": True, "v_dim_factor": 1.0, "vocab_size": 50304, "weight_mode": "single",
}  # fmt: skip
PUBLISHED = {
    "mamba2-130m": (MAMBA2_130M, 128_989_632),
    "mamba2-2.7b": (MAMBA2_2_7B, 2_702_599_680),
    "codestral-7b": (CODESTRAL, 7_285_403_648),
    "xlstm-7b": (XLSTM_7B, 6_865_424_896),
}
PARAMETERS_9B = 8_953_803_264
EACH = pytest.mark.parametrize("name", PUBLISHED)


@EACH
def test_a_published_config_is_read_counted_and_written(name):
    config, parameters = PUBLISHED[name]
    family = get_family(config["model_type"])
    ours = family.from_hf(config)
    assert counts.parameters(ours) == counts.built(ours).num_parameters() == parameters
    assert family.from_hf(family.to_hf(ours)) == ours
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    for source in (config, family.to_hf(ours)):
        with torch.device("meta"):
            theirs = getattr(transformers, config["architectures"][0])(kind.from_dict(source))
        tied = theirs.config.tie_word_embeddings
        assert sum(p.numel() for p in theirs.parameters()) == parameters + (0 if not tied else _untied(theirs))


def test_qwen_3_5_of_the_default_size_alone_and_within_a_model_of_images():
    """The class of transformers has the sizes of the 9B model; the model of images has its config.json as one key."""
    text = transformers.Qwen3_5TextConfig().to_dict()
    ours = get_family("qwen3_5_text").from_hf(text)
    assert ours.layer_types == ("gated_delta", "gated_delta", "gated_delta", "full") * 8 and ours.rotary_dim == 64
    with torch.device("meta"):
        theirs = transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig())
    assert counts.parameters(ours) == sum(parameter.numel() for parameter in theirs.parameters()) == PARAMETERS_9B
    whole = {"model_type": "qwen3_5", "text_config": text, "architectures": ["Qwen3_5ForConditionalGeneration"]}
    assert get_family("qwen3_5").from_hf(whole).layer_types == ours.layer_types
    assert state_bytes(ours) == 24 * 4 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))


def _untied(model):
    """Elements of a head that transformers ties only once weights are loaded."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return 0 if head is embedding else head.numel()


def test_the_state_of_a_text_is_small():
    """Mamba 2 130M: 24 layers of 24 heads with 64 x 128 numbers, and 3 inputs of a convolution of 1,792 channels."""
    ours = get_family("mamba2").from_hf(MAMBA2_130M)
    assert state_bytes(ours) == 4 * 24 * (24 * 64 * 128 + 3 * 1792)
    assert counts.kv_cache_bytes(ours, 10) == counts.kv_cache_bytes(ours, 1_000_000) == state_bytes(ours)
