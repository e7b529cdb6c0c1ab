"""Word vectors that train on the one trainer: a table of word vectors, and one of the words around them.

Skip-gram predicts the words around a word from its vector, CBOW a word from the mean of the vectors around it, both
against drawn words (Mikolov et al. 2013, arXiv 1310.4546); GloVe fits the logarithms of how often words stand together
(Pennington et al. 2014). Sent2Vec also learns a vector for each pair of neighbouring words, so that the mean stands for
a sentence (Pagliardini et al. 2018, arXiv 1703.02507). The objectives are in
`quatrain.training.objectives.word_vectors`. A trained model has the
head `embedding`: the vector of a text is the mean of its words'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from quatrain.models.classic.base import ClassicConfig, ClassicModel
from quatrain.models.word_vectors import WordVectors


class WordVectorsConfig(ClassicConfig):
    """The configuration of word vectors; `biases` are GloVe's, `pair_buckets` vectors of pairs of words Sent2Vec's."""

    model_type: Literal["word-vectors"] = "word-vectors"
    head: Literal["embedding"] = "embedding"
    method: str = "skip_gram"
    hidden_size: int = Field(default=100, ge=1, le=100_000)
    has_context_vectors: bool = True
    biases: bool = False
    pair_buckets: int = Field(default=0, ge=0, le=100_000_000)

    @property
    def output_hidden_size(self) -> int:
        return self.hidden_size


class WordVectorModel(ClassicModel):
    """`embed_tokens` are the word vectors, `context` those of the words around (both V, D); `pairs`, if the model has
    them, those of pairs of words by their hash.
    """

    Config: ClassVar[type[ClassicConfig]] = WordVectorsConfig
    config: WordVectorsConfig
    word_bias: Tensor
    context_bias: Tensor

    def __init__(self, config: WordVectorsConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.context = nn.Embedding(config.vocab_size, config.hidden_size) if config.has_context_vectors else None
        self.pairs = nn.Embedding(config.pair_buckets, config.hidden_size) if config.pair_buckets else None
        if config.biases:
            self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))
            self.context_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def initialize(self, seed: int = 0) -> WordVectorModel:
        """word2vec's weights: word vectors uniform within 0.5 / D, context vectors 0; GloVe draws both. Those of pairs
        are 0, so that a pair that was never read says nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        width = self.config.hidden_size
        with torch.no_grad():
            self.embed_tokens.weight.copy_(
                (torch.rand(self.embed_tokens.weight.shape, generator=generator) - 0.5) / width
            )
            if self.pairs is not None:
                self.pairs.weight.zero_()
            if self.context is not None:
                self.context.weight.zero_()
                if self.config.biases:
                    drawn = torch.rand(self.context.weight.shape, generator=generator)
                    self.context.weight.copy_((drawn - 0.5) / width)
        return self

    def use_sparse_gradients(self) -> None:
        """Lets gradients hold only the rows of words that a batch has, for an optimizer that takes them (SGD)."""
        for table in (self.embed_tokens, self.context, self.pairs):
            if table is not None:
                table.sparse = True

    @classmethod
    def of_matrix(cls, matrix: Tensor, method: str) -> WordVectorModel:
        """The model of vectors (V, D) that something else has trained."""
        size, width = matrix.shape
        model = cls(WordVectorsConfig(vocab_size=size, hidden_size=width, method=method, has_context_vectors=False))
        with torch.no_grad():
            model.embed_tokens.weight.copy_(matrix)
        return model.eval()

    def embed(self, input_ids: Tensor) -> Tensor:
        """The vectors of ids (…) as (…, D)."""
        vectors: Tensor = self.embed_tokens(input_ids)
        return vectors

    def pair_ids(self, input_ids: Tensor) -> Tensor:
        """The rows of `pairs` of neighbouring ids (B, T), (B, T - 1); different pairs may share one."""
        mixed = input_ids[:, :-1].long() * 1_000_003 + input_ids[:, 1:].long() * 8_191
        return mixed % self.config.pair_buckets

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        segments: Tensor | None = None,
        adapters: Sequence[str | None] | None = None,
        **more: Any,
    ) -> Tensor:
        """The vectors (B, T, D) of ids (B, T)."""
        return self.embed(input_ids)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """The mean vector (B, D) of the ids (B, T) of each text, and of its pairs; `segments` 0 is padding."""
        vectors, segments = self.embed(input_ids), inputs.get("segments")
        known = torch.ones_like(input_ids, dtype=torch.bool) if segments is None else segments > 0
        total, count = (vectors * known[..., None]).sum(dim=1), known.sum(dim=1, keepdim=True)
        if self.pairs is not None:
            both = known[:, 1:] & known[:, :-1]
            total = total + (self.pairs(self.pair_ids(input_ids)) * both[..., None]).sum(dim=1)
            count = count + both.sum(dim=1, keepdim=True)
        return total / count.clamp_min(1), None

    def word_vectors(self, words: Sequence[str]) -> WordVectors:
        """The vectors with their words, for questions and files."""
        return WordVectors(words, self.embed_tokens.weight.detach().float().cpu().numpy())

    def describe(self) -> dict[str, Any]:
        return {
            "method": self.config.method,
            "words": self.config.vocab_size,
            "dimensions": self.config.hidden_size,
            "parameters": self.num_parameters(),
        }


MODEL = WordVectorModel
