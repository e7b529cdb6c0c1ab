"""Runs a model on texts that are stored in the slots of a KV cache.

`ModelRunner` reads any number of new tokens into neighbouring slots at once: prompts, parts of prompts, one token per
text, or several proposed ones. Texts may have different lengths, adapters and soft prompts. `SearchBatch` runs the rows
of a search, which are repeated and reordered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from quatrain.generation.constraints import PADDING
from quatrain.generation.requests import SequenceState
from quatrain.generation.static import StaticDecoder
from quatrain.models.kernels.decode import CacheDecoder, NativeUse
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.positions import depends_on_length, original_length
from quatrain.models.transformer.stack import Model
from quatrain.planning.counts import kv_cache_bytes
from quatrain.planning.limits import check_generation


def _source_length(config: ModelConfig, sequence: SequenceState) -> int:
    """Vectors that the model reads of a prompt, or of features."""
    if sequence.features is None or config.frontend is None or sequence.decoder_prompt is None:
        return len(sequence.prompt)
    return config.frontend.num_vectors


def has_encoder(config: ModelConfig) -> bool:
    """Whether the model reads the prompt with an encoder."""
    return config.architecture == "encoder-decoder"


def virtual_tokens(model: Model, adapter: str | None = None) -> int:
    """Length of the soft prompt that the model, or one of its adapters, puts before a text."""
    soft_prompt = model.soft_prompt
    if model.adapter_set is not None:
        soft_prompt = None if adapter is None else model.adapter_set.members[adapter].prompt
    return 0 if soft_prompt is None else soft_prompt.length


def context_limit(model: Model, adapter: str | None = None) -> int | None:
    """The most tokens that one side of a model reads, without its soft prompt; None without a limit on positions."""
    if not model.config.has_position_limit:
        return None
    return model.config.context_length - virtual_tokens(model, adapter)


class ModelRunner:
    """Reads tokens into slots and returns logits.

    Attributes: `cache`, whose `reserve` adds slots; `native` and `static`, asked first for plain decoding steps: native
    code on the CPU, captured steps on CUDA. `native` of the constructor: whether these are used, None and "compiled" to
    decide by measuring and by the device (`CacheDecoder`). `kv_cache` = "int8" or "int4" rounds the cache.
    """

    def __init__(self, model: Model, slots: int = 0, native: NativeUse = False, kv_cache: str | None = None):
        self.model, self.device = model, model.device
        self.has_encoder = has_encoder(model.config)
        self.hidden_states: list[Tensor] | None = None
        """If it is a list, the hidden states (T, hidden_size) after the tokens of each row are added to it."""
        dtype = model.embed_tokens.weight.dtype
        self.cache = KVCache(model.config, slots, 0, dtype=dtype, device=self.device, form=kv_cache)
        self.kv_cache = kv_cache
        self.native = CacheDecoder(model, self.cache, native)
        self.static = StaticDecoder(model, self.cache, False if native is False else None)
        self._scaling = next(
            (
                scaling
                for scaling in (model.config.rope_scaling, model.config.local_rope_scaling)
                if depends_on_length(scaling)
            ),
            None,
        )
        self.original_length = None
        """Tokens past which the rotary frequencies depend on the length of the text; None where they never do."""
        if self._scaling is not None:
            self.original_length = original_length(self._scaling, model.config.max_position_embeddings)

    def sibling(self, slots: int) -> ModelRunner:
        """A runner of the same model with its own slots."""
        return ModelRunner(self.model, slots, kv_cache=self.kv_cache)

    def slot_bytes(self, slots: int, length: int) -> int:
        """Bytes of so many slots for texts of `length` tokens."""
        return kv_cache_bytes(self.model.config, length, slots, self._cache_dtype(self.cache.dtype))

    def _cache_dtype(self, dtype: torch.dtype) -> str:
        """What the cache is stored in, for counting its bytes."""
        return self.kv_cache or str(dtype).removeprefix("torch.")

    def check_memory(self, sequence: SequenceState) -> None:
        """Raises InputError if a sequence alone does not fit in the device's memory."""
        check_generation(
            self.model.config,
            prompts=1,
            beams=sequence.params.rows,
            prompt_tokens=_source_length(self.model.config, sequence),
            new_tokens=sequence.limit,
            virtual_tokens=virtual_tokens(self.model, sequence.adapter),
            cache_dtype=self._cache_dtype(self.model.embed_tokens.weight.dtype),
            device=self.model.device,
        )

    def refresh(self) -> None:
        """Decides what runs plain decoding steps, and again if the model has changed; call it before each batch."""
        self.native.refresh()
        self.static.refresh()

    def follow_model(self) -> bool:
        """Empties the cache if the model's dtype or device has changed, and takes it over; returns whether it has."""
        weight = self.model.embed_tokens.weight
        if (weight.dtype, weight.device) == (self.cache.dtype, self.cache.device):
            return False
        self.cache.release(0)
        self.cache.dtype, self.cache.device = weight.dtype, weight.device
        self.device = weight.device
        return True

    def virtual_tokens(self, adapter: str | None) -> int:
        """Places of a slot that a soft prompt takes before the first token."""
        return 0 if self.has_encoder else virtual_tokens(self.model, adapter)

    @property
    def rounds_inputs(self) -> bool:
        """Whether native code decodes with rounded numbers, so that keys and values differ from those of a prompt."""
        return self.native.decoder is not None and self.native.decoder.format in ("int8", "int4")

    def vectors_of(self, sequence: SequenceState, tokens: Sequence[int], before: Sequence[int]) -> Tensor | None:
        """The vectors of the image tokens among `tokens` of a sequence, after the tokens `before`; None for a sequence
        without pictures.
        """
        if self.has_encoder or sequence.features is None:
            return None
        token = self.model.frontend.token_id
        first, count = before.count(token), tokens.count(token)
        if not count:
            return self.model.embed_tokens.weight[:0]
        if sequence.vectors is None:
            sequence.vectors = self.model.vectors_of(sequence.features.to(self.device)).flatten(0, 1)
        return sequence.vectors[first : first + count]

    def can_share(self, adapters: Sequence[str | None]) -> bool:
        """Whether texts with these adapters can be read together."""
        adapter_set = self.model.adapter_set
        return adapter_set is None or len(set(adapters)) == 1 or adapter_set.can_share(adapters)

    def largest_chunk(self, wanted: int) -> int | None:
        """How many tokens of a prompt to read at once, near `wanted`; None: all, because it cannot be read in parts."""
        if self._scaling is not None and self._scaling.kind == "dynamic":
            return None
        return wanted if self.cache.window is None else min(wanted, self.cache.window + 1)

    def is_outgrown(self, before: int, length: int) -> bool:
        """Whether a text must be read anew when it grows from `before` tokens to `length`: LongRoPE turns all tokens of
        a text that is longer than those of pretraining by other frequencies.
        """
        limit = self.original_length
        return (
            limit is not None
            and self._scaling is not None
            and self._scaling.kind == "longrope"
            and (before <= limit < length)
        )

    @torch.inference_mode()
    def read(
        self,
        first: int,
        tokens: Sequence[Sequence[int]],
        *,
        adapters: Sequence[str | None],
        sources: Sequence[Source] | None = None,
        vectors: Sequence[Tensor | None] | None = None,
        text_lengths: Sequence[int] | None = None,
        every: bool = False,
        decoding: bool = False,
    ) -> Tensor:
        """Reads the tokens of each row into the slots from `first` on; returns logits (B, V) after the last token of
        each row, or with `every` (B, T, V) after each of them, where T is the longest row's number. After native code,
        `native.likeliest` tells the likeliest token of each of them.

        `sources` are what an encoder reads, for rows that start; `vectors` replace the first image tokens of each row.
        `text_lengths` are those of the whole texts, if only
        their beginnings are read; soft prompts count. `decoding`: the tokens were generated, or guessed, and may be
        read by native code. Whether a prompt is depends on its length alone, not on what is read with it.
        """
        lengths = text_lengths
        if lengths is None:
            lengths = [self.cache.lengths[first + row] + len(ids) for row, ids in enumerate(tokens)]
        self.native.likeliest = None
        if sources is None and vectors is None and (decoding or self.native.reads_prompt(max(lengths))):
            logits = self._native(first, tokens, every)
            if logits is None and decoding:
                logits = self._static(first, tokens, adapters)
            if logits is not None:
                return logits
        if self.original_length is None:
            return self._forward(first, tokens, adapters, (sources, vectors), None, every)
        text_lengths = lengths
        parts = []
        for rows in self._groups(text_lengths):
            own = _part(sources, rows), _part(vectors, rows)
            length = max(text_lengths[rows])
            parts.append(self._forward(first + rows.start, tokens[rows], adapters[rows], own, length, every))
        width = max(map(len, tokens))
        if every:
            parts = [torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts]
        return torch.cat(parts)

    def _groups(self, lengths: Sequence[int]) -> Iterator[slice]:
        """Neighbouring rows that can be read together, although the frequencies depend on the lengths of texts."""
        limit, dynamic = self.original_length or 0, self._scaling is not None and self._scaling.kind == "dynamic"
        start = 0
        for _, group in groupby(lengths, lambda length: (length if dynamic else 1) if length > limit else 0):
            count = len(list(group))
            yield slice(start, start + count)
            start += count

    def _forward(
        self,
        first: int,
        tokens: Sequence[Sequence[int]],
        adapters: Sequence[str | None],
        more: tuple[Any, Any],
        text_length: int | None,
        every: bool,
    ) -> Tensor:
        """`more`: sources and vectors, as for `read`."""
        sources, vectors = more
        count, width = len(tokens), max(map(len, tokens))
        padding = [width - len(ids) for ids in tokens]
        ids = torch.tensor([[*row, *[0] * empty] for row, empty in zip(tokens, padding, strict=True)])
        if every:  # Guesses may be taken back: what windows see before them must stay.
            self.cache.move_windows(range(first, first + count), width)
        rows = self.cache.rows(first, count, padding=padding, text_length=text_length)
        named: dict[str, Any] = {} if self.model.adapter_set is None else {"adapters": list(adapters)}
        read: Tensor | None = ids.to(self.device)
        if self.has_encoder:
            named["decoder_input_ids"], read = read, None
        elif vectors is not None:
            named["vectors"] = _placed(ids, vectors, self.model.frontend.token_id, self.device)
        if sources is not None:
            read, named["segments"], named["features"] = _encoder_input(sources, self.device)
        hidden = self.model.hidden_states(read, cache=rows, **named)
        if self.hidden_states is not None:
            self.hidden_states += [states[: len(row)] for states, row in zip(hidden, tokens, strict=True)]
        if not every:
            last = torch.tensor([len(row) - 1 for row in tokens], device=self.device)
            hidden = hidden[:, -1] if not any(padding) else hidden[torch.arange(count, device=self.device), last]
        return self.model.lm_logits(hidden)

    def _native(self, first: int, tokens: Sequence[Sequence[int]], every: bool) -> Tensor | None:
        """What `read` returns, from native code; None if PyTorch has to read these tokens."""
        if self.native.decoder is None or self.hidden_states is not None:
            return None
        slots = range(first, first + len(tokens))
        width = max(map(len, tokens))
        self.cache.make_room(max(self.cache.lengths[slot] for slot in slots) + width)
        self.cache.move_windows(slots, width)
        flat = torch.tensor([token for ids in tokens for token in ids], device=self.device)
        wanted = None
        if not every and width > 1:
            ends = torch.tensor([len(ids) for ids in tokens]).cumsum(0) - 1
            wanted = ends.tolist()
        own = [slot for slot, ids in zip(slots, tokens, strict=True) for _ in ids]
        logits = self.native.decode(flat, own, wanted)
        if logits is None:
            return None
        for slot, ids in zip(slots, tokens, strict=True):
            self.cache.lengths[slot] += len(ids)
        if not every:
            return logits
        return torch.nn.utils.rnn.pad_sequence(list(logits.split([len(ids) for ids in tokens])), batch_first=True)

    def _static(self, first: int, tokens: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> Tensor | None:
        """What `read` returns for one token of each row, from a step of fixed shape; None if it runs otherwise."""
        count = len(tokens)
        if self.static.reason or first or max(map(len, tokens)) > 1 or self.hidden_states is not None:
            return None
        self.cache.make_room(max(self.cache.lengths[:count]) + 1)
        self.cache.move_windows(range(count), 1)
        logits = self.static.decode([ids[0] for ids in tokens], adapters)
        if logits is not None:
            for slot in range(count):
                self.cache.lengths[slot] += 1
        return logits


def _part(values: Any, rows: slice) -> Any:
    """The values of some rows; None for none."""
    return None if values is None else values[rows]


def _placed(ids: Tensor, vectors: Sequence[Tensor | None], token: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places (B, T) of vectors, which are those of the first image tokens of each row, and the vectors (N, C)."""
    counts = torch.tensor([0 if each is None else len(each) for each in vectors])
    found = ids == token
    places = found & (found.cumsum(1) <= counts[:, None])
    return places.to(device), torch.cat([each for each in vectors if each is not None])


Source = Sequence[int] | Tensor
"""What an encoder reads: ids, or features of sound."""


def _encoder_input(sources: Sequence[Source], device: torch.device) -> tuple[Tensor | None, Tensor | None, Any]:
    """Ids (B, S) with their segments, or features (B, …), which have one shape."""
    if isinstance(sources[0], Tensor):
        return None, None, torch.stack([each for each in sources if isinstance(each, Tensor)]).to(device)
    return *_padded([each for each in sources if not isinstance(each, Tensor)], device), None


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Texts as one tensor (B, S), padded on the right, and its segments; None where there is no padding."""
    width = max(map(len, texts))
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts], device=device)
    if min(map(len, texts)) == width:
        return ids, None
    lengths = torch.tensor([len(ids) for ids in texts], device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long()


class SearchBatch:
    """The rows of a search: all read one token a step. `logits` (B, V) predict each row's next token."""

    logits: Tensor

    def __init__(self, runner: ModelRunner, sequences: Sequence[SequenceState], *, keep_hidden: bool = False):
        """One row for each sequence; `prefill` reads them. With `keep_hidden`, `hidden` gives hidden states.

        The rows have a cache of their own, and the model and native code of `runner`.
        """
        self.runner, self._native = runner.sibling(len(sequences)), runner.native
        self.runner.hidden_states = [] if keep_hidden else None
        self.device, self.adapters = self.runner.device, [sequence.adapter for sequence in sequences]
        self.sources = [sequence.source for sequence in sequences] if self.runner.has_encoder else None
        self.texts = [[*sequence.prefix, *sequence.ids] for sequence in sequences]
        self.vectors = [
            self.runner.vectors_of(each, text, []) for each, text in zip(sequences, self.texts, strict=True)
        ]
        width = max(map(len, self.texts))
        rows = [[PADDING] * (width - len(text)) + text for text in self.texts]
        self.decoder_ids = torch.tensor(rows, device=self.device)
        """What the decoder reads before the first new token (B, W), PADDING on the left."""
        self.start = torch.tensor([[len(text)] for text in self.texts], device=self.device)
        """Its length (B, 1)."""

    def prefill(self) -> None:
        """Reads the prompts; `logits` become those of each row's first new token."""
        self.logits = self._read(self.texts, self.sources, self.vectors)

    def hidden(self) -> list[Tensor]:
        """The hidden states (T, hidden_size) of the tokens that each row has read since the last call."""
        states, self.runner.hidden_states = self.runner.hidden_states or [], []
        return states

    def _read(
        self,
        tokens: Sequence[Sequence[int]],
        sources: Sequence[Source] | None,
        vectors: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Logits after the tokens, read one group of rows with equal soft prompts at a time."""
        if vectors is not None and all(each is None for each in vectors):
            vectors = None
        names = self.adapters if self.runner.model.adapter_set is not None else [None] * len(tokens)
        alike = [self.runner.virtual_tokens(name) for name in names]
        if len(set(alike)) == 1 or (max(map(len, tokens)) == 1 and sources is None):
            self.runner.native.decoder = self._native.decoder
            decoding = max(map(len, tokens)) == 1 and bool(min(self.runner.cache.lengths))
            return self.runner.read(0, tokens, adapters=names, sources=sources, vectors=vectors, decoding=decoding)
        parts, start = [], 0
        for _, group in groupby(names):
            rows = slice(start, start + len(list(group)))
            own, seen = _part(sources, rows), _part(vectors, rows)
            parts.append(self.runner.read(start, tokens[rows], adapters=names[rows], sources=own, vectors=seen))
            start = rows.stop
        return torch.cat(parts)

    def read(self, tokens: Tensor) -> None:
        """Reads one token per row (B,); `logits` become those of the token after it."""
        cache = self.runner.cache
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            text.append(token)
        if any(self.runner.is_outgrown(length, length + 1) for length in cache.lengths):
            for slot in range(cache.slots):
                cache.truncate(slot, 0)
            self.logits = self._read(self.texts, None, self.vectors)
            return
        self.logits = self._read([text[-1:] for text in self.texts], None)

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders rows."""
        self.runner.cache.select(rows)
        chosen = rows.tolist()
        self.texts = [list(self.texts[row]) for row in chosen]
        self.adapters, self.vectors = ([values[row] for row in chosen] for values in (self.adapters, self.vectors))
        self.logits, self.decoder_ids, self.start = self.logits[rows], self.decoder_ids[rows], self.start[rows]
