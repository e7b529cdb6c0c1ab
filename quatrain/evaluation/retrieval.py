"""Measures an index without a judge: rankings of judged questions, answers with and without an answer in the documents.

    sets = topic_sets("medquad", folder)
    for result in compare_retrieval(sets, [Choice(ChunkSettings(), "bm25"), Choice(ChunkSettings(), "hybrid")], folder):
        print(result.choice.label, result.ranking["ndcg_10"], result.answers["refused"])

Rankings: nDCG, MAP, MRR and recall as trec_eval counts them (Thakur et al. 2021). Answers: how many questions whose
documents were left out are refused, how many others are answered, whether citations hold, from the right document, and
how much of the reference the quotes repeat (Rajpurkar et al. 2018 measure unanswerable questions so).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from quatrain.core.atomic import atomic_write
from quatrain.core.errors import InputError
from quatrain.core.settings import did_you_mean, parse
from quatrain.core.wording import format_value
from quatrain.data import catalog
from quatrain.data.rows import read_records
from quatrain.evaluation.measures import difference, mean_of
from quatrain.evaluation.metrics.ranking import average_precision, ndcg, recall, reciprocal_rank
from quatrain.retrieval.answer import Answer
from quatrain.retrieval.building import build_index, source_files
from quatrain.retrieval.chunkers import ChunkSettings
from quatrain.retrieval.evidence import Weights
from quatrain.retrieval.generated import answer
from quatrain.retrieval.index import Index
from quatrain.retrieval.retrievers import RETRIEVERS
from quatrain.retrieval.settings import IndexSettings

DEPTH = 1000
OPTIONS = ("dense", "chunks", "size", "overlap", "tokenizer", "rerank")
"""What a ranking that is given as a text may name."""
LEFT_OUT = 5
"""One topic of so many is left out of the index; its questions have no answer there."""


@dataclass(frozen=True)
class JudgedQuestion:
    """A question, the relevance of documents by their `part`, and perhaps the answer that a person gave."""

    text: str
    relevance: dict[str, int] = field(default_factory=dict)
    reference: str = ""


@dataclass(frozen=True)
class QuestionSets:
    """A file of documents, questions that they answer, and questions that they do not."""

    documents: Path
    answerable: tuple[JudgedQuestion, ...]
    unanswerable: tuple[JudgedQuestion, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What is compared: how documents are cut, how passages are ranked, perhaps read again."""

    chunks: ChunkSettings
    retriever: str
    rerank: str | None = None
    dense: tuple[str, ...] | None = None
    """Encoders; None: those of the comparison."""

    @classmethod
    def of(cls, text: str) -> Choice:
        """`RETRIEVER` or `RETRIEVER@dense=lsa+MODEL,chunks=sentences,size=80,overlap=20,rerank=FOLDER`.

        Without `chunks` a document is one chunk; a retriever by vectors has the encoder `lsa` unless it names others.
        Raises InputError, all problems at once.
        """
        retriever, _, settings = text.partition("@")
        given: dict[str, str] = {}
        problems = []
        if retriever not in RETRIEVERS:
            near = did_you_mean(retriever, list(RETRIEVERS))
            problems.append(f"{format_value(retriever)}; must be one of {', '.join(RETRIEVERS)}{near}")
        for part in filter(None, settings.split(",")):
            name, _, value = part.partition("=")
            if name not in OPTIONS or not value:
                problems.append(f"{part}: must be NAME=VALUE with a name of {', '.join(OPTIONS)}")
            given[name] = value
        if problems:
            raise InputError(f"{text}: a ranking is given as RETRIEVER@NAME=VALUE,NAME=VALUE", problems)
        sizes: dict[str, Any] = {name: given[name] for name in ("size", "overlap", "tokenizer") if name in given}
        sizes |= {name: int(value) for name, value in sizes.items() if value.isdigit()}
        kind = given.get("chunks", "headings" if sizes else "whole")
        if "size" in sizes and "overlap" not in sizes:
            sizes["overlap"] = sizes["size"] // 5 if isinstance(sizes["size"], int) else 0
        named = tuple(filter(None, given.get("dense", "" if retriever == "bm25" else "lsa").split("+")))
        chunks = parse(ChunkSettings, {"kind": kind} | sizes, what=text)
        return cls(chunks, retriever, given.get("rerank"), named)

    @property
    def label(self) -> str:
        """The choice in words."""
        size = "" if self.chunks.kind == "whole" else f" {self.chunks.size}/{self.chunks.overlap}"
        by = f" by {', '.join(Path(each).name for each in self.dense)}" if self.dense else ""
        again = f", reranked by {Path(self.rerank).name}" if self.rerank else ""
        return f"{self.chunks.kind}{size}, {self.retriever}{by}{again}"


@dataclass(frozen=True)
class Result:
    """The measures of a choice; `measure_ranking` and `measure_answers` name them."""

    choice: Choice
    chunks: int
    ranking: dict[str, float]
    answers: dict[str, float] = field(default_factory=dict)
    samples: tuple[Answer, ...] = ()
    costs: dict[str, float] = field(default_factory=dict)
    """`index_seconds` (of the index that the choice shares with others of the same cut and encoders), `search_ms` of a
    question, and `bytes` of the index on disk."""
    each: tuple[float, ...] = ()
    """nDCG@10 of each question."""


def topic_sets(source: str, folder: Path, limit: int | None = None) -> QuestionSets:
    """The sets of a file with the columns `question` and `answer`, such as MedQuAD: each row is a document.

    Of every `LEFT_OUT`th topic (`focus`, or the row), drawn by a hash, the rows are left out of the documents. Writes
    the documents into `folder`. Raises InputError for a source without these columns.
    """
    _, files, _ = source_files(source)
    rows = [row.value for _, path in files for row in read_records(path) if isinstance(row.value, dict)]
    if not rows or not all(isinstance(row.get(key), str) for row in rows[:20] for key in ("question", "answer")):
        raise InputError(f"{source}: questions are measured with the columns question and answer; this has others")
    inside: list[JudgedQuestion] = []
    outside: list[JudgedQuestion] = []
    path = folder / "documents.jsonl"
    with atomic_write(path) as file:
        for number, row in enumerate(rows):
            name, topic = f"q{number}", str(row.get("focus") or row["question"])
            question = JudgedQuestion(row["question"], {name: 1}, row["answer"])
            if int(hashlib.sha256(topic.casefold().encode()).hexdigest(), 16) % LEFT_OUT == 0:
                outside.append(question)
                continue
            inside.append(question)
            about = {"_id": name, "title": topic, "text": row["answer"]}
            file.write(json.dumps(about, ensure_ascii=False) + "\n")
    return QuestionSets(path, tuple(_spread(inside, limit)), tuple(_spread(outside, limit)))


def collection_sets(source: str, folder: Path, limit: int | None = None) -> QuestionSets:
    """The sets of a collection in BEIR's layout, or of the catalog (cranfield): all questions have judgements."""
    from quatrain.evaluation.suites.retrieval import Retrieval

    suite = Retrieval(source)
    (path,) = (file for _, file in source_files(suite.part("corpus"))[1])
    questions = [JudgedQuestion(row.value["text"], row.value["relevance"]) for row in suite.read(limit)]
    return QuestionSets(path, tuple(questions))


def _spread(questions: Sequence[JudgedQuestion], limit: int | None) -> list[JudgedQuestion]:
    """Questions from all over a list."""
    step = 1 if limit is None else max(1, len(questions) // limit)
    return list(islice(questions[::step], limit))


def rank_documents(index: Index, question: str, depth: int = DEPTH, **search: Any) -> list[str]:
    """The `part`s of the best documents; a document counts by its best chunk."""
    rerank = search.pop("rerank", None)
    if rerank is not None:
        hits = index.search(question, depth, rerank=rerank, **search)
        return list(dict.fromkeys(index.document(hit.document).part for hit in hits))
    numbers = [number for number, _ in index.rank(question, depth * 2, **search)]
    chunks = index.store.chunks(numbers)
    return list(dict.fromkeys(index.document(chunk.document).part for chunk in chunks))[:depth]


def measure_ranking(index: Index, questions: Sequence[JudgedQuestion], **search: Any) -> dict[str, float]:
    """nDCG@10, MAP, MRR, recall@10 and recall@100, means over questions."""
    return _measures([(rank_documents(index, each.text, **search), each.relevance) for each in questions])


def _measures(pairs: Sequence[tuple[list[str], dict[str, int]]]) -> dict[str, float]:
    """The measures of rankings with the relevance of their documents."""
    measures: dict[str, Callable[..., float]] = {
        "ndcg_10": ndcg,
        "map": average_precision,
        "mrr": reciprocal_rank,
        "recall_10": lambda ranking, relevance: recall(ranking, relevance, 10),
        "recall_100": recall,
    }
    return {name: sum(own(*pair) for pair in pairs) / max(1, len(pairs)) for name, own in measures.items()}


def measure_answers(
    index: Index,
    answerable: Sequence[JudgedQuestion],
    unanswerable: Sequence[JudgedQuestion],
    **options: Any,
) -> tuple[dict[str, float], list[Answer]]:
    """The measures of answers, and the answers. `options` as for `answer`.

    `answered`: of questions with an answer in the documents; `refused`: of those without; `separation`: how often one
    of the former has more evidence than one of the latter (the area under the ROC curve); `verified`: citations whose
    document has the quote where they say; `right_document`: answers that cite a relevant document; `overlap`: the share
    of an answer's words that its reference has; `supported`: sentences with support.
    """
    weights = Weights(index)
    answers = [answer(index, each.text, **options) for each in answerable]
    refusals = [answer(index, each.text, **options) for each in unanswerable]
    given = [(each, one) for each, one in zip(answerable, answers, strict=True) if one.found]
    citations = [citation for one in (*answers, *refusals) for citation in one.citations]
    right = [
        any(index.document(citation.document).part in each.relevance for citation in one.citations)
        for each, one in given
    ]
    wanted = [dict.fromkeys(weights.words(" ".join(part.text for part in one.sentences)), 1.0) for _, one in given]
    references = [each.reference for each, _ in given]
    overlaps = [weights.coverage(own, text) for own, text in zip(wanted, references, strict=True) if text]
    sentences = [part for one in (*answers, *refusals) for part in one.sentences]
    measures = {
        "answered": _mean([one.found for one in answers]),
        "refused": _mean([not one.found for one in refusals]),
        "separation": _mean(
            [
                (one.evidence > other.evidence) + (one.evidence == other.evidence) / 2
                for one in answers
                for other in refusals
            ]
        ),
        "verified": _mean([each.holds(index) for each in citations]),
        "right_document": _mean(right),
        "overlap": _mean(overlaps),
        "supported": _mean([part.supported for part in sentences]),
        "citations": float(len(citations)),
    }
    return measures, answers + refusals


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def compare_retrieval(
    sets: QuestionSets,
    choices: Sequence[Choice],
    folder: Path,
    *,
    dense: Sequence[str] = ("lsa",),
    language: str = "english",
    reporter: Any = None,
) -> Iterator[Result]:
    """The measures of each choice on the same questions. Indexes are made in `folder`, one for each way to cut."""
    built: dict[str, float] = {}
    for choice in choices:
        encoders = tuple(dense) if choice.dense is None else choice.dense
        settings = IndexSettings(chunks=choice.chunks, dense=encoders, language=language, columns=sets.columns)
        marks = "".join(f"-{hashlib.sha256(each.encode()).hexdigest()[:8]}" for each in (choice.dense or ()))
        name = f"index-{choice.chunks.kind}-{choice.chunks.size}-{choice.chunks.overlap}{marks}"
        started = time.perf_counter()
        report = build_index(sets.documents, folder / name, settings, reporter=reporter)
        built.setdefault(name, time.perf_counter() - started)
        with Index.open(folder / name) as index:
            search: dict[str, Any] = {"retriever": choice.retriever}
            if choice.rerank is not None:
                search["rerank"] = choice.rerank
            rank_documents(index, sets.answerable[0].text, **search)  # Opens encoders.
            started = time.perf_counter()
            pairs = [(rank_documents(index, each.text, **search), each.relevance) for each in sets.answerable]
            costs = {
                "index_seconds": built[name],
                "search_ms": (time.perf_counter() - started) / len(pairs) * 1000,
                "bytes": float(sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())),
            }
            ranking, own = _measures(pairs), tuple(ndcg(*pair) for pair in pairs)
            answers: dict[str, float] = {}
            samples: list[Answer] = []
            if sets.unanswerable:
                answers, samples = measure_answers(index, sets.answerable, sets.unanswerable, search=search)
        yield Result(choice, report.counts.chunks, ranking, answers, tuple(samples), costs, own)


def question_sets(source: str, folder: Path, limit: int | None = None) -> QuestionSets:
    """The sets of a collection with judgements (a folder in BEIR's layout, or of the catalog, such as cranfield), or of
    a file of questions and answers. Raises InputError for a source that is neither.
    """
    is_collection = catalog.find(f"{source}-corpus") is not None or Path(source).is_dir()
    return (collection_sets if is_collection else topic_sets)(source, folder, limit)


def as_records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results for programs and tables: each beside the first, with a paired bootstrap interval of nDCG@10."""
    first = mean_of("ndcg_10", list(results[0].each), "")
    records = []
    for number, result in enumerate(results):
        record: dict[str, Any] = {"ranking": result.choice.label, "chunks": result.chunks}
        record |= result.ranking | result.costs
        if number:
            apart = difference(mean_of("ndcg_10", list(result.each), ""), first)
            record["over_first"] = {"value": apart.value, "low": apart.interval.low, "high": apart.interval.high}
        records.append(record | ({"answers": result.answers} if result.answers else {}))
    return records
