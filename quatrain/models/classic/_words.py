"""How a network reads the tokens of a batch: each token as it is, or whole words composed of their characters.

`WordReader` serves models whose tokenizer splits a text into characters or bytes. It finds the words between spaces and
composes each from its characters by a convolution (Kim et al. 2016, arXiv 1508.06615; Ma and Hovy 2016, arXiv
1603.01354), so that unknown words have vectors too. Frequent words also have an embedding of their own: it is found
by a hash of the word's token ids, which is stored with the weights. The model therefore needs no list of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing
from quatrain.models.classic._network import NetworkConfig, lengths_of

LONGEST_WORD = 24
"""Characters of a word that are read; the rest of a longer word is skipped."""
FACTOR = 1_000_003
"""The base of the polynomial hash, modulo 2**64."""
UNKNOWN = 0
"""The number of a word that is not in the table."""
NO_WORD = 2**63 - 1
"""The hash in a place of the table without a word."""


class WordConfig(NetworkConfig):
    """How a network reads tokens. `words`: it reads words composed of the tokens between `boundary_token_ids`.

    `word_vocab_size` frequent words also have an embedding of their own, `word_size` wide (0: `embedding_size`).
    `character_size` is the width of a token's embedding then, `num_filters` the number of filters of each of the
    `kernel_sizes`.
    """

    words: bool = False
    word_vocab_size: int = Field(default=0, ge=0, le=10_000_000)
    word_size: int = Field(default=0, ge=0, le=1_000_000)
    character_size: int = Field(default=0, ge=0, le=1_000_000)
    num_filters: int = Field(default=0, ge=0, le=1_000_000)
    kernel_sizes: Listing[int] = ()
    boundary_token_ids: Listing[int] = ()


@dataclass
class Read:
    """What the layers above read: vectors (B, W, C), the number of them in each row, and where they belong.

    `places` (B, T) is the number of the vector that each token belongs to; None if they are the tokens themselves.
    """

    vectors: Tensor
    lengths: Tensor
    places: Tensor | None = None

    def placed(self, hidden: Tensor) -> Tensor:
        """States (B, W, C) as states of the tokens (B, T, C)."""
        if self.places is None:
            return hidden
        return hidden.gather(1, self.places[..., None].expand(-1, -1, hidden.shape[2]))


class TokenReader(nn.Module):
    """Each token is one vector."""

    def __init__(self, config: WordConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_width)
        self.output_size = config.embedding_width

    def forward(self, input_ids: Tensor, segments: Tensor | None) -> Read:
        """input_ids (B, T); segment 0 is padding."""
        return Read(self.embed_tokens(input_ids), lengths_of(input_ids, segments))

    @property
    def vector_table(self) -> nn.Embedding:
        """The embedding that word vectors go into."""
        return self.embed_tokens

    def vector_row(self, ids: Sequence[int]) -> int | None:
        """The row of a word of these tokens; None for a word of several tokens."""
        return ids[0] if len(ids) == 1 else None

    def learn_words(self, texts: Iterable[Sequence[int]]) -> None:
        """Nothing: every token has a row of its own."""


@dataclass
class WordSpans:
    """The words of a batch: their tokens (B, W, L) with a mask, their number in each row, and each token's word."""

    tokens: Tensor
    inside: Tensor
    lengths: Tensor
    places: Tensor
    hashes: Tensor


class WordTable(nn.Module):
    """A vocabulary of words as sorted hashes of their token ids. `indices` numbers them from 1; 0 is any other word."""

    hashes: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("hashes", torch.full((size,), NO_WORD, dtype=torch.long))

    def indices(self, hashes: Tensor) -> Tensor:
        """The numbers of words with these hashes (…)."""
        if not len(self.hashes):
            return torch.zeros_like(hashes)
        place = torch.searchsorted(self.hashes, hashes).clamp(max=len(self.hashes) - 1)
        return torch.where(self.hashes[place] == hashes, place + 1, UNKNOWN)

    @property
    def is_empty(self) -> bool:
        """Whether no word has been learned."""
        return not len(self.hashes) or int(self.hashes[0]) == NO_WORD

    def learn(self, counts: Counter[int]) -> None:
        """Takes the most frequent words, each seen at least twice, from the counts of hashes."""
        frequent = [word for word, count in counts.most_common(len(self.hashes)) if count > 1]
        filled = torch.full_like(self.hashes, NO_WORD)
        filled[: len(frequent)] = torch.tensor(sorted(frequent), dtype=torch.long)
        self.hashes.copy_(filled)


class WordReader(nn.Module):
    """Words of the tokens between `boundary_token_ids`, each one vector of its characters and of its embedding.

    With `embeds` false the vector is that of the characters alone, and the table of words serves the layers above.
    """

    boundaries: Tensor

    def __init__(self, config: WordConfig, *, embeds: bool = True):
        super().__init__()
        self.config = config
        width = config.character_size or 32
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        kernels = config.kernel_sizes or (3,)
        filters = config.num_filters or 32
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, size, padding=size // 2) for size in kernels)
        self.output_size = filters * len(kernels)
        self.table = WordTable(config.word_vocab_size)
        self.embed_words: nn.Embedding | None = None
        if embeds and config.word_vocab_size:
            size = config.word_size or config.embedding_width
            self.embed_words = nn.Embedding(1 + config.word_vocab_size, size)
            self.output_size += size
        self.register_buffer("boundaries", torch.tensor(sorted(config.boundary_token_ids), dtype=torch.long), False)

    def forward(self, input_ids: Tensor, segments: Tensor | None) -> Read:
        """input_ids (B, T); segment 0 is padding."""
        spans = self.spans(input_ids, segments)
        return Read(self.compose(spans), spans.lengths.clamp(min=1), spans.places)

    def spans(self, input_ids: Tensor, segments: Tensor | None) -> WordSpans:
        """The words of a batch. A row without a word has one, without characters."""
        is_text = ~torch.isin(input_ids, self.boundaries.to(input_ids.device))
        if segments is not None:
            is_text &= segments != 0
        before = torch.cat((torch.zeros_like(is_text[:, :1]), is_text[:, :-1]), dim=1)
        starts = is_text & ~before
        number = starts.long().cumsum(1) - 1
        lengths = starts.sum(1)
        width = max(1, int(lengths.max())) if lengths.numel() else 1
        slots = torch.arange(input_ids.shape[1], device=input_ids.device)
        # The place of each token within its word: the distance to the last start.
        begin = torch.where(starts, slots, 0).cummax(1).values
        within = slots - begin
        kept = is_text & (within < LONGEST_WORD)
        tokens = input_ids.new_zeros(len(input_ids), width, LONGEST_WORD)
        inside = torch.zeros_like(tokens, dtype=torch.bool)
        rows, columns = kept.nonzero(as_tuple=True)
        words, letters = number[rows, columns], within[rows, columns]
        tokens[rows, words, letters] = input_ids[rows, columns]
        inside[rows, words, letters] = True
        # A space belongs to the word behind it, as in tokens such as " the".
        places = torch.minimum(torch.where(is_text, number, number + 1), lengths[:, None].clamp(min=1) - 1)
        return WordSpans(tokens, inside, lengths, places, hash_of(tokens, inside))

    def compose(self, spans: WordSpans) -> Tensor:
        """The vectors (B, W, C) of words."""
        rows, words, _letters = spans.tokens.shape
        longest = max(int(spans.inside.sum(2).max()), 1)
        tokens, inside = spans.tokens[..., :longest].reshape(-1, longest), spans.inside[..., :longest]
        inside = inside.reshape(-1, 1, longest)
        embedded = self.embed_tokens(tokens).transpose(1, 2) * inside
        parts = []
        for layer in self.convolutions:
            found = layer(embedded)[..., :longest].masked_fill(~inside, -1e4)
            parts.append(F.relu(found.amax(-1)))
        vectors = torch.cat(parts, dim=-1).view(rows, words, -1)
        if self.embed_words is None:
            return vectors
        own = self.table.indices(spans.hashes)
        if self.training and self.config.dropout:
            # Words become unknown at times, so that the unknown word has a vector and characters have to be read.
            own = own.masked_fill(torch.rand(own.shape, device=own.device) < self.config.dropout / 2, UNKNOWN)
        return torch.cat((vectors, self.embed_words(own)), dim=-1)

    @property
    def vector_table(self) -> nn.Embedding:
        """The embedding of frequent words. Raises InputError for a reader without one."""
        if self.embed_words is None:
            raise InputError("vectors: words have no embedding of their own; set model.classic.word_vocab_size.")
        return self.embed_words

    def vector_row(self, ids: Sequence[int]) -> int | None:
        """The row of a frequent word of these tokens; None for any other word."""
        if not len(ids):
            return None
        spans = self.spans(torch.tensor([list(ids)]), None)
        row = int(self.table.indices(spans.hashes)[0, 0])
        return row or None

    def learn_words(self, texts: Iterable[Sequence[int]]) -> None:
        """Takes over the frequent words of texts of token ids, unless words have been learned before."""
        if not self.table.is_empty or not len(self.table.hashes):
            return
        counts: Counter[int] = Counter()
        for ids in texts:
            spans = self.spans(torch.as_tensor(np.asarray(ids, dtype=np.int64))[None], None)
            counts.update(spans.hashes[0, : int(spans.lengths[0])].tolist())
        self.table.learn(counts)


def hash_of(tokens: Tensor, inside: Tensor) -> Tensor:
    """A number (…) for each row of token ids (…, L): equal rows have equal numbers, others differ but by chance."""
    powers = [pow(FACTOR, power, 2**64) for power in range(tokens.shape[-1])]
    signed = torch.tensor([power - 2**64 if power >= 2**63 else power for power in powers], device=tokens.device)
    return ((tokens + 1) * signed * inside).sum(-1)


def make_reader(config: WordConfig) -> TokenReader | WordReader:
    """The reader of a configuration."""
    return WordReader(config) if config.words else TokenReader(config)
