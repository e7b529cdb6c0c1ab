"""The rules of curation beside datatrove on the same documents: MB/s of one core, and equal decisions.

All documents pass Gopher's rules on quality and repetition, FineWeb's and C4's rules, none removed by an earlier one,
so that both do the same work. Time is processor time of one thread, in turns. Ours is measured twice: with words that
no text has shown before (cold), and as in a long run (warm). MinHash signatures are measured beside datasketch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import finish, in_turns, parser, require, spread

RULES = ("gopher_quality", "gopher_repetition", "fineweb_quality", "c4_quality")


def documents(quick: bool) -> list[str]:
    """Web pages of C4, and passages of Wikipedia articles of the same length."""
    from quatrain.data.documents import read_documents

    pages = list(read_documents("c4-sample"))
    if quick:
        return [text[:800] for text in pages[:20]]
    articles = list(read_documents("wikipedia-sample"))
    return [*pages, *(text[start : start + 3000] for text in articles for start in range(0, len(text), 3000))]


def ours(texts: Sequence[str], names: Sequence[str], *, cold: bool) -> Callable[[], float]:
    """Processor seconds of our rules on all documents."""
    from quatrain.data.curation import words
    from quatrain.data.curation.document import SourceDocument
    from quatrain.data.curation.step import Step, StepContext
    from quatrain.data.curation.steps import steps

    def make() -> list[Step]:
        made = [steps()[name](steps()[name].Settings(), StepContext(Path())) for name in names]
        return [step for step in made if isinstance(step, Step)]

    chosen = make()

    def run() -> float:
        nonlocal chosen
        if cold:
            words.english_words.cache_clear()
            chosen = make()
        start = time.process_time()
        for text in texts:
            for step in chosen:
                step.apply(SourceDocument("", text))
        return time.process_time() - start

    return run


def datatrove(texts: Sequence[str], names: Sequence[str]) -> Callable[[], float]:
    """Processor seconds of datatrove's filters."""
    require("datatrove", "test")
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.filters.c4_filters import C4QualityFilter

    makers: dict[str, Callable[[], Any]] = {
        "gopher_quality": GopherQualityFilter, "gopher_repetition": GopherRepetitionFilter,
        "fineweb_quality": FineWebQualityFilter, "c4_quality": C4QualityFilter,
    }  # fmt: skip
    chosen = [makers[name]() for name in names]

    def run() -> float:
        start = time.process_time()
        for number, text in enumerate(texts):
            for each in chosen:
                each.filter(Document(text=text, id=str(number)))
        return time.process_time() - start

    return run


def agree(texts: Sequence[str]) -> int:
    """How many decisions of all rules are equal."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.filters.c4_filters import C4QualityFilter

    from quatrain.data.curation.document import SourceDocument
    from quatrain.data.curation.step import Step, StepContext
    from quatrain.data.curation.steps import steps

    peers = (GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter(), C4QualityFilter())
    equal = 0
    for name, peer in zip(RULES, peers, strict=True):
        step = steps()[name](steps()[name].Settings(), StepContext(Path()))
        if not isinstance(step, Step):
            raise TypeError(name)
        for text in texts:
            decision = peer.filter(Document(text=text, id="0"))
            kept = decision if isinstance(decision, bool) else decision[0]
            equal += kept == (step.apply(SourceDocument("", text)) is None)
    return equal


def signatures(texts: Sequence[str]) -> tuple[float, float]:
    """Processor seconds of 128 minima of all documents: ours, and datasketch's on the same runs of words."""
    require("datasketch", "test")
    from datasketch import MinHash

    from quatrain.data.curation.document import SourceDocument
    from quatrain.data.curation.steps.near_duplicates import Signatures

    start = time.process_time()
    collector = Signatures(5, 128, seed=0)
    for text in texts:
        collector.add(SourceDocument("", text))
    collector.arrays()
    mine = time.process_time() - start
    start = time.process_time()
    for text in texts:
        words = text.casefold().split()
        runs = {" ".join(words[place : place + 5]).encode() for place in range(len(words) - 4)}
        MinHash(num_perm=128).update_batch(runs)
    return mine, time.process_time() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeat", type=int, default=3)
    chosen = options.parse_args()
    texts = documents(chosen.quick)
    size = sum(len(text.encode()) for text in texts) / 1e6
    peer = datatrove(texts, RULES)
    calls = {"warm": ours(texts, RULES, cold=False), "cold": ours(texts, RULES, cold=True), "datatrove": peer}
    calls["warm"]()  # its words are known then
    found = in_turns(calls, 1 if chosen.quick else chosen.repeat)
    rates = {name: spread(size / seconds for seconds in values) for name, values in found.items()}
    print(f"{len(texts)} documents, {size:.1f} MB, {len(RULES)} rules on each; MB/s of a core")
    for name, rate in rates.items():
        print(f"{name:>10}: {rate['median']:.2f} ({rate['min']:.2f} to {rate['max']:.2f})")
    single = {}
    for name in RULES:
        call = ours(texts, [name], cold=False)
        call()
        single[name] = size / min(call() for _ in range(3))
        print(f"{name:>20} alone: {single[name]:.1f}")
    equal = agree(texts)
    print(f"{equal:,} of {len(RULES) * len(texts):,} decisions are equal")
    mine, theirs = signatures(texts)
    print(f"MinHash: {size / mine:.1f} MB/s, datasketch {size / theirs:.2f}")
    finish(
        "curate", rates["warm"]["median"] / rates["datatrove"]["median"],
        "MB/s a core of four rules: ours, words known, over datatrove", quick=chosen.quick, documents=len(texts),
        megabytes=size, megabytes_per_second=rates, alone=single, equal_decisions=equal / (len(RULES) * len(texts)),
        minhash={"ours": size / mine, "datasketch": size / theirs},
    )  # fmt: skip


if __name__ == "__main__":
    main()
