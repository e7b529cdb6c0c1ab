"""The config.json files of published encoders: read as they are, counted as transformers and their papers do."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.models.families import families, get_family
from quatrain.models.transformer.stack import Model

BERT = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}  # fmt: skip
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
MULTILINGUAL = BERT | {
    "vocab_size": 119547, "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
}  # fmt: skip
NAMES = MULTILINGUAL | {
    "architectures": ["BertForTokenClassification"], "vocab_size": 28996, "_num_labels": 9, "output_past": True,
    "id2label": {"0": "O", "1": "B-MISC", "2": "I-MISC", "3": "B-PER", "4": "I-PER", "5": "B-ORG", "6": "I-ORG",
                 "7": "B-LOC", "8": "I-LOC"},
    "label2id": {"B-LOC": 7, "B-MISC": 1, "B-ORG": 5, "B-PER": 3, "I-LOC": 8, "I-MISC": 2, "I-ORG": 6, "I-PER": 4,
                 "O": 0},
}  # fmt: skip
MINILM = BERT | {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"], "hidden_size": 384,
    "intermediate_size": 1536, "num_hidden_layers": 6, "transformers_version": "4.8.2",
}  # fmt: skip
CROSS_ENCODER = MINILM | {
    "architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
    "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity", "classifier_dropout": None,
}  # fmt: skip
ROBERTA = {
    "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
}  # fmt: skip
SQUAD = ROBERTA | {"architectures": ["RobertaForQuestionAnswering"], "language": "english", "name": "Roberta"}
XLM = ROBERTA | {
    "architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta", "output_past": True, "vocab_size": 250002,
}  # fmt: skip
CAMEMBERT = ROBERTA | {
    "architectures": ["CamembertForMaskedLM"], "bos_token_id": 5, "eos_token_id": 6, "model_type": "camembert",
    "output_past": True, "vocab_size": 32005,
}  # fmt: skip
MULTILINGUAL_E5 = MINILM | {"num_hidden_layers": 12, "vocab_size": 250037, "tokenizer_class": "XLMRobertaTokenizer"}
DISTILBERT = {
    "activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
    "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
    "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True,
    "transformers_version": "4.10.0.dev0", "vocab_size": 30522,
}  # fmt: skip
SST2 = DISTILBERT | {
    "architectures": ["DistilBertForSequenceClassification"], "finetuning_task": "sst-2", "output_past": True,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
}  # fmt: skip
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
    "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
    "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
    "gradient_checkpointing": False, "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05, "local_attention": 128,
    "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0,
    "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12,
    "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute", "sep_token_id": 50282,
    "tie_word_embeddings": True, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "vocab_size": 50368,
}  # fmt: skip
MODERNBERT_LARGE = MODERNBERT | {
    "hidden_size": 1024, "intermediate_size": 2624, "num_attention_heads": 16, "num_hidden_layers": 28,
}  # fmt: skip


def of(config, architecture):
    return config | {"architectures": [architecture]}


PUBLISHED = {
    "bert-base-uncased": (BERT, 109_514_298),
    "bert-base-uncased body": (of(BERT, "BertModel"), 109_482_240),
    "bert-base-uncased pretraining": (of(BERT, "BertForPreTraining"), 110_106_428),
    "bert-large-uncased": (BERT | LARGE, 335_174_458),
    "bert-large-uncased body": (of(BERT | LARGE, "BertModel"), 335_141_888),
    "bert-base-multilingual-cased body": (of(MULTILINGUAL, "BertModel"), 177_853_440),
    "bert-base-NER": (NAMES, 107_726_601),
    "all-MiniLM-L6-v2": (MINILM, 22_713_216),
    "ms-marco-MiniLM-L6-v2": (CROSS_ENCODER, 22_713_601),
    "roberta-base": (ROBERTA, 124_697_433),
    "roberta-base body": (of(ROBERTA, "RobertaModel"), 124_645_632),
    "xlm-roberta-base": (XLM, 278_295_186),
    "multilingual-e5-small": (MULTILINGUAL_E5, 117_653_760),
    "camembert-base": (CAMEMBERT, 110_655_493),
    "roberta-base-squad2": (SQUAD, 124_056_578),
    "roberta-large": (ROBERTA | LARGE, 355_412_057),
    "roberta-large body": (of(ROBERTA | LARGE, "RobertaModel"), 355_359_744),
    "distilbert-base-uncased": (DISTILBERT, 66_985_530),
    "distilbert-base-uncased body": (of(DISTILBERT, "DistilBertModel"), 66_362_880),
    "distilbert-sst2": (SST2, 66_955_010),
    "ModernBERT-base": (MODERNBERT, 149_655_232),
    "ModernBERT-base body": (of(MODERNBERT, "ModernBertModel"), 149_014_272),
    "ModernBERT-large": (MODERNBERT_LARGE, 395_881_664),
}


@pytest.mark.parametrize(("config", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_without_weights(config, count):
    ours = get_family(config["model_type"]).from_hf(config)
    with torch.device("meta"):
        model = Model(ours)
        theirs = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(**config))
    assert model.num_parameters() == theirs.num_parameters() == count


@pytest.mark.parametrize("config", [config for config, _ in PUBLISHED.values()], ids=PUBLISHED)
def test_written_and_read_again(config):
    kind = get_family(config["model_type"])
    ours = kind.from_hf(config)
    written = json.loads(json.dumps(kind.to_hf(ours)))
    assert kind.from_hf(written) == ours
    theirs, again = (transformers.AutoConfig.for_model(**each).to_dict() for each in (config, written))
    for key in theirs.keys() - {"architectures", "dtype", "transformers_version", "problem_type", "_name_or_path"}:
        if key in again and key not in ("gradient_checkpointing", "output_past", "finetuning_task"):
            assert again[key] == theirs[key], key


@st.composite
def shapes(draw):
    """A random encoder: a config.json that transformers could have written, with a class of it."""
    name = draw(st.sampled_from(["bert", "roberta", "distilbert", "modernbert"]))
    heads, layers, width = draw(st.integers(1, 4)), draw(st.integers(1, 5)), 2 * draw(st.integers(1, 5))
    keys = ("dim", "hidden_dim", "n_layers", "n_heads") if name == "distilbert" else (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")  # fmt: skip
    config = dict(zip(keys, (heads * width, draw(st.integers(1, 40)), layers, heads), strict=True))
    config |= {"model_type": name, "vocab_size": draw(st.integers(10, 80)), "pad_token_id": draw(st.integers(0, 3)),
               "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": draw(st.integers(8, 60))}  # fmt: skip
    if name in ("bert", "roberta"):
        config |= {"type_vocab_size": draw(st.integers(1, 3)), "hidden_act": draw(st.sampled_from(["gelu", "relu"]))}
    if name == "modernbert":
        flags = ("norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias", "tie_word_embeddings")
        config |= {flag: draw(st.booleans()) for flag in flags} | {"cls_token_id": 1, "sep_token_id": 2}
        config |= {"global_attn_every_n_layers": draw(st.integers(1, 4)), "local_attention": draw(st.integers(2, 20))}
    config["id2label"] = {number: str(number) for number in range(draw(st.integers(1, 4)))}
    heads_of = [head.architecture for head in families()[name].heads.values()]
    config["architectures"] = [draw(st.sampled_from(heads_of))]
    if config["architectures"][0].endswith("QuestionAnswering"):
        config["id2label"] = {0: "a", 1: "b"}
    if config["architectures"][0].endswith(("LMHeadModel", "ForCausalLM")):
        config["is_decoder"] = True
    return config


@given(shapes())
@settings(max_examples=80, deadline=None)
def test_random_encoders_count_right_and_come_back(config):
    kind = get_family(config["model_type"])
    ours = kind.from_hf(config)
    assert kind.from_hf(json.loads(json.dumps(kind.to_hf(ours)))) == ours
    with torch.device("meta"):
        theirs = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(**config))
        model = Model(ours)
    assert model.num_parameters() == theirs.num_parameters()
    targets = [name for operation in kind.weights(ours) for name in operation.targets]
    assert {name for name, _ in model.named_parameters()} <= set(targets)


def test_both_layouts_of_modernbert_say_the_same():
    kind = get_family("modernbert")
    old = kind.from_hf(MODERNBERT)
    assert (old.rope_theta, old.local_rope_theta, old.sliding_window) == (160_000.0, 10_000.0, 128)
    assert old.layer_types[:5] == ("full", "sliding", "sliding", "full", "sliding") and len(old.layer_types) == 22
    new = transformers.AutoConfig.for_model(**MODERNBERT).to_dict()
    assert "layer_types" in new and "rope_parameters" in new
    new = {key: value for key, value in new.items() if not key.startswith(("global_", "local_rope"))}
    assert kind.from_hf(new) == old
    assert kind.from_hf(MODERNBERT | {"local_rope_theta": None}).local_rope_theta == 160_000.0


REFUSED = {
    "relative positions": (BERT, {"position_embedding_type": "relative_key"}, ["position_embedding_type"]),
    "cross-attention in an encoder": (ROBERTA, {"add_cross_attention": True}, ["cross_attention"]),
    "a causal head that sees what it predicts": (of(ROBERTA, "RobertaForCausalLM"), {}, ["is_decoder"]),
    "an unknown activation": (DISTILBERT, {"activation": "mish"}, ["activation"]),
    "a table without a row for text": (ROBERTA, {"max_position_embeddings": 2}, ["max_position_embeddings"]),
    "several at once": (MODERNBERT, {"classifier_pooling": "max", "layer_types": ["full_attention", "chunked"]},
                        ["classifier_pooling", "layer_types"]),
    "layers of another number": (MODERNBERT, {"layer_types": ["full_attention"]}, ["layer_types"]),
    "scaled local layers": (
        MODERNBERT, {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        ["rope_parameters"],
    ),
    "no sizes": (BERT, {"hidden_size": None, "num_hidden_layers": None}, ["hidden_size", "num_hidden_layers"]),
    "sizes that do not fit": (DISTILBERT, {"n_heads": 7}, ["num_attention_heads"]),
    "what is new": (DISTILBERT, {"gated": True}, ["gated"]),
}  # fmt: skip


@pytest.mark.parametrize(("config", "changes", "named"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_named(config, changes, named):
    changed = {key: value for key, value in (config | changes).items() if value is not None}
    with pytest.raises(InputError) as caught:
        get_family(config["model_type"]).from_hf(changed)
    assert all(name in str(caught.value) for name in named)


def test_a_head_that_a_family_has_not_is_named_with_those_it_has():
    with pytest.raises(InputError, match=r"RobertaForPreTraining.*known: RobertaForMaskedLM"):
        families()["roberta"].from_hf(of(ROBERTA, "RobertaForPreTraining"))
