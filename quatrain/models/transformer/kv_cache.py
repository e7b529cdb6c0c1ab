"""KV cache: keys and values of the tokens so far, in slots, so that decoding runs each token once.

A slot holds one text. All slots of a layer are one tensor, and each slot has its own length, so that texts of any
lengths are decoded together (continuous batching: Yu et al. 2022, Orca). `docs/decisions/0050-slots.md` compares slots
with pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.positions import original_length, positions_in_segments


class KVCache:
    """Keys and values of every layer, (slots, num_key_value_heads, room, head_dim) each.

    `lengths` is the number of tokens of each slot. A full-attention layer has room for `max_length` tokens; a
    sliding-window layer for twice its window, where slot `s` holds the tokens from number `starts[s]` on. `reserve`
    makes more room. `cross_attention` holds the keys and values of encoded texts, for layers with cross-attention: the
    first `encoded[s]` of slot `s`; `encoder_segments` (slots, S) are their segments, or None if all of it is text.

    `model(ids, cache=cache)` reads and extends all slots, one per row. Then a batch may be padded or packed: `segments`
    (slots, length) holds the segment of every token, 0 for padding. `rows` chooses slots; each of their rows continues
    at the length of its own slot.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.windows = [
            config.sliding_window if kind == "sliding" and config.sliding_window else None
            for kind in config.layer_types
        ]
        self.window = next((window for window in self.windows if window is not None), None)
        """The window of the sliding layers, if there are any."""
        self.max_length = max_length
        self.lengths, self.starts = [0] * batch_size, [0] * batch_size
        self.keys = [self._empty(batch_size, self._room(window)) for window in self.windows]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.cross_attention: dict[int, tuple[Tensor, Tensor]] = {}
        self.encoded = [0] * batch_size
        self.encoder_segments: Tensor | None = None
        self.segments: Tensor | None = None
        self.tokens: Tensor | None = None
        """Ids and positions (2, slots, length) of all tokens, for models that may have to read a text again."""
        self.switch_length = _switch_length(config)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Number of tokens in the longest slot."""
        return max(self.lengths, default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        cross_attention = [tensor for pair in self.cross_attention.values() for tensor in pair]
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, *cross_attention))

    def rows(
        self,
        first: int = 0,
        count: int | None = None,
        *,
        padding: Sequence[int] | None = None,
        text_length: int | None = None,
    ) -> CacheRows:
        """The slots from `first` on as the rows of a forward pass; the default is all. See `CacheRows`."""
        return CacheRows(self, first, self.slots - first if count is None else count, padding, text_length)

    def _room(self, window: int | None) -> int:
        # A window moves to the front whenever its room is full; twice the room halves the number of moves.
        return self.max_length if window is None else min(self.max_length, 2 * window)

    def _empty(self, slots: int, room: int) -> Tensor:
        """Zeros, because what a masked score multiplies must be finite."""
        heads, width = self.config.num_key_value_heads, self.config.head_dim
        return torch.zeros(slots, heads, room, width, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def reserve(self, slots: int = 0, length: int = 0, window: int = 0) -> None:
        """Makes room for at least so many slots and tokens per slot, and for `window` tokens in sliding layers."""
        self.max_length = max(length, self.max_length)
        slots = max(slots, self.slots)
        for layer, limit in enumerate(self.windows):
            present = self.keys[layer].shape
            room = max(self._room(limit), present[2], 0 if limit is None else window)
            if (slots, room) != (present[0], present[2]):
                for tensors in (self.keys, self.values):
                    tensors[layer] = self._resized(tensors[layer], slots, room)
        more = slots - self.slots
        if more:
            self.lengths, self.starts = self.lengths + [0] * more, self.starts + [0] * more
            self.encoded += [0] * more
            for layer, pair in self.cross_attention.items():
                self.cross_attention[layer] = _padded(pair[0], slots), _padded(pair[1], slots)
            if self.encoder_segments is not None:
                self.encoder_segments = _padded(self.encoder_segments, slots)

    def make_room(self, length: int) -> None:
        """Doubles the room until slots can hold `length` tokens."""
        if length > self.max_length:
            self.reserve(length=max(length, 2 * self.max_length))

    def _resized(self, old: Tensor, slots: int, room: int) -> Tensor:
        new = self._empty(slots, room)
        filled = min(self.length, old.shape[2])
        new[: old.shape[0], :, :filled] = old[:, :, :filled]
        return new

    @torch.inference_mode()
    def release(self, slots: int) -> None:
        """Frees the memory of all slots but the first `slots`, and the room that none of those needs."""
        self.lengths, self.starts, self.encoded = self.lengths[:slots], self.starts[:slots], self.encoded[:slots]
        self.max_length = self.length
        filled = max((length - start for length, start in zip(self.lengths, self.starts, strict=True)), default=0)
        for tensors in (self.keys, self.values):
            for layer, window in enumerate(self.windows):
                room = max(self._room(window), 0 if window is None else filled)
                tensors[layer] = tensors[layer][:slots, :, :room].clone()
        if not slots:
            self.cross_attention, self.encoder_segments = {}, None
        for layer, pair in self.cross_attention.items():
            self.cross_attention[layer] = pair[0][:slots].clone(), pair[1][:slots].clone()
        if self.encoder_segments is not None:
            self.encoder_segments = self.encoder_segments[:slots].clone()

    def can_truncate(self, slot: int, length: int) -> bool:
        """Whether a slot cut to its first `length` tokens still holds all that its windows then see."""
        window = self.window
        return length <= self.lengths[slot] and (window is None or self.starts[slot] <= max(0, length - window + 1))

    def truncate(self, slot: int, length: int) -> None:
        """Forgets all tokens of a slot but the first `length` ones: a rollback, or the start of another text."""
        self.lengths[slot] = length
        if length == 0:
            self.starts[slot] = 0

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Overwrites a slot with zeros, so that numbers that are not finite cannot reach another text."""
        for tensor in (*self.keys, *self.values):
            tensor[slot] = 0
        self.truncate(slot, 0)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a slot, and the encoded text, to another slot."""
        start = self.starts[source]
        for layer, window in enumerate(self.windows):
            end = length if window is None else length - start
            for tensors in (self.keys, self.values):
                tensors[layer][target, :, :end] = tensors[layer][source, :, :end]
        for tensor in self._encoded():
            tensor[target] = tensor[source]
        self.lengths[target], self.starts[target] = length, start
        self.encoded[target] = self.encoded[source]

    @torch.inference_mode()
    def swap(self, one: int, other: int) -> None:
        """Exchanges two slots."""
        if one == other:
            return
        for layer, window in enumerate(self.windows):
            ends = [self.lengths[slot] - (0 if window is None else self.starts[slot]) for slot in (one, other)]
            for tensors in (self.keys, self.values):
                _swap(tensors[layer], one, other, max(ends))
        for tensor in self._encoded():
            tensor[[one, other]] = tensor[[other, one]]
        for numbers in (self.lengths, self.starts, self.encoded):
            numbers[one], numbers[other] = numbers[other], numbers[one]

    def _encoded(self) -> list[Tensor]:
        segments = [] if self.encoder_segments is None else [self.encoder_segments]
        return [*segments, *(tensor for pair in self.cross_attention.values() for tensor in pair)]

    def select(self, rows: Tensor) -> None:
        """Keeps (and may repeat or reorder) slots: finished sequences leave, beams are copied."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        self.keys = [self._selected(layer, key, rows) for layer, key in enumerate(self.keys)]
        self.values = [self._selected(layer, value, rows) for layer, value in enumerate(self.values)]
        self.cross_attention = {layer: (key[rows], value[rows]) for layer, (key, value) in self.cross_attention.items()}
        if self.segments is not None:
            self.segments = self.segments[rows]
        if self.tokens is not None:
            self.tokens = self.tokens[:, rows]
        if self.encoder_segments is not None:
            self.encoder_segments = self.encoder_segments[rows]
        chosen = rows.tolist()
        self.lengths = [self.lengths[slot] for slot in chosen]
        self.starts = [self.starts[slot] for slot in chosen]
        self.encoded = [self.encoded[slot] for slot in chosen]

    def _selected(self, layer: int, stored: Tensor, rows: Tensor) -> Tensor:
        """Slots of a layer's keys or values, of which only the filled places are copied."""
        starts = [0] * self.slots if self.windows[layer] is None else self.starts
        filled = max(length - start for length, start in zip(self.lengths, starts, strict=True))
        chosen = stored.new_zeros(len(rows), *stored.shape[1:])
        torch.index_select(stored[:, :, :filled], 0, rows, out=chosen[:, :, :filled])
        return chosen


@dataclass
class _Places:
    """Where a forward pass writes in one type of layer, and what it reads there.

    begin: the first place written, of rows that are equally long. columns (B, T): the places written, of rows that
    differ. seen: the places that are read. first: the token at the first of them (B, 1), for rows that differ.
    beyond: how many of the last places come before the new tokens, where those do not fit in at once.
    """

    seen: slice
    begin: int = 0
    columns: Tensor | None = None
    first: Tensor | None = None
    beyond: int | None = None


class CacheRows:
    """The slots of one batch, for one forward pass.

    `padding[b]` is the number of columns on the right of row b that hold no token: they are neither counted nor seen
    afterwards. `text_length` is that of the texts whose beginnings are read, for positions that depend on it.
    """

    def __init__(
        self,
        cache: KVCache,
        first: int,
        count: int,
        padding: Sequence[int] | None = None,
        text_length: int | None = None,
    ):
        self.cache, self.first, self.count = cache, first, count
        self.padding = padding if padding is not None and any(padding) else None
        self.text_length = text_length
        self.past: int | None = 0
        """Tokens before the new ones, where all rows have equally many; None where they differ."""
        self.width = 0
        self.positions: Tensor | None = None
        """Of the new tokens (B, T), where rows differ."""
        self.segments: Tensor | None = None
        """Of all tokens, of a padded or packed batch."""
        self._places: dict[str, _Places] = {}
        self._encodes = False

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row so far."""
        return self.cache.lengths[self.first : self.first + self.count]

    @property
    def length(self) -> int:
        """Tokens of the longest row so far."""
        return max(self.lengths)

    def rows(self) -> CacheRows:
        """These rows."""
        return self

    def token_counts(self, width: int) -> list[int]:
        """Tokens of each row after `width` new columns, of which padding does not count."""
        padding = self.padding or [0] * self.count
        return [length + width - empty for length, empty in zip(self.lengths, padding, strict=True)]

    def begin(self, width: int, segments: Tensor | None) -> None:
        """Prepares for `width` new tokens per row, with their segments (B, width) if the batch is padded or packed.

        Raises InputError for segments of rows that are not equally long.
        """
        cache, lengths = self.cache, self.lengths
        starts = cache.starts[self.first : self.first + self.count]
        self.width = width
        cache.make_room(max(lengths) + width)
        if min(lengths) < max(lengths) or min(starts) < max(starts):
            if segments is not None or cache.segments is not None:
                raise InputError("A padded or packed batch cannot extend cached texts of different lengths.")
            self._begin_apart(lengths)
            return
        self.past = lengths[0]
        self.segments = cache.segments = self._all_segments(segments, width)
        self._places = {"full": _Places(slice(0, self.past + width), self.past)}
        if cache.window is not None:
            self._places["sliding"] = self._begin_sliding(cache.window)

    def _begin_sliding(self, window: int) -> _Places:
        """The places of equally long rows in sliding layers: the last `window` - 1 of the past, and the new ones."""
        past, cache = self.past or 0, self.cache
        visible, filled = min(window - 1, past), past - cache.starts[self.first]
        room = self._sliding_room()
        if filled + self.width > room:
            if visible + self.width > room and self.padding is None:
                return _Places(slice(filled - visible, filled), beyond=visible)
            for slot in range(self.first, self.first + self.count):
                self._move_window(slot, visible)
            filled = visible
            cache.reserve(window=filled + self.width)
        return _Places(slice(filled - visible, filled + self.width), filled)

    def _begin_apart(self, lengths: list[int]) -> None:
        """The places of rows of different lengths: all up to the longest one, of which each row sees its own."""
        cache, window, device = self.cache, self.cache.window, self.cache.device
        self.past = None
        columns = torch.tensor(lengths, device=device)[:, None] + torch.arange(self.width, device=device)
        # Columns without a token may be past the text.
        self.positions = columns if self.text_length is None else columns.clamp(max=self.text_length - 1)
        self._places = {"full": _Places(slice(0, max(lengths) + self.width), columns=columns)}
        if window is None:
            return
        room = self._sliding_room()
        for slot, length in enumerate(lengths, self.first):
            if length - cache.starts[slot] + self.width > room:
                self._move_window(slot, min(window - 1, length - cache.starts[slot]))
        starts = cache.starts[self.first : self.first + self.count]
        filled = max(length - start for length, start in zip(lengths, starts, strict=True)) + self.width
        cache.reserve(window=filled)
        first = torch.tensor(starts, device=device)[:, None]
        self._places["sliding"] = _Places(slice(0, filled), columns=columns - first, first=first)

    def _sliding_room(self) -> int:
        layer = self.cache.windows.index(self.cache.window)
        return self.cache.keys[layer].shape[2]

    def _move_window(self, slot: int, visible: int) -> None:
        """Moves the last `visible` tokens of a slot to the front of every sliding layer."""
        cache = self.cache
        end = cache.lengths[slot] - cache.starts[slot]
        for layer, window in enumerate(cache.windows):
            if window is not None:
                for tensors in (cache.keys, cache.values):
                    tensors[layer][slot, :, :visible] = tensors[layer][slot, :, end - visible : end].clone()
        cache.starts[slot] = cache.lengths[slot] - visible

    def _all_segments(self, segments: Tensor | None, width: int) -> Tensor | None:
        """The segments of the tokens so far and of `width` new ones; None if all are of one text."""
        before, device = self.cache.segments, self.cache.device
        if segments is None and before is None:
            return None
        if before is None:
            before = torch.ones(self.count, self.length, dtype=torch.long, device=device)
        if segments is None:
            segments = torch.ones(self.count, width, dtype=torch.long, device=device)
        return torch.cat((before, segments), dim=1)

    def tokens_to_process(
        self, ids: Tensor, positions: Tensor | None, segments: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What must be read for the next tokens `ids` (B, T): they alone, or, rarely, all of the text again.

        LongRoPE turns all tokens of a text by other frequencies once it is longer than those of pretraining. When a
        text of the batch grows past that length, what is stored of all rows is dropped, and the tokens, positions and
        segments of the whole texts (B, length + T) are returned. With a `text_length`, the caller sees to it.
        """
        cache, past = self.cache, self.length
        if cache.switch_length is None or self.text_length is not None:
            return ids, positions, segments
        together = self._all_segments(segments, ids.shape[1])
        new = positions
        if new is None:
            every = torch.arange(past + ids.shape[1], device=ids.device)[None]
            new = (every if together is None else positions_in_segments(together))[:, past:]
        read = torch.stack((ids, new.expand_as(ids)))
        if past == 0 or cache.tokens is None:
            cache.tokens = read
            return ids, positions, segments
        before, after = (places.amax(1) < cache.switch_length for places in (cache.tokens[1], new))
        cache.tokens = torch.cat((cache.tokens, read), dim=2)
        if not bool((before & ~after).any()):
            return ids, positions, segments
        cache.segments = None
        for slot in range(cache.slots):
            cache.truncate(slot, 0)
        return cache.tokens[0], cache.tokens[1], together

    def seen(self, kind: str) -> int:
        """How many keys the new tokens are compared with in a type of layer."""
        places = self._places.get(kind, self._places["full"])
        return places.seen.stop - places.seen.start + (self.width if places.beyond is not None else 0)

    def distances(self, kind: str, positions: Tensor) -> Tensor:
        """How far each key is behind (negative) or ahead of the new tokens at `positions` (B, T): (B, T, S)."""
        places = self._places.get(kind, self._places["full"])
        keys = torch.arange(places.seen.stop, device=positions.device)[None]
        keys = keys if places.first is None else keys + places.first
        return keys[:, None, :] - positions[:, :, None]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new tokens of a layer (B, H, T, D); returns all keys and values that they may see (B, H, S, D)."""
        cache = self.cache
        places = self._places["full" if cache.windows[layer] is None else "sliding"]
        keys = cache.keys[layer][self.first : self.first + self.count]
        values = cache.values[layer][self.first : self.first + self.count]
        if places.beyond is not None:
            return self._exceed(keys, key, places), self._exceed(values, value, places)
        if places.columns is None:
            end = places.begin + self.width
            keys[:, :, places.begin : end], values[:, :, places.begin : end] = key, value
        else:
            rows = torch.arange(self.count, device=key.device)[:, None]
            keys[rows, :, places.columns] = key.transpose(1, 2)
            values[rows, :, places.columns] = value.transpose(1, 2)
        return keys[:, :, places.seen], values[:, :, places.seen]

    def _exceed(self, stored: Tensor, new: Tensor, places: _Places) -> Tensor:
        """More tokens at once than a sliding layer has room for: all are given, the last ones stored."""
        both = torch.cat((stored[:, :, places.seen], new), dim=2)
        last = self._last_window(both.shape[2])
        stored[:, :, :last] = both[:, :, both.shape[2] - last :]
        return both

    def _last_window(self, count: int) -> int:
        return min(self.cache.window or 1, count)

    def encode(self, segments: Tensor | None, width: int) -> None:
        """Announces that this pass stores newly encoded texts of `width` tokens, with their segments (B, width)."""
        cache, self._encodes = self.cache, True
        before, own = cache.encoder_segments, slice(self.first, self.first + self.count)
        alone = self.count == cache.slots
        if alone or not cache.cross_attention:
            cache.cross_attention = {}
        if not alone and before is None:
            columns = torch.arange(max(*cache.encoded, width), device=cache.device)[None]
            before = (columns < torch.tensor(cache.encoded, device=cache.device)[:, None]).long()
        cache.encoded[own] = [width] * self.count
        if before is None or alone:
            cache.encoder_segments = segments
            return
        cache.encoder_segments = before = _padded(before, before.shape[0], width)
        before[own, :width] = 1 if segments is None else segments
        before[own, width:] = 0

    def store_cross_attention(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Stores the keys and values (B, H, S, D) of the encoded texts."""
        cache = self.cache
        if self.count == cache.slots:
            cache.cross_attention[layer] = key, value
            return
        if layer not in cache.cross_attention:
            empty = key.new_zeros(cache.slots, *key.shape[1:])
            cache.cross_attention[layer] = empty, torch.zeros_like(empty)
        known = cache.cross_attention[layer]
        cache.cross_attention[layer] = _with_columns(known[0], key.shape[2]), _with_columns(known[1], key.shape[2])
        for stored, new in zip(cache.cross_attention[layer], (key, value), strict=True):
            stored[self.first : self.first + self.count, :, : key.shape[2]] = new

    @property
    def has_encoded(self) -> bool:
        """Whether the encoded texts are stored."""
        return bool(self.cache.cross_attention)

    @property
    def encoder_segments(self) -> Tensor | None:
        """Segments (B, S) of the encoded texts; None if all of it is text."""
        stored = self.cache.encoder_segments
        return None if stored is None else stored[self.first : self.first + self.count, : self.encoded_width]

    @property
    def encoded_width(self) -> int:
        """Tokens of the longest encoded text."""
        return max(self.cache.encoded[self.first : self.first + self.count])

    def cross_attention(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """The keys and values (B, H, S, D) of the encoded texts, unless this pass is the one that stores them."""
        if self._encodes:
            return None
        own, width = slice(self.first, self.first + self.count), self.encoded_width
        key, value = self.cache.cross_attention[layer]
        return key[own, :, :width], value[own, :, :width]

    def advance(self) -> None:
        """Counts the new tokens, after every layer has written them."""
        cache, places = self.cache, self._places.get("sliding")
        for slot, length in enumerate(self.token_counts(self.width), self.first):
            cache.lengths[slot] = length
            if places is not None and places.beyond is not None:
                cache.starts[slot] = cache.lengths[slot] - self._last_window(places.beyond + self.width)


def _switch_length(config: ModelConfig) -> int | None:
    """The length past which a text is read by other frequencies (LongRoPE)."""
    scalings = [scaling for scaling in (config.rope_scaling, config.local_rope_scaling) if scaling is not None]
    lengths = [
        original_length(scaling, config.max_position_embeddings) for scaling in scalings if scaling.kind == "longrope"
    ]
    return min(lengths) if lengths else None


def _padded(old: Tensor, slots: int, columns: int | None = None) -> Tensor:
    """A tensor (slots, …) with more slots, or segments (slots, S) with more columns, filled with zeros."""
    shape = [slots, *old.shape[1:]]
    if columns is not None:
        shape[1] = max(columns, shape[1])
    if tuple(shape) == tuple(old.shape):
        return old
    new = old.new_zeros(shape)
    new[tuple(slice(size) for size in old.shape)] = old
    return new


def _with_columns(old: Tensor, columns: int) -> Tensor:
    """Keys or values (slots, H, S, D) of encoded texts with S at least `columns`."""
    if columns <= old.shape[2]:
        return old
    new = old.new_zeros(*old.shape[:2], columns, old.shape[3])
    new[:, :, : old.shape[2]] = old
    return new


def _swap(stored: Tensor, one: int, other: int, filled: int) -> None:
    """Exchanges the first `filled` places of two slots."""
    first = stored[one, :, :filled].clone()
    stored[one, :, :filled] = stored[other, :, :filled]
    stored[other, :, :filled] = first
