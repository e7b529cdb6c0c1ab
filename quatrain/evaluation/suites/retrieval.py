"""Documents ranked for questions by the vectors of an embedding model, beside BM25.

BEIR's layout: Thakur et al. 2021 (arXiv 2104.08663). A folder holds corpus.jsonl, queries.jsonl (perhaps .gz) and
qrels.tsv.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data import catalog
from quatrain.data.decoding import read_text
from quatrain.data.records import Row
from quatrain.evaluation.classics import bm25_rankings
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.metrics.ranking import (
    DEPTH,
    average_precision,
    ndcg,
    precision,
    ranked,
    recall,
    reciprocal_rank,
)
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output, Suite, raw_rows

PARTS = {"corpus": ("corpus.jsonl", "corpus.jsonl.gz"), "queries": ("queries.jsonl", "queries.jsonl.gz"),
         "qrels": ("qrels.tsv", "qrels/test.tsv")}  # fmt: skip
"""The files of a set, by their part, in the order in which they are looked for."""


class Retrieval(Suite):
    """nDCG, MAP, MRR and recall of rankings by vectors."""

    name = "retrieval"
    title = "documents ranked for questions"
    paper = "Thakur et al. 2021, arXiv 2104.08663"
    data = "cranfield"
    columns = "a folder with corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and qrels.tsv"
    chunk = 10_000  # the documents are read once for all questions

    def __init__(self, source: str | None = None, **options: Any):
        super().__init__(source, **options)
        self._documents: dict[str, str] | None = None

    def parse(self, value: Mapping[str, Any]) -> Any:
        return value

    def part(self, name: str) -> str:
        """The file of a part: in the folder, or of the catalog."""
        if catalog.find(f"{self.source}-{name}") is not None:
            return f"{self.source}-{name}"
        found = next((path for file in PARTS[name] if (path := Path(str(self.source)) / file).is_file()), None)
        if found is None:
            raise InputError(f"{self.source} has no {PARTS[name][0]}: retrieval takes {self.columns}")
        return str(found)

    def sources(self) -> list[str]:
        return [self.part(name) for name in PARTS]

    @property
    def corpus(self) -> dict[str, str]:
        """Title and text of each document by its id."""
        if self._documents is None:
            self._documents = {
                str(row.value["_id"]): f"{row.value.get('title', '')}\n{row.value.get('text', '')}".strip()
                for row in raw_rows(self.part("corpus"))
            }
        return self._documents

    def read(self, limit: int | None = None) -> list[Row]:
        """The questions with judgements; others cannot be scored."""
        relevance = self._relevance()
        rows = []
        for row in raw_rows(self.part("queries")):
            name = str(row.value["_id"])
            if any(value > 0 for value in relevance.get(name, {}).values()):
                rows.append(Row(row.place, {"text": str(row.value["text"]), "relevance": relevance[name]}))
        if not rows:
            raise InputError(f"{self.source} has no question with a relevant document")
        return list(islice(rows, limit))

    def _relevance(self) -> dict[str, dict[str, int]]:
        from quatrain.data.sources import find_files

        (path,) = find_files(self.part("qrels"))
        found: dict[str, dict[str, int]] = {}
        for number, cells in enumerate(csv.reader("".join(read_text(path)).splitlines(), delimiter="\t"), 1):
            if number == 1 and cells[-1:] == ["score"]:
                continue
            try:
                found.setdefault(cells[0], {})[cells[-2]] = int(cells[-1])
            except (IndexError, ValueError) as error:
                raise InputError(f"{path}:{number}: must be query-id, corpus-id and a whole score") from error
        return found

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        names = list(self.corpus)
        documents = subject.embed(list(self.corpus.values()))
        questions = subject.embed([row.value["text"] for row in rows], is_query=True)
        scores = _unit(questions) @ _unit(documents).T
        return [{"ranking": ranked(dict(zip(names, own.tolist(), strict=True)))} for own in scores]

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        pairs = [(output["ranking"], row.value["relevance"]) for row, output in zip(rows, outputs, strict=True)]
        return [
            mean_of("ndcg_10", [ndcg(*pair) for pair in pairs],
                    "Discounted gain of the first 10, of the best possible; the gain is the relevance (trec_eval)."),
            mean_of("map", [average_precision(*pair) for pair in pairs],
                    f"Mean average precision over the first {DEPTH:,}."),
            mean_of("mrr", [reciprocal_rank(*pair) for pair in pairs], "1 / the place of the first relevant document."),
            mean_of("mrr_10", [reciprocal_rank(*pair, 10) for pair in pairs], "0 beyond place 10 (MS MARCO)."),
            mean_of("recall_100", [recall(*pair) for pair in pairs], "The share of relevant ones in the first 100."),
            mean_of("precision_10", [precision(*pair) for pair in pairs], "Relevant ones of the first 10."),
            mean_of("ndcg_10_exponential", [ndcg(*pair, exponential=True) for pair in pairs],
                    "With the gain 2^relevance - 1, as learning to rank does: it weighs the best documents more."),
        ]  # fmt: skip

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        names = list(self.corpus)
        order = Baseline("documents in the order of the file", [{"ranking": names[:DEPTH]}] * len(rows))
        try:
            rankings = bm25_rankings(self.corpus, [row.value["text"] for row in rows], DEPTH)
        except InputError as error:
            self.notes.append(error.message)
            return [order]
        return [order, Baseline("BM25", [{"ranking": ranking} for ranking in rankings], is_classic=True)]

    def shown(self, row: Row, output: Output) -> str:
        return "; ".join(self.corpus[name].split("\n")[0] for name in output["ranking"][:3])

    def question(self, example: Row) -> str:
        return str(example.value["text"])

    def reference(self, example: Row) -> str:
        relevance = example.value["relevance"]
        best = sorted(relevance, key=lambda name: -relevance[name])[:3]
        return "; ".join(self.corpus.get(name, name).split("\n")[0] for name in best)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return unit


SUITE = Retrieval
