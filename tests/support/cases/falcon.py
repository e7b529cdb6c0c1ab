"""Falcon: the forms of 7B, 40B, 11B and RW."""

from dataclasses import replace

from battery import Case

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40}


def _case(name, head="ForCausalLM", **changes):
    return Case(f"falcon {name}", f"Falcon{head}", "FalconConfig", SIZES | changes)


CASES = [
    _case("7b"),
    _case("40b", new_decoder_architecture=True, num_kv_heads=2),
    _case(
        "11b, untied",
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=37,
        tie_word_embeddings=False,
    ),
    # transformers adds ALiBi twice in eager attention
    replace(_case("rw", alibi=True, multi_query=False, parallel_attn=False, bias=True), attentions=False),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]
