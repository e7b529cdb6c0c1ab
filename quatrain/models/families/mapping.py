"""Maps a family's `config.json` and weights to the transformer stack: the data that a family's file declares, and the
code that reads it.

Every option of a config.json must be mapped, must have one value, or must be known to have no effect. Any other option
is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value, printable
from quatrain.models.families.value_types import COMMON as COMMON_TYPES
from quatrain.models.families.value_types import (
    FIELDS,
    POSITIVE,
    READ,
    SIZE,
    SIZE_OR_ZERO,
    TEXT_BY_NUMBER,
    TEXTS,
    ValueType,
    type_errors,
)
from quatrain.models.families.weights import Operation, expand
from quatrain.models.transformer.config import ModelConfig

REQUIRED: Any = ...
"""The default of a key that a config.json must have."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu_squared",
    "tanh": "tanh",
}
"""Hugging Face's names of activations."""


@dataclass(frozen=True)
class Key:
    """A key of config.json that maps to one field of `ModelConfig`."""

    theirs: str
    ours: str
    default: Any = REQUIRED
    """The value if config.json lacks the key or has null; REQUIRED: the key must be there."""
    choices: Mapping[Any, Any] | None = None
    """Their values -> ours, if they differ."""


@dataclass(frozen=True)
class Head:
    """A head of a family: the transformers class of its files, its weights, and the fields it sets."""

    architecture: str
    operations: Sequence[Operation] = ()
    prefix: str | None = None
    """Prefix of the body's weight names in files of this head; None: the family's prefix."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration that this head sets."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json that are written for this head only."""
    absent: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Weights that some files of this head lack, and the configuration fields to use then."""
    derived: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Computes fields of this head from the family's."""
    ignored: Sequence[str] = ()
    """Regular expressions of weight names that files may contain and this head does not need."""
    old_architectures: Sequence[str] = ()
    """Former names of the class."""


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps to the transformer stack, in both directions."""

    name: str
    """Its `model_type` in config.json."""
    keys: Sequence[Key]
    operations: Sequence[Operation] | Callable[[ModelConfig], Sequence[Operation]]
    """The weights of the body, without the prefix; a function if they depend on the configuration."""
    heads: Mapping[str, Head]
    """Heads by name; the first one is the default of a config.json that names no architecture."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are the same for the whole family."""
    required: Mapping[str, Any] = field(default_factory=dict)
    """Options that must have this value."""
    harmless: frozenset[str] = frozenset()
    """Keys without effect, written back unchanged (dropout rates, training options)."""
    read: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Computes fields that depend on several keys, or on one in a special way, from the config.json."""
    reads: frozenset[str] = frozenset()
    """The keys that `read` uses."""
    write: Callable[[ModelConfig], dict[str, Any]] | None = None
    """Computes the keys that `read` uses from our configuration."""
    prefix: str = ""
    """Prefix of the body's weight names in the files of most heads; some checkpoints leave it out."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of the same (tied) tensor in checkpoints -> the name used here."""
    ignored: Sequence[str] = ()
    """Regular expressions of weight names that are not parameters (old buffers)."""
    old_names: Sequence[tuple[str, str]] = ()
    """Endings of weight names in old checkpoints, and their present ones."""
    other_beginnings: Sequence[tuple[str, str]] = ()
    """Beginnings of weight names in other files of the family, and their usual ones."""
    features: str = ""
    """What its frontend reads: `pictures` or `sound`; "" for a model of texts alone."""
    from_sizes: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """For a family without some parts of a transformer: its fields for the sizes of one (`fresh_config`)."""
    kept: Callable[[str, ModelConfig], bool] | None = None
    """Which tensors of the files the model does not use, and keeps to write them back unchanged."""
    fresh: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the config.json of a new model, where the family's published models differ from the defaults."""
    nested_in: Mapping[str, str] = field(default_factory=dict)
    """Model types whose config.json contains this family's (a text model inside an image-text model), and its key."""
    other_prefixes: Sequence[str] = ()
    """Prefixes of the body's weight names in the files of these model types."""

    @property
    def value_types(self) -> dict[str, ValueType]:
        """The type of every key."""
        own = {key.theirs: FIELDS[key.ours] for key in self.keys}
        # A head width of 0 means hidden_size / num_attention_heads; older versions of Quatrain wrote it.
        own |= {key.theirs: SIZE_OR_ZERO for key in self.keys if key.default == 0 and FIELDS[key.ours] is SIZE}
        return {**COMMON_TYPES, **{key: READ[key] for key in sorted(self.reads)}, **own}

    @property
    def architecture(self) -> str:
        """The transformers class of the family's first head."""
        return next(iter(self.heads.values())).architecture

    def from_hf(self, config: Mapping[str, Any], *, head: str | None = None) -> ModelConfig:
        """Our configuration from a config.json, with the head that it names or the given one.

        Raises InputError naming everything missing, contradictory or unknown at once.
        """
        config = self.unwrapped(config)
        kinds = self.value_types
        mistyped = list(type_errors(config, kinds))
        wrong = {line.partition(":")[0] for line in mistyped}
        problems = [*self._unknown(config), *mistyped]
        values: dict[str, Any] = {}
        for key in self.keys:
            value = config.get(key.theirs)
            value = key.default if value is None else value
            if value is REQUIRED:
                problems.append(f"{key.theirs}: missing; a {self.name} config needs it")
            elif key.theirs in wrong:
                continue
            elif key.choices is not None and value not in key.choices:
                problems.append(
                    f"{key.theirs}: {format_value(value)}; must be one of {', '.join(map(str, key.choices))}"
                )
            elif key.choices is not None:
                values[key.ours] = key.choices[value]
            else:
                values[key.ours] = float(value) if kinds[key.theirs] is POSITIVE else value
        if problems:
            raise InputError(f"This {self.name} config.json cannot be used:", problems)
        head = head or self.head_of(config)
        more = {} if self.read is None else self.read(dict(config))
        kept = self.harmless | GENERATION | {key.theirs for key in self.keys if key.choices is not None}
        extra = {key: config[key] for key in config if key in kept}
        fields = {**common_fields(config), **self.fixed, **values, **more, **self.heads[head].settings}
        derived = self.heads[head].derived
        if derived is not None:
            fields |= derived(fields)
        if head in LABELLED:
            fields["labels"] = _labels(config)
            fields["problem_type"] = _problem(config)
            if config.get("problem_type") is None and len(fields["labels"]) == 1:
                fields["problem_type"] = "regression"
        return ModelConfig(family=self.name, head=head, extra=extra, **fields)

    def to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """The config.json of our configuration."""
        head = self.heads[config.head]
        written: dict[str, Any] = {"model_type": self.name, "architectures": [head.architecture]}
        written |= {key: getattr(config, key) for key in COMMON_KEYS}
        written |= {**self.required, **{key: config.extra[key] for key in self.harmless if key in config.extra}}
        for key in self.keys:
            written[key.theirs] = self._written(key, config)
        if self.write is not None:
            written |= self.write(config)
        if config.labels:
            written["id2label"] = {str(number): label for number, label in enumerate(config.labels)}
            written["label2id"] = {label: number for number, label in enumerate(config.labels)}
            written["problem_type"] = next(
                theirs for theirs, ours in PROBLEM_TYPES.items() if theirs and ours == config.problem_type
            )
        return written | dict(head.extra)

    def head_of(self, config: Mapping[str, Any]) -> str:
        """The head that a config.json names. Raises InputError, with the family's heads, for an unknown one."""
        named = self.unwrapped(config).get("architectures") or [self.architecture]
        if not TEXTS.accepts(named):
            raise InputError(f"architectures: {format_value(named)}; must be {TEXTS.description}")
        for name, head in self.heads.items():
            if any(architecture in named for architecture in (head.architecture, *head.old_architectures)):
                return name
        known = ", ".join(head.architecture for head in self.heads.values())
        raise InputError(
            f"architectures: {format_value(named[0])} is none of {self.name} that Quatrain knows; known: {known}."
        )

    def unwrapped(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The family's own config.json if it is nested in that of another model type; else `config` itself.

        Raises InputError if the other model's config.json lacks it.
        """
        key = self.nested_in.get(str(config.get("model_type")))
        if key is None:
            return config
        inner = config.get(key)
        if not isinstance(inner, Mapping):
            raise InputError(f"{key}: missing; a {config['model_type']} config.json holds its {self.name} there.")
        shared = (COMMON | {"tie_word_embeddings"}) - {"model_type", "architectures"}
        outer = {name: value for name, value in config.items() if name in shared and value is not None}
        return {**inner, **outer, "model_type": self.name}

    def weights(self, config: ModelConfig) -> list[Operation]:
        """The weight operations for one configuration, those of its head included."""
        head = self.heads[config.head]
        prefix = self.prefix if head.prefix is None else head.prefix
        body = self.operations(config) if callable(self.operations) else self.operations
        return expand([*(operation.prefixed(prefix) for operation in body), *head.operations], config)

    def _unknown(self, config: Mapping[str, Any]) -> list[str]:
        """Every option of a config.json that is unknown and may change the network."""
        known = {key.theirs for key in self.keys} | set(self.reads) | self.harmless | COMMON | GENERATION
        problems = []
        for key, value in config.items():
            if key in self.required:
                if value not in (None, self.required[key]):
                    problems.append(f"{key}: {format_value(value)} is not supported; must be {self.required[key]!r}")
            elif key not in known and value not in (None, False, {}, []):
                problems.append(f"{printable(key[:80])}: {format_value(value)} is an unknown option of {self.name}")
        return problems

    def _written(self, key: Key, config: ModelConfig) -> Any:
        value = getattr(config, key.ours)
        if key.choices is None:
            return list(value) if isinstance(value, tuple) else value
        original = config.extra.get(key.theirs)
        if original in key.choices and key.choices[original] == value:
            return original
        return next(theirs for theirs, ours in key.choices.items() if ours == value)


LABELLED = ("sequence_classification", "token_classification", "image_classification", "distilled_classification")
"""Heads whose labels have names."""

PROBLEM_TYPES = {
    None: "single_label",
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
"""Hugging Face's names of what labels are."""


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label")
    if names:
        if not TEXT_BY_NUMBER.accepts(names):
            raise InputError(f"id2label: {format_value(names)}; must be {TEXT_BY_NUMBER.description}")
        return tuple(str(names[key]) for key in sorted(names, key=int))
    return tuple(f"LABEL_{number}" for number in range(config.get("num_labels") or 2))


def _problem(config: Mapping[str, Any]) -> str:
    named = config.get("problem_type")
    if named not in PROBLEM_TYPES:
        raise InputError(
            f"problem_type: {format_value(named)}; must be one of {', '.join(filter(None, PROBLEM_TYPES))}"
        )
    return PROBLEM_TYPES[named]


COMMON_KEYS = ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")


def common_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every family reads the same way."""
    spread = config.get("initializer_range")
    return {
        "initializer_range": 0.02 if spread is None else float(spread),
        **{key: config.get(key) for key in COMMON_KEYS[1:]},
    }


COMMON = frozenset(
    {
        "model_type",
        "architectures",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "unk_token_id",
        "sep_token_id",
        "_name_or_path",
        "name_or_path",
        "task_specific_params",
        "output_hidden_states",
        "output_attentions",
        "output_past",
        "return_dict",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "attn_implementation",
        "_attn_implementation",
        "pretraining_tp",
        "gradient_checkpointing",
        "auto_map",
        "tokenizer_class",
        "prefix",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "_num_labels",
        *COMMON_KEYS,
    }
)
"""Keys of any config.json that do not shape the network, or that every family reads. Code that a folder brings
(`auto_map`) is never run.
"""

GENERATION = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "remove_invalid_values",
        "repetition_penalty",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)
"""Keys about generating, which old checkpoints have in config.json: read there, written to generation_config.json."""
