"""Mamba 2: groups, biases, a long text of several chunks, limits of the step size, its heads."""

from battery import Case

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 12, "n_groups": 1,
         "chunk_size": 8}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, length=19, left=True, **changes):
    return Case(f"mamba2 {name}", f"Mamba2{head}", "Mamba2Config", SIZES | changes, ours, length=length,
                left_padding=left, attentions=False, first_hidden=False)  # fmt: skip


CASES = [
    _case("plain"),
    _case("groups, tied", n_groups=4, tie_word_embeddings=True),
    # The biases of transformers' padding enter its convolution.
    _case("biases", use_bias=True, use_conv_bias=False, left=False),
    _case("limits", time_step_limit=[0.01, 0.5], conv_kernel=3, layer_norm_epsilon=1e-3),
    _case("body", "Model", length=131, n_groups=2),
]
