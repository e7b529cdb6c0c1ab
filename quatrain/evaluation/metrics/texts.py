"""Generated texts compared with references: BLEU and chrF by sacrebleu, ROUGE by Google's rouge-score.

Papineni et al. 2002; Popović 2015; Lin 2004; Post 2018 (arXiv 1804.08771) on why the tokenization of BLEU must be
named. Both libraries are in the extra `eval`.
"""

from __future__ import annotations

from collections import Counter
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
    rows = rouge_by_reference(predictions, references, kinds=kinds, stemming=stemming)
    return {kind: sum(max(row[kind]) for row in rows) / len(rows) for kind in kinds}


def rouge_by_reference(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    kinds: Sequence[str] = ROUGES,
    stemming: bool = False,
) -> list[dict[str, list[float]]]:
    """For each prediction and kind its F1 with each of its references, 0 to 1. Raises InputError as `rouge` does."""
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
    rows = []
    for prediction, texts in zip(predictions, lists, strict=True):
        scores = [scorer.score(reference, prediction) for reference in texts]
        rows.append({kind: [score[kind].fmeasure for score in scores] for kind in kinds})
    return rows


def bleu_statistics(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, tokenize: str, lowercase: bool = False
) -> list[list[float]]:
    """For each example the sums of corpus BLEU: 4 matches and 4 totals of n-grams, and both lengths.

    `bleu_of` turns their sums into the score.
    """
    check_lengths(predictions, references, "BLEU")
    lists = reference_lists(references, "BLEU")
    metric = library("sacrebleu.metrics", "sacrebleu", "BLEU").BLEU(tokenize=tokenize, lowercase=lowercase)
    rows = []
    for prediction, texts in zip(predictions, lists, strict=True):
        score = metric.corpus_score([prediction], [[text] for text in texts])
        rows.append([float(number) for number in (*score.counts, *score.totals, score.sys_len, score.ref_len)])
    return rows


def bleu_of(sums: Sequence[float]) -> float:
    """BLEU, 0 to 100, of summed `bleu_statistics`, smoothed as sacrebleu does (exp)."""
    numbers = [round(number) for number in sums]
    metric = library("sacrebleu.metrics", "sacrebleu", "BLEU").BLEU
    score = metric.compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp")
    return float(score.score)


def chrf_statistics(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], order: int = 6
) -> list[list[float]]:
    """For each example the n-grams of characters: predicted, of the reference, and in common, for each length.

    Of several references the one with the best score of its own counts. `chrf_of` turns their sums into the score.
    """
    check_lengths(predictions, references, "chrF")
    rows = []
    for prediction, texts in zip(predictions, reference_lists(references, "chrF"), strict=True):
        own = _character_ngrams(prediction, order)
        counted = [_common_ngrams(own, _character_ngrams(text, order)) for text in texts]
        rows.append(max(counted, key=chrf_of))
    return rows


def _character_ngrams(text: str, order: int) -> list[Counter[str]]:
    plain = "".join(text.split())
    return [Counter(plain[start : start + size] for start in range(len(plain) - size + 1))
            for size in range(1, order + 1)]  # fmt: skip


def _common_ngrams(one: Sequence[Counter[str]], other: Sequence[Counter[str]]) -> list[float]:
    sums: list[float] = []
    for mine, theirs in zip(one, other, strict=True):
        # An order that the reference is too short for does not count for the prediction either.
        sums += [float(mine.total() if theirs else 0), float(theirs.total()), float((mine & theirs).total())]
    return sums


def chrf_of(sums: Sequence[float], beta: float = 2.0) -> float:
    """chrF, 0 to 100, of summed `chrf_statistics`: the mean precision and recall over the lengths (Popović 2015)."""
    precisions, recalls = [], []
    for place in range(0, len(sums), 3):
        predicted, true, both = sums[place : place + 3]
        if predicted > 0 and true > 0:
            precisions.append(both / predicted)
            recalls.append(both / true)
    if not precisions:
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if not precision + recall:
        return 0.0
    return 100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


class _Words:
    """Adapts `words` to rouge-score's tokenizer interface, optionally with its stemmer."""

    def __init__(self, stemming: bool):
        self.stem: Callable[[str], str] | None = None
        if stemming:
            self.stem = library("nltk.stem.porter", "nltk", "ROUGE with stemming").PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return words(text, self.stem)
