"""Generated texts compared with references: BLEU and chrF by sacrebleu, ROUGE by Google's rouge-score.

Papineni et al. 2002; Popović 2015; Lin 2004; Post 2018 (arXiv 1804.08771) on why the tokenization of BLEU must be
named. Both libraries are in the extra `eval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quatrain.core.errors import InputError
from quatrain.evaluation.metrics.checks import check_lengths, check_texts, library, reference_lists
from quatrain.evaluation.metrics.words import bleu_tokenizer, words

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TOKENIZERS = ("13a", "intl", "char", "zh", "none")
_NGRAMS = tuple(f"rouge{length}" for length in range(1, 10))
AUTO = "auto"
"""Chooses BLEU's tokenizer by the script of the references."""


def _columns(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], metric: str
) -> list[list[str | None]]:
    """References in sacrebleu's order: the first of each example, then the second, …; None for a missing one."""
    check_lengths(predictions, references, metric)
    check_texts(predictions, "prediction", metric)
    lists = reference_lists(references, metric)
    most = max(map(len, lists))
    return [[each[place] if place < len(each) else None for each in lists] for place in range(most)]


def bleu(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> dict[str, float | str]:
    """{"bleu": 0 to 100, "signature"}: BLEU over all examples, with sacrebleu's signature to quote beside it.

    Each example has one reference or several. `tokenize="auto"` takes `zh` for Chinese references, `char` for other
    scripts without spaces, and `13a` otherwise. Raises InputError for lists that are empty or differ in length, and for
    an unknown `tokenize`.
    """
    columns = _columns(predictions, references, "BLEU")
    if tokenize == AUTO:
        tokenize = bleu_tokenizer(text for column in columns for text in column if text is not None)
    if tokenize not in TOKENIZERS:
        raise InputError(f"BLEU: tokenize {tokenize!r}; must be one of {', '.join((*TOKENIZERS, AUTO))}.")
    metric = library("sacrebleu.metrics", "sacrebleu", "BLEU").BLEU(tokenize=tokenize, lowercase=lowercase)
    score = metric.corpus_score(list(predictions), columns)
    return {"bleu": score.score, "signature": str(metric.get_signature())}


def chrf(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, word_order: int = 0
) -> dict[str, float | str]:
    """{"chrf": 0 to 100, "signature"}: chrF over all examples; chrF++ with `word_order` 2.

    Raises InputError for lists that are empty or differ in length.
    """
    columns = _columns(predictions, references, "chrF")
    if word_order not in (0, 1, 2):
        raise InputError(f"chrF: word_order {word_order!r}; must be 0, 1 or 2.")
    metric = library("sacrebleu.metrics", "sacrebleu", "chrF").CHRF(word_order=word_order)
    score = metric.corpus_score(list(predictions), columns)
    return {"chrf": score.score, "signature": str(metric.get_signature())}


def rouge(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    kinds: Sequence[str] = ROUGES,
    stemming: bool = False,
) -> dict[str, float]:
    """The mean F1 of each kind, 0 to 1: words (rouge1), pairs (rouge2), longest common sequence (rougeL, rougeLsum).

    Of several references the best one counts, separately for each kind. rougeLsum takes each line as a sentence. ASCII
    texts are split as by rouge-score; for other scripts see `quatrain.evaluation.metrics.words`. `stemming` is for
    English. Raises InputError for lists that are empty or differ in length, and for an unknown kind.
    """
    check_lengths(predictions, references, "ROUGE")
    check_texts(predictions, "prediction", "ROUGE")
    lists = reference_lists(references, "ROUGE")
    unknown = [kind for kind in kinds if kind not in ROUGES and kind not in _NGRAMS]
    if unknown or isinstance(kinds, str) or not kinds:
        shown = ", ".join(map(str, unknown)) or repr(kinds)
        raise InputError(f"ROUGE: {shown}; must be a list of {', '.join(ROUGES)}.")
    scorer = library("rouge_score.rouge_scorer", "rouge-score", "ROUGE").RougeScorer(
        list(kinds), tokenizer=_Words(stemming)
    )
    totals = dict.fromkeys(kinds, 0.0)
    for prediction, texts in zip(predictions, lists, strict=True):
        scores = [scorer.score(reference, prediction) for reference in texts]
        for kind in kinds:
            totals[kind] += max(score[kind].fmeasure for score in scores)
    return {kind: total / len(lists) for kind, total in totals.items()}


class _Words:
    """Adapts `words` to rouge-score's tokenizer interface, optionally with its stemmer."""

    def __init__(self, stemming: bool):
        self.stem: Callable[[str], str] | None = None
        if stemming:
            self.stem = library("nltk.stem.porter", "nltk", "ROUGE with stemming").PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return words(text, self.stem)
