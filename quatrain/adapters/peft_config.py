"""PEFT's `adapter_config.json`: every key is type-checked, and either honoured, harmless, or refused by name.

A key in none of the three tables may only have a value that turns nothing on. The tests take the keys from PEFT's own
classes, so that keys of a new release are noticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from quatrain.adapters import peft_patterns, peft_prompts
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.reading import read_json, user_path
from quatrain.core.wording import format_value
from quatrain.models.hub import ADAPTER_CONFIG, BASE, is_hub_id, resolve

PLAIN, BOTTLENECK = "QUATRAIN_WEIGHTS", "QUATRAIN_BOTTLENECK"
"""`peft_type` of our own formats: trained weights of the model only; bottleneck adapters."""
TYPES = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR", "ia3": "IA3", "bottleneck": BOTTLENECK}
TASKS = {
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "embedding": "FEATURE_EXTRACTION",
}
LARGEST_RANK, LARGEST_ALPHA, LARGEST_TOKEN = 65_536, 1e6, 2**31 - 1

Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK)]
Alpha = Annotated[float, Field(ge=-LARGEST_ALPHA, le=LARGEST_ALPHA, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=LARGEST_TOKEN)]
Index = Annotated[int, Field(ge=0, le=LARGEST_TOKEN)]
Name = Annotated[str, Field(min_length=1)]
Names = list[Name] | Name | None

HONOURED: dict[str, Any] = {
    "peft_type": str,
    "task_type": Literal[tuple(TASKS.values())] | None,
    "base_model_name_or_path": str | None,
    "revision": str | None,
    "r": Rank,
    "lora_alpha": Alpha,
    "alpha": Alpha,
    "rank_pattern": dict[Name, Rank] | None,
    "alpha_pattern": dict[Name, Alpha] | None,
    "use_rslora": bool | None,
    "use_dora": bool | None,
    "lora_dropout": Share | None,
    "target_modules": list[Name] | str | None,
    "exclude_modules": Names,
    "layers_to_transform": list[Index] | Index | None,
    "layers_pattern": Names,
    "modules_to_save": list[Name] | None,
    "trainable_token_indices": list[Index] | dict[Name, list[Index]] | None,
    "ensure_weight_tying": bool | None,
    "decompose_both": bool | None,
    "decompose_factor": Annotated[int, Field(ge=-1, le=LARGEST_TOKEN)] | None,
    "num_virtual_tokens": Annotated[int, Field(ge=1, le=65_536)] | None,
    "num_transformer_submodules": Annotated[int, Field(ge=1, le=2)] | None,
    "token_dim": Count | None,
    "num_layers": Count | None,
    "num_attention_heads": Count | None,
}
"""Keys that Quatrain builds the adapter from, or compares with its weights, and their types."""

HARMLESS: dict[str, tuple[Any, str]] = {
    "auto_mapping": (dict[str, Any] | None, "the base's class in transformers; config.json determines ours"),
    "peft_version": (str | None, "who wrote the folder"),
    "inference_mode": (bool | None, "what PEFT freezes at loading"),
    "fan_in_fan_out": (bool | None, "how the base's files store a weight; the family determines it"),
    "feedforward_modules": (Names, "each vector's shape tells whether it scales a layer's input or output"),
    "init_ia3_weights": (bool | None, "initialization; the base is unchanged"),
    "init_weights": (bool | Literal["zero"] | None, "initialization; the base is unchanged"),
    "loftq_config": (dict[str, Any] | None, "read for init_lora_weights, which is refused if it changed the base"),
    "eva_config": (dict[str, Any] | None, "initialization; the base is unchanged"),
    "corda_config": (dict[str, Any] | None, "read for init_lora_weights, which is refused if it changed the base"),
    "lora_ga_config": (dict[str, Any] | None, "read for init_lora_weights, refused if it changed the base"),
    "velora_config": (dict[str, Any] | None, "how PEFT stores activations for the backward pass"),
    "qalora_group_size": (int | None, "read with use_qalora only, which is refused"),
    "megatron_core": (str | None, "read with megatron_config only, which is refused"),
    "runtime_config": (dict[str, Any] | None, "where PEFT computes; not part of an adapter"),
    "rank_dropout": (Share | None, "acts while PEFT trains, not in the result"),
    "rank_dropout_scale": (bool | None, "acts while PEFT trains, not in the result"),
    "module_dropout": (Share | None, "acts while PEFT trains, not in the result"),
    "use_effective_conv2d": (bool | None, "for convolutions, which no family here has"),
    "prompt_tuning_init": (str | None, "initialization"),
    "prompt_tuning_init_text": (str | None, "initialization"),
    "tokenizer_name_or_path": (str | None, "read for prompt_tuning_init only"),
    "tokenizer_kwargs": (dict[str, Any] | None, "read for prompt_tuning_init only"),
    "encoder_reparameterization_type": (str | None, "the files hold the output of the prompt's network"),
    "encoder_hidden_size": (Count | None, "the files hold the output of the prompt's network"),
    "encoder_num_layers": (Count | None, "the files hold the output of the prompt's network"),
    "encoder_dropout": (Share | None, "the files hold the output of the prompt's network"),
    "prefix_projection": (bool | None, "the files hold the output of the prefix's network"),
}  # fmt: skip
"""Keys that do not change the output of a loaded adapter: their types, and why."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "bias": (("none",), "trained biases of the base"),
    "lora_bias": ((False, None), "a bias of LoRA's own"),
    "layer_replication": ((None, []), "repeated layers of the base"),
    "target_parameters": ((None, []), "adapters over parameters outside linear layers"),
    "alora_invocation_tokens": ((None,), "an adapter that is active after certain tokens only (aLoRA)"),
    "use_qalora": ((False, None), "an adapter over pooled inputs (QALoRA)"),
    "use_bdlora": ((None, False), "block-diagonal matrices (BD-LoRA)"),
    "arrow_config": ((None,), "a router over several adapters (Arrow)"),
    "kasa_config": ((None,), "a base without its smallest singular values (KaSA)"),
    "monteclora_config": ((None,), "sampled weights (MonteCLoRA)"),
    "megatron_config": ((None, {}), "layers of Megatron"),
}
"""Keys that change the output in unsupported ways: the values that turn them off, and what they would do."""

HARMLESS_BEGINNINGS = ("gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base unchanged; all others subtract something from it."""

NEEDED = {
    "LORA": ("r", "lora_alpha"), "LOHA": ("r", "alpha"), "LOKR": ("r", "alpha"),
    "PROMPT_TUNING": ("num_virtual_tokens",), "P_TUNING": ("num_virtual_tokens",),
    "PREFIX_TUNING": ("num_virtual_tokens",),
}  # fmt: skip


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `adapter_config.json` of an adapter folder.

    Raises InputError naming, at once, every key whose value has a wrong type, is out of range, or is not supported.
    """
    path = user_path(folder, "the adapter") / ADAPTER_CONFIG
    if not path.exists():
        raise InputError(f"{folder}: contains no {ADAPTER_CONFIG}, so it is not an adapter folder.")
    config: dict[str, Any] = read_json(path, dict)
    problems = list(problems_of(config))
    if problems:
        raise InputError(f"{path}: this adapter cannot be used:", problems)
    return config


def problems_of(config: Mapping[str, Any]) -> Iterator[str]:
    """The problems of a configuration, each starting with its key."""
    kind = config.get("peft_type")
    known = sorted({*TYPES.values(), *peft_prompts.TYPES.values(), PLAIN})
    if kind not in known:
        yield f"peft_type: {format_value(kind)} is not supported; must be one of {', '.join(known)}"
        return
    schemas = HONOURED | {key: schema for key, (schema, _) in HARMLESS.items()}
    sound = set()
    for key, value in config.items():
        if key in schemas:
            wrong = list(_wrong(key, value, schemas[key]))
            yield from wrong
            sound |= set() if wrong else {key}
        elif key == "init_lora_weights":
            yield from _wrong_beginning(value)
        elif key in REFUSED:
            inert, what = REFUSED[key]
            if not any(value == each and type(value) is type(each) for each in inert):
                yield f"{key}: {format_value(value)}: {what}, which is not supported; must be {format_value(inert[0])}"
        elif value not in (None, False, "") and value != [] and value != {}:
            yield f"{format_value(key)}: {format_value(value)} is an unknown option, which may change the result"
    for key in NEEDED.get(str(kind), ()):
        if config.get(key) is None and (key in sound or key not in config):
            yield f"{key}: missing"
    yield from _contradictions(config, sound)


def _wrong(key: str, value: Any, schema: Any) -> Iterator[str]:
    """Why a value has a wrong type or is out of range."""
    try:
        TypeAdapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        messages = dict.fromkeys(each["msg"] for each in error.errors(include_url=False, include_input=False))
        yield f"{key}: {format_value(value)}; {'; or '.join(list(messages)[:3])}"
        return
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isfinite(value):
        yield f"{key}: {format_value(value)}; must be finite"


def _wrong_beginning(value: Any) -> Iterator[str]:
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, str):
        yield f"init_lora_weights: {format_value(value)}; must be true, false or a name"
    elif value.lower() not in HARMLESS_BEGINNINGS:
        yield (
            f"init_lora_weights: {format_value(value)} changes the weights of the base, which these files do not "
            "hold; save the adapter with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )


def _contradictions(config: Mapping[str, Any], sound: set[str]) -> Iterator[str]:
    """Options that PEFT refuses together, and patterns that are not regular expressions; of well-typed keys."""
    targets = config.get("target_modules") if "target_modules" in sound else None
    for key in ("layers_to_transform", "layers_pattern"):
        if isinstance(targets, str) and key in sound and config[key] is not None:
            yield f"{key}: {format_value(config[key])}; PEFT reads it with a list of target_modules only"
    if config.get("layers_pattern") and config.get("layers_to_transform") is None:
        yield "layers_pattern: needs layers_to_transform, which is missing"
    for key, pattern in peft_patterns.expressions({key: config[key] for key in sound}):
        if fault := peft_patterns.fault(pattern):
            yield f"{key}: {format_value(pattern)} is not a regular expression: {fault}"


def method_of(config: Mapping[str, Any]) -> str:
    """The method of a configuration, by our name."""
    if config["peft_type"] == "LORA":
        return "dora" if config.get("use_dora") else "lora"
    return next((name for name, kind in TYPES.items() if kind == config["peft_type"]), "")


def base_folder(folder: str | Path) -> Path:
    """The folder of an adapter's base model: an absolute path; otherwise looked for beside the adapter, in the working
    directory, inside the adapter's folder, and in the hub's cache, in this order.

    Raises InputError if the configuration names no base model, or the model is not found.
    """
    folder = Path(folder)
    config = read_config(folder)
    name = config.get("base_model_name_or_path")
    if not name:
        raise InputError(f"{folder}: {ADAPTER_CONFIG} does not say its base model; set base_model_name_or_path in it.")
    given = user_path(name, "base_model_name_or_path")
    places = [given] if given.is_absolute() else [user_path(folder / given).resolve(), given]
    for place in (*places, folder / BASE, folder.resolve().parent.parent / BASE):
        if (place / "config.json").is_file():
            return place
    looked = " and ".join(dict.fromkeys(str(place) for place in places))
    message = f"{folder}: its base model {format_value(name)} is not a model folder (looked in {looked})"
    if not given.is_absolute() and is_hub_id(name):
        try:
            return resolve(name, revision=config.get("revision"))
        except QuatrainError as error:
            raise InputError(f"{message}, and not available from the hub:", [error.message, *error.problems]) from error
    raise InputError(f"{message}. Correct base_model_name_or_path in {ADAPTER_CONFIG}.")


def written_base(folder: Path, base: str | None) -> str | None:
    """The value of `base_model_name_or_path`: a folder as an absolute path, so that it is found from anywhere, or a hub
    id unchanged. A relative folder is looked for beside the adapter, then in the working directory.
    """
    if not base:
        return None
    given = user_path(base, "the base model")
    for place in (folder / given, given):
        if (place / "config.json").is_file():
            return str(place.resolve())
    return str(base)
