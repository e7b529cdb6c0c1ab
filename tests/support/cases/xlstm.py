"""xLSTM: wide and narrow heads, soft caps, a long text of several chunks, its heads.

transformers 5 runs it only where the keys of all heads together are a multiple of 64 wide, has gradients only without a
cache, and reads no mask of padding.
"""

from battery import Case

SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4, "chunk_size": 8, "ffn_proj_factor": 0.5,
         "ffn_round_up_to_multiple_of": 16, "use_cache": False}  # fmt: skip


def _case(name, head="ForCausalLM", ours=None, length=19, **changes):
    return Case(f"xlstm {name}", f"xLSTM{head}", "xLSTMConfig", SIZES | changes, ours, length=length, scale=0.06,
                left_padding=False, attentions=False)  # fmt: skip


CASES = [
    _case("plain"),
    _case("wide keys", qk_dim_factor=1.0, v_dim_factor=0.5, num_heads=8),
    _case("hard caps", gate_soft_cap=3.0, output_logit_soft_cap=5.0, norm_eps=1e-3, ffn_round_up_to_multiple_of=24),
    _case("body", "Model", length=131),
]
