"""What predicts which answer people prefer: lengths, classic bags of n-grams, and reward models.

On the held-out pairs of a preference file: "the shorter answer wins" and "the longer answer wins"; TF-IDF of the
answers (words and pairs of words; characters within words) with logistic regression on the difference of the two, its
strength chosen by cross-validation on the training pairs alone; and the reward models in the folders of --models. Each
accuracy has its standard error; reward models also have the expected calibration error.

    python benchmarks/preferences.py [--train hh-harmless-train] [--test hh-harmless-test] [--models FOLDER ...]
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from common import finish, parser, require

STRENGTHS = (0.003, 0.03, 0.3, 3.0)
"""Inverse strengths of the regularization, of which cross-validation takes the best."""
FOLDS = 5
FEATURES: dict[str, dict[str, Any]] = {
    "TF-IDF of words": {"ngram_range": (1, 2)},
    "TF-IDF of characters": {"analyzer": "char_wb", "ngram_range": (2, 4)},
}


def read(source: str, quick: bool) -> list[tuple[Any, str, str]]:
    """Prompt, chosen and rejected answer of each pair."""
    from quatrain.data.documents import read_preferences
    from quatrain.data.messages import content_text

    def text(messages: Sequence[Any]) -> str:
        return "\n".join(map(content_text, messages))

    pairs = [(each.prompt, text(each.chosen), text(each.rejected)) for each in read_preferences(source)]
    return pairs[:60] if quick else pairs


def classic(train: Sequence[Any], test: Sequence[Any], options: dict[str, Any]) -> list[float]:
    """The margins of the test pairs by logistic regression on the difference of TF-IDF vectors."""
    import numpy as np
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def margins(learned: Sequence[Any], asked: Sequence[Any], strength: float) -> Any:
        vectors = TfidfVectorizer(sublinear_tf=True, min_df=2, **options)
        vectors.fit([answer for _, *answers in learned for answer in answers])
        first, second = (
            vectors.transform([pair[1] for pair in pairs]) - vectors.transform([pair[2] for pair in pairs])
            for pairs in (learned, asked)
        )
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
        model.fit(vstack([first, -first]), np.repeat([1, 0], len(learned)))
        return model.decision_function(second)

    order = np.random.default_rng(0).permutation(len(train))
    folds = [set(order[number::FOLDS].tolist()) for number in range(FOLDS)]

    def validated(strength: float) -> float:
        right = 0.0
        for fold in folds:
            learned = [pair for number, pair in enumerate(train) if number not in fold]
            right += float((margins(learned, [train[number] for number in sorted(fold)], strength) > 0).sum())
        return right

    return list(map(float, margins(train, test, max(STRENGTHS, key=validated))))


def report(name: str, margins: Sequence[float], **more: Any) -> dict[str, Any]:
    """The accuracy of margins with its standard error, printed."""
    accuracy = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
    error = math.sqrt(accuracy * (1 - accuracy) / len(margins))
    extra = "".join(f", {key} {value:.3f}" for key, value in more.items())
    print(f"{name:<40}{accuracy:7.1%} ± {error:.1%}{extra}", flush=True)
    return {"accuracy": accuracy, "standard_error": error, **more}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--train", default="hh-harmless-train", help="the pairs that TF-IDF learns from")
    arguments.add_argument("--test", default="hh-harmless-test", help="the pairs that are measured")
    arguments.add_argument("--models", nargs="*", default=[], metavar="FOLDER", help="reward models")
    chosen = arguments.parse_args()
    require("sklearn", "test")
    from quatrain.alignment.reward_model import calibration
    from quatrain.alignment.rewards.model import ModelReward

    train, test = read(chosen.train, chosen.quick), read(chosen.test, chosen.quick)
    print(f"{len(train):,} pairs to learn from, {len(test):,} held out")
    shorter = [len(rejected) - len(best) for _, best, rejected in test]
    results = {
        "the shorter answer wins": report("the shorter answer wins", shorter),
        "the longer answer wins": report("the longer answer wins", [-margin for margin in shorter]),
    }
    for name, options in FEATURES.items():
        results[name] = report(name, classic(train, test, options))
    for folder in chosen.models:
        reward, start = ModelReward(folder), time.perf_counter()
        scores = reward([pair[0] for pair in test] * 2, [pair[1] for pair in test] + [pair[2] for pair in test])
        seconds = time.perf_counter() - start
        margins = [one - other for one, other in zip(scores[: len(test)], scores[len(test) :], strict=True)]
        results[folder] = report(folder, margins, ece=calibration(margins)["ece"], seconds=seconds)
    best = max(result["accuracy"] for name, result in results.items() if name in chosen.models or not chosen.models)
    ratio = best / max(1e-9, results["the shorter answer wins"]["accuracy"])
    finish(
        "preferences", ratio, "accuracy over that of the shorter answer",
        quick=chosen.quick, train=chosen.train, test=chosen.test, pairs=[len(train), len(test)], results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
