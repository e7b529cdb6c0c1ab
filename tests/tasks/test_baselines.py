"""The dumb baselines: what each task's answers without a model, and that evaluation scores them beside the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quatrain.data.records import Row
from quatrain.evaluation.metrics.objectives import scores
from quatrain.evaluation.perplexity import token_entropy
from quatrain.tasks.classification import BestChoice, Classification, Regression
from quatrain.tasks.embedding import Similarity
from quatrain.tasks.extractive_qa import QuestionAnswering
from quatrain.tasks.instructions import Instructions
from quatrain.tasks.kinds import RECORD_TASKS
from quatrain.tasks.seq2seq import TextToText
from quatrain.tasks.tagging import Tagging
from quatrain.tasks.task import GenerateSettings, generated, specs
from quatrain.training.settings import TaskSettings


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"line {number}", value) for number, value in enumerate(values, 1)]


NAMES = SimpleNamespace(name_of=str, labels=("no", "yes"))


def test_labels_and_choices_are_the_most_frequent_ones():
    texts = rows(*({"text": text, "label": label} for text, label in (("a", "yes"), ("b b", "no"), ("c", "yes"))))
    task = Classification(NAMES)
    assert task.baseline(texts) == ["yes"] * 3
    assert [task.parse(text) for text in task.baseline(texts)] == [1, 1, 1] and task.parse("perhaps") == -1
    assert task.reward(texts, ["yes", "yes", "no"]) == [1, 0, 0]
    assert Regression(None).baseline(texts) == ["1", "2", "1"]
    choices = rows(*({"question": "?", "choices": ["x", "y"], "label": label} for label in (1, 0, 1)))
    assert BestChoice(None).baseline(choices) == ["B"] * 3 and BestChoice(None).parse("B") == 1


def test_a_baseline_counts_in_the_training_part(tmp_path: Path):
    from quatrain.data.corpus import DataParts
    from quatrain.data.settings import DataSettings

    for name, labels in (("train", ["no", "no", "yes"]), ("test", ["yes", "yes", "no"])):
        text = "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels)
        (tmp_path / f"{name}.jsonl").write_text(text)
    source, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    trained = Classification(NAMES, DataParts(DataSettings(source=source, test=test)))
    assert trained.baseline(trained.held_out["test"]) == ["no"] * 3
    alone = Classification(NAMES, DataParts(DataSettings(test=test)))
    assert alone.baseline(alone.held_out["test"]) == ["yes"] * 3, "without training data, the evaluated examples count"
    chats = Instructions(DataParts(DataSettings(source=source, test=test)))
    assert chats.baseline(chats.held_out[test]) == ["no"] * 3


def test_a_baseline_is_scored_once_for_the_same_examples():
    from quatrain.evaluation.evaluate import baseline_scores

    task, examples, computed = Classification(NAMES), rows({"text": "a", "label": "no"}), []

    def score() -> dict[str, float]:
        computed.append(1)
        return {"accuracy": 1.0}

    assert baseline_scores(task, "test", examples, score) == baseline_scores(task, "test", examples[:], score)
    assert len(computed) == 1
    baseline_scores(task, "test", rows({"text": "b", "label": "no"}), score)
    baseline_scores(task, "dev", examples, score)
    assert len(computed) == 3


def test_each_word_gets_the_most_frequent_tag():
    sentences = rows({"words": ["a", "dog"], "tags": ["DET", "NOUN"]}, {"words": ["cats"], "tags": ["NOUN"]})
    assert Tagging(NAMES).baseline(sentences) == ["NOUN NOUN", "NOUN"]


def test_the_answer_is_the_nearest_sentence():
    context = "It rains. The dog sleeps in the hall! Cats run."
    answers = {"text": ["the hall"], "answer_start": [27]}
    asked = rows({"context": context, "question": "Where does the dog sleep?", "answers": answers})
    assert QuestionAnswering(None).baseline(asked) == ["The dog sleeps in the hall!"]
    assert QuestionAnswering(None).reward(asked, ["the hall"]) == [1]


def test_a_summary_is_the_lead_and_a_short_source_is_copied():
    dialogue = "A: hi\nB: hello\nA: well?\nB: fine"
    pairs = rows({"source": dialogue, "target": "t"}, {"source": "Ein Hund.", "target": "A dog."})
    assert TextToText(None).baseline(pairs) == ["A: hi\nB: hello\nA: well?", "Ein Hund."]
    assert TextToText(None).baseline(rows({"source": "a. b. c. d.", "target": ""})) == ["a. b. c."]


def test_similar_texts_share_words():
    pairs = rows({"text": "a dog runs", "text_pair": "a dog sits", "label": 3.0})
    assert Similarity(None).baseline(pairs) == ["0.5"]


def test_chats_have_the_commonest_answer_and_the_frequencies_of_tokens():
    chats = [("", [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]) for text in "aab"]
    assert Instructions().baseline(chats) == ["a"] * 3
    assert Instructions().reward(chats, ["a", "b", " b "]) == [1, 0, 1]
    import numpy as np

    assert token_entropy(np.array([1, 1, 2, 2])).perplexity == pytest.approx(2)


def test_every_objective_of_a_task_has_its_task():
    names = TaskSettings.model_fields["objective"].annotation
    assert set(RECORD_TASKS) == set(names.__args__) - {"chat"}  # type: ignore[union-attr]
    assert all(kind.baseline_name for kind in RECORD_TASKS.values())


def test_generated_sql_answers_with_the_commonest_statement(tmp_path: Path):
    from quatrain.data.settings import DataSettings
    from quatrain.evaluation.evaluate import judge

    assert [spec.name for spec in specs()] == ["arithmetic", "calculation", "sql"]
    task = generated(DataSettings(database="shop", examples=60), GenerateSettings(tmp_path, held_out=6))
    assert task is not None and generated(DataSettings(source="the-verdict"), GenerateSettings(tmp_path)) is None
    with task:
        examples = task.held_out["generated: new values"]
        assert len(set(task.baseline(examples))) == 1
        assert judge(task, "generated: new values", examples, [example.sql for example in examples]).main == 1
        assert judge(task, "generated: new values", examples, task.baseline(examples)).main < 1
        assert task.reward(examples[:1], [f"```sql\n{examples[0].sql}\n```"]) == [1]


def test_the_baseline_is_scored_by_the_metrics_of_the_task():
    from quatrain.training.objectives import MultipleChoice

    objective = MultipleChoice.__new__(MultipleChoice)
    assert scores(objective, [1, 1], [1, 0]) == {"accuracy": 0.5}


def test_each_reference_counts_once() -> None:
    from quatrain.data.records import Row
    from quatrain.tasks.seq2seq import TextToText

    task = TextToText(None)
    row = Row("x:1", {"source": "a", "target": "one", "references": ["one", "two", "three"]})
    assert task.references(row) == ["one", "two", "three"]
    assert task.references(Row("x:2", {"source": "a", "target": "one"})) == ["one"]
