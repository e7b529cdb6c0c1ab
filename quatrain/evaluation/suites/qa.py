"""Questions about a text, with and without an answer in it, counted as SQuAD 2.0 counts.

Rajpurkar et al. 2016 (arXiv 1606.05250), 2018 (arXiv 1806.03822). A question without an answer is right if the model
abstains. A text model is told how to: it answers "unanswerable".
"""

from __future__ import annotations

from collections.abc import Sequence

from quatrain.data.records import Row
from quatrain.evaluation.measures import Measure, mean_of
from quatrain.evaluation.metrics.answers import normalized, token_f1
from quatrain.evaluation.record_suite import RecordSuite
from quatrain.evaluation.subject import Prompt, Subject
from quatrain.evaluation.suite import Baseline, Output, WritingSuite
from quatrain.tasks.extractive_qa import nearest_sentence

ABSTENTIONS = frozenset(map(normalized, (
    "", "unanswerable", "no answer", "not answerable", "none", "n/a", "it is unanswerable",
    "the question is unanswerable", "cannot be answered", "it cannot be answered", "this question cannot be answered",
)))  # fmt: skip
"""Answers that say that there is none."""


class Answers(RecordSuite, WritingSuite):
    """Exact match and F1 of answers, also of the answered and of the unanswered questions alone."""

    name = "qa"
    title = "answers from a text, or none"
    paper = "Rajpurkar et al. 2018, arXiv 1806.03822"
    data = "squad2-normans"
    task = "answer"
    columns = "SQuAD's JSON, or the columns context, question and answers"
    default_new_tokens = 48
    stop = ("\n",)

    def accepted(self, row: Row) -> list[str]:
        """The right answers; [""] where abstaining is right."""
        texts = [text for text in row.value["answers"]["text"] if normalized(text)]
        return texts or [""]

    def ask(self, subject: Subject, rows: Sequence[Row]) -> list[Output]:
        if subject.head_task == self.task:
            return [{"text": text} for text in subject.predict(self.task, rows)[0]]
        return super().ask(subject, rows)

    def check(self, subject: Subject, rows: Sequence[Row]) -> None:
        if subject.head_task != self.task:
            super().check(subject, rows)

    def prompts(self, subject: Subject, rows: Sequence[Row]) -> list[Prompt]:
        return super().prompts(subject, rows)

    def prompt_text(self, row: Row) -> str:
        asked = 'Answer with words of the text, or with "unanswerable" if the text has no answer.'
        shown = [f"{_asked(each)} {self.accepted(each)[0] or 'unanswerable'}" for each in self.worked_examples(row)]
        return "\n\n".join([asked, *shown, _asked(row)])

    def measures(self, rows: Sequence[Row], outputs: Sequence[Output]) -> list[Measure]:
        exact, shared, plain, answered = [], [], [], []
        for row, output in zip(rows, outputs, strict=True):
            text = answer_of(output["text"])
            accepted = self.accepted(row)
            exact.append(max(float(normalized(text) == normalized(each)) for each in accepted))
            shared.append(max(token_f1(text, each) for each in accepted))
            plain.append(float(text.strip() in accepted))
            answered.append(accepted != [""])
        found = [
            mean_of("f1", shared, "The F1 of words, of the best reference; 1 for a right abstention (SQuAD 2.0)."),
            mean_of("exact_match", exact, "Equal without case, articles and punctuation (SQuAD)."),
            mean_of("exact_text", plain, "Equal as text: punctuation and case count."),
        ]
        for name, kind in (("answered", True), ("unanswered", False)):
            places = [place for place, is_answered in enumerate(answered) if is_answered is kind]
            if 0 < len(places) < len(rows):
                found.append(_over(f"{name}_f1", shared, places, f"F1 over the {len(places):,} {name} questions."))
        return found

    def baselines(self, rows: Sequence[Row]) -> list[Baseline]:
        near = [{"text": nearest_sentence(row.value["context"], row.value["question"])} for row in rows]
        return [
            Baseline("always abstain", [{"text": ""}] * len(rows)),
            Baseline("the sentence that shares most words with the question", near),
        ]

    def correct(self, row: Row, output: Output) -> bool | None:
        return any(normalized(answer_of(output["text"])) == normalized(each) for each in self.accepted(row))

    def shown(self, row: Row, output: Output) -> str:
        return answer_of(output["text"]) or "(no answer)"

    def question(self, example: Row) -> str:
        return f"{example.value['context']}\n\n{example.value['question']}"

    def reference(self, example: Row) -> str:
        return self.accepted(example)[0] or "(no answer)"


def _asked(row: Row) -> str:
    return f"Text: {row.value['context']}\nQuestion: {row.value['question']}\nAnswer:"


def _over(name: str, values: Sequence[float], places: Sequence[int], explanation: str) -> Measure:
    inside = set(places)
    own = [value if place in inside else float("nan") for place, value in enumerate(values)]
    return mean_of(name, own, explanation)


def answer_of(text: str) -> str:
    """The answer in what a model wrote; "" where it abstains in words."""
    text = text.strip()
    return "" if normalized(text) in ABSTENTIONS else text


SUITE = Answers
