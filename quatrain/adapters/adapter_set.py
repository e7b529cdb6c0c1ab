"""Several adapters over one model: one for a whole batch, or another one for each row.

The base layer runs on all rows together, so that its weights are read once; each adapter runs on its own rows only (as
S-LoRA does, Sheng et al. 2023, arXiv 2311.03285; for soft prompts Lester et al. 2021, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.gguf_adapter import is_gguf_adapter
from quatrain.adapters.layer import AdapterLayer, adapter_layers
from quatrain.adapters.peft_files import read_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import token_rows, train_tokens
from quatrain.core.errors import InputError
from quatrain.models.modules import replace_module
from quatrain.models.transformer.context import Prefix
from quatrain.models.transformer.soft_prompts import SoftPrompt
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import TokenRows, TrainableTokens
from quatrain.models.transformer.vocabulary import untie
from quatrain.tokenizers.tokenizer import Tokenizer

T = TypeVar("T")
AdapterChoice = str | None | Sequence[str | None]
"""An adapter's name for all rows, None for the base model, or one of these for each row."""


@dataclass
class Member:
    """One adapter: its layers by path, soft prompt, trained token rows, and fully trained weights of the model."""

    layers: dict[str, AdapterLayer]
    prompt: SoftPrompt | None
    vocab_size: int
    tokenizer: Tokenizer | None = None
    rows: TokenRows | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class RowAssignment:
    """Which adapter each row of the batch uses.

    `names` is the adapter of each row, empty if all rows use the same. `of` maps each adapter in use to the numbers of
    its rows, or None for all rows.
    """

    names: list[str | None] = field(default_factory=list)
    of: dict[str, Tensor | None] = field(default_factory=dict)


class AdapterSet:
    """The adapters of a model by name. `activate` chooses those of the next forward passes; at first, none is active.

    An adapter with trained weights of the model itself (a head, biases, layers) can only be active for a whole batch.
    """

    def __init__(self, model: Model, members: Mapping[str, Member]):
        """Installs the adapters over `model`, their base, and freezes it. Use `load` or `create`."""
        self.model, self.members, self.rows = model, members, RowAssignment()
        self._original: dict[str, Tensor] = {}
        self._requested: list[AdapterChoice] = []
        self._active: str | None = None
        model.requires_grad_(False)
        self._paths = list(dict.fromkeys(path for member in self.members.values() for path in member.layers))
        for path in self._paths:
            own = {name: each.layers[path] for name, each in self.members.items() if path in each.layers}
            replace_module(model, path, MixedLinear(self, own))
        if any(member.prompt is not None for member in self.members.values()):
            model.soft_prompt = MixedPrompt(self)
        model.trainable_tokens = MixedTrainableTokens(self)
        model.adapter_set = self
        self.activate(None)

    @classmethod
    def load(cls, model: Model, folders: Mapping[str, str | Path]) -> AdapterSet:
        """Loads adapter folders, or GGUF files with a LoRA, over their base model.

        Raises InputError for folders that are not adapters of it, or whose tokenizers give an id different tokens.
        """
        from quatrain.tokenizers.tokenizer import Tokenizer

        if not folders:
            raise InputError("No adapter is named: give at least one, by a name and its folder.")
        _check_bare(model)
        size, members = model.config.vocab_size, dict[str, Member]()
        for name, folder in folders.items():
            adapter = read_adapter(model, folder)
            tokenizer = None if is_gguf_adapter(folder) else Tokenizer.find(folder)
            known = max(size, adapter.vocab_size), tokenizer
            members[name] = Member(adapter.layers, adapter.prompt, *known, adapter.rows, adapter.saved.tensors)
            if adapter.saved.unties:
                untie(model)
        _check_tokenizers(members)
        return cls(model, members)

    @classmethod
    def create(
        cls,
        model: Model,
        names: Sequence[str],
        settings: AdapterSettings,
        *,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        ids: Sequence[int] = (),
    ) -> AdapterSet:
        """New trainable adapters with the same settings, each with trained embedding rows for `ids`.

        Raises InputError as `apply_adapter` and `train_tokens` do.
        """
        _check_bare(model)
        members = dict[str, Member]()
        for number, name in enumerate(names):
            apply_adapter(model, settings, seed + number, tokenizer=tokenizer)
            train_tokens(model, ids)
            members[name] = Member(
                dict(adapter_layers(model)), model.soft_prompt, model.config.vocab_size, tokenizer, token_rows(model)
            )
            model.soft_prompt, model.trainable_tokens = None, None
            for path, layer in members[name].layers.items():
                replace_module(model, path, layer.base)
        return cls(model, members)

    @contextmanager
    def only(self, name: str) -> Iterator[Model]:
        """A context in which the model has one of the adapters and no other, as it is saved to a folder."""
        member = self.members[name]
        with self.disabled():
            self.model.soft_prompt, self.model.trainable_tokens = member.prompt, member.rows
            for path, layer in member.layers.items():
                replace_module(self.model, path, layer)
            try:
                yield self.model
            finally:
                for path, layer in member.layers.items():
                    replace_module(self.model, path, layer.base)

    @contextmanager
    def disabled(self) -> Iterator[Model]:
        """A context in which the model has no adapters."""
        prompt, rows, mixed = self.model.soft_prompt, self.model.trainable_tokens, self._take_off()
        try:
            yield self.model
        finally:
            self.model.soft_prompt, self.model.trainable_tokens, self.model.adapter_set = prompt, rows, self
            for path, module in mixed.items():
                replace_module(self.model, path, module)

    def _take_off(self) -> dict[str, nn.Module]:
        """Removes all adapters from the model; returns the layers that replaced its own."""
        self.activate(None)
        self.model.soft_prompt, self.model.trainable_tokens, self.model.adapter_set = None, None, None
        mixed: dict[str, Any] = {path: self.model.get_submodule(path) for path in self._paths}
        for path, module in mixed.items():
            replace_module(self.model, path, module.base)
        return mixed

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer with the tokens of all adapters; None if no adapter has one."""
        known = [member.tokenizer for member in self.members.values() if member.tokenizer is not None]
        return max(known, key=lambda tokenizer: tokenizer.vocab_size, default=None)

    def activate(self, names: AdapterChoice) -> None:
        """Sets the adapter of all rows, or of each row, for the next forward passes; None is the base model.

        Raises InputError for unknown names, and for adapters that cannot share a batch.
        """
        if self._requested == [names]:
            return
        same_for_all = names is None or isinstance(names, str)
        each: list[str | None] = [names] if same_for_all else list(names)  # type: ignore[arg-type, list-item]
        self.check_names(each)
        distinct = list(dict.fromkeys(each))
        self._requested = [names if same_for_all else each]
        self._switch(distinct[0] if len(distinct) == 1 else None)
        self.rows = RowAssignment([] if same_for_all else each)
        for name in distinct:
            if name is not None:
                rows = [number for number, own in enumerate(each) if own == name]
                alone = len(distinct) == 1
                self.rows.of[name] = None if alone else torch.tensor(rows, device=self.model.device)

    def check_names(self, each: Sequence[str | None]) -> None:
        """Raises InputError for names that cannot be active together, as `activate` does."""
        unknown = sorted({str(name) for name in each if name is not None and name not in self.members})
        known = ", ".join(self.members)
        problems = [f"{name!r}: no adapter of this model; they are {known}" for name in unknown]
        distinct = list(dict.fromkeys(each))
        if not problems and len(distinct) > 1:
            problems += [
                f"{name}: it has trained weights of the model itself ({', '.join(list(self.members[name].weights)[:3])}"
                ", …), which all rows share; use it for a whole batch"
                for name in distinct
                if name is not None and self.members[name].weights
            ]
        if problems:
            raise InputError("These adapters cannot be used:", problems)

    def can_share(self, names: Sequence[str | None]) -> bool:
        """Whether these adapters can be active in one batch."""
        return len(set(names)) < 2 or not any(name is not None and self.members[name].weights for name in names)

    def prompts(self) -> list[SoftPrompt | None]:
        """The soft prompt of each row; of one row if all rows have the same."""
        names = self.rows.names or list(self.rows.of) or [None]
        return [None if name is None else self.members[name].prompt for name in names]

    @torch.no_grad()
    def _switch(self, name: str | None) -> None:
        """Copies an adapter's fully trained weights into the model and restores those of the one before."""
        if name == self._active:
            return
        self._active = name
        state = dict(self.model.named_parameters())
        for key, tensor in self._original.items():
            state[key].copy_(tensor)
        self._original = {}
        for key, tensor in (self.members[name].weights if name is not None else {}).items():
            own = _base_name(state, key)
            if own not in state:
                continue  # The head of a tied model is its embedding.
            self._original[own] = state[own].clone()
            state[own].copy_(tensor)

    def unload(self) -> Model:
        """Removes all adapters from the model and returns it; only rows of new tokens stay."""
        self._take_off()
        return self.model

    def check_batch(self, rows: int) -> None:
        """Raises InputError if a batch does not have the number of rows that adapters were activated for."""
        if self.rows.names and len(self.rows.names) != rows:
            raise InputError(f"adapters are active for {len(self.rows.names)} rows; the batch has {rows}.")


class MixedLinear(nn.Module):
    """A frozen linear layer with several adapters; x (B, …, in_features) to (B, …, out_features)."""

    def __init__(self, adapter_set: AdapterSet, layers: Mapping[str, AdapterLayer]):
        super().__init__()
        self.base = next(iter(layers.values())).base
        self.names = list(layers)
        self.layers = nn.ModuleList(layers.values())
        self._adapter_set = [adapter_set]  # In a list, so that it is not registered as a submodule.

    def forward(self, x: Tensor) -> Tensor:
        active = self._adapter_set[0].rows.of
        own: list[tuple[Any, Tensor | None]]
        own = [(layer, active[name]) for name, layer in zip(self.names, self.layers, strict=True) if name in active]
        read = x
        for layer, rows in own:
            changed = layer.before(_of(x, rows))
            read = changed if rows is None else read.index_copy(0, rows, changed.to(read.dtype))
        result: Tensor = self.base(read)
        for layer, rows in own:
            changed = layer.after(_of(x, rows), _of(result, rows))
            result = changed if rows is None else result.index_copy(0, rows, changed.to(result.dtype))
        return result


class MixedPrompt(SoftPrompt):
    """The soft prompt of each row, of its own length; shorter ones come after positions that no token attends to."""

    method: ClassVar[str] = "mixture"

    def __init__(self, adapter_set: AdapterSet):
        super().__init__()
        self.prompts = nn.ModuleList(each.prompt for each in adapter_set.members.values() if each.prompt is not None)
        self._adapter_set = [adapter_set]

    @property
    def length(self) -> int:  # type: ignore[override]
        """Length of the longest prompt in the batch."""
        return max(self._slots())

    def _slots(self) -> list[int]:
        return [0 if prompt is None else prompt.length for prompt in self._adapter_set[0].prompts()]

    def lengths(self) -> Tensor | None:
        lengths = self._slots()
        return None if len(set(lengths)) == 1 else torch.tensor(lengths, device=self._adapter_set[0].model.device)

    def _rows(self, compute: Callable[[SoftPrompt], T | None]) -> tuple[list[T | None], T | None]:
        """The result of `compute` for each row's prompt, and the first that is not None; computed once per prompt."""
        prompts = self._adapter_set[0].prompts()
        results = {prompt: compute(prompt) for prompt in dict.fromkeys(prompts) if prompt is not None}
        rows = [None if prompt is None else results[prompt] for prompt in prompts]
        return rows, next((row for row in rows if row is not None), None)

    def embeddings(self) -> Tensor | None:
        rows, like = self._rows(lambda prompt: prompt.embeddings())
        return None if like is None else torch.stack([self._filled(row, like, 0) for row in rows])

    def keys_values(self) -> Prefix | None:
        rows, like = self._rows(lambda prompt: prompt.keys_values())
        if like is None:
            return None

        def stacked(layer: int, part: int) -> Tensor:
            own = [None if row is None else row.layers[layer][part] for row in rows]
            return torch.stack([self._filled(each, like.layers[layer][part], 1) for each in own])

        lengths = [0 if row is None else row.layers[0][0].shape[1] for row in rows]
        numbers = torch.arange(self.length, device=like.layers[0][0].device)
        active = numbers >= self.length - torch.tensor(lengths, device=numbers.device)[:, None]
        return Prefix([(stacked(layer, 0), stacked(layer, 1)) for layer in range(len(like.layers))], active=active)

    def _filled(self, own: Tensor | None, like: Tensor, axis: int) -> Tensor:
        """A row's prompt, padded at its start along `axis` to the length of the longest one."""
        length, shape = self.length, list(like.shape)
        shape[axis] = length - (0 if own is None else own.shape[axis])
        empty = like.new_zeros(shape)
        return empty if own is None else torch.cat((empty, own), dim=axis)


class MixedTrainableTokens(TrainableTokens):
    """The trained token rows of each batch row's adapter; tokens that an adapter does not know are never predicted."""

    def __init__(self, adapter_set: AdapterSet):
        super().__init__()
        self.members = nn.ModuleList(each.rows for each in adapter_set.members.values() if each.rows is not None)
        self._adapter_set = [adapter_set]

    def embed(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        adapter_set = self._adapter_set[0]
        adapter_set.check_batch(tokens.shape[0])
        for name, rows in adapter_set.rows.of.items():
            own = adapter_set.members[name].rows
            if own is not None:
                learned = own.embed(_of(tokens, rows), _of(embedded, rows))
                embedded = learned if rows is None else embedded.index_copy(0, rows, learned)
        return embedded

    def lm_logits(self, hidden: Tensor, logits: Tensor, bias: Tensor | None, owners: Tensor | None = None) -> Tensor:
        adapter_set = self._adapter_set[0]
        for name, rows in adapter_set.rows.of.items():
            if rows is not None and owners is not None:
                rows = torch.isin(owners, rows).nonzero()[:, 0]
            member = adapter_set.members[name]
            if member.rows is None and member.vocab_size >= logits.shape[-1]:
                continue
            own = _of(logits, rows)
            if member.rows is not None:
                own = member.rows.lm_logits(_of(hidden, rows), own, bias)
            own[..., member.vocab_size :] = torch.finfo(own.dtype).min
            logits = own if rows is None else logits.index_copy(0, rows, own)
        return logits


def _of(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _base_name(state: Mapping[str, Any], name: str) -> str:
    """The present name of a weight, which may be below adapters."""
    owner, _, leaf = name.rpartition(".")
    return name if name in state else f"{owner}.base.{leaf}"


def _check_bare(model: Model) -> None:
    """Raises InputError for a model with adapters."""
    if model.adapter_set is not None or model.soft_prompt is not None or any(True for _ in adapter_layers(model)):
        raise InputError("This model has adapters already; an adapter set needs a base model without any.")


def _check_tokenizers(members: Mapping[str, Member]) -> None:
    """Raises InputError if an id is one token for one adapter and another token for another."""
    known: dict[int, tuple[str, str]] = {}
    problems = []
    for name, member in members.items():
        for token in member.tokenizer.special_ids if member.tokenizer is not None else ():
            written = str(member.tokenizer.id_to_token(token))  # type: ignore[union-attr]
            other, theirs = known.setdefault(token, (name, written))
            if theirs != written:
                problems.append(f"token {token} is {theirs!r} for {other} and {written!r} for {name}")
    if problems:
        raise InputError("These adapters have added other tokens and cannot share a model:", problems[:5])
