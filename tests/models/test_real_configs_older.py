"""The config.json files of GPT-2, OPT, BLOOM, Pythia and Phi as the hub has them: read, counted, written; old files."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "n_special": 0, "predict_special_tokens": True, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
DISTILGPT2 = GPT2 | {
    "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "n_layer": 6, "output_past": True,
}  # fmt: skip
MISTRAL_GPT2 = GPT2 | {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "n_inner": None,
                       "scale_attn_weights": True, "use_cache": False}  # fmt: skip
OPT = {
    "_name_or_path": "opt-125m", "activation_dropout": 0.0, "activation_function": "relu",
    "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": True,
    "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0,
    "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12,
    "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.21.0.dev0",
    "use_cache": True, "vocab_size": 50272, "word_embed_proj_dim": 768,
}  # fmt: skip
BLOOM = {
    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0,
    "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True,
    "model_type": "bloom", "n_embed": 1024, "n_inner": None, "n_layer": 24, "num_attention_heads": 16,
    "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": True, "skip_bias_add_qkv": False,
    "transformers_version": "4.20.0", "use_cache": True, "vocab_size": 250880, "architectures": ["BloomForCausalLM"],
}  # fmt: skip
BLOOM_176B = {
    "apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_dropout": 0.0, "hidden_size": 14336, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True, "model_type": "bloom", "n_head": 112, "n_inner": None, "n_layer": 70,
    "num_attention_heads": 112, "pad_token_id": 3, "pretraining_tp": 4, "slow_but_exact": False, "unk_token_id": 0,
    "torch_dtype": "bfloat16", "transformers_version": "4.21.0", "use_cache": True, "vocab_size": 250880,
}  # fmt: skip
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
NEOX_20B = PYTHIA | {
    "attention_probs_dropout_prob": 0, "hidden_act": "gelu_fast", "hidden_dropout_prob": 0, "hidden_size": 6144,
    "intermediate_size": 24576, "num_attention_heads": 64, "num_hidden_layers": 44, "vocab_size": 50432,
}  # fmt: skip
PHI2 = {
    "_name_or_path": "microsoft/phi-2", "architectures": ["PhiForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi.PhiConfig", "AutoModelForCausalLM": "modeling_phi.PhiForCausalLM"},
    "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256, "hidden_act": "gelu_new", "hidden_size": 2560,
    "initializer_range": 0.02, "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "model_type": "phi", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4, "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.37.0",
    "use_cache": True, "vocab_size": 51200,
}  # fmt: skip


def _gpt2(width, depth, heads):
    return GPT2 | {"n_embd": width, "n_layer": depth, "n_head": heads}


def _opt(width, depth, heads, **more):
    sizes = {"hidden_size": width, "ffn_dim": 4 * width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return OPT | {"word_embed_proj_dim": width, "_remove_final_layer_norm": False} | sizes | more


def _bloom(width, depth, heads):
    return BLOOM | {"n_embed": width, "n_layer": depth, "num_attention_heads": heads}


def _pythia(width, depth, heads, vocabulary=50304):
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": vocabulary}
    return PYTHIA | sizes | {"num_hidden_layers": depth, "num_attention_heads": heads}


REAL = {
    "gpt2": (GPT2, 124_439_808),
    "gpt2-medium": (_gpt2(1024, 24, 16), 354_823_168),
    "gpt2-large": (_gpt2(1280, 36, 20), 774_030_080),
    "gpt2-xl": (_gpt2(1600, 48, 25) | {"output_past": True}, 1_557_611_200),
    "distilgpt2": (DISTILGPT2, 81_912_576),
    "gpt2 of the mistral project": (MISTRAL_GPT2, 124_439_808),
    "opt-125m": (OPT, 125_239_296),
    "opt-350m": (_opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False), 331_196_416),
    "opt-1.3b": (_opt(2048, 24, 32), 1_315_758_080),
    "opt-6.7b": (_opt(4096, 32, 32), 6_658_473_984),
    "opt-30b": (_opt(7168, 48, 56), 29_974_540_288),
    "bloom-560m": (BLOOM, 559_214_592),
    "bloom-1b1": (_bloom(1536, 24, 16), 1_065_314_304),
    "bloom-1b7": (_bloom(2048, 24, 16), 1_722_408_960),
    "bloom-3b": (_bloom(2560, 30, 32), 3_002_557_440),
    "bloom-7b1": (_bloom(4096, 30, 32), 7_069_016_064),
    "bloom": (BLOOM_176B, 176_247_271_424),
    "pythia-70m": (PYTHIA, 70_426_624),
    "pythia-160m": (_pythia(768, 12, 12), 162_322_944),
    "pythia-410m": (_pythia(1024, 24, 16), 405_334_016),
    "pythia-1b": (_pythia(2048, 16, 8), 1_011_781_632),
    "pythia-1.4b": (_pythia(2048, 24, 16), 1_414_647_808),
    "pythia-2.8b": (_pythia(2560, 32, 32), 2_775_208_960),
    "pythia-6.9b": (_pythia(4096, 32, 32, 50432), 6_857_302_016),
    "pythia-12b": (_pythia(5120, 36, 40, 50688), 11_846_072_320),
    "gpt-neox-20b": (NEOX_20B, 20_554_567_680),
    "phi-1.5": (PHI2 | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
                        "num_key_value_heads": None, "partial_rotary_factor": 0.5}, 1_418_270_720),
    "phi-2": (PHI2, 2_779_683_840),
}  # fmt: skip
"""config.json files of the hub, and how many parameters their models have."""

EVERY = pytest.mark.parametrize("name", REAL)


def their_config(config):
    return transformers.CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))


@EVERY
def test_parameters_as_published(name):
    config, published = REAL[name]
    with torch.device("meta"):
        assert Model(get_family(config["model_type"]).from_hf(config)).num_parameters() == published
        reference = getattr(transformers, config["architectures"][0])(their_config(config))
    assert reference.num_parameters() == published


@EVERY
def test_written_as_it_was_read(name):
    config = REAL[name][0]
    kind = get_family(config["model_type"])
    ours = kind.from_hf(config)
    written = json.loads(json.dumps(kind.to_hf(ours)))
    assert kind.from_hf(written) == ours
    expected, found = their_config(config).to_dict(), their_config(written).to_dict()
    # what generation and labels had in old files, and names that transformers translates on reading
    for key in ("_name_or_path", "auto_map", "dtype", "prefix", "use_cache", "task_specific_params", "unk_token_id",
                "id2label", "label2id", "n_special", "output_past", "n_inner", "n_ctx", "seq_length", "_num_labels",
                "transformers_version", "problem_type", "initializer_range"):  # fmt: skip
        expected.pop(key, None), found.pop(key, None)
    changed = {key: (value, found.get(key)) for key, value in expected.items() if found.get(key) != value}
    assert not changed


def test_what_the_old_keys_mean():
    read = {name: get_family(config["model_type"]).from_hf(config) for name, (config, _) in REAL.items()}
    narrow = read["opt-350m"]
    assert (narrow.norm_position, narrow.embedding_size, narrow.position_offset) == ("post", 512, 2)
    assert (read["phi-2"].rotary_dim, read["phi-1.5"].rotary_dim, read["pythia-2.8b"].rotary_dim) == (32, 32, 20)
    assert read["bloom-560m"].max_position_embeddings == 2048
    assert read["gpt2 of the mistral project"].attention_scale_by_layer == "inverse"


WRONG = {
    "gpt2 of two lengths": (GPT2 | {"n_ctx": 512}, ["n_ctx"]),
    "gpt2 without sizes": ({key: GPT2[key] for key in GPT2 if key not in ("n_embd", "n_head")}, ["n_embd", "n_head"]),
    "gpt2 of another activation": (GPT2 | {"activation_function": "swiglu"}, ["activation_function"]),
    "gpt2 pruned": (GPT2 | {"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
    "choices by their first token": (
        GPT2 | {"architectures": ["GPT2DoubleHeadsModel"], "summary_type": "first", "summary_activation": "tanh"},
        ["summary_type", "summary_activation"],
    ),
    "bloom with other residuals": (
        BLOOM | {"apply_residual_connection_post_layernorm": True},
        ["apply_residual_connection_post_layernorm"],
    ),
    "bloom of two widths": (BLOOM | {"hidden_size": 2048}, ["hidden_size 2048 and n_embed 1024"]),
    "bloom in slices": (BLOOM | {"slow_but_exact": True, "pretraining_tp": 4}, ["slow_but_exact"]),
    "bloom of another inner width": (BLOOM | {"n_inner": 5}, ["n_inner"]),
    "bloom without sizes": (
        {key: BLOOM[key] for key in BLOOM if key not in ("n_embed", "n_layer")},
        ["hidden_size or n_embed", "n_layer or num_hidden_layers"],
    ),
    "opt with computed positions": (OPT | {"learned_embeddings": False}, ["learned_embeddings"]),
    "opt without an inner width": ({key: OPT[key] for key in OPT if key != "ffn_dim"}, ["ffn_dim"]),
    "heads that do not divide": (OPT | {"num_key_value_heads": 5}, ["num_key_value_heads"]),
    "an unknown option of pythia": (PYTHIA | {"use_sliding_window": True}, ["use_sliding_window"]),
    "an odd part turns": (PYTHIA | {"rotary_pct": 0.27}, ["rotary_dim"]),
    "phi of three heads for two": (PHI2 | {"num_key_value_heads": 3}, ["num_key_value_heads"]),
}
"""Files that cannot be read, and how the problems begin that they are told by."""


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_told_by_name(name):
    config, begins = WRONG[name]
    with pytest.raises(InputError) as caught:
        get_family(config["model_type"]).from_hf(config)
    problems = sorted(caught.value.problems)
    assert len(problems) == len(begins)
    assert all(problem.startswith(begin) for problem, begin in zip(problems, sorted(begins), strict=True))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (PHI2 | {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        (PHI2 | {"partial_rotary_factor": "half"}, "partial_rotary_factor"),
        (PHI2 | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "two different partial"),
        (PYTHIA | {"partial_rotary_factor": 0.5}, "rotary_pct and partial_rotary_factor"),
        (PYTHIA | {"rope_theta": 5000}, "rotary_emb_base and rope_theta"),
        (PHI2 | {"num_attention_heads": 0}, "num_attention_heads"),
        (PHI2 | {"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_contradictory_positions_are_told(config, word):
    with pytest.raises(InputError, match=word):
        get_family(config["model_type"]).from_hf(config)


def test_later_keys_of_gpt_neox_that_repeat_the_old_ones():
    kind = get_family("gpt_neox")
    assert kind.from_hf(PYTHIA | {"partial_rotary_factor": 0.25, "rope_theta": 10000}) == kind.from_hf(PYTHIA)
    new = {key: PYTHIA[key] for key in PYTHIA if key not in ("rotary_pct", "rotary_emb_base")}
    rope = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25}
    assert kind.from_hf(new | {"rope_parameters": rope}) == kind.from_hf(PYTHIA)
    assert kind.from_hf(new).rotary_dim == 16


TINY = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "n_ctx": 24, "vocab_size": 61},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 40, "vocab_size": 61,
            "word_embed_proj_dim": 32, "max_position_embeddings": 24},
    "bloom": {"n_embed": 32, "n_layer": 2, "num_attention_heads": 4, "vocab_size": 61},
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
                 "vocab_size": 61, "max_position_embeddings": 24, "rotary_pct": 0.5},
}  # fmt: skip
PREFIXES = {"gpt2": "transformer.", "opt": "model.", "bloom": "transformer.", "gpt_neox": "gpt_neox."}


def _leftovers(kind):
    """Tensors that old files have besides the weights."""
    causal, minus = torch.ones(1, 1, 24, 24), torch.tensor(-1e4)
    if kind == "gpt2":
        return {"h.0.attn.bias": causal, "h.1.attn.masked_bias": minus}
    if kind == "gpt_neox":
        body = "gpt_neox.layers.0.attention"
        return {f"{body}.bias": causal, f"{body}.masked_bias": minus, f"{body}.rotary_emb.inv_freq": torch.ones(2)}
    return {"decoder.version": torch.ones(1)} if kind == "opt" else {}


@pytest.mark.parametrize("kind", TINY)
def test_old_files(kind, tmp_path):
    """As the hub has them: without the body's prefix (but for GPT-NeoX, whose files have it), with buffers of old."""
    base = {"gpt2": GPT2, "opt": OPT, "bloom": BLOOM, "gpt_neox": PYTHIA}[kind] | TINY[kind]
    base |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    reference = getattr(transformers, base["architectures"][0])(their_config(base)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    reference.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(base))
    tensors = load_file(tmp_path / model_folder.WEIGHTS)
    if kind == "gpt_neox":
        written = "embed_out.weight" if "embed_out.weight" in tensors else "lm_head.weight"
        tensors["embed_out.weight"] = tensors.pop(written)
    else:
        tensors = {name.removeprefix(PREFIXES[kind]): tensor for name, tensor in tensors.items()}
    save_file(tensors | _leftovers(kind), tmp_path / model_folder.WEIGHTS)
    model, ids = model_folder.load(tmp_path), torch.randint(3, 61, (2, 17))
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], reference(ids).logits, atol=1e-5, rtol=1e-5)
    save_file(tensors | {"h.0.attn.scale": torch.ones(1)}, tmp_path / model_folder.WEIGHTS)
    with pytest.raises(InputError, match=r"h\.0\.attn\.scale: unexpected"):
        model_folder.load(tmp_path)


def test_gpt2_scores_choices(tmp_path):
    """The head of multiple choices that GPT-2 has beside its vocabulary: a score of each choice's last token."""
    tiny = {key: value for key, value in TINY["gpt2"].items() if key != "n_ctx"}
    torch.manual_seed(0)
    reference = transformers.GPT2DoubleHeadsModel(transformers.GPT2Config(**tiny, pad_token_id=0)).eval()
    reference.save_pretrained(tmp_path / "theirs")
    model = model_folder.load(tmp_path / "theirs")
    assert model.config.head == "multiple_choice" and model.newly_initialized == []
    ids, mask = torch.randint(3, 61, (3, 2, 15)), torch.ones(3, 2, 15, dtype=torch.long)
    mask[1, :, 11:] = 0
    ids, ends = ids.masked_fill(mask == 0, 0), mask.sum(-1) - 1
    expected = reference(ids, attention_mask=mask, mc_token_ids=ends, mc_labels=torch.tensor([0, 1, 0]))
    logits, losses = model(ids, torch.tensor([0, 1, 0]), segments=mask)
    torch.testing.assert_close(logits, expected.mc_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.mean(), expected.mc_loss, atol=1e-5, rtol=1e-5)
    model_folder.save(model, tmp_path / "ours")
    back, info = transformers.GPT2DoubleHeadsModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    returned = back.state_dict()
    assert all(torch.equal(tensor, returned[name]) for name, tensor in reference.state_dict().items())
    flat = ids.flatten(0, 1)
    expected = reference(ids).logits.flatten(0, 1)
    mine = model_folder.load(tmp_path / "theirs", head="causal")(flat)[0]
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
