"""Conversations and preference pairs in the formats that people have them in, and every fault with its place."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data.documents import Preference, detect, read_conversations, read_preferences
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


CHAT = [system("Brief."), user("Hi ☃"), assistant("Hello"), user("Bye"), assistant("")]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
RECORDS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"messages": CHAT}, CHAT),
    ({"messages": CHAT[1:], "system": "Brief."}, CHAT),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        [user("Hi"), assistant("Hello")],
    ),
    ({"conversations": CHAT}, CHAT),
    ({"instruction": "Add", "input": "1 2", "output": "3"}, [user("Add\n\n1 2"), assistant("3")]),
    ({"instruction": "Add", "input": "", "output": "3"}, [user("Add"), assistant("3")]),
    ({"instruction": "Add", "output": "3", "input": None}, [user("Add"), assistant("3")]),
    (
        {"instruction": "b", "output": "y", "history": [["a", "x"]], "system": "S"},
        [system("S"), user("a"), assistant("x"), user("b"), assistant("y")],
    ),
    ({"prompt": "a", "completion": "b"}, [user("a"), assistant("b")]),
    ({"prompt": [user("a")], "completion": [assistant("b")]}, [user("a"), assistant("b")]),
    ({"question": "a", "answer": "b"}, [user("a"), assistant("b")]),
    ({"messages": [user("a"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
     [user("a"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]),
    (
        {"conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "one"},
        ]},
        [user("a"), {"role": "assistant", "content": "", "tool_calls": [CALL]},
         {"role": "tool", "content": "1"}, assistant("one")],
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, assistant("b")]},
     [{"role": "user", "content": [{"type": "text", "text": "a"}]}, assistant("b")]),
]  # fmt: skip


@pytest.mark.parametrize(("record", "messages"), RECORDS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz"])
def test_formats(tmp_path: Path, record: dict[str, Any], messages: list[dict[str, Any]], name: str) -> None:
    text = json.dumps(record) + "\n" if "jsonl" in name else json.dumps([record], indent=2)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert list(read_conversations(path)) == [messages]
    assert detect(path) == "chat"


def test_formats_may_be_mixed_and_tables_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n\n" for record, _ in RECORDS))
    with open(tmp_path / "b.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([["prompt", "completion"], ["a,b", "c\nd"]])
    (tmp_path / "c.tsv").write_text(f"id\tmessages\n1\t{json.dumps([user('a'), assistant('b')])}\n")
    expected = [messages for _, messages in RECORDS]
    expected += [[user("a,b"), assistant("c\nd")], [user("a"), assistant("b")]]
    assert list(read_conversations(tmp_path)) == expected


@settings(max_examples=50, deadline=None)
@given(turns=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_any_text_comes_through(tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str]]) -> None:
    messages = [message for a, b in turns for message in (user(a), assistant(b))]
    path = tmp_path_factory.mktemp("chat") / "a.jsonl"
    path.write_text(json.dumps({"messages": messages}, ensure_ascii=len(turns) % 2 == 0) + "\n", "utf-8")
    assert list(read_conversations(path)) == [messages]


@needs_data
@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("instruct/alpaca_4000.jsonl.gz", 4000),
        ("instruct/rasbt_instruction_data.json", 1100),
        ("instruct/alpaca_gpt4_style_999.json.gz", 999),
        ("instruct/glaive_toolcall_300.json.gz", 300),
        ("eval/gsm8k_train.jsonl.gz", 7473),
    ],
)
def test_real_conversations_render(file: str, count: int) -> None:
    conversations = list(read_conversations(DATA / file))
    assert len(conversations) == count
    tokenizer = Tokenizer.train(["a few words"], vocab_size=300, chat_template="chatml")
    for messages in conversations[:100]:
        rendered = render(tokenizer, messages)
        assert any(rendered.assistant_mask)


PREFERENCES: list[tuple[dict[str, Any], Preference]] = [
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, Preference([user("p")], [assistant("a")], [assistant("b")])),
    (
        {"prompt": [system("s"), user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        Preference([system("s"), user("p")], [assistant("a")], [assistant("b")]),
    ),
    (
        {"instruction": "p", "input": "q", "output": "x", "chosen": "a", "rejected": "b"},
        Preference([user("p\n\nq")], [assistant("a")], [assistant("b")]),
    ),
    (
        {"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
        Preference([user("p")], [assistant("a")], [assistant("b")]),
    ),
    (
        {"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("a")]},
        Preference([user("p")], [assistant("a")], [assistant("a")]),
    ),
    (
        {"conversations": [{"from": "human", "value": "p"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}},
        Preference([user("p")], [assistant("a")], [assistant("b")]),
    ),
    (
        {"chosen": "\n\nHuman: p\n\nAssistant: x\n\nHuman: q\n\nAssistant: a",
         "rejected": "\n\nHuman: p\n\nAssistant: x\n\nHuman: q\n\nAssistant: b"},
        Preference([user("p"), assistant("x"), user("q")], [assistant("a")], [assistant("b")]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("record", "preference"), PREFERENCES)
def test_preference_formats(tmp_path: Path, record: dict[str, Any], preference: Preference) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert list(read_preferences(tmp_path / "a.jsonl")) == [preference]
    assert detect(tmp_path / "a.jsonl") == "preference"


@needs_data
@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("preference/rasbt_instruction_data_with_preference.json", 1100),
        ("preference/hh_rlhf_harmless_1700.jsonl.gz", 1700),
        ("preference/dpo_en_300.json.gz", 300),
    ],
)
def test_real_preferences(file: str, count: int) -> None:
    preferences = list(read_preferences(DATA / file))
    assert len(preferences) == count
    for each in preferences:
        assert (each.prompt and each.prompt[-1]["role"] == "user") or len(each.chosen) + len(each.rejected) > 2
        assert each.chosen[-1]["role"] == each.rejected[-1]["role"] == "assistant"


FAULTS = [
    ({"messages": []}, "field 'messages' is an empty list, must be a list of messages"),
    ({"messages": "hi"}, "field 'messages' is text, must be a list of messages"),
    ({"messages": [user("a"), {"role": "elf", "content": "b"}]}, "'messages[1].role' is 'elf'; allowed are system"),
    ({"messages": [user("a"), {"role": "assistant"}]}, "'messages[1]': no 'content'; the message has 'role'"),
    (
        {"messages": [user("a"), {"role": "assistant", "content": 3}]},
        "messages[1].content' is a whole number, must be text",
    ),
    ({"messages": [user("a"), "b"]}, "'messages[1]' is text, must be {"),
    ({"messages": [user("a")]}, "it has no turn of the assistant"),
    ({"conversations": [{"from": "elf", "value": "a"}]}, "'conversations[0].from' is 'elf'; allowed are system, human"),
    ({"conversations": [{"from": "function_call", "value": "{"}]}, "'conversations[0].value': not valid JSON"),
    ({"conversations": [{"from": "function_call", "value": "1" * 5000}]}, "a number of 5,000 digits"),
    ({"messages": "[" * 5000}, "field 'messages': not valid JSON"),
    ({"conversations": [{"from": "function_call", "value": "{}"}]}, 'must be {"name"'),
    ({"instruction": "a"}, "no field 'output'; the row has 'instruction'"),
    ({"instruction": "a", "output": None}, "field 'output' is null, must be text"),
    ({"instruction": "a", "output": "b", "history": [["a"]]}, "field 'history'"),
    ({"prompt": "a"}, "not a conversation; write"),
    ({"prompt": 1, "completion": "b"}, "field 'prompt' is a whole number"),
    ([1], "the row is a list, must be an object"),
    ({"prompt": "a", "completion": "\ud83d"}, "half of a character"),
]


@pytest.mark.parametrize(("record", "words"), FAULTS)
def test_each_fault_is_named(tmp_path: Path, record: Any, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n\n" + json.dumps(record) + "\n")
    with pytest.raises(InputError) as caught:
        list(read_conversations(path))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}:3: ") and words in caught.value.problems[0]


def test_all_faults_at_once_with_their_lines(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record, _ in FAULTS] + ["{", json.dumps({"prompt": "a", "completion": "b"})] * 10
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"{len(FAULTS) + 10} problems") as caught:
        list(read_conversations(tmp_path / "a.jsonl"))
    places = [problem.split(": ")[0] for problem in caught.value.problems[:20]]
    assert places[: len(FAULTS)] == [f"{tmp_path / 'a.jsonl'}:{line}" for line in range(1, len(FAULTS) + 1)]
    assert caught.value.problems[20] == f"… and {len(FAULTS) + 10 - 20} more"


def test_items_of_a_list_have_their_lines(tmp_path: Path) -> None:
    good = {"prompt": "a", "completion": "b"}
    (tmp_path / "a.json").write_text(json.dumps([good, {"prompt": "a"}, good, {"x": 1}], indent=1))
    with pytest.raises(InputError) as caught:
        list(read_conversations(tmp_path / "a.json"))
    assert [problem.split(": ")[0].rsplit(":", 1)[1] for problem in caught.value.problems] == ["6", "13"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'"),
        ({"prompt": "a"}, "no field 'chosen' and 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "no prompt in addition to chosen and rejected"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "field 'chosen' is a whole number"),
        ({"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("b")]}, "do not begin alike"),
    ],
)
def test_faults_of_preferences(tmp_path: Path, record: Any, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        list(read_preferences(tmp_path / "a.jsonl"))
    assert words in caught.value.problems[0] and "a.jsonl:1" in caught.value.problems[0]


def test_text_is_no_chat(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match="plain text, no conversations"):
        read_conversations(tmp_path / "a.txt").__next__()
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(InputError, match="there are no conversations in"):
        list(read_conversations(tmp_path / "b.jsonl"))
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    assert detect(tmp_path / "c.jsonl") == "text"
