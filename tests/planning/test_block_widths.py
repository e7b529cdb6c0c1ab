"""Rows that quantized blocks do not divide are named before training."""

from tiny_models import llama

from quatrain.planning.block_widths import row_widths, undivided, width_notes
from quatrain.planning.counts import kv_cache_bytes
from quatrain.planning.overview import ModelSize, inference_section


def test_widths_of_all_matrices_are_named():
    config = llama(hidden_size=96, intermediate_size=200, num_attention_heads=4, head_dim=32)
    assert row_widths(config) == {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads x head_dim": 128}
    assert undivided(config, 32) == {"intermediate_size": 200}
    assert len(width_notes(config)) == 2 and width_notes(config)[0].startswith(
        "intermediate_size 200: not a multiple of 32"
    )


def test_a_model_whose_rows_all_fit_has_no_note():
    assert width_notes(llama(hidden_size=256, intermediate_size=768, num_attention_heads=4)) == []


def test_plan_says_what_does_not_fit():
    section = inference_section(ModelSize("m", 1e6, llama(hidden_size=64, intermediate_size=200)))
    assert section.figures["rows_undivided_by_32"] == {"intermediate_size": 200}
    assert any("intermediate_size 200: do not fit Q4_0 to Q8_0" in row[1] for row in section.rows)


def test_the_plan_counts_rounded_caches():
    config = llama(hidden_size=64, num_attention_heads=2)
    values = inference_section(ModelSize.of("tiny", config)).figures
    assert values["cache_int8"] == kv_cache_bytes(config, 64, dtype="int8") < values["cache"] / 3
    assert values["cache_int4"] < values["cache_int8"]
