"""`quatrain data check`: each fault with its line, field and fix; nothing said of what is right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.data.catalog import CATALOG
from quatrain.data.checking import check

USER, SAYS = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def written(folder: Path, name: str, rows: object) -> Path:
    path = folder / name
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif isinstance(rows, str):
        path.write_text(rows, encoding="utf-8")
    else:
        path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows),
                        encoding="utf-8")  # fmt: skip
    return path


def chats(*messages: object) -> list[object]:
    return [{"messages": [USER, SAYS]}, {"messages": list(messages)}]


def qa(start: int, answer: str = "cat") -> list[dict]:
    return [{"id": str(number), "context": "the cat sat", "question": f"who sat {number}",
             "answers": {"text": [text], "answer_start": [at]}} for number, (text, at) in
            enumerate([("cat", 4), (answer, start)])]  # fmt: skip


FAULTS = {
    "a role that is none": (
        "x.jsonl", chats({"role": "usr", "content": "hi"}, SAYS), 2, "messages[0].role", "allowed are"),
    "the assistant speaks first": ("x.jsonl", chats(SAYS), 2, "messages[0]", "put the user's turn before it"),
    "nothing said": ("x.jsonl", chats(USER, SAYS | {"content": " "}), 2, "messages[1]", "write its answer"),
    "nobody answers": ("x.jsonl", chats(USER, SAYS, USER), 2, "messages[2]", "remove it"),
    "JSON cut in two": ("x.jsonl", [{"messages": [USER, SAYS]}, '{"messages": ['], 2, None, "not valid JSON"),
    "a list of too many digits": (
        "x.csv", 'tokens,tags\n"[""a""]","[""b""]"\n"[' + "1" * 5000 + ']","[""a""]"\n', 3, None, "not valid JSON"),
    "a row of another kind": ("x.jsonl", [{"messages": [USER, SAYS]}, {"text": "x"}], 2, None, "messages"),
    "chosen and rejected the same": (
        "x.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}],
        2, "chosen", "the same"),
    "a label that is missing": ("x.csv", "text,label\ngood,1\nbad,\nfine,1\n", 3, "label", ""),
    "a text that is empty": ("x.csv", "text,label\ngood,1\n,0\nfine,1\n", 3, "text", "write a text"),
    "columns too few": ("x.tsv", "good\t1\nbad\nfine\t0\n", 2, None, "2"),
    "bytes that are no UTF-8": ("x.tsv", b"good\t1\nb\xe4d\t0\nfine\t0\n", 2, None, "iconv"),
    "an entity that begins within": (
        "x.conll", "a B-LOC\nb I-LOC\nc O\n\nd O\ne I-PER\nf O\n\ng B-PER\nh O\n", 6, None, "B-PER"),
    "a word without a tag": ("x.conll", "a B-LOC\nb O\nc O\n\nd\ne O\n", 5, None, "column"),
    "an answer at the wrong place": ("x.jsonl", qa(5), 2, "answers", "4"),
    "an answer that is not there": ("x.jsonl", qa(0, "dog"), 2, "answers", ""),
    "no such choice": (
        "x.jsonl", [{"question": "a", "choices": ["b", "c"], "answer": 0},
                    {"question": "a", "choices": ["b", "d"], "answer": 5}], 2, "answer", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    name, rows, line, field, words = FAULTS[case]
    path = written(tmp_path, name, rows)
    report = check(path)
    assert report.fault_count >= 1 and not report.ok
    fault = report.faults[0]
    assert fault.place == f"{path}:{line}", [each.place for each in report.faults]
    assert words in fault.text
    if field is not None:
        assert field in (fault.field or "") or field in fault.text


def test_all_faults_come_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    rows = [{"messages": [USER, SAYS]}, "{", {"messages": [SAYS]}, {"messages": [USER, SAYS | {"content": ""}]}, "[]"]
    report = check(written(tmp_path, "x.jsonl", rows))
    assert [fault.place.rpartition(":")[2] for fault in report.faults] == ["2", "3", "4", "5"]
    assert report.rows == 5


def test_records_with_a_fault_are_not_of_use(tmp_path: Path) -> None:
    rows = [{"messages": [USER, SAYS]}, {"messages": [SAYS]}, "{", {"messages": [USER, SAYS | {"content": "yes"}]}]
    report = check(written(tmp_path, "x.jsonl", rows))
    assert (report.rows, report.records, report.fault_count) == (4, 2, 2)


def test_many_faults_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    rows = [{"messages": [USER, SAYS]}] + [{"messages": [SAYS]}] * 500
    report = check(written(tmp_path, "x.jsonl", rows))
    assert report.fault_count == 500 and len(report.faults) == 100


def test_what_may_be_meant_is_a_warning(tmp_path: Path) -> None:
    rows = [{"text": "good", "label": "yes"}, {"text": "good", "label": "yes"}, {"text": "bad", "label": "no"},
            {"text": "worse", "label": "No"}, {"text": "worst", "label": "no"}]  # fmt: skip
    report = check(written(tmp_path, "x.jsonl", rows))
    assert report.ok
    said = "\n".join(f"{each.place}: {each.text}" for each in report.warnings)
    assert "x.jsonl:2: a duplicate of" in said and "differ only in case" in said and "occurs once" in said
    assert report.labels == {"yes": 2, "no": 2, "No": 1}
    assert report.lengths["text"]["least"] == 3 and report.lengths["text"]["most"] == 5


@pytest.mark.parametrize("rows", ["", "\n\n"])
def test_nothing_in_a_file(rows: str, tmp_path: Path) -> None:
    path = written(tmp_path, "x.jsonl", rows)
    try:
        report = check(path, format="chat")
    except InputError as error:
        assert "empty" in error.message
    else:
        assert not report.ok and "it has no rows" in report.faults[0].text


@pytest.mark.skipif(not os.environ.get("QUATRAIN_DATA"), reason="QUATRAIN_DATA is not set: no shared data")
@pytest.mark.parametrize(
    "name",
    [name for name, source in CATALOG.items()
     if source.format in ("labelled", "tagged", "qa", "pair", "alpaca", "preference")],
)  # fmt: skip
def test_real_files_are_readable_and_their_faults_real(name: str) -> None:
    report = check(name)
    assert report.records > 200 and report.rows >= report.records
    known = {"polite-preferences": 6, "alpaca-4000": 1, "hh-harmless-train": 4}
    assert report.fault_count == known.get(name, 0), report.faults[:3]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = written(tmp_path, "bad.jsonl", chats(SAYS))
    assert main(["data", "check", str(bad)]) == 2
    out = capsys.readouterr().out
    assert f"{bad}:2: field 'messages[0]'" in out and "1 fault. Correct" in out and "conversations" in out
    good = written(tmp_path, "good.csv", "review,stars\nfine film,5\ndull film,1\nfine story,5\ndull story,1\n")
    assert main(["data", "check", str(good), "--columns", "text=review,label=stars"]) == 0
    out = capsys.readouterr().out
    assert "No faults" in out and "labels: 5 2, 1 2" in out
    assert main(["data", "check", str(good), "--columns", "text=review,label=stars", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["rows"] == 4 and told["labels"] == {"5": 2, "1": 2}
    assert main(["data", "check", str(good), "--columns", "text"]) == 2
    assert "must look like text=review" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "absent.csv")]) == 2
    assert "absent.csv" in capsys.readouterr().err


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RICH = [
    {"id": 7, "tools": [{"type": "function", "function": {"name": "f"}}], "messages": [
        USER | {"name": "Bo"}, {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
        {"role": "assistant", "reasoning_content": "hm", "content": "4", "weight": 1}]},
    {"messages": [USER, SAYS | {"weight": 0}, USER, SAYS | {"thinking": "x", "annotations": [1]}], "lang": "en"},
    {"messages": [USER, SAYS | {"reasoning": "y"}], "documents": [{"title": "t", "text": "x"}],
     "chat_template_kwargs": {"day": 1}},
]  # fmt: skip


def unread(report: object) -> set[str]:
    return {each.text.split(" has no effect")[0] for each in report.warnings if "has no effect" in each.text}


def test_fields_of_chats_that_change_nothing_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", RICH)
    report = check(path)
    assert report.ok, report.faults
    common = {
        "field 'id'", "field 'lang'", "field 'documents'", "field 'chat_template_kwargs'",
        "field 'name' of the user's turns", "field 'tool_call_id' of the tool's turns",
        "field 'annotations' of the assistant's turns",
    }  # fmt: skip
    assert unread(report) == common
    plain = tmp_path / "plain.jinja"
    plain.write_text("{% for m in messages %}{{ m.content or '' }}{{ m.name }}{% endfor %}{{ day }}")
    report = check(path, template=str(plain))
    answer = ("tool_calls", "reasoning_content", "thinking", "reasoning")
    ignored = {"field 'tools'", *(f"field '{name}' of the assistant's turns" for name in answer)}
    read = {"field 'name' of the user's turns", "field 'chat_template_kwargs'"}
    assert unread(report) == common - read | ignored


def test_the_template_of_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "a.jsonl", [{"messages": [USER, SAYS]}])
    assert main(["data", "check", str(path), "--template", "chatlm"]) == 2
    assert "did you mean chatml" in capsys.readouterr().err
    (tmp_path / "t.jinja").write_text("{{ raise_exception('never') }}")
    assert main(["data", "check", str(path), "--template", str(tmp_path / "t.jinja")]) == 2
    assert "a.jsonl:1: the chat template refuses this conversation: never (1 rows)" in capsys.readouterr().out
    from quatrain.tokenizers.tokenizer import Tokenizer

    Tokenizer.train(["abc"], vocab_size=300, chat_template="plain").save(tmp_path / "model")
    assert main(["data", "check", str(path), "--template", str(tmp_path / "model")]) == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [USER, SAYS | {"weight": 0}]}, "every turn of the assistant has weight 0"),
        ({"messages": [USER, SAYS | {"weight": 0.5}]}, "field 'messages[1].weight': the weight 0.5: allowed are 0"),
        ({"messages": [USER, SAYS], "tools": "[{"}, "field 'tools'"),
        ({"messages": [USER, SAYS], "tools": {"name": "f"}}, "field 'tools' is an object, must be a list"),
        ({"messages": [USER, SAYS], "tools": ["f"]}, "field 'tools': must be a list of objects"),
        ({"messages": [USER, SAYS], "chat_template_kwargs": [1]}, "field 'chat_template_kwargs'"),
        ({"messages": [USER | {"content": [1]}, SAYS]}, "part 0 is 1"),
        ({"messages": [USER | {"content": [{"type": "text"}]}, SAYS]}, "part 0 has no text"),
    ],
)
def test_fields_of_chats_that_cannot_be_understood(tmp_path: Path, row: dict, words: str) -> None:
    report = check(written(tmp_path, "a.jsonl", [{"messages": [USER, SAYS | {"content": "other"}]}, row]))
    assert [words in each.text for each in report.faults] == [True], report.faults


def test_fields_of_preferences_and_of_other_formats(tmp_path: Path) -> None:
    mood = "field 'mood' of the assistant's turns"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "score": 3, "system": "s"},
            {"conversations": [{"from": "human", "value": "p"}], "tools": "[]", "chosen": {"from": "gpt", "value": "a"},
             "rejected": {"from": "gpt", "value": "b", "mood": "x"}}]  # fmt: skip
    assert unread(check(written(tmp_path, "a.jsonl", rows))) == {"field 'score'", "field 'tools'", mood}
    rows = [{"instruction": "p", "input": "q", "output": "a", "text": "all", "system": "s", "history": [["x", "y"]]}]
    assert unread(check(written(tmp_path, "b.jsonl", rows))) == {"field 'text'"}
