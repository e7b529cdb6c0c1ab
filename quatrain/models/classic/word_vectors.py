"""Word vectors that train on the one trainer: a table of word vectors, and one of the words around them.

Skip-gram predicts the words around a word from its vector, CBOW a word from the mean of the vectors around it, both
against drawn words (Mikolov et al. 2013, arXiv 1310.4546); GloVe fits the logarithms of how often words stand together
(Pennington et al. 2014). The objectives are in `quatrain.training.objectives.word_vectors`. A trained model has the
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
    """The configuration of word vectors; `biases` are GloVe's."""

    model_type: Literal["word-vectors"] = "word-vectors"
    head: Literal["embedding"] = "embedding"
    method: str = "skip_gram"
    hidden_size: int = Field(default=100, ge=1, le=100_000)
    has_context_vectors: bool = True
    biases: bool = False

    @property
    def output_hidden_size(self) -> int:
        return self.hidden_size


class WordVectorModel(ClassicModel):
    """`embed_tokens` are the word vectors, `context` those of the words around (both V, D)."""

    Config: ClassVar[type[ClassicConfig]] = WordVectorsConfig
    config: WordVectorsConfig
    word_bias: Tensor
    context_bias: Tensor

    def __init__(self, config: WordVectorsConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.context = nn.Embedding(config.vocab_size, config.hidden_size) if config.has_context_vectors else None
        if config.biases:
            self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))
            self.context_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def initialize(self, seed: int = 0) -> WordVectorModel:
        """word2vec's weights: word vectors uniform within 0.5 / D, context vectors 0; GloVe draws both."""
        generator = torch.Generator().manual_seed(seed)
        width = self.config.hidden_size
        with torch.no_grad():
            self.embed_tokens.weight.copy_(
                (torch.rand(self.embed_tokens.weight.shape, generator=generator) - 0.5) / width
            )
            if self.context is not None:
                self.context.weight.zero_()
                if self.config.biases:
                    drawn = torch.rand(self.context.weight.shape, generator=generator)
                    self.context.weight.copy_((drawn - 0.5) / width)
        return self

    def use_sparse_gradients(self) -> None:
        """Lets gradients hold only the rows of words that a batch has, for an optimizer that takes them (SGD)."""
        for table in (self.embed_tokens, self.context):
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
        """The mean vector (B, D) of the ids (B, T) of each text; `segments` 0 is padding."""
        vectors, segments = self.embed(input_ids), inputs.get("segments")
        if segments is None:
            return vectors.mean(dim=1), None
        known = (segments > 0).to(vectors.dtype)[..., None]
        return (vectors * known).sum(dim=1) / known.sum(dim=1).clamp_min(1), None

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
