"""Rankings on collections with judgements beside plain bm25s, answers on MedQuAD, and how fast an index is made.

python benchmarks/retrieval.py
python benchmarks/retrieval.py --collection FOLDER --model FOLDER   # a MiniLM-class model of sentence embeddings
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from common import finish, parser

from quatrain.core.errors import QuatrainError
from quatrain.data.decoding import read_text
from quatrain.data.sources import find_files
from quatrain.evaluation.classics import bm25_rankings
from quatrain.evaluation.faithfulness import altered_statements, labelled_statements, measure_support
from quatrain.evaluation.metrics.ranking import ndcg
from quatrain.evaluation.retrieval import Choice, collection_sets, compare_retrieval, topic_sets
from quatrain.retrieval.building import build_index
from quatrain.retrieval.chunkers import ChunkSettings
from quatrain.retrieval.evidence import Entailment
from quatrain.retrieval.index import Index
from quatrain.retrieval.readers import read_documents
from quatrain.retrieval.settings import IndexSettings

WHOLE = ChunkSettings(kind="whole")


def collection(source: str, folder: Path, model: str | None) -> list[dict[str, Any]]:
    """nDCG@10 and kin of each retriever, of plain bm25s, and of the order of the file."""
    name = Path(source).name
    rows: list[dict[str, Any]] = []
    for dense in [("lsa",), *([("lsa", model)] if model else [])]:
        place = folder / f"{name}-{len(dense)}"
        place.mkdir()
        sets = collection_sets(source, place)
        if not rows:
            texts = {each.part: each.text for each in read_documents(sets.documents)}
            plain = bm25_rankings(texts, [each.text for each in sets.answerable], 1000)
            for label, rankings in (("bm25s, no stems", plain), ("order of the file", [list(texts)] * len(plain))):
                own = [ndcg(ranking, each.relevance) for ranking, each in zip(rankings, sets.answerable, strict=True)]
                rows.append({"collection": name, "retriever": label, "ndcg_10": sum(own) / len(own)})
        retrievers = ("bm25", "dense", "hybrid", "feedback") if len(dense) == 1 else ("dense", "hybrid", "feedback")
        for found in compare_retrieval(sets, [Choice(WHOLE, each) for each in retrievers], place, dense=dense):
            label = found.choice.retriever + (" with the model" if len(dense) > 1 else "")
            rows.append({"collection": name, "retriever": label} | found.ranking)
            print(rows[-1], flush=True)
    return rows


def answers(source: str, folder: Path, limit: int) -> list[dict[str, Any]]:
    """Chunkers and retrievers on MedQuAD, with questions that have no answer."""
    sets = topic_sets(source, folder, limit)
    choices = [Choice(ChunkSettings(kind=kind), "bm25") for kind in ("headings", "sentences", "tokens")]
    choices += [Choice(ChunkSettings(), each) for each in ("dense", "hybrid", "feedback")]
    rows: list[dict[str, Any]] = []
    for found in compare_retrieval(sets, choices, folder):
        rows.append({"choice": found.choice.label, "chunks": found.chunks} | found.ranking | found.answers)
        print({key: round(each, 4) if isinstance(each, float) else each for key, each in rows[-1].items()}, flush=True)
    return rows


def speed(raw: str, folder: Path, megabytes: float) -> dict[str, float]:
    """Seconds for a folder of text."""
    size, made = int(megabytes * 1e6), folder / "texts"
    made.mkdir()
    text = (raw * (size // len(raw) + 1))[:size]
    for number, start in enumerate(range(0, size, 200_000)):
        (made / f"{number}.txt").write_text(f"Part {number}.\n" + text[start : start + 200_000])
    found: dict[str, float] = {"megabytes": megabytes}
    for name, dense in (("bm25", ()), ("bm25_and_lsa", ("lsa",))):
        started, used = time.perf_counter(), time.process_time()
        report = build_index(made, folder / name, IndexSettings(dense=dense))
        found[f"{name}_seconds"] = time.perf_counter() - started
        found[f"{name}_processor_seconds"] = time.process_time() - used
        found[f"{name}_chunks"] = report.counts.chunks
    return found


def _build(source: Path, place: Path) -> None:
    build_index(source, place, IndexSettings())


def many(raw: str, folder: Path, chunks: int) -> dict[str, float]:
    """A collection of many chunks: its index is killed half way and continued, in processes of their own."""
    source, place = folder / "many.jsonl", folder / "many"
    words = raw.split()
    with source.open("w") as file:
        for number in range(chunks):
            start = number * 7 % max(1, len(words) - 60)
            file.write(json.dumps({"text": f"record{number} {' '.join(words[start : start + 60])}"}) + "\n")
    started, used = time.perf_counter(), _used()
    first = multiprocessing.get_context("spawn").Process(target=_build, args=(source, place))
    first.start()
    while first.is_alive() and (half := _stored(place)) < chunks // 2:
        time.sleep(0.05)
    killed = first.is_alive()
    first.kill()
    first.join()
    found = {"killed_at_chunks": float(_stored(place)) if killed else float(half)}
    second = multiprocessing.get_context("spawn").Process(target=_build, args=(source, place))
    second.start()
    second.join()
    found |= {"seconds": time.perf_counter() - started, "processor_seconds": _used() - used}
    found["peak_gigabytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    found["source_bytes"] = float(source.stat().st_size)
    found["bytes"] = float(sum(path.stat().st_size for path in place.rglob("*") if path.is_file()))
    with Index.open(place) as index:
        found["chunks"] = float(index.store.counts().chunks)
        index.search("record", 5)
        started, used = time.perf_counter(), time.process_time()
        right = [
            index.search(f"record{number} {words[number]}", 1)[0].text.startswith(f"record{number} ")
            for number in range(0, chunks, max(1, chunks // 40))
        ]
        found["search_ms"] = (time.perf_counter() - started) / len(right) * 1000
        found["search_processor_ms"] = (time.process_time() - used) / len(right) * 1000
        found["found"] = sum(right) / len(right)
    return found


def _used() -> float:
    """Processor seconds of the processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _stored(place: Path) -> int:
    """Chunks in an index that another process builds."""
    try:
        with Index.open(place) as index:
            return index.store.counts().chunks
    except (QuatrainError, OSError):
        return 0


def faithfulness(pairs: str, folder: Path, limit: int, model: str | None) -> dict[str, Any]:
    """Support by words and by a model of entailment: on altered sentences, and on the pairs that the model knows."""
    judges = {} if model is None else {"model": Entailment(model).probabilities}
    sets = {"altered sentences": altered_statements(pairs, limit)}
    if model is not None:
        sets["captions"] = labelled_statements("nli-captions-test", 5 * limit)
    found: dict[str, Any] = {}
    for number, (name, statements) in enumerate(sets.items()):
        place = folder / f"support-{number}"
        place.mkdir()
        found[name] = {"statements": len(statements)} | measure_support(statements, place, judges)
        print(name, found[name], flush=True)
    return found


TOPICS = ("ships sail the sea by the wind", "bakers bake bread of flour", "planets orbit a bright star")


def tiny(folder: Path) -> tuple[str, str]:
    """A collection with judgements, and a file of questions and answers, for a quick run."""
    made = folder / "tiny"
    made.mkdir()
    rows = [{"_id": str(number), "text": f"{TOPICS[number % 3]} number {number}"} for number in range(30)]
    (made / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "who bakes bread"}) + "\n")
    (made / "qrels.tsv").write_text("".join(f"q\t{number}\t1\n" for number in range(1, 30, 3)))
    pairs = [{"question": f"What is thing{number}?", "answer": f"A thing{number} is one of the {each}."}
             for number, each in enumerate(TOPICS * 8)]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(made), str(folder / "pairs.jsonl")


def main() -> None:
    """Reads the command line, measures, and prints one JSON line."""
    asked = parser(__doc__)
    asked.add_argument("--collection", action="append", help="cranfield, or a folder in BEIR's layout; again for more")
    asked.add_argument("--model", help="a model of sentence embeddings")
    asked.add_argument("--entailment", help="a model of entailment, such as a run of the recipe nli")
    asked.add_argument("--only", choices=("collections", "answers", "faithfulness", "speed"))
    options = asked.parse_args()
    quick, figures = options.quick, dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources, pairs = options.collection or ["cranfield"], "medquad"
        if quick:
            made, pairs = tiny(folder)
            sources = [made]
        ratio = 1.0
        if options.only in (None, "collections"):
            rows = [row for source in sources for row in collection(source, folder, options.model)]
            figures["collections"] = rows
            ratio = rows[-1]["ndcg_10"] / rows[0]["ndcg_10"]
        if options.only in (None, "answers"):
            figures["answers"] = answers(pairs, folder, 3 if quick else 300)
        if options.only in (None, "faithfulness"):
            figures["faithfulness"] = faithfulness(pairs, folder, 3 if quick else 200, options.entailment)
        if options.only in (None, "speed"):
            raw = " ".join(TOPICS) * 50 if quick else "".join(read_text(find_files("wikipedia-sample")[0]))
            figures["speed"] = speed(raw, folder, 0.1 if quick else 10)
            print(figures["speed"], flush=True)
            figures["many"] = many(raw, folder, 600 if quick else 100_000)
    finish("retrieval", ratio, "nDCG@10 of the last retriever over that of plain bm25s", quick=quick, **figures)


if __name__ == "__main__":
    main()
