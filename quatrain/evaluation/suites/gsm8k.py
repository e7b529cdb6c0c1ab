"""GSM8K: word problems of grade-school arithmetic, answered in steps.

Cobbe et al. 2021 (arXiv 2110.14168). The same answers are counted strictly (the number after ####, as in the data) and
flexibly (the last number anywhere), each by value: "$29.00." is 29. lm-eval compares the digits as text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.suite import Baseline, Output, WritingSuite

_STRICT = re.compile(r"#### *\$?(-?\$?[0-9.,]+)")
_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


class Gsm8k(WritingSuite):
    """Exact answers of word problems."""

    name = "gsm8k"
    title = "word problems of arithmetic"
    paper = "Cobbe et al. 2021, arXiv 2110.14168"
    data = "gsm8k-test"
    examples_data = "gsm8k-train"
    columns = "the columns question and answer (whose last line is #### and the number)"
    default_shots = 5
    default_new_tokens = 256
    stop = ("Question:",)
    baseline_name = "always the most frequent answer"

    def parse(self, value: Mapping[str, Any]) -> dict[str, str]:
        answer = str(value["answer"])
        if strict_number(answer) is None:
            raise ValueError("answer: must end with #### and a number")
        return {"question": str(value["question"]), "answer": answer}

    def prompt_text(self, row: Row) -> str:
        shown = [
            f"Question: {each.value['question']}\nAnswer: {each.value['answer']}" for each in self.worked_examples(row)
        ]
        return "\n\n".join([*shown, f"Question: {row.value['question']}\nAnswer:"])

    def question(self, example: Row) -> str:
        return str(example.value["question"])

    def reference(self, example: Row) -> str:
        return str(example.value["answer"])

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        right = [strict_number(row.value["answer"]) for row in rows]
        texts = [output["text"] for output in outputs]
        strict = [strict_number(text) for text in texts]
        last = [last_number(text) for text in texts]
        return [
            mean_of("flexible", [equal(*pair) for pair in zip(last, right, strict=True)],
                    "The last number of the answer, by value: $29.00 is 29."),
            mean_of("strict", [equal(*pair) for pair in zip(strict, right, strict=True)],
                    "The number after ####, by value. A right answer in another form counts as wrong, so a model that "
                    "was not shown the form scores lower than by `flexible`."),
            mean_of("strict_text", [float(bool(one) and one == other) for one, other in
                                    ((strict_text(text), strict_text(row.value["answer"]))
                                     for text, row in zip(texts, rows, strict=True))],
                    "The digits after #### compared as text, as lm-eval's strict-match: 29.00 is not 29."),
        ]  # fmt: skip

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        counts = Counter(strict_text(row.value["answer"]) for row in rows)
        most = min(counts, key=lambda number: (-counts[number], number))
        return [Baseline(f"always {most}, the most frequent answer", [{"text": f"#### {most}"}] * len(rows))]

    def correct(self, row: Row, output: Output) -> bool | None:
        return bool(equal(last_number(output["text"]), strict_number(row.value["answer"])))


def strict_text(answer: str) -> str:
    """What stands after ####, without dollars, thousands' commas and a final full stop; "" where nothing does."""
    found = _STRICT.search(answer)
    return found[1].replace(",", "").replace("$", "").removesuffix(".") if found else ""


def strict_number(answer: str) -> Decimal | None:
    """The number after ####."""
    return number(strict_text(answer))


def last_number(answer: str) -> Decimal | None:
    """The last number of a text."""
    found = _NUMBER.findall(answer)
    return number(found[-1]) if found else None


def number(text: str) -> Decimal | None:
    """A written number by value: "$1,234.50." is 1234.5; None for another text."""
    plain = text.replace(",", "").replace("$", "").strip().removesuffix(".")
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def equal(one: Decimal | None, other: Decimal | None) -> float:
    """1 for equal numbers, otherwise 0."""
    return float(one is not None and one == other)


SUITE = Gsm8k
