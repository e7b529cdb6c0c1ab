"""Implementation of the retrieval stage: the index in the stage's folder, and the table of what was compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data import catalog
from quatrain.evaluation.metrics.ranking import ndcg
from quatrain.evaluation.retrieval import Choice, QuestionSets, Result, compare_retrieval, topic_sets
from quatrain.retrieval.answer import Answer
from quatrain.retrieval.building import build_index
from quatrain.retrieval.readers import read_documents
from quatrain.retrieval.settings import IndexSettings
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.retrieval import RetrievalStage

COLUMNS = {
    "nDCG@10": "ndcg_10", "MRR": "mrr", "recall@10": "recall_10", "answered": "answered", "refused": "refused",
    "right document": "right_document", "overlap": "overlap", "citations verified": "verified",
}  # fmt: skip
"""Columns of the table: the questions with an answer that get one, those without that are refused, …"""
SHOWN = 4


def run(settings: RetrievalStage, context: StageContext) -> StageResult:
    """Makes the index, and measures what is compared; writes no model."""
    result = StageResult()
    place = context.stage_folder / "index"
    own = IndexSettings(
        chunks=settings.chunks, dense=settings.dense, language=settings.language, columns=columns_of(settings)
    )
    report = build_index(settings.source, place, own, reporter=context.reporter)
    result.notes += report.lines()
    result.extra["index"] = {"folder": str(place.relative_to(context.folder)), **vars(report.counts)}
    if not settings.compared:
        return result
    work = context.stage_folder / "measured"
    work.mkdir(parents=True, exist_ok=True)
    sets = sets_of(settings, work)
    if sets is None:
        result.notes.append("nothing was measured: the source has no columns question and answer")
        return result
    choices = [Choice(each.chunks, each.retriever, each.rerank) for each in settings.compared]
    found = []
    compared = compare_retrieval(
        sets, choices, work, dense=settings.dense, language=settings.language, reporter=context.reporter
    )
    for each in compared:
        found.append(each)
        context.reporter.score(each.choice.label, {**each.ranking, **each.answers})
    _report(result, found, sets, context)
    return result


def columns_of(settings: RetrievalStage) -> dict[str, str]:
    """The columns of the source; those of MedQuAD are known."""
    is_medquad = settings.source == "medquad" and catalog.find("medquad") is not None
    return settings.columns or ({"text": "answer", "title": "question"} if is_medquad else {})


def sets_of(settings: RetrievalStage, folder: Path) -> QuestionSets | None:
    """The questions of the source; None where it has none."""
    try:
        return topic_sets(settings.source, folder, settings.questions)
    except InputError:
        return None


def _report(result: StageResult, found: list[Result], sets: QuestionSets, context: StageContext) -> None:
    best = max(found, key=lambda each: each.ranking["ndcg_10"])
    rows = []
    for each in found:
        values = each.ranking | each.answers
        rows.append([each.choice.label, f"{each.chunks:,}", *(f"{values[key]:.3f}" for key in COLUMNS.values())])
    title = f"{len(sets.answerable):,} questions with an answer in the documents, {len(sets.unanswerable):,} without"
    columns = ["chunks and ranking", "chunks", *COLUMNS]
    context.reporter.table(title, columns, rows)
    result.extra["comparisons"] = [{"title": title, "columns": columns, "rows": rows}]
    result.extra["side_by_side"] = [
        _row(question.text, question.reference, number, found)
        for questions, first in ((sets.answerable, 0), (sets.unanswerable, len(sets.answerable)))
        for number, question in list(enumerate(questions, first))[:SHOWN]
    ]
    result.scores = {"questions": {**best.ranking, **best.answers}}
    order = [document.part for document in read_documents(sets.documents)]
    chance = sum(ndcg(order, each.relevance) for each in sets.answerable) / len(sets.answerable)
    result.baselines = {"questions": {"name": "documents in the order of the file", "ndcg_10": chance}}
    result.notes.append(f"questions: the scores are those of {best.choice.label}")


def _row(question: str, reference: str, number: int, found: list[Result]) -> dict[str, Any]:
    answers = [{"label": each.choice.label, "output": _shown(each.samples[number])} for each in found]
    return {"prompt": question, "references": [reference], "answers": answers}


def _shown(answer: Answer) -> str:
    cited = "; ".join(f"[{each.number}] {each.name} {each.start}-{each.end}" for each in answer.citations)
    return f"{answer.text}\n{cited}".strip()
