"""Bidirectional recurrent networks that label a text or each of its words (Graves and Schmidhuber 2005).

A tagger may have a conditional random field over its tags (Huang et al. 2015, arXiv 1508.01991; Ma and Hovy 2016, arXiv
1603.01354), and read words composed of their characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from quatrain.models.classic._crf import CRF, CRFTags
from quatrain.models.classic._network import check_ids
from quatrain.models.classic._recurrent import RecurrentConfig, RecurrentStack
from quatrain.models.classic._words import WordConfig, make_reader

__all__ = ["CRF", "MODEL", "RecurrentEncoder", "RecurrentEncoderConfig"]


class RecurrentEncoderConfig(RecurrentConfig, WordConfig):
    """A bidirectional network. `crf`: whether a tagger scores whole sequences of tags."""

    heads: ClassVar[tuple[str, ...]] = ("token_classification", "sequence_classification")

    model_type: str = "recurrent-encoder"
    head: str = "token_classification"
    architecture: ClassVar[str] = "encoder"
    crf: bool = False


class RecurrentEncoder(CRFTags):
    """Reads a text in both directions."""

    Config: ClassVar[Any] = RecurrentEncoderConfig

    def __init__(self, config: RecurrentEncoderConfig):
        super().__init__(config)
        self.reader = make_reader(config)
        width = 2 * (config.hidden_size // 2)
        self.stack = RecurrentStack(config, self.reader.output_size, bidirectional=True, output_size=width)
        self.add_head(width)
        self.add_crf()

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The embedding of tokens."""
        return self.reader.embed_tokens

    vector_size: ClassVar[str] = "model.classic.word_size (with words), or embedding_size"

    @property
    def vector_table(self) -> nn.Embedding:
        return self.reader.vector_table

    def vector_row(self, ids: Sequence[int]) -> int | None:
        return self.reader.vector_row(ids)

    def learn_words(self, texts: Iterable[Sequence[int]]) -> None:
        self.reader.learn_words(texts)

    def hidden_states(self, input_ids: Tensor, *, segments: Tensor | None = None, **inputs: Any) -> Tensor:
        """States (B, T, C) of tokens (B, T); the tokens of a word share its state if words are composed."""
        check_ids(input_ids, self.config.vocab_size)
        read = self.reader(input_ids, segments)
        hidden, _ = self.stack(self.drop(read.vectors), self.drop, lengths=read.lengths)
        return read.placed(self.drop(hidden))


MODEL = RecurrentEncoder
