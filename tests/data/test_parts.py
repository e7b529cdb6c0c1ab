"""The parts of a recipe's data are opened once, split once, and hand the same examples to all that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import quatrain
from quatrain.core.progress import SilentReporter
from quatrain.data import corpus as corpora
from quatrain.data.corpus import Corpus, DataParts
from quatrain.data.settings import DataSettings
from quatrain.runs.recipe import loads
from quatrain.tasks.classification import Classification
from quatrain.tasks.instructions import Instructions


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(path: Path, labels: str) -> str:
    return lines(path, [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that a corpus is opened for, in order."""
    sources: list[str] = []
    original = Corpus.__init__

    def count(self: Corpus, source: Any, **options: Any) -> None:
        sources.append(Path(str(source)).name)
        original(self, source, **options)

    monkeypatch.setattr(corpora.Corpus, "__init__", count)
    return sources


def test_another_format_reads_the_same_files(tmp_path: Path, opened: list[str]) -> None:
    parts = DataParts(DataSettings(source=labelled(tmp_path / "a.jsonl", "xyx")))
    detected = parts.corpus()
    assert detected.format == "labelled" and parts.corpus(format="labelled") is detected
    assert parts.corpus(default_format="chat", accept=("labelled",)) is detected
    texts = parts.corpus(format="text", default_format="chat")
    assert texts.format == "text" and len(list(texts)) == len(list(detected)) == 3
    assert detected.format == "labelled" and opened == ["a.jsonl"]


def test_the_default_format_reads_what_is_not_accepted(tmp_path: Path) -> None:
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    parts = DataParts(DataSettings(source=lines(tmp_path / "c.jsonl", chats), test=labelled(tmp_path / "t.jsonl", "x")))
    assert parts.corpus(default_format="chat").format == "chat"
    assert parts.corpus("test", default_format="text").format == "text"


def test_the_held_out_sets_are_the_test_or_the_dev_part_or_the_share(tmp_path: Path) -> None:
    one, two = labelled(tmp_path / "one.jsonl", "xy"), labelled(tmp_path / "two.jsonl", "yyy")
    joined = DataParts(DataSettings(source=one, test=f"{one} + {two}"))
    assert {name: part for name, (_, part) in joined.held_out_sets().items()} == {"test": "test"}
    by_source = joined.held_out_sets(by_source=True)
    assert list(by_source) == [one, two]
    own, part = by_source[two]
    assert len(list(own.corpus(part))) == 3 and own is joined.held_out_sets(by_source=True)[two][0]
    assert list(DataParts(DataSettings(source=one, dev=two)).held_out_sets()) == ["dev"]
    assert list(DataParts(DataSettings(source=one)).held_out_sets()) == ["held out"]
    assert DataParts(DataSettings(source=one, validation=0.0)).held_out_sets() == {}


def test_the_share_held_out_is_read_once_and_takes_no_part_in_training(tmp_path: Path) -> None:
    parts = DataParts(DataSettings(source=labelled(tmp_path / "a.jsonl", "x" * 20), validation=0.25), seed=3)
    task = Classification(None, parts)
    train, development = task.splits["train"], task.splits["development"]
    assert len(train) == 15 and len(development) == 5
    assert task.held_out["held out"] is development and Classification(None, parts).held_out["held out"] is development
    assert {row.place for row in train} | {row.place for row in development} == {
        row.place for row in task.read(parts, "source")
    }
    other = DataParts(parts.settings, seed=4)
    assert Classification(None, other).splits["development"] != development


def test_a_limit_restricts_the_test_part_alone(tmp_path: Path) -> None:
    parts = DataParts(
        DataSettings(source=labelled(tmp_path / "a.jsonl", "xy"), dev=labelled(tmp_path / "d.jsonl", "xyz"))
    )
    task = Classification(None, parts, limit=2)
    assert len(task.held_out["dev"]) == 2 and len(task.splits["development"]) == 3 and len(task.splits["train"]) == 2


def test_chats_are_conversations_or_texts_with_answers(tmp_path: Path) -> None:
    task = Instructions(DataParts(DataSettings(source=labelled(tmp_path / "a.jsonl", "xy"), validation=0.5)))
    (place, turns), = task.splits["train"]  # fmt: skip
    assert place.startswith(str(tmp_path / "a.jsonl:")) and [turn["role"] for turn in turns] == ["user", "assistant"]


@pytest.mark.parametrize("objective", ["chat", "classify"])
def test_a_run_opens_each_part_once(objective: str, tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "text.txt").write_text("text one two three x y.\n" * 60, encoding="utf-8")
    source, test = labelled(tmp_path / "a.jsonl", "xyxyxyxyxx"), labelled(tmp_path / "t.jsonl", "yyyx")
    recipe = f"""
name = "parts"
data = {{ source = '{tmp_path}/text.txt' }}
tokenizer = {{ vocab_size = 300, chat_template = "chatml" }}
model = {{ hidden_size = 16, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64 }}
evaluate = {{ max_new_tokens = 2 }}
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = {{ steps = 2, batch_tokens = 64, warmup_steps = 0 }}
[[stage]]
kind = "finetune"
objective = "{objective}"
data = {{ source = '{source}', test = '{test}' }}
train = {{ steps = 2, batch_tokens = 64, warmup_steps = 0, evaluate_every = 1, sample_every = 1 }}
[[stage]]
kind = "evaluate"
data = {{ source = '{source}', test = '{test}' }}
"""
    done = quatrain.run(loads(recipe), runs_dir=tmp_path / "runs", reporter=SilentReporter())
    assert sorted(opened) == ["a.jsonl", "t.jsonl", "text.txt"]
    learned, again = done.results[2], done.results[3]
    assert learned["scores"].keys() == again["scores"].keys() and learned["baselines"] == again["baselines"]
