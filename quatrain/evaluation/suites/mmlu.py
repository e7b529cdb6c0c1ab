"""MMLU: questions of 57 subjects with four answers, after five worked examples of the subject.

Hendrycks et al. 2020 (arXiv 2009.03300): the prompt and the comparison of the four letters are theirs. Other harnesses
compared the texts of the answers; the same model then differs by many points, so both are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.subject import Prompt, Subject
from quatrain.evaluation.suite import Choices, ChoiceSuite, Output, letter, picked


class Mmlu(ChoiceSuite):
    """Multiple choice by the likelihood of A, B, C or D."""

    name = "mmlu"
    title = "knowledge of 57 subjects, four answers"
    paper = "Hendrycks et al. 2020, arXiv 2009.03300"
    data = "mmlu-validation"
    examples_data = "mmlu-dev"
    columns = "the columns subject, question, choices (a list) and answer (a number from 0, or a letter)"
    default_shots = 5

    def parse(self, value: Mapping[str, Any]) -> Choices:
        answers = tuple(map(str, value["choices"]))
        return Choices(str(value["question"]).strip(), answers, (number_of(value["answer"], len(answers)),),
                       str(value.get("subject", "")))  # fmt: skip

    def group(self, row: Row) -> str:
        return str(row.value.group)

    def choose(self, pool: list[Row], count: int) -> list[Row]:
        """The first ones, as in the paper."""
        return pool[:count]

    def preamble(self, row: Row) -> str:
        subject = row.value.group.replace("_", " ")
        about = f" about {subject}" if subject else ""
        return f"The following are multiple choice questions (with answers){about}.\n\n"

    def context(self, row: Row) -> str:
        lines = [f"{letter(place)}. {answer}" for place, answer in enumerate(row.value.answers)]
        return "\n".join([row.value.question, *lines, "Answer:"])

    def answers(self, row: Row) -> Sequence[str]:
        return [letter(place) for place in range(len(row.value.answers))]

    def pairs(self, subject: Subject, row: Row) -> list[tuple[Prompt, str]]:
        letters = super().pairs(subject, row)
        prompt, joint = letters[0][0], "" if self.asks_by_chat(subject) else self.joint
        return [*letters, *((prompt, joint + answer) for answer in row.value.answers)]

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        outputs = []
        for row, output in zip(rows, super().ask(subject, rows), strict=True):
            count = len(row.value.answers)
            letters = {name: values[:count] for name, values in output.items()}
            outputs.append(letters | {"texts": output["logprobs"][count:]})
        return outputs

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        found = super().measures(rows, outputs)
        # Letters are equally long, so that the normalized accuracies of letters say nothing of their own.
        found = [measure for measure in found if not measure.name.startswith("acc_norm")]
        if all("texts" in output for output in outputs):
            plain, normalized = [], []
            for row, output in zip(rows, outputs, strict=True):
                texts = {"logprobs": output["texts"]}
                sizes = [max(1, len(answer.encode())) for answer in row.value.answers]
                plain.append(float(picked(texts) in row.value.right))
                normalized.append(float(picked(texts, sizes) in row.value.right))
            found += [
                mean_of("acc_text", plain, "The likeliest text of an answer in place of the likeliest letter."),
                mean_of("acc_text_norm", normalized, "The same, divided by the bytes of the text."),
            ]
        return found


def number_of(answer: Any, count: int) -> int:
    """The place of the right answer, which files have as a number or as a letter. Raises ValueError for another."""
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().isalpha():
        place = ord(answer.strip().upper()) - ord("A")
    else:
        place = int(answer)
    if not 0 <= place < count:
        raise ValueError(f"answer {answer!r}: must be one of {count} choices, counted from 0 or from A")
    return place


SUITE = Mmlu
