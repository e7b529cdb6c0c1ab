"""nanochat: norms without weights, squared ReLU, a soft cap."""

from battery import Case

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip


def _case(name, head="ForCausalLM", **changes):
    return Case(f"nanochat {name}", f"NanoChat{head}", "NanoChatConfig", SIZES | changes)


CASES = [
    _case("plain"),
    _case("biases, no cap, one key", attention_bias=True, final_logit_softcapping=None, num_key_value_heads=1),
    _case("body", "Model"),
]
