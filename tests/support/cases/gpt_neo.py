"""GPT-Neo: full layers and layers with a window, in turns and in any order."""

from battery import Case

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 40, "window_size": 5,
         "classifier_dropout": 0.0, "attention_types": [[["global", "local"], 1]]}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"gpt_neo {name}", f"GPTNeo{head}", "GPTNeoConfig", SIZES | changes)


CASES = [
    _case("plain"),
    _case("windows alone, untied", attention_types=[[["local"], 2]], intermediate_size=37, tie_word_embeddings=False),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("body", "Model"),
]
