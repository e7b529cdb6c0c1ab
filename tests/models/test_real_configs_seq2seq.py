"""The config.json files of published encoder-decoders: read with all old keys, of the published size, written back."""

import json

import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.transformer.stack import Model

transformers = pytest.importorskip("transformers")

TASKS = {"summarization": {"early_stopping": True, "length_penalty": 2.0, "max_length": 200, "num_beams": 4}}
LABELS = {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
          "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}}  # fmt: skip

T5 = {
    "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0,
    "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0, "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8, "num_layers": 6,
    "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32, "task_specific_params": TASKS,
    "vocab_size": 32128,
}  # fmt: skip
FLAN = T5 | {
    "architectures": ["T5ForConditionalGeneration"], "d_model": 768, "feed_forward_proj": "gated-gelu",
    "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12, "relative_attention_max_distance": 128,
    "tie_word_embeddings": False, "transformers_version": "4.23.1", "use_cache": True,
}  # fmt: skip
MT5 = {
    "_name_or_path": "mt5-small", "architectures": ["MT5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64,
    "d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06, "model_type": "mt5", "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8,
    "pad_token_id": 0, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer", "transformers_version": "4.10.0.dev0", "use_cache": True, "vocab_size": 250112,
}  # fmt: skip
BART = {
    "activation_dropout": 0.1, "activation_function": "gelu", "add_bias_logits": False, "add_final_layer_norm": False,
    "architectures": ["BartModel"], "attention_dropout": 0.1, "bos_token_id": 0, "classif_dropout": 0.1,
    "classifier_dropout": 0.0, "d_model": 768, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072,
    "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 2, "dropout": 0.1, "early_stopping": True,
    "encoder_attention_heads": 12, "encoder_ffn_dim": 3072, "encoder_layerdrop": 0.0, "encoder_layers": 6,
    "eos_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "gradient_checkpointing": False,
    "init_std": 0.02, "is_encoder_decoder": True, "max_position_embeddings": 1024, "model_type": "bart",
    "no_repeat_ngram_size": 3, "normalize_before": False, "normalize_embedding": True, "num_beams": 4,
    "num_hidden_layers": 6, "pad_token_id": 1, "scale_embedding": False, "task_specific_params": TASKS,
    "torch_dtype": "float32", "transformers_version": "4.12.0.dev0", "use_cache": True, "vocab_size": 50265, **LABELS,
}  # fmt: skip
BART_LARGE = BART | {
    "d_model": 1024, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096, "decoder_layers": 12,
    "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layers": 12, "num_hidden_layers": 12,
}  # fmt: skip
BART_CNN = BART_LARGE | {
    "_num_labels": 3, "architectures": ["BartForConditionalGeneration"], "force_bos_token_to_be_generated": True,
    "length_penalty": 2.0, "max_length": 142, "min_length": 56, "output_past": True, "prefix": " ",
    "vocab_size": 50264,
}  # fmt: skip
BART_MNLI = BART_LARGE | {
    "_num_labels": 3, "architectures": ["BartForSequenceClassification"], "activation_dropout": 0.0,
    "id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"},
    "label2id": {"contradiction": 0, "entailment": 2, "neutral": 1}, "output_past": False,
}  # fmt: skip
MARIAN = {
    "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish", "add_bias_logits": False,
    "add_final_layer_norm": False, "architectures": ["MarianMTModel"], "attention_dropout": 0.0,
    "bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 512,
    "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6,
    "decoder_start_token_id": 58100, "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0, "forced_eos_token_id": 0,
    "init_std": 0.02, "is_encoder_decoder": True, "max_length": 512, "max_position_embeddings": 512,
    "model_type": "marian", "normalize_before": False, "normalize_embedding": False, "num_beams": 6,
    "num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": True, "share_encoder_decoder_embeddings": True,
    "static_position_embeddings": True, "transformers_version": "4.22.0.dev0", "use_cache": True, "vocab_size": 58101,
    **LABELS,
}  # fmt: skip

PUBLISHED = {
    "t5-small": (T5, 60_506_624),
    "t5-base": (T5 | {"d_ff": 3072, "d_model": 768, "num_heads": 12, "num_layers": 12}, 222_903_552),
    "t5-large": (T5 | {"d_ff": 4096, "d_model": 1024, "num_heads": 16, "num_layers": 24}, 737_668_096),
    "t5-3b": (T5 | {"d_ff": 16384, "d_kv": 128, "d_model": 1024, "num_heads": 32, "num_layers": 24}, 2_851_598_336),
    "t5-11b": (T5 | {"d_ff": 65536, "d_kv": 128, "d_model": 1024, "num_heads": 128, "num_layers": 24}, 11_307_321_344),
    "flan-t5-small": (
        FLAN | {"d_ff": 1024, "d_model": 512, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8},
        76_961_152,
    ),
    "flan-t5-base": (FLAN, 247_577_856),
    "flan-t5-large": (
        FLAN | {"d_ff": 2816, "d_model": 1024, "num_heads": 16, "num_layers": 24, "num_decoder_layers": 24},
        783_150_080,
    ),
    "flan-t5-xl": (
        FLAN | {"d_ff": 5120, "d_model": 2048, "num_heads": 32, "num_layers": 24, "num_decoder_layers": 24},
        2_849_757_184,
    ),
    "flan-t5-xxl": (
        FLAN | {"d_ff": 10240, "d_model": 4096, "num_heads": 64, "num_layers": 24, "num_decoder_layers": 24},
        11_135_332_352,
    ),
    "mt5-small": (MT5, 300_176_768),
    "mt5-base": (
        MT5 | {"d_ff": 2048, "d_model": 768, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12},
        582_401_280,
    ),
    "bart-base": (BART, 139_420_416),
    "bart-large": (BART_LARGE, 406_291_456),
    "bart-large-cnn": (BART_CNN, 406_290_432),
    "bart-large-mnli": (BART_MNLI, None),
    "opus-mt-en-de": (MARIAN, None),
}
EVERY = pytest.mark.parametrize(("raw", "published"), PUBLISHED.values(), ids=PUBLISHED)


def read(raw):
    return get_family(raw["model_type"]).from_hf(raw)


def theirs(raw, folder):
    """The model of transformers on the meta device, its config.json read from a file."""
    (folder / "config.json").write_text(json.dumps(raw))
    config = transformers.AutoConfig.from_pretrained(folder)
    name = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}.get(*raw["architectures"] * 2)
    with torch.device("meta"):
        return getattr(transformers, name)(config)


@EVERY
def test_parameters_as_published_and_in_transformers(raw, published, tmp_path):
    config = read(raw)
    with torch.device("meta"):
        ours = Model(config).num_parameters()
    assert published is None or ours == published
    reference = theirs(raw, tmp_path)
    tables = sum(p.numel() for name, p in reference.named_parameters() if not p.requires_grad)
    assert tables == (2 * 512 * 512 if raw["model_type"] == "marian" else 0)  # the computed positions
    own_head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size  # always tied there
    assert ours == reference.num_parameters() - tables + own_head


@EVERY
def test_back_and_forth(raw, published, tmp_path):
    config = read(raw)
    written = get_family(config.family).to_hf(config)
    again = read(json.loads(json.dumps(written)))
    assert again == config
    ours = transformers.AutoConfig.for_model(**written)
    reference = theirs(raw, tmp_path).config
    moved = {"task_specific_params", "transformers_version", "architectures", "dtype", "_num_labels",
             "num_hidden_layers", "is_gated_act", "dense_act_fn", "output_past", "n_positions",
             "force_bos_token_to_be_generated",
             "max_length", "num_beams", "early_stopping", "no_repeat_ngram_size", "min_length", "length_penalty",
             "bad_words_ids", "forced_bos_token_id", "use_cache", "name_or_path", "_name_or_path", "problem_type",
             "gradient_checkpointing", "id2label", "label2id"}  # fmt: skip
    expected = {key: value for key, value in reference.to_dict().items() if key not in moved}
    found = ours.to_dict()
    assert {key: found.get(key) for key in expected} == expected
    if "SequenceClassification" in raw["architectures"][0]:
        assert ours.id2label == reference.id2label


def test_what_the_families_are():
    t5, flan, mt5 = read(T5), read(FLAN), read(MT5)
    assert t5.tie_word_embeddings and t5.logit_scale == 512**-0.5 and t5.activation == "relu"
    assert not flan.tie_word_embeddings and flan.logit_scale == 1.0 and flan.activation == "gelu_tanh"
    assert not mt5.tie_word_embeddings and mt5.logit_scale == 1.0 and mt5.feed_forward == "gated"
    tied = read(MT5 | {"tie_word_embeddings": True})
    assert tied.tie_word_embeddings and tied.logit_scale == 1.0
    # newer transformers says that every T5 is tied, and by a name of its own whether it scales
    newer = read(FLAN | {"tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert newer.tie_word_embeddings and newer.logit_scale == 1.0
    bart, marian = read(BART), read(MARIAN)
    assert (bart.position, bart.position_offset, bart.embedding_norm, bart.embedding_scale) == ("learned", 2, True, 1.0)
    assert (marian.position, marian.embedding_norm, marian.embedding_scale) == ("sinusoidal", False, 512**0.5)
    assert (marian.decoder_start_token_id, marian.pad_token_id, marian.activation) == (58100, 58100, "silu")
    assert bart.extra["forced_bos_token_id"] == 0 and marian.extra["bad_words_ids"] == [[58100]]
    assert read(BART_MNLI).labels == ("contradiction", "neutral", "entailment")


REFUSED = {
    "own vocabularies, one embedding": (MARIAN | {"decoder_vocab_size": 600}, "share_encoder_decoder_embeddings"),
    "learned positions of Marian": (MARIAN | {"static_position_embeddings": False}, "static_position_embeddings"),
    "norms before": (BART | {"normalize_before": True}, "normalize_before"),
    "a norm behind all": (BART | {"add_final_layer_norm": True}, "add_final_layer_norm"),
    "no norm of the embedding": (BART | {"normalize_embedding": False}, "normalize_embedding"),
    "a decoder alone": (BART | {"is_encoder_decoder": False}, "is_encoder_decoder"),
    "two depths": (BART | {"num_hidden_layers": 7}, "num_hidden_layers: 7; must be encoder_layers = 6"),
    "heads that do not divide": (BART | {"encoder_attention_heads": 7}, "encoder_attention_heads"),
    "an unknown option": (BART | {"use_rotary": True}, "use_rotary"),
    "an unknown activation": (BART | {"activation_function": "mish"}, "activation_function"),
    "a gate unknown": (FLAN | {"feed_forward_proj": "swiglu-gelu"}, "feed_forward_proj"),
    "two activations": (FLAN | {"dense_act_fn": "relu"}, "dense_act_fn: 'relu'; must be 'gelu_new'"),
    "gated and not": (FLAN | {"is_gated_act": False}, "is_gated_act"),
    "no width": ({key: value for key, value in T5.items() if key != "d_model"}, "d_model: missing"),
    "a width in words": (T5 | {"d_model": "wide"}, 'd_model: "wide"'),
    "a width of BART in words": (BART | {"d_model": "wide"}, "d_model"),
    "a start in words": (BART | {"decoder_start_token_id": "</s>"}, 'decoder_start_token_id: "</s>"'),
    "a start past the vocabulary": (MARIAN | {"decoder_start_token_id": 58101}, "decoder_start_token_id: 58101"),
    "no layers": (T5 | {"num_decoder_layers": 0}, "num_decoder_layers: 0"),
    "a head unknown": (T5 | {"architectures": ["T5ForPoems"]}, "T5ForPoems"),
    "a T5 decoder": (T5 | {"is_decoder": True}, "is_decoder"),
}


@pytest.mark.parametrize(("raw", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_told(raw, told):
    with pytest.raises(InputError) as caught:
        read(raw)
    assert told in str(caught.value)


def test_all_problems_at_once():
    raw = BART | {"normalize_before": True, "use_rotary": True}
    del raw["vocab_size"], raw["encoder_layers"]
    with pytest.raises(InputError) as caught:
        read(raw)
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == [
        "encoder_layers",
        "normalize_before",
        "use_rotary",
        "vocab_size",
    ]
