"""Transcripts compared with what was said: word and character error rates, by jiwer, in the extra `eval`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from quatrain.evaluation.metrics.checks import check_lengths, check_texts, library


def normalized_speech(text: str) -> str:
    """A transcript in lower case without punctuation, with single spaces: writing that nobody hears does not count."""
    kept = (
        " " if unicodedata.category(each)[0] in "PSZC" and each not in "'’" else each
        for each in unicodedata.normalize("NFKC", text).lower()
    )
    return " ".join("".join(kept).replace("’", "'").split())


def error_rates(predictions: Sequence[str], references: Sequence[str], *, normalize: bool = True) -> dict[str, float]:
    """{"wer", "cer"}: substituted, deleted and inserted words (characters) for each one that was said, of all examples.

    Both may exceed 1. With `normalize`, case and punctuation do not count. An example without words in its reference
    adds its insertions. Raises InputError for lists that are empty or differ in length, and for what is no text.
    """
    check_lengths(predictions, references, "WER")
    for values, name in ((predictions, "prediction"), (references, "reference")):
        check_texts(values, name, "WER")
    jiwer = library("jiwer", "jiwer", "WER")
    pairs = [
        tuple(normalized_speech(text) if normalize else text for text in pair)
        for pair in zip(references, predictions, strict=True)
    ]
    told = [pair for pair in pairs if pair[0].strip()]
    invented = [said for reference, said in pairs if not reference.strip()]
    rates = {}
    for name, measure, count in (
        ("wer", jiwer.process_words, lambda text: len(text.split())),
        ("cer", jiwer.process_characters, len),
    ):
        errors = total = 0
        if told:
            found = measure([reference for reference, _ in told], [said for _, said in told])
            errors = found.substitutions + found.deletions + found.insertions
            total = found.hits + found.substitutions + found.deletions
        errors += sum(count(text) for text in invented)
        rates[name] = errors / total if total else float(errors > 0)
    return rates
