from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.core.progress import PlainReporter
from quatrain.tasks.text2sql import SETS, Connection, Example, Text2SQL, execution_match, messages
from quatrain.tasks.text2sql.dataset import ASKED_SHARE
from quatrain.tasks.text2sql.frames import FRAMES
from quatrain.tasks.text2sql.values import skeleton

MakeDatabase = Callable[..., Path]


@pytest.fixture(scope="module")
def documents(data: Text2SQL) -> list[str]:
    return list(data.documents())


def stages(data: Text2SQL) -> list[Example]:
    return data.train + data.practice + data.development


def framed(data: Text2SQL) -> list[Example]:
    """The questions with the frames' sentences, of which combinations and phrasings are held out."""
    return [example for example in stages(data) if not example.phrasing.startswith("asked/")]


def present(value: str, text: str) -> bool:
    """Whether a value stands in a text as a whole, found the slow and plain way."""
    return re.search(rf"(?<![^\W_])(?<!\d\.){re.escape(value)}(?![^\W_])(?!\.\d)", text) is not None


def test_sets_have_the_sizes_asked_for(data: Text2SQL, documents: list[str]) -> None:
    assert tuple(data.held_out) == SETS
    assert [len(data.train), len(data.practice), len(data.development)] == [6000, 600, 200]
    assert all(len(examples) == 200 for examples in data.held_out.values())
    assert len(documents) == 6000
    for name, examples in data.held_out.items():
        assert {example.split for example in examples} == {name}
        assert len({example.shape for example in examples}) > 25


def test_no_question_stands_twice(data: Text2SQL, documents: list[str]) -> None:
    questions = [example.question for examples in (stages(data), *data.held_out.values()) for example in examples]
    assert len(set(questions)) == len(questions)
    lines = {line for text in documents for line in text.split("\n")}
    for examples in (data.practice, data.development, *data.held_out.values()):
        assert not lines & {example.prompt for example in examples}


def test_no_document_answers_a_question(documents: list[str]) -> None:
    """What answers what is for fine-tuning to teach, so that the report shows what it brings."""
    both = [text for text in documents if re.search("SELECT", text) and not text.startswith(("SELECT", "CREATE"))]
    assert both == []
    assert sum(text.startswith("SELECT") for text in documents) > 0.3 * len(documents)


def test_new_combinations_are_new_and_their_parts_are_not(data: Text2SQL) -> None:
    seen = {example.combination for example in framed(data)}
    known = {skeleton(example.sql) for example in framed(data)}
    columns = {column for example in data.train for column in example.combination}
    values = {value for example in data.train for value in example.values}
    for example in data.held_out["new combinations"]:
        assert example.combination not in seen
        assert skeleton(example.sql) not in known
        assert columns.issuperset(example.combination)
        assert values.issuperset(example.values)
        assert "held out" not in example.phrasing


def test_new_values_stand_in_no_text_of_any_stage(data: Text2SQL, documents: list[str]) -> None:
    everything = "\n".join(documents + [f"{example.question}\n{example.sql}" for example in stages(data)])
    everything = everything + everything.replace("''", "'")
    asked = {value for example in data.held_out["new values"] for value in example.values}
    new = asked & data.held_out_values.values
    assert len(new) > 80
    for value in data.held_out_values.values:
        assert not (value in everything and present(value, everything)), value
    combinations = {example.combination for example in data.train}
    phrasings = {(example.shape, example.phrasing) for example in data.train}
    for example in data.held_out["new values"]:
        assert new & set(example.values)
        assert example.combination in combinations
        assert (example.shape, example.phrasing) in phrasings


def test_new_phrasings_are_in_no_other_generated_question(data: Text2SQL) -> None:
    frames = [frame for family in FRAMES.values() for frame in family.held_out]
    patterns = [
        re.compile(
            "^(?:Question: |-- )?" + ".+?".join(map(re.escape, re.split(r"\{\w+\}", frame.rstrip(".?")))) + "$", re.I
        )
        for frame in frames
        if len(re.split(r"\{\w+\}", frame)[0]) > 14
    ]
    assert len(patterns) > 40
    everywhere = [example.question.rstrip(".?") for example in framed(data)]
    training = [
        re.compile(
            "^(?:Question: |-- )?" + ".+?".join(map(re.escape, re.split(r"\{\w+\}", frame.rstrip(".?")))) + "$", re.I
        )
        for family in FRAMES.values()
        for frame in family.train
    ]
    for pattern in patterns:
        for line in everywhere:
            if pattern.match(line):
                # "Tell me the first date of all orders" is another family's training frame with "first date" as a label
                assert any(other.match(line) for other in training), line
    combinations = {example.combination for example in data.train}
    values = {value for example in data.train for value in example.values}
    assert not any("held out" in example.phrasing for example in stages(data))
    for example in data.held_out["new phrasings"]:
        assert "held out" in example.phrasing
        assert example.combination in combinations
        assert values.issuperset(example.values)


def test_held_out_answers_are_judged_right_and_say_something(data: Text2SQL, shop: Path) -> None:
    with Connection(shop) as connection:
        for examples in data.held_out.values():
            for example in examples:
                assert execution_match(connection, example.sql, example.sql).correct
                assert connection.execute(example.sql).rows
            # another question's SQL is no answer
            wrong = sum(
                execution_match(connection, example.sql, other.sql).correct for example, other in pairwise(examples)
            )
            assert wrong <= 6


def test_training_is_spread_over_the_shapes(data: Text2SQL) -> None:
    learned = [example for example in framed(data) if example.split == "train"]
    counts = Counter(example.shape for example in learned)
    assert min(counts.values()) >= 2
    assert max(counts.values()) < 0.05 * len(learned)
    assert len(learned) == round((1 - ASKED_SHARE) * len(data.train))
    asked = Counter(example.shape for example in data.train if example.phrasing.startswith("asked/"))
    assert len(asked) > 15 and max(asked.values()) < 0.25 * len(data.train)
    assert sum(bool(example.values) for example in learned) > 0.6 * len(learned)


@pytest.mark.slow
def test_one_seed_gives_one_dataset_in_every_process(shop: Path) -> None:
    code = (
        "import sys, hashlib; from quatrain.tasks.text2sql import Text2SQL;"
        "d = Text2SQL.build(sys.argv[1], seed=3, examples=400, held_out=20, practice=50, development=20);"
        "print(hashlib.sha256(repr((d.train, d.practice, d.held_out, list(d.documents(300)))).encode()).hexdigest())"
    )
    prints = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code, str(shop)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        prints.add(done.stdout)
    assert len(prints) == 1
    first, other = (Text2SQL.build(shop, seed=seed, examples=300, held_out=10) for seed in (3, 4))
    assert first.train != other.train
    assert first.held_out_values.values != other.held_out_values.values


def test_every_question_is_shown_to_be_made(shop: Path) -> None:
    """The quickstart's 45,000 take ten seconds and more, and nothing else is shown before them."""
    shown = io.StringIO()
    made = Text2SQL.build(shop, examples=60, held_out=3, practice=5, development=4, reporter=PlainReporter(shown))
    count = len(stages(made)) + sum(map(len, made.held_out.values()))
    assert f"questions: question {count}/78, " in shown.getvalue()


def test_documents_can_be_read_again_and_cut(data: Text2SQL) -> None:
    assert list(data.documents(50)) == list(data.documents(50))
    texts = list(data.documents(4000))
    assert any(text.startswith("CREATE TABLE") for text in texts)
    assert any("\nWHERE " in text for text in texts)
    assert any(" | " in text and text[0].islower() for text in texts)
    assert any(re.match(r"The .* has the ", text) for text in texts)


def test_messages_are_a_conversation(data: Text2SQL) -> None:
    example = data.train[0]
    assert messages(example) == [
        {"role": "user", "content": example.prompt},
        {"role": "assistant", "content": example.sql},
    ]


def test_small_databases_give_what_they_can_and_say_so(tmp_path: Path, make: MakeDatabase) -> None:
    path = make(
        tmp_path / "one.db",
        "CREATE TABLE pets (name TEXT, kind TEXT, weight REAL)",
        "INSERT INTO pets VALUES "
        + ", ".join(f"('Pet {n}', '{'cat dog hen'.split()[n % 3]}', {n * 0.7})" for n in range(40)),
    )
    made = Text2SQL.build(path, examples=3000, held_out=100)
    assert len(made.train) > 300
    assert any("do not fit" in note for note in made.notes)
    assert all(example.sql.startswith("SELECT") for example in made.train)


def test_some_shapes_alone(shop: Path) -> None:
    made = Text2SQL.build(shop, examples=200, held_out=5, practice=20, shapes=["count", "joined list", "lookup"])
    assert {example.shape for example in framed(made)} == {"count", "joined list", "lookup"}


def test_wrong_numbers_and_names_are_all_told(shop: Path) -> None:
    with pytest.raises(InputError) as caught:
        Text2SQL.build(shop, examples=-1, made_up=2.0, shapes=["joined lists"])
    assert len(caught.value.problems) == 3
    assert "did you mean joined list" in str(caught.value)


def test_a_database_nothing_can_be_asked_of_is_refused(tmp_path: Path, make: MakeDatabase) -> None:
    path = make(tmp_path / "blob.db", "CREATE TABLE t (b BLOB)", "INSERT INTO t VALUES (x'00'), (x'01')")
    with pytest.raises(InputError, match="No questions"):
        Text2SQL.build(path, examples=10)
