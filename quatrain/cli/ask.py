"""`quatrain ask`: answers a question from an index, with citations that were compared with their documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument
from quatrain.cli.sampling import MODEL_DEFAULTS, SAMPLING_DEFAULTS, ModelOptions, SamplingOptions

if TYPE_CHECKING:
    from quatrain.generation.endpoint import Endpoint
    from quatrain.generation.engine import Engine
    from quatrain.generation.params import SamplingParams
    from quatrain.retrieval.answer import Answer
    from quatrain.retrieval.index import Hit


@Parameter(name="*")
@dataclass(frozen=True)
class SearchOptions:
    """How passages are found."""

    k: int = 5
    """The passages that are read."""
    retriever: str | None = None
    """How passages are ranked: bm25, dense, hybrid or feedback; by default hybrid where the index has vectors."""
    rerank: str | None = None
    """A cross-encoder, which ranks the first passages again: a model's folder."""
    where: tuple[str, ...] = ()
    """Only documents with this value, as source=notes.md or any metadata; may be given several times."""
    threshold: float | None = None
    """The evidence that the best passage must give, 0 to 1; below, the answer is "Not in the documents"."""
    entailment: str | None = None
    """With --model: a model of natural-language inference, which decides whether a passage supports a sentence."""


SEARCH = SearchOptions()


def ask(
    index: str,
    question: TextArgument | None = None,
    *,
    image: Path | None = None,
    model: str | None = None,
    search: SearchOptions = SEARCH,
    sampling: SamplingOptions = SAMPLING_DEFAULTS,
    loading: ModelOptions = MODEL_DEFAULTS,
    show_hits: bool = False,
    show_prompt: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Answer a question from an index, with citations: spans that were compared with their documents.

    Of an index with pictures (--dense with a model of pictures and texts) it shows those that fit the question best.

    Without --model the answer quotes the sentences that fit best. With it the model writes, and sentences without
    support in the passages are marked.

    Parameters
    ----------
    index
        The folder of an index, or its name in indexes/.
    question
        The question; or - for a conversation: each line of standard input is the next question.
    image
        A picture in place of a question: the pictures of the index that are most like it.
    model
        The model that writes the answer: a folder, a run, a hub id, or an address http://HOST/v1#NAME.
    show_hits
        Show the passages too.
    show_prompt
        Show what the model read, and what it wrote.
    json_lines
        Write the answer as a JSON object, with passages, spans and evidence.
    """
    from quatrain.cli.output import show_json
    from quatrain.core.errors import InputError
    from quatrain.core.reading import user_path
    from quatrain.retrieval.answer import THRESHOLD
    from quatrain.retrieval.evidence import Entailment
    from quatrain.retrieval.generated import Conversation
    from quatrain.retrieval.index import Index

    where = _where(search.where)
    own = {"retriever": search.retriever, "rerank": search.rerank, "where": where}
    options: dict[str, Any] = {"k": search.k, "search": own}
    options["threshold"] = THRESHOLD if search.threshold is None else search.threshold
    if (question is None) == (image is None):
        raise InputError("give a question, or a picture with --image")
    with Index.open(index) as opened:
        if image is not None:
            hits = opened.pictures(like=user_path(image, "--image"), k=search.k, where=where)
            if json_lines:
                show_json({"image": str(image), "pictures": [hit.record() for hit in hits]})
            else:
                _show_pictures(hits)
            return 0
        opened.retriever(search.retriever)
        engine = None if model is None else _model(model, loading)
        if engine is not None:
            options["params"] = _params(engine, sampling)
            if search.entailment is not None:
                options["entailment"] = Entailment(search.entailment)
        conversation = Conversation(opened, engine, options)
        for place, text in enumerate(_questions(question or "")):
            found = conversation.ask(text)
            if json_lines:
                show_json(found.record())
            else:
                _show(found, show_hits=show_hits, show_prompt=show_prompt, is_first=place == 0)
    return 0


def _questions(question: str) -> Iterator[str]:
    """The one question, or those of standard input."""
    from quatrain.cli.process import input_lines
    from quatrain.core.errors import InputError

    if question != "-":
        if not question.strip():
            raise InputError("the question is empty")
        yield question.strip()
        return
    yield from (text for line in input_lines() if (text := line.strip()))


def _model(model: str, loading: ModelOptions) -> Engine | Endpoint:
    from quatrain.generation.endpoint import is_endpoint, open_model

    return open_model(model) if is_endpoint(model) else loading.load(model)


def _params(engine: Engine | Endpoint, sampling: SamplingOptions) -> SamplingParams:
    """Greedy, unless the options say otherwise."""
    from quatrain.generation.params import SamplingParams
    from quatrain.retrieval.generated import NEW_TOKENS

    return SamplingParams(**({"max_new_tokens": NEW_TOKENS, "temperature": 0.0} | sampling.given()))


def _where(texts: tuple[str, ...]) -> dict[str, Any]:
    """The values of --where by key. Raises InputError for a text without "="."""
    from quatrain.core.errors import InputError

    if problems := [each for each in texts if not each.partition("=")[1] or not each.partition("=")[0]]:
        raise InputError("--where takes KEY=VALUE:", problems)
    return {key: value for key, _, value in (each.partition("=") for each in texts)}


def _show_pictures(hits: Sequence[Hit]) -> None:
    from quatrain.cli.output import show

    if hits:
        show("\nPictures:")
    for hit in hits:
        about = hit.metadata
        show(f"{hit.rank}. {hit.name}, {about.get('width')}x{about.get('height')}, score {hit.score:.3f}")


def _show(found: Answer, *, show_hits: bool, show_prompt: bool, is_first: bool) -> None:
    from quatrain.cli.output import show
    from quatrain.tasks.prompting.reader import shown

    if not is_first:
        show(f"\n> {found.question}")
    if found.searched != found.question:
        show(f"(searched for: {found.searched})")
    if found.found or found.hits or not found.pictures:
        show(" ".join(found.text.split()))
    for each in found.citations:
        quote = " ".join(each.quote.split())
        show(f"\n[{each.number}] {each.name}, characters {each.start:,}-{each.end:,}\n    {quote}")
    for note in found.notes:
        show(f"\nNote: {note}.")
    _show_pictures(found.pictures)
    if show_hits or (not found.found and not found.pictures):
        show("\nPassages:" if found.hits else "\nNo passage has a word of the question.")
        for hit in found.hits:
            path = " > ".join((hit.name, *hit.path))
            show(f"\n{hit.rank}. {path}, characters {hit.start:,}-{hit.end:,}, score {hit.score:.3f}")
            show("    " + " ".join(hit.text.split())[:400])
    if show_prompt and found.prompt is not None:
        show(f"\nPrompt:\n{shown(found.prompt)}\n\nCompletion:\n{found.completion}")
