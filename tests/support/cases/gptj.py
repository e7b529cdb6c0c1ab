"""GPT-J: a part of each head rotated, and all of it."""

from battery import Case

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4}


def _case(name, head="ForCausalLM", **changes):
    return Case(f"gptj {name}", f"GPTJ{head}", "GPTJConfig", SIZES | changes)


CASES = [
    _case("plain"),
    _case("all turns, tied", rotary_dim=8, n_inner=37, tie_word_embeddings=True),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]
