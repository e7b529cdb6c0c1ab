"""How often a judge model prefers the answers to reference answers, with both positions and lengths accounted for.

Each pair is judged twice, with the answers in both orders, since judges prefer a position (Zheng et al. 2023, arXiv
2306.05685). They also prefer long answers: the length-controlled rate is that of equally long ones, by a logistic
regression of the preference on the difference in length (Dubois et al. 2024, arXiv 2404.04475).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quatrain.core.errors import InputError
from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.subject import Subject
from quatrain.evaluation.suite import Baseline, Output, WritingSuite
from quatrain.generation.params import SamplingParams

RIDGE = 1.0
"""The weight of the penalty on the regression's slope, so that few or separable judgements have a finite one."""
JUDGE_PROMPT = """Which answer to the instruction is better?

Instruction: {instruction}

Answer A: {first}

Answer B: {second}

The better answer is Answer"""


class WinRate(WritingSuite):
    """Win rates against reference answers, by a judge."""

    name = "winrate"
    title = "answers that a judge prefers to the reference's"
    paper = "Zheng et al. 2023, arXiv 2306.05685; Dubois et al. 2024, arXiv 2404.04475"
    columns = "the columns instruction (perhaps input) and output, the answer to compare with"
    default_new_tokens = 200
    stop = ("\n\n\n",)
    data = "alpaca-4000"
    extra = ("judge",)

    def __init__(self, source: str | None = None, *, judge: str | None = None, **options: Any):
        super().__init__(source, **options)
        self.judge_name = judge
        self._judge: Subject | None = None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"judge": self.judge_name}

    @property
    def judge(self) -> Subject:
        """The judge: a model folder or an endpoint. Raises InputError without one."""
        if self._judge is None:
            if self.judge_name is None:
                raise InputError("winrate needs a judge: --judge MODEL, a model folder, hub id or http://HOST/v1#NAME")
            from quatrain.evaluation.subject import subject_of

            self._judge = subject_of(self.judge_name)
        return self._judge

    def parse(self, value: Mapping[str, Any]) -> dict[str, str]:
        instruction, given = str(value["instruction"]), str(value.get("input") or "")
        answer = str(value["output"]).strip()
        if not instruction.strip() or not answer:
            raise ValueError("instruction and output must not be empty")
        return {"instruction": f"{instruction}\n{given}".strip(), "output": answer}

    def decoding(self, subject: Subject) -> dict[str, Any]:
        return super().decoding(subject) | {"judge": self.judge.description()}

    def check(self, subject: Subject, rows: Sequence[Row]) -> None:
        super().check(subject, rows)
        self.judge.check([_asked(row, row.value["output"], row.value["output"]) for row in rows], (), 1)

    def prompt_text(self, row: Row) -> str:
        return str(row.value["instruction"])

    def question(self, example: Row) -> str:
        return str(example.value["instruction"])

    def reference(self, example: Row) -> str:
        return str(example.value["output"])

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        outputs = super().ask(subject, rows)
        preferences = self.judged(rows, [output["text"] for output in outputs])
        return [output | {"preferred": own} for output, own in zip(outputs, preferences, strict=True)]

    def judged(self, rows: Sequence[Row], texts: Sequence[str]) -> list[list[float]]:
        """The probability that each answer is preferred to the reference: as answer A, and as answer B."""
        first = [_asked(row, text, row.value["output"]) for row, text in zip(rows, texts, strict=True)]
        second = [_asked(row, row.value["output"], text) for row, text in zip(rows, texts, strict=True)]
        chances = preference_of(self.judge, [*first, *second])
        return [[one, 1 - other] for one, other in zip(chances[: len(rows)], chances[len(rows) :], strict=True)]

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        both = [sum(output["preferred"]) / 2 for output in outputs]
        lengths = [len(output["text"]) - len(row.value["output"]) for row, output in zip(rows, outputs, strict=True)]
        agree = [float((output["preferred"][0] > 0.5) == (output["preferred"][1] > 0.5)) for output in outputs]
        return [
            mean_of("win_rate", both, "The mean preference over both orders; 50 % is as good as the reference."),
            length_controlled(both, lengths),
            mean_of("win_rate_as_a", [output["preferred"][0] for output in outputs],
                    "With the answer first alone: a judge that likes the first position inflates it."),
            mean_of("win_rate_as_b", [output["preferred"][1] for output in outputs], "With the answer second alone."),
            mean_of("consistent", agree, "Pairs that the judge decides alike in both orders. A low share means that "
                    "the judge goes by position."),
        ]  # fmt: skip

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        """The instruction itself as an answer, judged as any other, and the reference against itself."""
        preferred = self.judged(rows, [self.question(row) for row in rows])
        copied = [{"text": self.question(row), "preferred": own} for row, own in zip(rows, preferred, strict=True)]
        equal = [{"text": self.reference(row), "preferred": [0.5, 0.5]} for row in rows]
        return [Baseline("the instruction, repeated", copied), Baseline("the reference itself", equal, is_ceiling=True)]

    def correct(self, row: Row, output: Output) -> bool | None:
        return bool(sum(output["preferred"]) > 1)


def _asked(row: Row, first: str, second: str) -> str:
    return JUDGE_PROMPT.format(instruction=row.value["instruction"], first=first.strip(), second=second.strip())


def preference_of(judge: Subject, prompts: Sequence[str]) -> list[float]:
    """The probability that the judge says A: by likelihood, or by what it writes where likelihoods are not given."""
    try:
        scores = judge.likelihoods([prompt for prompt in prompts for _ in "AB"], [" A", " B"] * len(prompts))
    except InputError:
        params = SamplingParams(max_new_tokens=8)
        chats = [[{"role": "user", "content": f"{prompt} … Answer with A or B alone."}] for prompt in prompts]
        written = judge.write(chats if judge.has_chat else prompts, params)
        found = [re.search(r"\b([AB])\b", each.text) for each in written]
        return [0.5 if match is None else float(match[1] == "A") for match in found]
    apart = [one.total - other.total for one, other in zip(scores[::2], scores[1::2], strict=True)]
    return [1 / (1 + math.exp(-max(-700.0, min(700.0, value)))) for value in apart]


def length_controlled(preferences: Sequence[float], lengths: Sequence[float]) -> Measure:
    """The win rate of equally long answers: the intercept of a logistic regression on the difference in length.

    The difference is divided by its standard deviation and squashed by tanh, as in AlpacaEval 2. Each resample of the
    bootstrap fits its own regression.
    """
    scale = float(np.std(lengths)) or 1.0
    features = np.tanh(np.asarray(lengths, dtype=np.float64) / scale).round(2)
    wins = np.asarray(preferences, dtype=np.float64).round(2)
    # Sums do not determine a regression, so that the statistics count how often each pair of feature and preference is
    # drawn; both are rounded, so that there are few different pairs.
    pairs, columns = np.unique(np.stack([features, wins], axis=1), axis=0, return_inverse=True)
    statistics = np.zeros((len(wins), len(pairs)))
    statistics[np.arange(len(wins)), columns.ravel()] = 1.0

    def combine(sums: np.ndarray) -> np.ndarray:
        return np.asarray([_intercept(pairs[:, 0], pairs[:, 1], weights) for weights in sums])

    return Measure("win_rate_length_controlled", statistics, combine,
                   "The win rate that equally long answers would have, by regression on the difference in length.",
                   per_example=False, unit="%")  # fmt: skip


def _intercept(features: np.ndarray, wins: np.ndarray, weights: np.ndarray) -> float:
    """The probability at length difference 0 of a weighted logistic regression, by Newton's method."""
    bias, slope = 0.0, 0.0
    for _ in range(25):
        chances = 1 / (1 + np.exp(-(bias + slope * features)))
        errors, curve = weights * (wins - chances), weights * chances * (1 - chances) + 1e-12
        gradient = np.array([errors.sum() - 1e-3 * bias, (errors * features).sum() - RIDGE * slope])
        hessian = np.array([[curve.sum() + 1e-3, (curve * features).sum()],
                            [(curve * features).sum(), (curve * features**2).sum() + RIDGE]])  # fmt: skip
        step = np.linalg.solve(hessian, gradient)
        bias, slope = bias + float(step[0]), slope + float(step[1])
        if np.abs(step).max() < 1e-9:
            break
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, bias))))


SUITE = WinRate
