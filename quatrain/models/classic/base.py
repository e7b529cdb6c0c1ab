"""What every classic model has: a typed configuration, a model folder, and the interface that the verbs use.

A classic model is an `nn.Module`; a counting model has buffers and no parameters. The interface is that of
`quatrain.models.transformer.stack.Model`, as far as the engine, the evaluation and the stages use it: `config`,
`hidden_states`, `lm_logits`, and a forward pass that returns logits and the unreduced loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings, parse
from quatrain.models.io.safetensors_reader import WEIGHTS, SafetensorsReader
from quatrain.models.io.safetensors_writer import write_safetensors

UNLIMITED = 2**30
"""The context of a model without a limit."""
LOGITS = 8_000_000
"""Logits that a pass over a long text computes at once."""
IGNORED_KEYS = ("dtype", "architectures", "transformers_version")
"""Keys of `config.json` that say nothing about the model."""


class ClassicConfig(Settings):
    """The configuration of a classic model, written to `config.json`.

    A subclass fixes `model_type` and `head` and adds its own fields. The properties answer what the verbs ask of the
    configuration of any model.
    """

    model_type: str
    head: str
    vocab_size: int = Field(default=1, ge=1)
    labels: Listing[str] = ()
    problem_type: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None

    architecture: ClassVar[str] = "decoder"
    """"encoder-decoder" for a model that reads the prompt with an encoder."""
    frontend: ClassVar[None] = None
    type_vocab_size: ClassVar[int] = 0
    rope_scaling: ClassVar[None] = None
    max_text_length: ClassVar[int] = 0
    normalize_embedding: ClassVar[bool] = False
    extra: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @property
    def family(self) -> str:
        """The model's type."""
        return self.model_type

    @property
    def num_labels(self) -> int:
        """Number of labels of the head."""
        return len(self.labels)

    @property
    def has_position_limit(self) -> bool:
        """Whether the model reads a limited number of tokens."""
        return False

    @property
    def context_length(self) -> int:
        """The most tokens that the model reads."""
        return UNLIMITED

    @property
    def max_position_embeddings(self) -> int:
        """The same under the transformers' name."""
        return self.context_length

    @property
    def output_hidden_size(self) -> int:
        """Width of the vector that a model with the head `embedding` returns for a text."""
        return 0

    @property
    def vector_size(self) -> int:
        """The same: nothing is behind the pooling."""
        return self.output_hidden_size

    def flops_per_token(self, training: bool) -> float:
        """Floating-point operations for one token, or one example: twice the weights, six times in training."""
        return 0.0

    def replace(self, **changes: Any) -> Self:
        """The same configuration with these fields changed."""
        return self.model_copy(update=changes)


def misfit(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Why a tensor of a folder (`given`) does not fit the model's `own`; None if it does."""
    if name not in given or name not in own:
        return f"{name}: {'missing' if name in own else 'unexpected'}"
    if given[name].shape != own[name].shape:
        return f"{name}: shape {tuple(given[name].shape)}; config.json asks for {tuple(own[name].shape)}"
    return None


def check_tensors(config: ClassicConfig, problems: Sequence[str]) -> None:
    """Raises InputError if tensors do not fit the model."""
    if problems:
        raise InputError(f"The tensors of this {config.model_type} model do not fit its config.json:", problems)


class ClassicModel(nn.Module):
    """A classic model: an `nn.Module` with a typed `config`, saved as `config.json` and `model.safetensors`.

    A subclass sets `Config` and builds itself from one. Its tensors are its parameters and buffers; a model whose
    tensors have sizes that `config` does not tell overrides `from_tensors`. Files of its own (such as a list of words)
    are written by `save_files` and read by `load_files`.

    `carries_state`: the model reads a text token by token and carries a state (`StateModel`).
    `compares_hidden_states`: its hidden states are vectors that can be compared, as contrastive search does.
    """

    Config: ClassVar[type[ClassicConfig]]
    carries_state: ClassVar[bool] = False
    compares_hidden_states: ClassVar[bool] = True
    is_planned: ClassVar[bool] = False
    """Whether `quatrain.planning` estimates its memory and FLOPs from a configuration of the transformer."""

    soft_prompt: Any = None
    adapter_set: Any = None

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.encoder: Any = None
        self.lm_head: Any = None
        self.newly_initialized: list[str] = []
        self.added_token_ids: list[int] = []
        self.untied_after_load = False
        self.generation_config: dict[str, Any] | None = None

    # Files

    @classmethod
    def from_tensors(cls, config: Any, tensors: Mapping[str, Tensor]) -> Self:
        """The model of a configuration with these tensors. Raises InputError if names or shapes do not fit."""
        model = cls(config)
        own = model.state_dict()
        missing = [name for name in own if name not in tensors]
        unexpected = [name for name in tensors if name not in own]
        present = [name for name in own if name in tensors]
        names = (*missing, *unexpected, *present)
        check_tensors(config, [problem for name in names if (problem := misfit(name, own, tensors))])
        model.load_state_dict(dict(tensors))
        return model

    def save_files(self, folder: Path) -> None:
        """Writes further files of the model."""

    def load_files(self, folder: Path) -> None:
        """Reads them."""

    def save(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`, each whole or not at all."""
        folder = Path(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        config = self.config.model_dump(exclude_none=True, mode="json")
        floats = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
        dtype = str(floats[0] if floats else torch.float32).removeprefix("torch.")
        folder.mkdir(parents=True, exist_ok=True)
        self.save_files(folder)
        with atomic_write(folder / WEIGHTS, "wb") as file:
            write_safetensors(file, tensors, {"format": "pt"})
        if self.generation_config:
            write_json(folder / "generation_config.json", self.generation_config)
        write_json(folder / "config.json", config | {"dtype": dtype})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        raw: Mapping[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        head: str | None = None,
        **more: Any,
    ) -> Self:
        """The model of a folder whose `config.json` is `raw`, in evaluation mode; floats in `dtype` on `device`.

        `head` and `more` are what `model_folder.load` was asked for: another head, its `labels`, `problem_type` and
        `seed`. A model that can draw new weights for a head overrides this. Raises InputError for a configuration or
        tensors that do not fit, and for another head.
        """
        folder = Path(folder)
        config = cls.read_config(raw, folder)
        if head is not None and head != config.head:
            raise InputError(f"{folder}: a {config.model_type} model has the head {config.head}, not {head}.")
        with SafetensorsReader(folder) as reader:
            tensors = {
                name: reader.read(name, dtype if reader.dtype(name).is_floating_point else None)
                for name in reader.names
            }
        try:
            model = cls.from_tensors(config, tensors)
        except InputError as error:
            raise InputError(f"{folder}: {error.message}", error.problems) from error
        model.load_files(folder)
        if (folder / "generation_config.json").is_file():
            from quatrain.core.reading import read_json

            model.generation_config = read_json(folder / "generation_config.json")
        return model.to(device).eval()

    @classmethod
    def read_config(cls, raw: Mapping[str, Any], folder: str | Path = "the model") -> Any:
        """The configuration of a `config.json`. Raises InputError, all problems at once."""
        own = {key: value for key, value in raw.items() if key not in IGNORED_KEYS}
        return parse(cls.Config, own, what=f"{folder}/config.json")

    # What the verbs ask

    @property
    def device(self) -> torch.device:
        """The device of the model's tensors."""
        tensor = next(iter([*self.parameters(), *self.buffers()]), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def num_parameters(self, *, trainable: bool = False) -> int:
        """Elements of all parameters, or of those that train. Counting models count their stored numbers."""
        return sum(each.numel() for each in self.parameters() if each.requires_grad or not trainable)

    def describe(self) -> dict[str, Any]:
        """Facts for `quatrain inspect`, as JSON: names to numbers, texts, or lists of rows (dictionaries)."""
        return {"parameters": self.num_parameters()}

    # Language models

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        segments: Tensor | None = None,
        adapters: Sequence[str | None] | None = None,
        **more: Any,
    ) -> Tensor:
        """input_ids (B, T) to what the head reads at each position, (B, T, D)."""
        raise InputError(f"A {self.config.model_type} model does not read tokens one after the other.")

    def lm_logits(self, hidden: Tensor, owners: Tensor | None = None) -> Tensor:
        """Hidden states (…, D) to logits (…, V) of the next token."""
        raise InputError(f"A {self.config.model_type} model does not predict the next token.")

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The loss of each label in nats (N,), from hidden states (N, D); a label of -100 has loss 0."""
        logits = self.lm_logits(hidden).float()
        return nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """input_ids (B, T) to logits (B, T, V) and, with labels (B, T), the unreduced loss (B, T)."""
        hidden = self.hidden_states(input_ids, **inputs)
        loss = None if labels is None else self.losses(hidden.flatten(0, 1), labels.flatten()).view_as(labels)
        return self.lm_logits(hidden), loss


class StateModel(ClassicModel):
    """A language model that reads tokens one after the other and carries a state from one to the next.

    A state is an immutable value of one text, such as its last tokens or a recurrent layer's vectors. `start` gives the
    states before the first token, `advance` reads tokens.
    """

    carries_state: ClassVar[bool] = True

    def start(self, count: int, sources: Sequence[Sequence[int]] | None = None) -> list[Any]:
        """The states of `count` texts before their first token. An encoder-decoder reads the `sources` of each."""
        raise NotImplementedError

    def advance(self, states: Sequence[Any], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[Any]]:
        """Reads the tokens of each text; returns hidden states (B, T, D), padded on the right, and the new states."""
        raise NotImplementedError

    @torch.inference_mode()
    def text_loss(self, ids: np.ndarray) -> tuple[float, int]:
        """The summed loss in nats of all tokens but the first of a text (N,), and their number, in one pass: the state
        is carried from part to part.
        """
        part = max(1, LOGITS // self.config.vocab_size)
        states, total = self.start(1), 0.0
        for start in range(0, len(ids) - 1, part):
            tokens = torch.from_numpy(ids[start : start + part + 1].astype(np.int64)).to(self.device)
            hidden, states = self.advance(states, [tokens[:-1].tolist()])
            total += self.losses(hidden[0], tokens[1:]).double().sum().item()
        return total, max(len(ids) - 1, 0)

    def state_bytes(self) -> int:
        """Bytes of the state of one text."""
        return 0

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        segments: Tensor | None = None,
        adapters: Sequence[str | None] | None = None,
        **more: Any,
    ) -> Tensor:
        """input_ids (B, T), each row from the beginning of a text, to hidden states (B, T, D)."""
        return self.advance(self.start(len(input_ids)), input_ids.tolist())[0]
