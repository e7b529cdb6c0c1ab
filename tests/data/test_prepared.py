"""Prepared examples: found again as they were, made anew when anything that they follow from changes or is damaged."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.data import example_cache as files
from quatrain.data.batches import TokenExample
from quatrain.data.example_cache import cached_examples
from quatrain.training.objectives.answers import ContextWindow
from quatrain.training.objectives.classification import ChoiceExample
from quatrain.training.objectives.embedding import EmbeddingExample
from quatrain.training.objectives.seq2seq import Seq2SeqExample
from quatrain.training.objectives.tagging import TaggedWindow
from quatrain.training.objectives.texts import EncodedText

ids = st.lists(st.integers(0, 70_000), min_size=1, max_size=6)
texts = st.builds(EncodedText, ids, st.none() | st.lists(st.integers(0, 1), max_size=3), st.just(2), st.integers(0, 5))
KINDS = {
    TokenExample: ids.map(lambda each: TokenExample(each, [bool(number % 2) for number in each])),
    EncodedText: texts,
    TaggedWindow: st.builds(TaggedWindow, ids, ids, ids, st.integers(0, 9), st.booleans()),
    ContextWindow: st.builds(
        ContextWindow, ids, ids, st.lists(st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4),
        st.tuples(st.integers(0, 9), st.integers(0, 9)), st.integers(0, 3), st.text(max_size=4), st.text(max_size=4),
        st.lists(st.text(max_size=3), max_size=2).map(tuple), st.booleans(),
    ),
    ChoiceExample: st.builds(ChoiceExample, st.lists(texts, min_size=2, max_size=3), st.integers(0, 1)),
    Seq2SeqExample: st.builds(Seq2SeqExample, ids, ids),
    EmbeddingExample: st.builds(EmbeddingExample, st.lists(texts, min_size=1, max_size=3), st.floats(-1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_examples_come_back_as_they_were(kind, tmp_path_factory):
    @settings(max_examples=15, deadline=None)
    @given(st.lists(KINDS[kind], min_size=1, max_size=5))
    def comes_back(examples):
        folder = tmp_path_factory.mktemp("cache")
        made, _, known = cached_examples({"a": 1}, lambda: (examples, ["a note"]), list(KINDS), folder=folder)
        assert not known and made is examples
        found, notes, known = cached_examples({"a": 1}, lambda: 1 / 0, list(KINDS), folder=folder)
        assert known and notes == ["a note"] and list(found) == examples
        assert found[-1] == examples[-1] and found[:2] == examples[:2] and len(found) == len(examples)

    comes_back()


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    calls = []

    def make():
        calls.append(1)
        return [TokenExample([1, 2], [True, True])], []

    for data, limit in (("x", 8), ("x", 9), ("y", 8), ("x", 8)):
        cached_examples({"data": data, "limit": limit}, make, [TokenExample], folder=tmp_path)
    assert len(calls) == 3 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "key"])
@pytest.mark.parametrize("name", ["about.json", "examples.jsonl", "index.bin"])
def test_a_damaged_entry_is_made_anew(name: str, damage: str, tmp_path: Path) -> None:
    example = TokenExample([1, 2, 3], [True, True, False])
    cached_examples({"a": 1}, lambda: ([example], []), [TokenExample], folder=tmp_path)
    (entry,) = tmp_path.iterdir()
    path = entry / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[-3:]
    elif damage == "key" and name == "about.json":
        content = bytearray(json.dumps(json.loads(content) | {"key": "other"}).encode())
    path.write_bytes(content)
    if damage == "remove":
        path.unlink()
    other = TokenExample([4, 5], [True, True])
    found, _, known = cached_examples({"a": 1}, lambda: ([other], []), [TokenExample], folder=tmp_path)
    assert list(found) == [example] if known else found == [other]
    assert known == (damage == "key" and name != "about.json")


def test_a_fault_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(list):
        def __iter__(self):
            yield from super().__iter__()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_examples(
            {"a": 1}, lambda: (Broken([TokenExample([1, 2], [True, True])]), []), [TokenExample], folder=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_entries_that_were_not_read_for_longest_go_where_there_are_too_many(tmp_path: Path, monkeypatch) -> None:
    def entry(number: int) -> bool:
        return cached_examples({"n": number}, lambda: ([TokenExample([number] * 50, [True] * 50)], []), [TokenExample],
                        folder=tmp_path)[2]  # fmt: skip

    def aged(seconds: float) -> None:
        """All that is there was last read so much earlier."""
        for path in [*tmp_path.iterdir(), *tmp_path.glob("*/about.json")]:
            os.utime(path, (path.stat().st_mtime - seconds,) * 2)

    entry(0)
    size = sum(file.stat().st_size for file in next(tmp_path.iterdir()).iterdir())
    monkeypatch.setattr(files, "MAX_BYTES", int(3.5 * size))
    for number in (1, 2):
        aged(10)
        entry(number)
    aged(10)
    assert entry(0), "it is read again, and is no longer the oldest"
    half_written = [tmp_path / f".{name}.1.partial" for name in ("old", "young")]
    for path in half_written:
        path.mkdir()
    os.utime(half_written[0], (time.time() - files.STALE_SECONDS - 60,) * 2)
    entry(3)
    assert [path.exists() for path in half_written] == [False, True]
    half_written[1].rmdir()
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(files, "MAX_BYTES", 10 << 30)
    assert [entry(number) for number in (0, 2, 3, 1)] == [True, True, True, False]
    monkeypatch.setattr(files, "MAX_BYTES", 1)
    entry(4)
    assert len(list(tmp_path.iterdir())) == 1
    assert entry(4), "the newest stays, however large"
