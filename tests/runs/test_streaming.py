"""Stages whose data is read as it is needed: the same rows as those of data that is held, and nothing held."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter, read_metrics
from quatrain.data import token_file
from quatrain.data.documents import DocumentChunk
from quatrain.runs import streaming
from quatrain.runs.recipe import loads
from quatrain.runs.runner import Run
from quatrain.runs.stages._pretrain import parts_of_documents, whole_documents
from quatrain.runs.streaming import of_texts
from quatrain.tokenizers.tokenizer import Tokenizer

HEAD = """
name = "streamed"
[data]
source = '{source}'
streaming = true
{more}
[tokenizer]
kind = "wordpiece"
vocab_size = 120
chat_template = "chatml"
[model]
family = "{family}"
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 24
[evaluate]
examples = 12
max_new_tokens = 6
[[stage]]
kind = "tokenizer"
"""
TRAIN = "train = { steps = 30, batch_tokens = 256, learning_rate = 1e-2, warmup_steps = 2, log_every = 1, "
TRAIN += "packing = false }\n"
WORDS = "the cat sat on a mat and saw no dog at all in the old town by the sea".split()


def go(folder: Path, source: Path, stage: str, more: str = "", family: str = "bert", train: str = TRAIN) -> Run:
    text = HEAD.format(source=source, more=more, family=family) + f"[[stage]]\n{stage}\n{train}"
    return quatrain.run(loads(text), runs_dir=folder, reporter=SilentReporter())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 3, kind="bpe", vocab_size=300)


texts = st.lists(st.text("the cat\n", max_size=60), min_size=1, max_size=6).filter(lambda all: any(map(str.strip, all)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, st.integers(2, 9))
def test_rows_are_those_of_a_token_file(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, documents: list[str], length: int
) -> None:
    pieces = [DocumentChunk(text, True) for text in documents]
    file = token_file.build(pieces, tokenizer, tmp_path_factory.mktemp("tokens"))

    def found(**how: bool) -> list[list[int]]:
        return [example.ids for example in of_texts(pieces, tokenizer, length, **how)]

    def ids(examples: Any) -> list[list[int]]:
        return [example.ids for example in examples if len(example.ids)]

    assert found(documents=True, causal=True) == ids(whole_documents(file, length))
    assert found(documents=True, causal=False) == ids(parts_of_documents(file, length))
    whole = file[:].tolist()
    windows = [whole[at : at + length + 1] for at in range(0, len(whole) - 1, length)]
    assert found(documents=False, causal=True) == windows
    assert found(documents=False, causal=False) == [whole[at : at + length] for at in range(0, len(whole), length)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": f"the {WORDS[i % 7]} was {'good' if i % 2 else 'dull'}", "label": "yes" if i % 2 else "no"}
            for i in range(300)]  # fmt: skip
    return write(tmp_path_factory.mktemp("data") / "reviews.jsonl", rows)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": " ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 30))} for i in range(400)]
    return write(tmp_path_factory.mktemp("data") / "books.jsonl", rows)


@pytest.mark.parametrize(("family", "objective"), [("llama", "causal"), ("bert", "masked"), ("bart", "denoise")])
def test_text_is_learned_as_it_is_read(
    family: str, objective: str, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quatrain.runs.stages._pretrain.VALIDATION_TOKENS", 400)
    run = go(tmp_path, books, f'kind = "pretrain"\nobjective = "{objective}"\n', family=family)
    losses = [entry["loss"] for entry in read_metrics(run.folder / "metrics.jsonl") if "loss" in entry]
    assert len(losses) == 30 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert run.results[-1]["validation_loss"] > 0
    assert not list(run.folder.rglob("tokens*")), "no token file is written"


def test_what_is_held_out_is_not_learned(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quatrain.runs.stages._pretrain.VALIDATION_TOKENS", 100)
    kept: list[Any] = []
    original = streaming.streamed

    def spy(*given: Any, **named: Any) -> Any:
        kept.append(original(*given, **named))
        return kept[-1]

    monkeypatch.setattr("quatrain.runs.stages._pretrain.streamed", spy)
    go(tmp_path, books, 'kind = "pretrain"\nrows = "documents"\n', family="llama")
    (found,) = kept
    assert len(found.held_out) == 4
    again = list(islice(found.stream.read(0), 5))
    assert [each.ids for each in again] == [each.ids for each in found.examples[:5]]
    assert found.held_out[0].ids != again[0].ids


def test_other_data_is_held_out_where_it_is_named(books: Path, reviews: Path, tmp_path: Path) -> None:
    for streams in (True, False):
        more = f"dev = '{books}'"
        text = HEAD.format(source=books, more=more, family="llama") + f'[[stage]]\nkind = "pretrain"\n{TRAIN}'
        recipe = loads(text.replace("streaming = true", f"streaming = {str(streams).lower()}"))
        run = quatrain.run(recipe, runs_dir=tmp_path / str(streams), reporter=SilentReporter())
        loss, seen = run.results[-1]["validation_loss"], run.results[-1]["loss"]
        assert loss == pytest.approx(seen, rel=0.1), "the very text that was learned"


def test_classes_are_learned_as_they_are_read(reviews: Path, tmp_path: Path) -> None:
    run = go(tmp_path, reviews, 'kind = "finetune"\nobjective = "classify"\nlabels = ["no", "yes"]\n')
    scores = run.results[-1]["scores"]["held out"]
    assert scores["accuracy"] > 0.9 and scores["count"] == 12


def test_a_data_set_of_hugging_face_streams(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = {"messages": [[{"role": "user", "content": f"say {WORDS[i % 9]}"},
                          {"role": "assistant", "content": WORDS[i % 9]}] for i in range(60)]}  # fmt: skip
    rows["messages"].append([{"role": "user", "content": "the " * 40}, {"role": "assistant", "content": "no"}])
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "chats"))
    stage = 'kind = "pretrain"\nrows = "documents"\ndata = { source = "TEXT" }\n'
    stage += TRAIN + '[[stage]]\nkind = "finetune"\n'
    text = write(tmp_path / "text.jsonl", [{"text": " ".join(WORDS)}] * 40)
    run = go(tmp_path / "runs", tmp_path / "chats", stage.replace("TEXT", str(text)), family="llama")
    assert run.results[-1]["loss"] < 2
    notes = [note for note in run.results[-1]["notes"] if "left out" in note]
    assert len(notes) == 1 and notes[0].startswith("1 of ") and notes[0].endswith(f"left out: {tmp_path}/chats:row 61")


def test_what_a_stream_cannot_serve_is_said_at_once(reviews: Path, books: Path, tmp_path: Path) -> None:
    train = TRAIN.replace("steps = 30", "epochs = 2")
    with pytest.raises(InputError, match=r"data\.streaming = true does not work with") as caught:
        go(tmp_path / "a", reviews, 'kind = "finetune"\nobjective = "classify"\n', train=train)
    assert len(caught.value.problems) == 2
    assert any("give train.steps" in each for each in caught.value.problems)
    assert any("labels: none" in each for each in caught.value.problems)
    with pytest.raises(InputError, match="nothing to learn after the") as caught:
        go(tmp_path / "b", books, 'kind = "pretrain"\n', family="llama")
    assert "data.validation = 0" in caught.value.message


def test_a_row_that_is_wrong_is_named_with_its_place(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quatrain.runs.stages.tokenizer.CHARACTERS", 2000)  # it stops before the row that is wrong
    path = tmp_path / "reviews.jsonl"
    path.write_text(reviews.read_text(encoding="utf-8") + '{"text": "no label"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"reviews.jsonl:301: .*quatrain data check"):
        go(tmp_path, path, 'kind = "finetune"\nobjective = "classify"\nlabels = ["no", "yes"]\n', "validation = 0.0")
