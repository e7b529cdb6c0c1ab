"""`quatrain ask`: answers a question from an index, with citations that were compared with their documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument, read_text_argument

if TYPE_CHECKING:
    from quatrain.retrieval.answer import Answer


def ask(
    index: str,
    question: TextArgument,
    *,
    k: int = 5,
    retriever: str | None = None,
    rerank: str | None = None,
    where: tuple[str, ...] = (),
    threshold: float | None = None,
    show_hits: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Answer a question from an index, with citations: spans that were compared with their documents.

    Without a model the answer quotes the sentences that fit best.

    Parameters
    ----------
    index
        The folder of an index, or its name in indexes/.
    question
        The question, or - for standard input.
    k
        The passages that are read.
    retriever
        How passages are ranked: bm25, dense, hybrid or feedback; by default hybrid where the index has vectors.
    rerank
        A cross-encoder, which ranks the first passages again: a model's folder.
    where
        Only documents with this value, as source=notes.md or any metadata; may be given several times.
    threshold
        How much of the question the best passage must cover, 0 to 1; below, the answer is "Not in the documents".
    show_hits
        Show the passages too.
    json_lines
        Write the answer as a JSON object, with passages, spans and evidence.
    """
    from quatrain.cli.output import show_json
    from quatrain.retrieval.answer import THRESHOLD, extract
    from quatrain.retrieval.index import Index

    text = read_text_argument(question).strip()
    with Index.open(index) as opened:
        hits = opened.search(text, k, retriever=retriever, rerank=rerank, where=_where(where))
        found = extract(opened, text, hits, threshold=THRESHOLD if threshold is None else threshold)
        if json_lines:
            show_json(found.record())
        else:
            _show(found, show_hits=show_hits)
    return 0


def _where(texts: tuple[str, ...]) -> dict[str, Any]:
    """The values of --where by key. Raises InputError for a text without "="."""
    from quatrain.core.errors import InputError

    if problems := [each for each in texts if not each.partition("=")[1] or not each.partition("=")[0]]:
        raise InputError("--where takes KEY=VALUE:", problems)
    return {key: value for key, _, value in (each.partition("=") for each in texts)}


def _show(found: Answer, *, show_hits: bool) -> None:
    from quatrain.cli.output import show

    show(found.text)
    for each in found.citations:
        quote = " ".join(each.quote.split())
        show(f"\n[{each.number}] {each.name}, characters {each.start:,}-{each.end:,}\n    {quote}")
    if show_hits or not found.found:
        show("\nPassages:" if found.hits else "\nNo passage has a word of the question.")
        for hit in found.hits:
            path = " > ".join((hit.name, *hit.path))
            show(f"\n{hit.rank}. {path}, characters {hit.start:,}-{hit.end:,}, score {hit.score:.3f}")
            show("    " + " ".join(hit.text.split())[:400])
