"""How well a model predicts a text: bits per byte, which compare models of any tokenizer, and perplexities.

Every byte of every document counts, the first one too: the model reads its beginning token before it. A token
perplexity compares models of one tokenizer alone. Gao et al. 2020 (arXiv 2101.00027) on bits per byte.
"""

from __future__ import annotations

import lzma
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.records import Row
from quatrain.evaluation.classics import ngram_losses
from quatrain.evaluation.measures import Measure
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output, Suite, raw_rows

PIECE = 100_000
"""Characters of a document that are an example: long texts are cut, so that they can be resumed and resampled."""
WIKITEXT_TRAIN = "wikitext2-valid"
"""WikiText-2's own training part is not in the catalog."""
ORDER = 6
"""The length of the n-grams of bytes."""
TEXT_COLUMNS = ("text", "content", "document")


class Perplexity(Suite):
    """Bits per byte, and perplexity by tokens, words and bytes, of documents."""

    name = "perplexity"
    title = "how well the model predicts a text"
    paper = "Gao et al. 2020, arXiv 2101.00027"
    data = "wikitext2-test"
    columns = "plain text, or a column `text`"
    chunk = 4
    extra = ("context", "train")

    def __init__(
        self,
        source: str | None = None,
        *,
        context: int | None = None,
        train: str | None = None,
        piece: int = PIECE,
        **options: Any,
    ):
        """`train` is a text for the n-gram model that stands beside the score; WikiText-2's is its validation part."""
        super().__init__(source, **options)
        self.context, self.piece = context, piece
        self.train = train or (WIKITEXT_TRAIN if self.source == self.data else None)

    def parse(self, value: Mapping[str, Any]) -> str:
        if isinstance(value, str):
            return value
        text = next((value[name] for name in TEXT_COLUMNS if isinstance(value.get(name), str)), None)
        if text is None:
            raise KeyError("text")
        return text

    def read(self, limit: int | None = None) -> list[Row]:
        rows = list(islice(self._pieces(), limit))
        if not rows:
            raise InputError(f"{self.source} has no text")
        return rows

    def _pieces(self) -> Iterator[Row]:
        for row in raw_rows(str(self.source)):
            if row.fault is not None or row.value is None:
                raise InputError(f"{row.place}: {row.fault or 'empty'}")
            try:
                text = self.parse(row.value)
            except KeyError as error:
                raise InputError(f"{row.place}: no text; must be {self.columns}") from error
            for start in range(0, len(text), self.piece):
                yield Row(f"{row.place}, character {start}", text[start : start + self.piece])

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"context": self.context, "piece": self.piece, "train": self.train}

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        return [
            {"nats": -read.total, "tokens": read.tokens}
            for read in subject.read([row.value for row in rows], self.context)
        ]

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        nats = [output["nats"] for output in outputs]
        sizes = [len(row.value.encode("utf-8", "surrogatepass")) for row in rows]
        words = [max(1, len(row.value.split())) for row in rows]
        found = [
            per("bits_per_byte", nats, sizes, lambda mean: mean / math.log(2),
                "The loss in bits divided by the bytes of the text: the same unit for every tokenizer."),
            per("byte_perplexity", nats, sizes, np.exp, "exp of the loss divided by bytes: 2 to the bits per byte."),
            per("word_perplexity", nats, words, np.exp,
                "exp of the loss divided by words between spaces, as lm-eval's WikiText: the same for every tokenizer, "
                "but it depends on how the text is written (WikiText puts spaces around punctuation)."),
        ]  # fmt: skip
        if all("tokens" in output for output in outputs):
            tokens = [output["tokens"] for output in outputs]
            explanation = "exp of the loss divided by tokens: compares models of the same tokenizer alone."
            found.append(per("token_perplexity", nats, tokens, np.exp, explanation))
        return found

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        """The entropy of the text's own bytes, and a compressor, which also learns from the text that it reads."""
        data = [row.value.encode("utf-8", "surrogatepass") for row in rows]
        counts = Counter(byte for text in data for byte in text)
        total = sum(counts.values())
        cost = {byte: -math.log(count / total) for byte, count in counts.items()}
        unigram = [{"nats": sum(cost[byte] for byte in text)} for text in data]
        packed = len(lzma.compress(b"\n".join(data), preset=9)) * 8 * math.log(2)
        compressed = [{"nats": packed * len(text) / total} for text in data]
        return [
            Baseline("frequencies of the text's bytes", unigram),
            Baseline("xz -9, a compressor", compressed, is_classic=True),
            *self._ngram(data),
        ]

    def _ngram(self, data: Sequence[bytes]) -> list[Baseline]:
        """An n-gram model of bytes with modified Kneser-Ney smoothing, trained on `train`."""
        if self.train is None:
            return []
        learned = "".join(self.parse(row.value) for row in raw_rows(self.train)).encode("utf-8", "surrogatepass")
        losses = ngram_losses(learned, data, ORDER)
        outputs = [{"nats": loss} for loss in losses]
        return [Baseline(f"n-grams of {ORDER} bytes, trained on {self.train}", outputs, is_classic=True)]

    def sources(self) -> list[str]:
        return [*super().sources(), *([self.train] if self.train else [])]

    def shown(self, row: Row, output: Output) -> str:
        return f"{output['nats']:.1f} nats"

    def question(self, example: Row) -> str:
        return str(example.value)

    def reference(self, example: Row) -> str:
        return ""


def per(name: str, sums: Sequence[float], counts: Sequence[int], turn: Any, explanation: str) -> Measure:
    """A measure of nats divided by units."""
    statistics = np.stack([np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)], axis=1)
    return Measure(name, statistics, lambda table: turn(table[:, 0] / table[:, 1]), explanation, higher_is_better=False)


SUITE = Perplexity
