"""`quatrain predict`: files of every kind, options of tasks, files of predictions that are continued, bad input."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_setup import LABELS, TEXTS, saved

import quatrain
from quatrain.cli import main


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
