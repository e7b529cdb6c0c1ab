"""Soft prompts and prefixes in PEFT's adapter folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from quatrain.adapters import prompts
from quatrain.models.transformer.stack import Model

TYPES = {"prompt": "PROMPT_TUNING", "p-tuning": "P_TUNING", "prefix": "PREFIX_TUNING"}
TENSOR = "prompt_embeddings"


def options(model: Model, prompt: Any) -> dict[str, Any]:
    """A soft prompt's options in `adapter_config.json`."""
    config = model.config
    entries = {"peft_type": TYPES[prompt.method], "num_virtual_tokens": prompt.length,
               "num_layers": config.num_hidden_layers,
               "num_transformer_submodules": 1 if model.encoder is None else 2}  # fmt: skip
    if prompt.method == "prefix":
        size = config.num_key_value_heads * config.head_dim
        # The output of the network behind a prefix is stored, not the network.
        return entries | {"token_dim": size, "num_attention_heads": config.num_key_value_heads,
                          "prefix_projection": False, "encoder_hidden_size": size}  # fmt: skip
    width = model.embed_tokens.embedding_dim
    entries |= {"token_dim": width, "num_attention_heads": config.num_attention_heads}
    if prompt.method == "p-tuning":
        hidden = prompt.network[0].out_features
        return entries | {"encoder_hidden_size": hidden, "encoder_reparameterization_type": "MLP",
                          "encoder_num_layers": 2, "encoder_dropout": 0.0}  # fmt: skip
    return entries | {"prompt_tuning_init": "RANDOM"}


def rows_of(model: Model, prompt: Any) -> Tensor:
    """The prompt as files store it. PEFT stores an encoder-decoder's twice; the second copy is never read."""
    rows: Tensor = prompt.file_tensor()
    return rows if model.encoder is None else torch.cat((rows, rows))


def read(model: Model, config: Mapping[str, Any], tensors: dict[str, Tensor], problems: list[str]) -> Any:
    """Removes the soft prompt of an adapter folder from `tensors` and returns it; None without one."""
    kind = next((name for name, peft_type in TYPES.items() if peft_type == config["peft_type"]), None)
    if kind is None:
        return None
    rows = tensors.pop(TENSOR, None)
    if rows is None:
        problems.append(f"{TENSOR}: missing")
        return None
    problems += (wrong := list(_disagreeing(model, kind, config, rows)))
    if wrong:
        return None
    if model.encoder is not None:
        rows = rows[: config["num_virtual_tokens"]]
    prompt: Any
    if kind == "prefix":
        prompt = prompts.PrefixTuning(len(rows), model.config, device=model.device)
    else:
        prompt = prompts.PromptTuning(len(rows), model.embed_tokens.embedding_dim, model.device)
    if rows.shape != prompt.rows.shape:
        problems.append(f"{TENSOR}: has shape {tuple(rows.shape)}, the model needs {tuple(prompt.rows.shape)}")
        return None
    with torch.no_grad():
        prompt.rows.copy_(rows)
    return prompt


def _disagreeing(model: Model, kind: str, config: Mapping[str, Any], rows: Tensor) -> Iterator[str]:
    """Entries of the configuration that disagree with the shape of the weights or with the model."""
    if rows.dim() != 2 or not rows.numel():
        yield f"{TENSOR}: has shape {tuple(rows.shape)}; must be a matrix"
        return
    parts = config.get("num_transformer_submodules") or (1 if model.encoder is None else 2)
    entries = {"num_virtual_tokens": (config["num_virtual_tokens"] * parts, len(rows))}
    if kind == "prefix":
        layers, heads = model.config.num_hidden_layers, model.config.num_key_value_heads
        entries["num_layers"] = config.get("num_layers") or layers, layers
        entries["num_attention_heads"] = config.get("num_attention_heads") or heads, heads
        entries["token_dim"] = config.get("token_dim") or heads * model.config.head_dim, heads * model.config.head_dim
    else:
        entries["token_dim"] = config.get("token_dim") or rows.shape[1], rows.shape[1]
    for key, (first, second) in entries.items():
        if first != second:
            yield f"{key}: {first:,}; the weights and the model have {second:,}"
