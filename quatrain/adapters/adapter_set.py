"""Several adapters over one model: switched, or mixed in one batch, each row through its own.

The base works on all rows together, so that its weights are read once; what an adapter adds is worked out for its rows
alone (as S-LoRA serves them, Sheng et al. 2023, arXiv 2311.03285; for soft prompts Lester et al. 2021, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from quatrain.adapters.apply import apply
from quatrain.adapters.layer import Adapted, adapters, replace_module
from quatrain.adapters.peft_files import read_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import learned_rows, train_tokens
from quatrain.core.errors import InputError
from quatrain.models.transformer.context import Prefix
from quatrain.models.transformer.soft_prompts import SoftPrompt
from quatrain.models.transformer.stack import Model
from quatrain.models.transformer.trainable_tokens import LearnedRows, TrainableTokens
from quatrain.models.transformer.vocabulary import untie
from quatrain.tokenizers.tokenizer import Tokenizer

Made = TypeVar("Made")
Choice = str | None | Sequence[str | None]
"""An adapter's name for all rows, None for the base alone, or one of these for each row."""


@dataclass
class Member:
    """What one adapter changes: layers by path, a prompt, rows of tokens, and weights by name."""

    layers: dict[str, Adapted]
    prompt: SoftPrompt | None
    vocab_size: int
    tokenizer: Tokenizer | None = None
    rows: LearnedRows | None = None
    whole: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Rows:
    """Which rows of the batch are whose: for each adapter in it their numbers, None where all are."""

    names: list[str | None] = field(default_factory=list)
    of: dict[str, Tensor | None] = field(default_factory=dict)


class AdapterSet:
    """The adapters of a model by name. `choose` says which the next passes go through; at first the base alone.

    An adapter that has learned weights of the model itself (a head, biases, layers) is switched for the whole batch.
    """

    def __init__(self, model: Model, members: Mapping[str, Member]):
        """Puts adapters beside each other over `model`, their base, which is frozen. `load` and `begin` say which."""
        self.model, self.members, self.rows = model, members, Rows()
        self._original: dict[str, Tensor] = {}
        self._chosen: list[Choice] = []
        self._active: str | None = None
        model.requires_grad_(False)
        self._paths = list(dict.fromkeys(path for member in self.members.values() for path in member.layers))
        for path in self._paths:
            own = {name: each.layers[path] for name, each in self.members.items() if path in each.layers}
            replace_module(model, path, MixedLinear(self, own))
        if any(member.prompt is not None for member in self.members.values()):
            model.prompt = MixedPrompt(self)
        model.trainable_tokens = MixedTrainableTokens(self)
        model.adapter_set = self
        self.choose(None)

    @classmethod
    def load(cls, model: Model, folders: Mapping[str, str | Path]) -> AdapterSet:
        """The adapters of these folders over their base, as they were learned.

        Raises InputError for folders that are no adapters of it, or whose tokenizers disagree on what an id means.
        """
        from quatrain.tokenizers.tokenizer import Tokenizer

        if not folders:
            raise InputError("No adapter is named: give at least one, by a name and its folder.")
        _check_bare(model)
        size, members = model.config.vocab_size, dict[str, Member]()
        for name, folder in folders.items():
            found = read_adapter(model, folder)
            known = max(size, found.vocab_size), Tokenizer.find(folder)
            members[name] = Member(found.layers, found.prompt, *known, found.rows, found.whole.tensors)
            if found.whole.unties:
                untie(model)
        _check_tokenizers(members)
        return cls(model, members)

    @classmethod
    def begin(
        cls,
        model: Model,
        names: Sequence[str],
        settings: AdapterSettings,
        *,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        ids: Sequence[int] = (),
    ) -> AdapterSet:
        """Fresh adapters of one kind, which learn, with the rows of these ids. Raises InputError as `apply` and
        `train_tokens` do.
        """
        _check_bare(model)
        members = dict[str, Member]()
        for number, name in enumerate(names):
            apply(model, settings, seed + number, tokenizer=tokenizer)
            train_tokens(model, ids)
            members[name] = Member(
                dict(adapters(model)), model.prompt, model.config.vocab_size, tokenizer, learned_rows(model)
            )
            model.prompt, model.trainable_tokens = None, None
            for path, layer in members[name].layers.items():
                replace_module(model, path, layer.base)
        return cls(model, members)

    @contextmanager
    def alone(self, name: str) -> Iterator[Model]:
        """The model with one of the adapters and no other, as it is written into a folder."""
        member = self.members[name]
        with self.off():
            self.model.prompt, self.model.trainable_tokens = member.prompt, member.rows
            for path, layer in member.layers.items():
                replace_module(self.model, path, layer)
            try:
                yield self.model
            finally:
                for path, layer in member.layers.items():
                    replace_module(self.model, path, layer.base)

    @contextmanager
    def off(self) -> Iterator[Model]:
        """The base alone, without what adapters put in it."""
        prompt, rows, mixed = self.model.prompt, self.model.trainable_tokens, self._take_off()
        try:
            yield self.model
        finally:
            self.model.prompt, self.model.trainable_tokens, self.model.adapter_set = prompt, rows, self
            for path, module in mixed.items():
                replace_module(self.model, path, module)

    def _take_off(self) -> dict[str, nn.Module]:
        """Leaves the base alone in the model; returns the layers that were in place of its own."""
        self.choose(None)
        self.model.prompt, self.model.trainable_tokens, self.model.adapter_set = None, None, None
        mixed: dict[str, Any] = {path: self.model.get_submodule(path) for path in self._paths}
        for path, module in mixed.items():
            replace_module(self.model, path, module.base)
        return mixed

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that knows the tokens of all adapters; None where none has one."""
        known = [member.tokenizer for member in self.members.values() if member.tokenizer is not None]
        return max(known, key=lambda tokenizer: tokenizer.vocab_size, default=None)

    def choose(self, names: Choice) -> None:
        """The adapter of every row of the next passes, or that of each row. None is the base.

        Raises InputError, with near names, for names that are not here, and for weights that only one can have.
        """
        if self._chosen == [names]:
            return
        alike = names is None or isinstance(names, str)
        each: list[str | None] = [names] if alike else list(names)  # type: ignore[arg-type, list-item]
        self.check(each)
        distinct = list(dict.fromkeys(each))
        self._chosen = [names if alike else each]
        self._switch(distinct[0] if len(distinct) == 1 else None)
        self.rows = Rows([] if alike else each)
        for name in distinct:
            if name is not None:
                rows = [number for number, own in enumerate(each) if own == name]
                alone = len(distinct) == 1
                self.rows.of[name] = None if alone else torch.tensor(rows, device=self.model.device)

    def check(self, each: Sequence[str | None]) -> None:
        """Raises InputError for names that cannot be chosen together, as `choose` does."""
        unknown = sorted({str(name) for name in each if name is not None and name not in self.members})
        known = ", ".join(self.members)
        problems = [f"{name!r}: no adapter of this model; they are {known}" for name in unknown]
        distinct = list(dict.fromkeys(each))
        if not problems and len(distinct) > 1:
            problems += [
                f"{name}: it has learned weights of the model itself ({', '.join(list(self.members[name].whole)[:3])}"
                ", …), which all rows share; it can be switched to, not mixed with others"
                for name in distinct
                if name is not None and self.members[name].whole
            ]
        if problems:
            raise InputError("These adapters cannot be chosen:", problems)

    def prompts(self) -> list[SoftPrompt | None]:
        """Each row's prompt; that of one row where all have the same."""
        names = self.rows.names or list(self.rows.of) or [None]
        return [None if name is None else self.members[name].prompt for name in names]

    @torch.no_grad()
    def _switch(self, name: str | None) -> None:
        """Puts the weights of the model that an adapter has learned in their places; those of the one before leave."""
        if name == self._active:
            return
        self._active = name
        state = dict(self.model.named_parameters())
        for key, tensor in self._original.items():
            state[key].copy_(tensor)
        self._original = {}
        for key, tensor in (self.members[name].whole if name is not None else {}).items():
            own = _base_name(state, key)
            if own not in state:
                continue  # the head of a tied model is its embedding
            self._original[own] = state[own].clone()
            state[own].copy_(tensor)

    def close(self) -> Model:
        """Takes all adapters off; the model is as it was before them, but for rows of new tokens."""
        self._take_off()
        return self.model

    def fits(self, rows: int) -> None:
        """Raises InputError where a batch has not the rows that adapters were chosen for."""
        if self.rows.names and len(self.rows.names) != rows:
            raise InputError(f"adapters were chosen for {len(self.rows.names)} rows; the batch has {rows}.")


class MixedLinear(nn.Module):
    """A frozen linear layer with the adapters that go over it; x (B, …, in_features) to (B, …, out_features)."""

    def __init__(self, adapter_set: AdapterSet, layers: Mapping[str, Adapted]):
        super().__init__()
        self.base = next(iter(layers.values())).base
        self.names = list(layers)
        self.layers = nn.ModuleList(layers.values())
        self._adapter_set = [adapter_set]  # no module of ours

    def forward(self, x: Tensor) -> Tensor:
        chosen = self._adapter_set[0].rows.of
        own: list[tuple[Any, Tensor | None]]
        own = [(layer, chosen[name]) for name, layer in zip(self.names, self.layers, strict=True) if name in chosen]
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
    """Each row's own prompt, of its own length, behind slots that nobody sees."""

    method: ClassVar[str] = "mixture"

    def __init__(self, adapter_set: AdapterSet):
        super().__init__()
        self.prompts = nn.ModuleList(each.prompt for each in adapter_set.members.values() if each.prompt is not None)
        self._adapter_set = [adapter_set]

    @property
    def length(self) -> int:  # type: ignore[override]
        """Slots of the longest prompt in the batch."""
        return max(self._slots())

    def _slots(self) -> list[int]:
        return [0 if prompt is None else prompt.length for prompt in self._adapter_set[0].prompts()]

    def lengths(self) -> Tensor | None:
        found = self._slots()
        return None if len(set(found)) == 1 else torch.tensor(found, device=self._adapter_set[0].model.device)

    def _rows(self, said: Callable[[SoftPrompt], Made | None]) -> tuple[list[Made | None], Made | None]:
        """What each row's prompt says, each prompt being asked once, and the first of it that there is."""
        prompts = self._adapter_set[0].prompts()
        made = {prompt: said(prompt) for prompt in dict.fromkeys(prompts) if prompt is not None}
        rows = [None if prompt is None else made[prompt] for prompt in prompts]
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
        holds = numbers >= self.length - torch.tensor(lengths, device=numbers.device)[:, None]
        return Prefix([(stacked(layer, 0), stacked(layer, 1)) for layer in range(len(like.layers))], holds=holds)

    def _filled(self, own: Tensor | None, like: Tensor, axis: int) -> Tensor:
        """One row's slots along an axis, at the end of as many as the longest prompt has."""
        length, shape = self.length, list(like.shape)
        shape[axis] = length - (0 if own is None else own.shape[axis])
        empty = like.new_zeros(shape)
        return empty if own is None else torch.cat((empty, own), dim=axis)


class MixedTrainableTokens(TrainableTokens):
    """What each row of a batch reads and says by its own adapter's rows; tokens that an adapter lacks are not said."""

    def __init__(self, adapter_set: AdapterSet):
        super().__init__()
        self.members = nn.ModuleList(each.rows for each in adapter_set.members.values() if each.rows is not None)
        self._adapter_set = [adapter_set]

    def embed(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        adapter_set = self._adapter_set[0]
        adapter_set.fits(tokens.shape[0])
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
            said = _of(logits, rows)
            if member.rows is not None:
                said = member.rows.lm_logits(_of(hidden, rows), said, bias)
            said[..., member.vocab_size :] = torch.finfo(said.dtype).min
            logits = said if rows is None else logits.index_copy(0, rows, said)
        return logits


def _of(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _base_name(state: Mapping[str, Any], name: str) -> str:
    """The name that a weight has now, which may be under other adapters."""
    owner, _, leaf = name.rpartition(".")
    return name if name in state else f"{owner}.base.{leaf}"


def _check_bare(model: Model) -> None:
    """Raises InputError for a model that has adapters."""
    if model.adapter_set is not None or model.prompt is not None or any(True for _ in adapters(model)):
        raise InputError("This model has adapters already; several are put over a base without any.")


def _check_tokenizers(members: Mapping[str, Member]) -> None:
    """Raises InputError where an id is one token for one adapter and another for another."""
    known: dict[int, tuple[str, str]] = {}
    problems = []
    for name, member in members.items():
        for token in member.tokenizer.special_ids if member.tokenizer is not None else ():
            said = str(member.tokenizer.id_to_token(token))  # type: ignore[union-attr]
            other, theirs = known.setdefault(token, (name, said))
            if theirs != said:
                problems.append(f"token {token} is {theirs!r} for {other} and {said!r} for {name}")
    if problems:
        raise InputError("These adapters have added other tokens and cannot share a model:", problems[:5])
