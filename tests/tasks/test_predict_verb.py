"""`quatrain predict`: files of every kind, options of tasks, files of predictions that are continued, bad input."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pipeline_setup import LABELS, NLI, TEXTS, saved, summarizer

import quatrain
from quatrain.cli import main
from quatrain.cli.predict import TaskOptions
from quatrain.cli.sampling import SamplingOptions
from quatrain.tasks.pipelines import pipelines


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("judge"), "SequenceClassification", id2label=LABELS)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "b.csv", "c.csv", "a.tsv", "a.txt.bz2"])
def test_files_of_every_kind(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    import bz2

    expected = quatrain.pipeline("text-classification", judge)(TEXTS)
    plain = "\n".join(TEXTS) + "\n"
    path = tmp_path / name
    quoted = "".join(f'"{text}",good\n' for text in TEXTS)
    path.write_bytes(
        {
            "a.txt": plain.encode(),
            "a.jsonl": "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS).encode(),
            "a.csv": ("Text,Label\n" + quoted).encode(),
            "b.csv": ("text\n" + "".join(f'"{text}"\n' for text in TEXTS)).encode(),
            "c.csv": ("Meinung,Urteil\n" + quoted).encode(),
            "a.tsv": ("id\treview\n" + "".join(f"1\t{text}\n" for text in TEXTS)).encode(),
            "a.txt.bz2": bz2.compress(plain.encode()),
        }[name]
    )
    options = ["--columns", "text=Meinung"] if name == "c.csv" else []
    assert main(["predict", str(judge), str(path), "--json", *options]) == 0
    found = said(capsys)
    assert [each["text"] for each in found] == TEXTS
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    if options:
        assert main(["predict", str(judge), str(path)]) == 2
        assert "do not say what to read; use --columns text=…" in capsys.readouterr().err


def test_texts_and_standard_input(
    judge: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    label = quatrain.pipeline("text-classification", judge)(TEXTS[0])[0]["label"]
    assert main(["predict", str(judge), *TEXTS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith(f"{label}\t0.") and lines[0].endswith(TEXTS[0])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((TEXTS[0] + "\n\n" + TEXTS[1] + "\n").encode())))
    assert main(["predict", str(judge), "-", "--json"]) == 0
    assert [each["text"] for each in said(capsys)] == TEXTS[:2]
    assert main(["predict", str(judge), "--json", "- begins with a hyphen"]) == 0
    assert said(capsys)[0]["text"] == "- begins with a hyphen"


def test_what_does_not_fit_is_said(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(judge), " ".join(TEXTS * 5), "--json"]) == 0
    written = capsys.readouterr()
    assert json.loads(written.out)["cut"] > 10 and "exceed the model's context" in written.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["missing.csv"], "does not exist"),
        (["{tmp}"], "is a folder"),
        ([" "], "is empty"),
        (["x", "--question", "who"], "does not take questions"),
        (["x", "--max-new-tokens", "3"], "text-classification does not take it"),
        (["{tmp}/bad.jsonl"], "bad.jsonl:2"),
        (["{tmp}/null.jsonl"], "null.jsonl:1"),
        (["{tmp}/surrogate.jsonl"], "half of a character"),
        (["{tmp}/empty.jsonl"], "no text in it"),
    ],
)
def test_bad_input_is_named(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "null.jsonl").write_text('{"text": null}\n')
    (tmp_path / "surrogate.jsonl").write_text('{"text": "\\ud800"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    assert main(["predict", str(judge), *(word.replace("{tmp}", str(tmp_path)) for word in words)]) == 2
    assert part in capsys.readouterr().err


def test_digits_are_no_places_of_named_classes(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = tmp_path / "digits.csv"
    digits.write_text("text,label\n" + "".join(f'"{text}",{number}\n' for number, text in enumerate(TEXTS)))
    assert main(["evaluate", str(judge), str(digits)]) == 2
    assert "the data has the labels 0, 1, 2; the model has bad, good, so-so" in capsys.readouterr().err
    whole, names = tmp_path / "whole.jsonl", tmp_path / "names.jsonl"
    whole.write_text("".join(json.dumps({"text": text, "label": n}) + "\n" for n, text in enumerate(TEXTS)))
    names.write_text("".join(json.dumps({"text": text, "label": LABELS[n]}) + "\n" for n, text in enumerate(TEXTS)))
    found = []
    for path in (whole, names):
        assert main(["evaluate", str(judge), str(path), "--json"]) == 0
        (told,) = said(capsys)
        found.append(told)
    assert found[0]["scores"] == found[1]["scores"]
    assert "0 is bad, 1 is good, 2 is so-so" in found[0]["notes"][0] and not found[1]["notes"]


def test_options_of_tasks(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["predict", str(judge), TEXTS[0], "--json", "--top-k", "2"]) == 0
    (two,) = said(capsys)
    assert len(two["scores"]) == 2 and two["label"] == max(two["scores"], key=two["scores"].get)
    tagger = saved(tmp_path / "tags", "TokenClassification", id2label=dict(enumerate(["O", "B-X", "I-X"])))
    assert main(["predict", str(tagger), TEXTS[2], "--json"]) == 0
    (words,) = said(capsys)
    assert [word["word"] for word in words["words"]][:3] == ["Paris", "is", "in"]
    assert main(["predict", str(tagger), TEXTS[2], "--json", "--task", "ner", "--aggregation-strategy", "simple"]) == 0
    (entities,) = said(capsys)
    expected = quatrain.pipeline("ner", tagger)(TEXTS[2], aggregation_strategy="simple")
    assert [each["start"] for each in entities["entities"]] == [each["start"] for each in expected]
    nli = saved(tmp_path / "nli", "SequenceClassification", **NLI)
    labels = ["--candidate-labels", "good", "--candidate-labels", "bad"]
    assert main(["predict", str(nli), TEXTS[0], "--json", "--task", "zero-shot-classification", *labels]) == 0
    (found,) = said(capsys)
    assert set(found["scores"]) == {"good", "bad"} and sum(found["scores"].values()) == pytest.approx(1.0)
    summaries = summarizer(tmp_path / "texts")
    assert main(["predict", str(summaries), TEXTS[0], "--json", "--max-new-tokens", "4", "--source-prefix", "a "]) == 0
    (summary,) = said(capsys)
    assert summary["source"] == TEXTS[0]
    pipe = quatrain.pipeline("text2text-generation", summaries, max_new_tokens=4)
    assert summary["text"] == pipe("a " + TEXTS[0])[0]["generated_text"]
    assert main(["predict", str(judge), "x", "--targets", "y"]) == 2
    assert "--targets: text-classification does not take it" in capsys.readouterr().err
    assert main(["predict", str(judge), "x", "--task", "nothing"]) == 2
    assert "the tasks are" in capsys.readouterr().err.lower()


def test_every_option_of_a_task_has_a_flag() -> None:
    flags = {field.name for kind in (TaskOptions, SamplingOptions) for field in fields(kind)}
    shapes = {"return_tensors", "is_split_into_words", "ranges", "all_labels"}
    accepted = {
        "align_to_words",
        "clean_up_tokenization_spaces",
        "sequential",
        "padding",
        "continue_final_message",
        "tools",
    }
    names = {"max_length", "min_length", "do_sample", "stop_sequence", "rows", "early_stopping", "epsilon_cutoff",
             "eta_cutoff", "top_h", "num_return_sequences"}  # fmt: skip
    for kind in pipelines().values():
        missing = set(kind.Options.model_fields) - flags - shapes - accepted - names
        assert not missing, (kind.task, missing)
    known = {name for kind in pipelines().values() for name in kind.Options.model_fields}
    assert {field.name for field in fields(TaskOptions)} - {"source_prefix"} <= known, "a flag that no task takes"


def test_an_option_that_is_off_or_zero_is_given() -> None:
    options = TaskOptions(normalize=False, threshold=0.0, voice_activity=False, temperatures=(0.0, 0.5))
    assert options.given() == {
        "normalize": False, "threshold": 0.0, "voice_activity": False, "temperatures": (0.0, 0.5)
    }  # fmt: skip
    assert TaskOptions().given() == {}


def test_a_file_of_predictions_is_continued(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / "predictions.jsonl"
    source.write_text("".join(json.dumps({"text": f"{text} {number}"}) + "\n" for number in range(4) for text in TEXTS))
    command = ["predict", str(judge), str(source), "--output", str(out), "--batch-size", "3"]
    assert main(command) == 0
    assert "12 new predictions" in capsys.readouterr().err
    whole = out.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [each["text"] for each in lines] == [json.loads(line)["text"] for line in source.read_text().splitlines()]
    assert all(each["label"] in LABELS.values() and len(each["scores"]) == 3 for each in lines)
    out.write_bytes(whole[: len(whole) // 2])  # stopped in the middle of a line
    assert main(command) == 0
    told = capsys.readouterr().err
    assert out.read_bytes() == whole and "inputs are done; the rest follows" in told
    assert main(command) == 0 and out.read_bytes() == whole, "a finished file stays"
    assert main([*command, "--function-to-apply", "none"]) == 2
    assert "made by another model or with other options" in capsys.readouterr().err
    source.write_text('{"text": "another"}\n')
    assert main(command) == 2
    assert "the prediction for another input" in capsys.readouterr().err
    out.write_text("not a prediction\n")
    assert main(command) == 2 and "predictions.jsonl, line 1" in capsys.readouterr().err
