"""The `[model.classic]` table of a recipe: what classic networks have beside the sizes of `[model]`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quatrain.core.settings import Listing, Settings

ClassicFamily = Literal["recurrent", "recurrent-encoder", "recurrent-seq2seq", "text-cnn", "window-lm", "elmo"]
"""Classic networks that a recipe trains by gradients, by their `model_type`."""


class ClassicSettings(Settings):
    """Choices of classic networks, beside the sizes of `[model]`. Each network reads those of its own configuration.

    `cell` is that of recurrent networks. `words` lets taggers, classifiers and ELMo read words that are composed of
    their characters; the tokenizer must then split texts into characters or bytes. `vectors` is a file of word vectors
    (word2vec, GloVe, FastText) that the embedding starts from.
    """

    cell: Literal["rnn", "lstm", "gru"] | None = None
    embedding_size: int | None = Field(default=None, ge=1, le=1_000_000, description="hidden_size by default")
    weight_drop: float | None = Field(default=None, ge=0, lt=1, description="dropped weights from state to state")
    attention: Literal["none", "bahdanau", "luong"] | None = None
    crf: bool | None = Field(default=None, description="score whole sequences of tags (recurrent-encoder)")
    combine: Literal["concatenate", "mean"] | None = Field(
        default=None, description="how window-lm reads its tokens, and an elmo tagger the layers (concatenate: TagLM)"
    )
    window: int | None = Field(default=None, ge=1, le=100_000, description="tokens that window-lm reads")
    kernel_sizes: Listing[int] = Field(default=(), description="widths of filters, in words or characters")
    num_filters: int | None = Field(default=None, ge=1, le=1_000_000, description="filters of each width")
    words: bool | None = Field(default=None, description="read words composed of characters")
    word_vocab_size: int | None = Field(default=None, ge=0, le=10_000_000, description="words with an own embedding")
    word_size: int | None = Field(default=None, ge=1, le=1_000_000, description="width of that embedding")
    character_size: int | None = Field(default=None, ge=1, le=1_000_000, description="width of a character's embedding")
    freeze: bool | None = Field(default=None, description="whether a tagger leaves the language model as it is (elmo)")
    tagger_size: int | None = Field(default=None, ge=2, le=1_000_000, description="width of a tagger's layer (elmo)")
    pooling: Literal["max", "mean", "last"] | None = None
    vectors: str | None = Field(default=None, min_length=1, description="a file of word vectors to start from")
    train_vectors: bool = Field(default=True, description="whether these vectors learn")

    def given(self) -> dict[str, Any]:
        """The choices that a recipe makes, under the names of the configuration."""
        left_out = ("vectors", "train_vectors")
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in left_out}
        chosen = {name: value for name, value in values.items() if value is not None and value != ()}
        return chosen | ({} if self.vectors is None else {"vectors": "tuned" if self.train_vectors else "static"})
