"""Every rotary scaling, on a Llama whose texts are longer than those of pretraining."""

from battery import Case

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 40}  # fmt: skip


def _case(kind, name="", positions=40, **numbers):
    rope = {"rope_type": kind, "rope_theta": 100.0, **numbers}
    sizes = SIZES | {"max_position_embeddings": positions, "rope_parameters": rope}
    return Case(f"rope {kind} {name}".rstrip(), "LlamaForCausalLM", "LlamaConfig", sizes)


PAIRS = 6
CASES = [
    _case("linear", factor=4.0),
    _case("linear", "past the positions", positions=8, factor=4.0),
    _case("dynamic", factor=2.0),
    _case("dynamic", "past the positions", positions=11, factor=4.0),
    _case("yarn", factor=4.0, original_max_position_embeddings=10),
    _case("yarn", "past the positions", positions=10, factor=4.0, original_max_position_embeddings=10),
    _case("yarn", "own factor, not truncated", factor=4.0, original_max_position_embeddings=10, attention_factor=0.8,
          truncate=False, beta_fast=2.0, beta_slow=0.5),
    _case("yarn", "two magnitudes", factor=4.0, original_max_position_embeddings=10, mscale=1.5, mscale_all_dim=0.7),
    _case("longrope", "short", short_factor=[1.2] * PAIRS, long_factor=[3.0] * PAIRS,
          original_max_position_embeddings=20),
    _case("longrope", "long", short_factor=[1.2] * PAIRS, long_factor=[3.0] * PAIRS,
          original_max_position_embeddings=10),
    _case("longrope", "own factor", short_factor=[1.2] * PAIRS, long_factor=[3.0] * PAIRS, factor=2.0,
          attention_factor=1.3, original_max_position_embeddings=10),
    _case("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
]  # fmt: skip
