"""`quatrain chat`: commands, several lines, settings in the middle, save and load, Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quatrain.cli import main
from quatrain.generation.engine import Engine, SamplingParams


def says(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    *lines: str,
    more: tuple[str, ...] = (),
) -> tuple[str, str]:
    """What a conversation of these lines writes to standard output and standard error."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", str(folder), "--max-new-tokens", "6", *more]) == 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out, captured.err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[dict[str, str]], SamplingParams]]:
    """The messages and parameters that the engine gets, which answers all the same."""
    calls: list[tuple[list[dict[str, str]], SamplingParams]] = []
    real = Engine.stream_chat

    def stream_chat(
        engine: Engine, messages: list[dict[str, str]], params: SamplingParams, **options: object
    ) -> object:
        calls.append((list(messages), params))
        return real(engine, messages, params, **options)

    monkeypatch.setattr(Engine, "stream_chat", stream_chat)
    return calls


Asked = list[tuple[list[dict[str, str]], SamplingParams]]


def test_several_lines_are_one_question(
    talker: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says(monkeypatch, capsys, talker, "one", '"""', "two", "", "/three", '"""', "four", '"""', "no end")
    assert [messages[-1]["content"] for messages, _ in asked] == ["one", "two\n\n/three", "four", "no end"]


def test_settings_change_in_the_middle(
    talker: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = says(
        monkeypatch, capsys, talker,
        "a", "/set temperature 0.7", "/set seed=3", "b", "/set temperature -1", "/set tempratur 1", "/set stop !", "c",
        "/set stop none", "/set temperature none", "/settings", "d",
    )  # fmt: skip
    params = [each for _, each in asked]
    assert [each.temperature for each in params] == [0.0, 0.7, 0.7, 0.0]
    assert [each.seed for each in params] == [None, 3, 3, 3] and [each.stop for each in params] == [(), (), ("!",), ()]
    assert all(each.max_new_tokens == 6 for each in params)
    assert "temperature" in err and "did you mean temperature?" in err and "max_new_tokens" in out


def test_the_conversation_can_be_taken_back_and_begun_anew(
    talker: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = says(
        monkeypatch, capsys, talker,
        "/undo", "/system be brief", "a", "/retry", "b", "/undo", "/history", "c", "/reset", "d", "/system", "e",
    )  # fmt: skip
    roles = ["".join(message["role"][0] for message in messages) for messages, _ in asked]
    assert roles == ["su", "su", "suau", "suau", "su", "uau"]
    assert [messages[-1]["content"] for messages, _ in asked] == ["a", "a", "b", "c", "d", "e"]
    assert asked[0] == asked[1] and "(nothing was asked yet)" in out and "system: be brief" in out


def test_a_saved_conversation_is_continued(
    talker: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "talk.json", tmp_path / "other.json"
    other.write_text('{"a": 1}')
    _, err = says(
        monkeypatch, capsys, talker,
        "/system be brief", "/set temperature 0.5", "/set seed 4", "a", f"/save {path}", f"/save {path}",
        f"/save {other}", "/save", "b",
    )  # fmt: skip
    assert "is no saved conversation" in err and "needs the name of a file" in err and other.read_text() == '{"a": 1}'
    saved = json.loads(path.read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    _, err = says(monkeypatch, capsys, talker, f"/load {path}", "b", f"/load {other}", "/load nowhere", "c")
    assert asked[2] == asked[1] and "not a saved conversation" in err and "nowhere" in err
    assert len(asked[3][0]) == len(asked[2][0]) + 2


def test_answers_are_explained(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = says(monkeypatch, capsys, talker, "a", "/explain", "b", "/explain", "c", more=("--explain",))
    assert out.count("alternatives") == 2


def test_instructions_stay_when_the_context_is_full(
    folder: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = says(monkeypatch, capsys, folder, *["tell me more"] * 6, more=("--system", "be brief"))
    assert all(messages[0] == {"role": "system", "content": "be brief"} for messages, _ in asked)
    assert "messages were dropped" in err and len(asked) == 6


def test_ctrl_c_stops_the_answer_and_not_the_program(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Engine.stream_chat
    calls = []

    def stream_chat(engine: Engine, messages: list[dict[str, str]], *rest: object, **options: object) -> Iterator[str]:
        calls.append(list(messages))
        for number, piece in enumerate(real(engine, messages, *rest, **options)):  # type: ignore[arg-type]
            yield piece
            if number == 1 and len(calls) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream_chat", stream_chat)
    out, _ = says(monkeypatch, capsys, talker, "a", "b", more=("--temperature", "1", "--seed", "5"))
    assert "(stopped" in out and [message["role"] for message in calls[1]] == ["user", "assistant", "user"]
    assert len(calls[1][1]["content"]) > 0


def test_a_real_terminal(talker: Path, tmp_path: Path) -> None:
    """Ctrl-C on an empty line leaves the program running; the history is kept; Ctrl-D ends it."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    main_end, its_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "QUATRAIN_CACHE": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "quatrain", "chat", str(talker), "--max-new-tokens", "8"],
        stdin=its_end, stdout=its_end, stderr=its_end, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(its_end)
    shown = ""

    def wait_for(pattern: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        nonlocal shown
        end = time.monotonic() + 120
        while not re.search(pattern, shown):
            assert time.monotonic() < end, shown
            with contextlib.suppress(OSError):
                if not select.select([main_end], [], [], 1.0)[0]:
                    meanwhile()
                    continue  # `os.read` alone would wait for ever
                shown += os.read(main_end, 65536).decode(errors="replace")

    wait_for("you> ")
    shown = ""
    # A signal between the prompt and the wait for a key is noticed with the next one.
    wait_for(r"Ctrl-D or /quit leaves\)[\s\S]*you> ", lambda: os.kill(process.pid, signal.SIGINT))
    shown = ""
    os.write(main_end, b"hello\n")
    wait_for(r"tokens/s\)[\s\S]*you> ")
    os.write(main_end, b"\x04")
    assert process.wait(60) == 0
    os.close(main_end)
    assert "hello" in (tmp_path / "chat_history").read_text()


def test_a_model_without_a_tokenizer_is_refused(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((talker / name).read_bytes())
    assert main(["chat", str(tmp_path)]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "The"]) == 2
    assert "tokenizer" in capsys.readouterr().err


def test_a_picture_is_asked_about_taken_back_and_saved(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], talker: Path
) -> None:
    pytest.importorskip("PIL", reason="needs Pillow (extra vision)")
    import numpy as np
    from tiny_llava import make_llava

    from quatrain.data.images import to_png

    folder, picture, saved = make_llava(tmp_path / "seeing"), tmp_path / "a.png", tmp_path / "saved.json"
    picture.write_bytes(to_png(np.full((8, 9, 3), 90, np.uint8)))
    lines = [f"/image {picture}", "what?", "/retry", "/history", f"/save {saved}", "/undo", "again?"]
    out, _ = says(monkeypatch, capsys, folder, *lines)
    assert "9x8 pixels; now ask about it" in out and "user: (picture) what?" in out
    first, retried, last = (messages[-1]["content"] for messages, _ in asked)
    assert isinstance(first, list) and [part["type"] for part in first] == ["image_url", "text"] and retried == first
    assert last == "again?"
    assert json.loads(saved.read_text())["messages"][0]["content"] == first
    _, err = says(monkeypatch, capsys, folder, "/image absent.png", f"/load {saved}", "more?")
    assert "absent.png: there is no such file" in err and len(asked[-1][0]) == 3
    _, err = says(monkeypatch, capsys, talker, f"/image {picture}")
    assert "reads text alone, and cannot see a picture" in err
