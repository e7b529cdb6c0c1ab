"""Vectors of sentences: pooling, normalization and prompts as the model's folder says, cut and quantized as asked.

Pooling: Reimers & Gurevych 2019 (arXiv 1908.10084). Vectors whose first numbers work alone: Kusupati et al. 2022
(Matryoshka, arXiv 2205.13147). Binary vectors: one bit per number, its sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field as Key
from torch import Tensor
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.core.settings import Listing, Settings
from quatrain.models.io.sentence_transformers import Prompts, embed, text_tokens
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]


class EmbeddingOptions(Settings):
    """The prompt before the texts, and the form of the vectors."""

    prompt_name: str | None = None
    """A prompt of the model's own, such as "query"; None: its default one, if it has one."""
    prompt: str | None = None
    """A prompt instead; "" for none."""
    normalize: bool | None = None
    """Whether vectors have length 1; None: as the model says."""
    truncate_dim: int | None = Key(None, ge=1)
    """Keep the first so many numbers; a vector of length 1 gets this length again."""
    precision: Precision = "float32"
    """The format of the numbers. `int8` and `uint8` scale each vector by its largest number, or each number by
    `ranges`; `binary` and `ubinary` have one bit per number, 8 of them in an int8 or a uint8."""
    ranges: tuple[Listing[float], Listing[float]] | None = None
    """The smallest and the largest value of each number, measured on many texts, for `int8` and `uint8`."""
    return_tensors: bool = False
    """Return tensors instead of lists."""


class SentenceEmbeddings(Pipeline):
    """The vector of a text, as a list of numbers."""

    task = "sentence-embeddings"
    aliases = {}
    heads = ("embedding",)
    default_for: ClassVar[tuple[str, ...]] = ("embedding",)
    loads = {"none": "embedding", "masked": "embedding"}
    recipes: ClassVar[tuple[str, ...]] = ("embed",)
    fields: ClassVar[tuple[Field, ...]] = (Field("text"),)
    Options = EmbeddingOptions

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts of the model's folder."""
        return Prompts() if self.subject.resolved is None else Prompts.of(self.subject.resolved.base)

    def vectors(self, texts: Sequence[str], options: EmbeddingOptions) -> Tensor:
        """The vectors (N, D) of texts in float32 on the CPU, with the prompt before each."""
        vectors = embed(self.model, self.tokenizer, texts, batch_size=self.batch_size, normalize=options.normalize)
        vectors = vectors.float().cpu()
        if options.truncate_dim is None:
            return vectors
        size = vectors.shape[1]
        if options.truncate_dim > size:
            raise InputError(f"truncate_dim: {options.truncate_dim}; the vectors of this model have {size} numbers")
        cut = vectors[:, : options.truncate_dim]
        is_unit = self.config.normalize_embedding if options.normalize is None else options.normalize
        return F.normalize(cut, dim=-1) if is_unit else cut

    def prompted(self, texts: Sequence[str], options: EmbeddingOptions) -> list[str]:
        """The texts with the prompt before each."""
        prompt = self.prompts.text(options.prompt_name) if options.prompt is None else options.prompt
        return [prompt + text for text in texts]

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: EmbeddingOptions) -> list[Prediction]:
        texts = self.prompted([each["text"] for each in inputs], options)
        vectors = quantized(self.vectors(texts, options), options.precision, options.ranges)
        rows: Any = vectors if options.return_tensors else vectors.tolist()
        counts = text_tokens(self.model, self.tokenizer, texts)
        return [Prediction(row, cut) for row, (_, cut) in zip(rows, counts, strict=True)]

    def record(self, value: Any) -> dict[str, Any]:
        return {"vector": value}

    def line(self, text: str, value: Any) -> str:
        return " ".join(f"{number:.6g}" for number in value)


def quantized(
    vectors: Tensor, precision: Precision, ranges: tuple[Sequence[float], Sequence[float]] | None = None
) -> Tensor:
    """Vectors (N, D) in another format, as Sentence Transformers' `quantize_embeddings` with these `ranges`.

    Without ranges each vector is scaled by its largest number, which leaves the cosine of two vectors as it is but for
    rounding. Binary vectors have D / 8 numbers. Raises InputError for ranges of another size, and for D that is no
    multiple of 8.
    """
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        if vectors.shape[1] % 8:
            raise InputError(
                f"precision: {precision}; packs 8 numbers into one, and the vectors have {vectors.shape[1]}; give a "
                "truncate_dim that is a multiple of 8"
            )
        bits = (vectors > 0).view(len(vectors), -1, 8).int()
        packed = (bits * (2 ** torch.arange(7, -1, -1))).sum(-1)
        return packed.to(torch.uint8) if precision == "ubinary" else (packed - 128).to(torch.int8)
    if ranges is None:
        scaled = vectors / vectors.abs().amax(-1, keepdim=True).clamp(min=1e-12) * 127
        whole = scaled.round()
        return whole.to(torch.int8) if precision == "int8" else (whole + 128).to(torch.uint8)
    low, high = (torch.tensor(list(each)) for each in ranges)
    if len(low) != vectors.shape[1] or len(high) != vectors.shape[1]:
        raise InputError(f"ranges: {len(low)} and {len(high)} values; the vectors have {vectors.shape[1]} numbers")
    steps = ((vectors - low) / ((high - low) / 255)).clamp(0, 255)
    return (steps - 128).trunc().to(torch.int8) if precision == "int8" else steps.trunc().to(torch.uint8)
