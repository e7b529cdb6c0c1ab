"""Contextual word vectors by a bidirectional language model: ELMo (Peters et al. 2018, arXiv 1802.05365; TagLM: Peters
et al. 2017, arXiv 1705.00108).

Words are composed of their characters. One stack of LSTMs reads them from the left and predicts the next word, another
reads them from the right and predicts the previous one; neither ever sees the word that it predicts. A word's vectors
are those of all layers, so that "play" differs between two sentences. A tagger learns how to weigh the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from quatrain.models.classic._crf import CRFTags
from quatrain.models.classic._network import check_ids, reversed_rows
from quatrain.models.classic._recurrent import RecurrentConfig, RecurrentLayer, RecurrentStack
from quatrain.models.classic._words import Read, WordConfig, WordReader, WordSpans
from quatrain.models.transformer.cross_entropy import CrossEntropyFunction


class ElmoConfig(RecurrentConfig, WordConfig):
    """A bidirectional language model over words, and taggers on top of it.

    `word_vocab_size` words are predicted; all others count as one. `hidden_size` is the width of each direction. A
    tagger learns its own layers, `tagger_size` wide, and leaves the language model as it is if `freeze` is set. It
    reads a learned `mean` of all layers (ELMo), or the word's own vector beside the last layer (`concatenate`, TagLM).
    """

    heads: ClassVar[tuple[str, ...]] = ("bidirectional", "token_classification")
    architecture: ClassVar[str] = "encoder"

    model_type: str = "elmo"
    head: str = "bidirectional"
    num_hidden_layers: int = 2
    words: bool = True
    word_vocab_size: int = 10_000
    tie_word_embeddings: bool = False
    crf: bool = False
    freeze: bool = True
    tagger_size: int = 256
    combine: Literal["mean", "concatenate"] = "mean"


class LayerMix(nn.Module):
    """A weighted mean of layers: softmax weights and one factor (equation 1 of the paper)."""

    def __init__(self, count: int):
        super().__init__()
        self.weights, self.scale = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.ones(()))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Layers of equal shape to one tensor of that shape."""
        shares = self.weights.softmax(0)
        mixed = shares[0] * layers[0]
        for share, layer in zip(shares[1:], layers[1:], strict=True):
            mixed = mixed + share * layer
        return self.scale * mixed


class SideBySide(nn.Module):
    """The first and the last layer joined, as TagLM reads a language model beside its own vector of the word."""

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Layers (B, W, C) to (B, W, 2 C)."""
        return torch.cat((layers[0], layers[-1]), dim=-1)


class Elmo(CRFTags):
    """A bidirectional language model; with the head token_classification a tagger over its layers."""

    Config: ClassVar[Any] = ElmoConfig

    def __init__(self, config: ElmoConfig):
        super().__init__(config)
        self.reader = WordReader(config, embeds=False)
        width, layers = config.hidden_size, config.num_hidden_layers
        self.projection = nn.Linear(self.reader.output_size, width)
        self.forward_layers, self.backward_layers = (
            nn.ModuleList(RecurrentLayer(config.cell, width, width, config.weight_drop) for _ in range(layers))
            for _ in range(2)
        )
        self.score = None
        if config.head == "bidirectional":
            self.lm_head = nn.Linear(width, 1 + config.word_vocab_size)
            self.crf = None
            return
        self.mix: nn.Module = LayerMix(1 + layers) if config.combine == "mean" else SideBySide()
        reads = 2 * width if config.combine == "mean" else 4 * width
        self.tagger = RecurrentStack(
            config.replace(num_hidden_layers=1), reads, bidirectional=True, output_size=config.tagger_size
        )
        self.add_head(config.tagger_size)
        self.add_crf()
        if config.freeze:
            for part in (self.reader, self.projection, self.forward_layers, self.backward_layers):
                part.requires_grad_(False)

    @property
    def is_tied(self) -> bool:
        """Never: the model reads characters and predicts words."""
        return False

    @property
    def embed_tokens(self) -> nn.Embedding:
        """The embedding of characters."""
        return self.reader.embed_tokens

    def learn_words(self, texts: Iterable[Sequence[int]]) -> None:
        self.reader.learn_words(texts)

    def layers(self, input_ids: Tensor, segments: Tensor | None = None) -> tuple[list[Tensor], WordSpans]:
        """The word vectors (B, W, 2 C) of each layer, left states before right ones, and the words of the texts.

        Layer 0 is the same in both halves: it knows the word alone.
        """
        check_ids(input_ids, self.config.vocab_size)
        spans = self.reader.spans(input_ids, segments)
        counts = spans.lengths.clamp(min=1)
        left = right = self.drop(self.projection(self.reader.compose(spans)))
        right = reversed_rows(right, counts)
        found = [torch.cat((left, left), dim=-1)]
        for number, (ahead, back) in enumerate(zip(self.forward_layers, self.backward_layers, strict=True)):
            new_left, new_right = ahead(left)[0], back(right)[0]
            # Residual connections between the layers, as in the paper.
            left = self.drop(new_left + left if number else new_left)
            right = self.drop(new_right + right if number else new_right)
            found.append(torch.cat((left, reversed_rows(right, counts)), dim=-1))
        return found, spans

    def direction_losses(self, input_ids: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
        """The summed cross-entropies of the next and of the previous words, in nats, and the number of each."""
        found, spans = self.layers(input_ids, segments)
        words = self.reader.table.indices(spans.hashes)
        left, right = found[-1].chunk(2, dim=-1)
        inside = torch.arange(words.shape[1], device=words.device) < spans.lengths[:, None]
        both = inside[:, 1:]
        count = int(both.sum())
        return (
            self._losses(left[:, :-1][both], words[:, 1:][both]),
            self._losses(right[:, 1:][both], words[:, :-1][both]),
            count,
        )

    def _losses(self, states: Tensor, words: Tensor) -> Tensor:
        logits = self.lm_logits(states)
        losses: Tensor = CrossEntropyFunction.apply(logits, words, -100)
        return losses.sum()

    def forward(
        self, input_ids: Tensor, labels: Any = None, *, segments: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """With the head token_classification as any tagger. A language model returns its last layer's word vectors."""
        if self.config.head == "bidirectional":
            return self.layers(input_ids, segments)[0][-1], None
        return super().forward(input_ids, labels, segments=segments, **inputs)

    def hidden_states(self, input_ids: Tensor, *, segments: Tensor | None = None, **inputs: Any) -> Tensor:
        """The tagger's states (B, T, C) of tokens (B, T); the tokens of a word share its state."""
        with torch.no_grad() if self.config.freeze else nullcontext():
            found, spans = self.layers(input_ids, segments)
        read = Read(self.mix(found), spans.lengths.clamp(min=1), spans.places)
        hidden, _ = self.tagger(self.drop(read.vectors), self.drop, lengths=read.lengths)
        return read.placed(self.drop(hidden))


MODEL = Elmo
