"""The first GPT: norms after the residuals, ties."""

from battery import Case

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
         "attn_pdrop": 0.0}  # fmt: skip


def _case(name, head="LMHeadModel", **changes):
    return Case(f"openai-gpt {name}", f"OpenAIGPT{head}", "OpenAIGPTConfig", SIZES | changes)


CASES = [
    _case("plain"),
    _case("untied, relu", afn="relu", tie_word_embeddings=False),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("body", "Model"),
]
