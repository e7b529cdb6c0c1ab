"""The plan as one self-contained HTML page with sliders: no network request, its own script alone may run.

The script repeats the formulas of `bill`, `parallelism` and `scaling`; a test compares its figures with theirs.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from quatrain.core.atomic import disk_errors, write_text
from quatrain.models.transformer.config import ModelConfig
from quatrain.planning import counts, scaling
from quatrain.planning.facts import load_facts
from quatrain.planning.overview import ModelSize, Section
from quatrain.planning.parallelism import Step, layer_activation_bytes


def plan_page(size: ModelSize, sections: Sequence[Section], facts_path: str | None = None) -> str:
    """The page's HTML: sliders that start at a compute-optimal training, and the sections as tables."""
    from jinja2 import Environment

    facts = load_facts(facts_path)
    devices = {key: device.model_dump() for key, device in facts.devices.items() if device.bf16 is not None}
    tokens = scaling.EPOCH.optimal_tokens(size.parameters)
    start: dict[str, Any] = {
        "parameters": round(math.log10(size.parameters), 2), "tokens": round(math.log10(tokens), 2), "device": "h100",
        "count": 3, "utilization": 0.4, "grid": "world", "zero": 3, "precision": "bfloat16", "batch": 0,
        "context": 10, "checkpointing": "none",
    }  # fmt: skip
    shapes = None if size.config is None else _shapes(size.config)
    longest = 0 if size.config is None else int(math.log2(size.config.max_position_embeddings))
    start["context"] = min(start["context"], max(5, longest))
    data = {
        "parameters": size.parameters, "shapes": shapes, "devices": devices, "grids": facts.grids,
        "law": scaling.EPOCH.as_dict(), "start": start,
    }  # fmt: skip
    template = Environment(autoescape=True).from_string(
        files("quatrain.planning").joinpath("page.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        name=size.name, date=facts.date, devices=devices, grids=facts.grids, shapes=shapes, longest=max(5, longest),
        sections=sections, data=data, nonce=secrets.token_hex(16),
    )  # fmt: skip


def _shapes(config: ModelConfig) -> dict[str, Any]:
    """What the script needs of a configuration: activations of a layer in elements a token, and FLOPs of attention."""
    layers = config.num_hidden_layers + (config.num_encoder_layers if config.architecture == "encoder-decoder" else 0)
    longest = config.max_position_embeddings
    one = Step(micro_batch=1, context=1)
    outside = layer_activation_bytes(config, one, tensor=10**12, sequence_parallel=False) / one.element
    whole = layer_activation_bytes(config, one) / one.element
    parts = counts.parameters_by_part(config)
    windows = [config.sliding_window if kind == "sliding" else None for kind in config.attention_layers]
    return {
        "matmul": counts.matmul_parameters(config),
        "attention_width": config.num_attention_heads * config.head_dim,
        "recurrent": counts.recurrent_flops(config, longest) + counts.distance_flops(config, longest),
        "windows": windows,
        "hidden": config.hidden_size,
        "layers": layers,
        "layer_parameters": sum(parts.get(part, 0) for part in counts.LAYER_PARTS) / layers,
        "outside": outside,
        "inside": whole - outside,
    }


def write_page(path: Path, size: ModelSize, sections: Sequence[Section], facts_path: str | None = None) -> None:
    """Writes the page in place of a file that is there. Raises QuatrainError where it cannot be written."""
    with disk_errors(path):
        write_text(path, plan_page(size, sections, facts_path))
