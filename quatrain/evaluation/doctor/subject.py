"""The model that the doctor examines: its weights in float32, samples of its input, and what its rounding allows.

A model that is too large for the memory budget is examined with its first layers alone (`sample.py`). Texts are fewer
and shorter where one forward pass takes long.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.evaluation.doctor.check import LOGITS, DoesNotApply, NotRun, differences
from quatrain.evaluation.doctor.sample import cut_model
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.generation.runner import context_limit
from quatrain.loading.model import ResolvedModel, load_model
from quatrain.models import classic
from quatrain.models.io.model_folder import read_config
from quatrain.models.transformer.stack import Model
from quatrain.planning.machine import choose_device

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = (
    "It is a truth universally acknowledged that a model in possession of good weights must give the same answer "
    "twice: 3 + 4 = 7, naïve café, 数据, «да», and once more, 3 + 4 = 7."
)
"""The text whose tokens are half of the samples; the other half are random ids."""
LENGTHS = (48, 5, 31, 17, 2, 40)
"""Tokens of the samples of a fast model: ragged on purpose."""
SIZES = ((0.5, 6, 1.0, 16), (3.0, 4, 0.5, 8), (float("inf"), 3, 0.2, 4))
"""By seconds of a forward pass over the longest sample: samples, share of their lengths, new tokens to generate."""
ROUNDING_FACTOR = 8
"""Two orders of the same sums may differ by this many times the distance of one of them from float64."""
TOKEN_HEADS = ("causal", "masked", "pretraining", "token_classification", "question_answering", "value", "none")
"""Heads of decoders and encoders with an output for each token."""


class ModelUnderTest:
    """A model folder, adapter folder, run or hub id on `device`, with a budget of seconds and of bytes.

    `memory` is what a copy of the weights in float32 may take. Raises InputError for a folder that is not a model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        seconds: float = 120.0,
        memory: int | None = None,
        reference: str | Path | None = None,
    ):
        self.name, self.device = str(model), choose_device(device)
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.notes: list[str] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="quatrain-doctor-")
        resolved = ResolvedModel.of(model)
        _check_is_transformer(resolved.base)
        self.original = resolved
        self.resolved, note = cut_model(resolved, self.folder("sample"), memory, self.device)
        self.notes += [note] if note else []
        self.reference = None if reference is None else ResolvedModel.of(reference)

    def __enter__(self) -> ModelUnderTest:
        return self

    def __exit__(self, *error: object) -> None:
        self._temporary.cleanup()

    def folder(self, name: str) -> Path:
        """A temporary folder of this name; it is removed with this object."""
        path = Path(self._temporary.name) / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def is_late(self) -> bool:
        """Whether the budget of time is used up."""
        return time.monotonic() > self.deadline

    @cached_property
    def _loaded(self) -> tuple[Model, Any]:
        return load_model(self.resolved, device=self.device)

    @property
    def model(self) -> Model:
        """The model in float32, in evaluation mode."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, if it has one."""
        return self._loaded[1]

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.model.config

    @property
    def has_encoder(self) -> bool:
        """Whether it is an encoder-decoder."""
        return self.model.encoder is not None

    @property
    def decoder_is_fed(self) -> bool:
        """Whether the decoder of an encoder-decoder reads a text of its own, as it does unless it classifies."""
        return self.has_encoder and self.config.head in ("seq2seq", "none")

    @cached_property
    def engine(self) -> Engine:
        """An engine over the model. Raises DoesNotApply for a model that generates nothing."""
        if self.config.head not in ("causal", "seq2seq"):
            raise DoesNotApply(f"the head {self.config.head} generates no text")
        return Engine.of(self.model, self.tokenizer, self.resolved)

    def require_decoder(self, what: str) -> None:
        """Raises DoesNotApply unless the model is a causal decoder with weights of floats."""
        if self.config.architecture != "decoder" or self.config.head != "causal":
            kind = f"{self.config.architecture} with the head {self.config.head}"
            raise DoesNotApply(f"{what} needs a causal decoder; this model is of the kind {kind}")

    def require_floats(self, what: str) -> None:
        """Raises DoesNotApply for quantized weights."""
        from quatrain.compression.layer import QuantizedLinear

        if any(isinstance(module, QuantizedLinear) for module in self.model.modules()):
            raise DoesNotApply(f"{what} needs weights of floats; these are quantized")

    @staticmethod
    def require_library(name: str, extra: str) -> None:
        """Raises NotRun if a library is not installed."""
        if find_spec(name) is None:
            raise NotRun(f'{name} is not installed: pip install "quatrain[{extra}]"')

    @cached_property
    def _size(self) -> tuple[int, float, int]:
        """How many samples, their share of the usual lengths, and new tokens, by the speed of a forward pass."""
        row = self._ids(min(48, self.room), 0)
        start = time.perf_counter()
        self.outputs(self.model, [row])
        taken = time.perf_counter() - start
        count, share, new = next(size[1:] for size in SIZES if taken < size[0])
        if count < SIZES[0][1]:
            self.notes.append(
                f"One forward pass of {len(row)} tokens takes {taken:.1f} s, so {count} texts of at most "
                f"{round(share * 48)} tokens stand for all."
            )
        return count, share, new

    @property
    def room(self) -> int:
        """The longest sample: a third of the context, at most 16 tokens, is for new tokens."""
        limit = context_limit(self.model)
        return 4096 if limit is None else max(1, limit - min(16, limit // 3) - 1)

    @cached_property
    def rows(self) -> list[list[int]]:
        """Ragged samples of token ids: of a text, and random ones of the whole vocabulary."""
        count, share, _ = self._size
        return [self._ids(min(self.room, max(2, round(share * LENGTHS[row]))), row) for row in range(count)]

    @property
    def new_tokens(self) -> int:
        """How many tokens to generate after each sample."""
        limit = context_limit(self.model)
        return self._size[2] if limit is None else max(1, min(self._size[2], limit // 3))

    @property
    def greedy(self) -> SamplingParams:
        """Greedy decoding of `new_tokens` tokens."""
        return SamplingParams(temperature=0.0, max_new_tokens=self.new_tokens, min_new_tokens=self.new_tokens)

    def _ids(self, length: int, row: int) -> list[int]:
        """A sample of so many tokens without special ones, but with an end token for a head that reads it there."""
        ids = self._plain_ids(length, row)
        if self.config.pooling == "eos" and self.config.head == "sequence_classification":
            ids[-1] = int(np.atleast_1d(self.config.eos_token_id)[0])
        return ids

    def _plain_ids(self, length: int, row: int) -> list[int]:
        generator = np.random.default_rng(row)
        # The last rows of an embedding may belong to no token; where a tokenizer is known, only its tokens are drawn.
        known = self.tokenizer.vocab_size if self.tokenizer is not None else self.config.vocab_size
        limit = min(known, self.config.vocab_size)
        special = set(self.tokenizer.special_ids) if self.tokenizer is not None else set()
        special |= {self.config.pad_token_id, *np.atleast_1d(self.config.eos_token_id or [])} - {None}
        if self.tokenizer is not None and row % 2 == 0:
            text = readable(self.tokenizer, TEXT * 3)
            ids = [each for each in self.tokenizer.encode(text) if each < limit and each not in special] if text else []
            start = row % max(1, len(ids))
            if len(ids) - start >= length:
                return ids[start : start + length]
        drawn = [each for each in generator.integers(0, limit, 4 * length).tolist() if each not in special]
        return (drawn or [0])[:length]

    @torch.no_grad()
    def outputs(
        self, model: Model, rows: Sequence[Sequence[int]], *, padding: str = "right", single: bool = False
    ) -> list[Tensor]:
        """The outputs of a model for texts as one padded batch, or one by one: a tensor for each, without padding."""
        if single:
            return [self.outputs(model, [row])[0] for row in rows]
        width = max(map(len, rows))
        places = [slice(width - len(row), width) if padding == "left" else slice(0, len(row)) for row in rows]
        ids = torch.full((len(rows), width), self.config.pad_token_id or 0)
        segments = torch.zeros_like(ids)
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            ids[number, place] = torch.tensor(row)
            segments[number, place] = 1
        extra: dict[str, Any] = {}
        if self.decoder_is_fed:
            extra["decoder_input_ids"] = self.decoder_ids(rows).to(model.device)
        ragged = len({len(row) for row in rows}) > 1
        value = model(ids.to(model.device), segments=segments.to(model.device) if ragged else None, **extra)[0]
        per_token = self.config.head in TOKEN_HEADS and not self.decoder_is_fed
        return [_of_row(value, number, place if per_token else None) for number, place in enumerate(places)]

    def decoder_ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """What the decoder of an encoder-decoder reads for these texts: (B, 7)."""
        start = self.config.decoder_start_token_id
        return torch.tensor([[0 if start is None else start, *[row[at % len(row)] for at in range(6)]] for row in rows])

    def check_output(self) -> None:
        """Raises DoesNotApply for models whose input is not a row of tokens."""
        if self.config.head == "multiple_choice":
            raise DoesNotApply("a multiple-choice model reads several texts at once")

    @cached_property
    def rounding(self) -> float:
        """The distance of the model's float32 outputs from float64 on two samples; 0 where it cannot be measured."""
        try:
            rows = self.rows[:2]
            exact = copy.deepcopy(self.model).double()
            return differences(zip(self.outputs(self.model, rows), self.outputs(exact, rows), strict=True))
        except (RuntimeError, TypeError):
            return 0.0  # The device has no float64, or a kernel is for float32 alone.

    @property
    def logit_limit(self) -> float:
        """The limit of two ways to compute the same logits: 1e-5, or more where float32 itself rounds more."""
        return max(LOGITS, ROUNDING_FACTOR * self.rounding)

    @contextmanager
    def adapted(self) -> Iterator[Model]:
        """A copy of the model with an adapter whose weights all matter: its own, or a LoRA of rank 4."""
        model = copy.deepcopy(self.model)
        if not list(adapter_layers(model)) and model.soft_prompt is None:
            self.require_floats("a new adapter")
            apply_adapter(model, AdapterSettings(method="lora", rank=4, alpha=8.0), seed=0)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for _, layer in adapter_layers(model):
                    for parameter in layer.adapter_parameters().values():
                        scale = 0.3 / max(parameter.shape) ** 0.5
                        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        yield model.eval()

    def greedy_ids(self, engine: Engine, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The greedy continuations of an engine."""
        return [completion.ids for completion in engine.generate(list(rows), self.greedy)]

    def different(
        self, rows: Sequence[Sequence[int]], found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]
    ) -> tuple[int, str]:
        """How many continuations differ, without those that part at a tie of the two likeliest tokens; and a note."""
        wrong, ties, notes = 0, 0, []
        for row, one, other in zip(rows, found, expected, strict=True):
            if list(one) == list(other):
                continue
            at = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
            if at is not None and self._is_tie(row, other[:at], one[at], other[at]):
                ties += 1
                continue
            wrong += 1
            place = min(len(one), len(other)) if at is None else at
            notes.append(f"the continuation of a text of {len(row)} tokens differs from its token {place + 1} on")
        if ties:
            notes.append(f"{ties} part at a tie, where two tokens are equally likely within rounding")
        return wrong, "; ".join(notes[:3])

    def _is_tie(self, row: Sequence[int], said: Sequence[int], one: int, other: int) -> bool:
        if self.has_encoder:
            return False
        logits = self.outputs(self.model, [[*row, *said]])[0][-1]
        gap = float((logits[one] - logits[other]).abs())
        return gap <= 2 * self.logit_limit * (1 + float(logits.abs().max()))


def _of_row(value: Any, number: int, place: slice | None) -> Tensor:
    """The output of one row: the tokens of `place`, or all of it; the parts of a pair one after the other."""
    if isinstance(value, tuple):
        tokens, rest = value
        own = tokens[number] if place is None else tokens[number, place]
        return torch.cat([own.flatten(), rest[number].flatten()])
    own = value[number]
    return own if place is None else own[place]


def _check_is_transformer(folder: Path) -> None:
    """Raises InputError for a classic model (n-grams, word vectors, recurrent networks)."""
    kind = read_config(folder).get("model_type")
    if classic.find(kind) is not None:
        raise InputError(
            f"{folder}: a classic model ({kind}), and the doctor examines transformers. Its own tests compare it with "
            "reference libraries; `quatrain inspect` shows it, and `quatrain evaluate` measures it."
        )


def readable(tokenizer: Tokenizer, text: str) -> str:
    """The characters of a text that a tokenizer knows: all of them for most kinds."""

    def known(part: str) -> bool:
        try:
            tokenizer.encode(part)
        except InputError:
            return False
        return True

    return text if known(text) else "".join(character for character in text if known(character))


def guarded(action: Callable[[], Any], reason: str) -> Any:
    """The result of an action; an InputError becomes DoesNotApply with a reason."""
    try:
        return action()
    except InputError as error:
        raise DoesNotApply(f"{reason}: {error.message}") from error
