"""Streams, arguments and environments as a shell may give them: one message and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from quick_set import slow

import quatrain
from quatrain.cli import main
from quatrain.cli import process as process_module

pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams are closed otherwise elsewhere")

PACKAGE = str(Path(quatrain.__file__).parents[1])
PYTHON = [sys.executable, "-m", "quatrain"]
EVIL = "\x1b]0;title\x07\x9b2J"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run that has a tokenizer, and its text."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "book.txt").write_text("It was a dark night. " * 200)
    (folder / "small.toml").write_text(
        'description = "small"\n[data]\nsource = "book.txt"\n[tokenizer]\nvocab_size = 300\n[[stage]]\n'
        'kind = "tokenizer"\n'
    )
    with contextlib.chdir(folder):
        assert main(["run", "small.toml", "--quiet"]) == 0
    return folder


def shell(command: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    """`quatrain` is in `$Q`: a command of a shell, its exit code and what it wrote."""
    quoted = " ".join(f"'{word}'" for word in PYTHON)
    own = {"PYTHONPATH": PACKAGE, "Q": quoted, "QUATRAIN_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    known = {key: value for key, value in os.environ.items() if key != "QUATRAIN_DATA"}
    command = command.replace("quatrain ", f"{quoted} ")
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=known | own | environment, capture_output=True, timeout=120
    )
    errors = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in errors and "internal" not in errors and "Exception ignored" not in errors, errors
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape"), errors


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("quatrain recipes >&-", 1, "error: standard output is closed"),
        ("quatrain recipes >/dev/full", 1, "error: standard output cannot be written: No space left"),
        ("quatrain run small.toml name=full >/dev/full", 1, "error: standard output cannot be written"),
        ("quatrain --help >/dev/full", 1, "error: standard output cannot be written"),
        ("quatrain nosuch 2>/dev/full >&-", 2, ""),
        ("quatrain recipes 2>&- | head -1", 0, ""),
        slow(("quatrain run small.toml name=quiet --quiet >&-", 0, "")),
        ("quatrain tokenize small - <&-", 2, "error: standard input is closed"),
        (r"printf 'caf\xe9' | quatrain tokenize small -", 2, "standard input, line 1: byte 0xe9 at 3 is not UTF-8"),
        (r"quatrain tokenize small $'caf\xe9'", 2, r'argument 3, "caf\udce9"'),
        ("mkdir gone; cd gone; rmdir ../gone; quatrain doctor", 2, "error: the current folder was deleted"),
        ("quatrain check small.toml --toml | head -1", 0, ""),
    ],
)
def test_a_stream_that_cannot_be_used(folder: Path, command: str, code: int, said: str) -> None:
    found, _, errors = shell(command, folder)
    assert found == code, errors
    assert said in errors and errors.count("error: ") == (1 if said else 0)


@pytest.mark.parametrize("setting", ["LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "LC_ALL=C", "PYTHONWARNINGS=error"])
def test_text_is_utf8_in_any_locale(folder: Path, setting: str) -> None:
    (folder / "größe.txt").write_text("Grüße\n" * 100, encoding="utf-8")
    code, out, errors = shell(f"{setting} quatrain tokenize small 'é' --json", folder)
    expected = shell("quatrain tokenize small 'é' --json", folder)[1]
    assert code == 0 and json.loads(out) == json.loads(expected), errors
    assert shell(f"{setting} quatrain data check größe.txt", folder)[0] == 0


def called(words: list[str], capsys: pytest.CaptureFixture[str], **environment: str) -> tuple[int, str]:
    """The exit code and the message of a command in this process, with more variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        code = main(words)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
          for value in ("x", "-1", "1.5", "²", "9" * 400)],
        ("WORLD_SIZE", "0"), ("RANK", "1"), ("MASTER_PORT", "65536"), ("OMP_NUM_THREADS", "x"),
        ("OMP_NUM_THREADS", "0"), ("OMP_NUM_THREADS", "2,"), ("MKL_NUM_THREADS", "1000000"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = called(["recipes"], capsys, **{name: value})
    assert code == 2 and name in error and error.startswith("error: The environment cannot be used:")
    assert called(["--help"], capsys, **{name: value})[0] == 0


def test_all_wrong_variables_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    _, error = called(["run"], capsys, WORLD_SIZE="x", OMP_NUM_THREADS="x", RANK="y")
    assert all(f"  - {name}=" in error for name in ("WORLD_SIZE", "OMP_NUM_THREADS", "RANK"))
    assert called(["recipes"], capsys, WORLD_SIZE="", OMP_NUM_THREADS=" 4, 2 ")[0] == 0


def test_wrong_folders_of_variables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for name in ("QUATRAIN_DATA", "QUATRAIN_CACHE"):
        for value in ("~nosuch", str(tmp_path / "file"), "x" * 300):
            code, error = called(["data", "list"], capsys, **{name: value})
            assert code == 2 and error.startswith(f"error: {name}"), (name, value)
    assert called(["data", "list"], capsys, QUATRAIN_DATA=str(tmp_path / "nowhere"))[0] == 2


def test_no_home(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(_: int) -> None:
        raise KeyError("uid")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "QUATRAIN_CACHE", "QUATRAIN_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for words in (["data", "list"], ["data", "get", "tinyshakespeare"], ["data", "check", "~/x"], ["run", "~/x.toml"]):
        assert main(words) == 2
        assert "home folder is not known" in capsys.readouterr().err or "~" in words[-1]


@pytest.mark.parametrize("columns", ["0", "1", "2", "20", "-1", "²", "x", "99999999999"])
def test_any_width_is_survived(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for words in (["--help"], ["run", "--help"], ["recipes"]):
        assert main(words) == 0
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["-", "- item", "-5", "--- x", "-x", "-help me", "--temperature is high", "---"])
def test_a_text_may_begin_with_a_hyphen(
    folder: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\r\n".encode())))
    assert main(["tokenize", "small", text, "--json"]) == 0
    ids = json.loads(capsys.readouterr().out)["ids"]
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load("runs/small/stages/01-tokenizer/tokenizer")
    assert ids == tokenizer.encode("é\n" if text == "-" else text)
    assert main(["tokenize", "--json", "small", "--pair", "--json", "x"]) == 2
    assert main(["tokenize", "small", "--", "--json"]) == 0


@pytest.mark.parametrize("words", [["--jsn", "x"], ["x", "--special-token"], ["--jsn"]])
def test_a_mistyped_option_is_no_text(folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", str(folder / "runs/small"), *words]) == 2
    assert "Did you mean --" in capsys.readouterr().err


def test_standard_input_is_bounded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(process_module, "MAX_INPUT_BYTES", 10)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 11)))
    assert main(["tokenize", "nowhere", "-"]) == 2
    for content, said in ((b"12345678901\n", "longer"), (b"a\n\xff\n", "line 2: byte 0xff at 0 is not UTF-8")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        with pytest.raises(quatrain.core.errors.InputError, match=said):
            list(process_module.input_lines())


def test_a_message_shows_control_characters_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [["run", EVIL], ["data", "get", EVIL], ["tokenize", EVIL, "x"], [EVIL], ["data", "check", EVIL]]
    for words in [*lines, ["run", "quickstart", f"{EVIL}=1"], ["check", "quickstart", f"seed={EVIL}"]]:
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert "title" in error and not {"\x1b", "\x07", "\x9b"} & set(error), words


def test_a_terminal_shows_them_as_text_and_a_pipe_gets_the_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.cli.output import show, show_json, show_table, show_text

    show_text(EVIL)
    assert capsys.readouterr().out == EVIL + "\n"
    show_json({"text": EVIL})
    show(EVIL)
    show_table([EVIL, "b"], [[EVIL, 1], [b"\x1b", 2]])
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[0]) == {"text": EVIL} and not {"\x1b", "\x07", "\x9b"} & set(out)


def test_a_terminal_of_20_columns(folder: Path) -> None:
    """Through a real one: tables fit, and what was generated cannot change it."""
    code = (
        "import sys; from quatrain.cli.output import show_text; from quatrain.cli import main; "
        f"show_text({EVIL!r}); sys.exit(main(['recipes']))"
    )
    import fcntl
    import pty
    import struct
    import termios

    main_end, its_end = pty.openpty()

    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 20, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PYTHONPATH": PACKAGE}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=its_end, stderr=its_end, env=environment)
    os.close(its_end)
    out = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(main_end, 65536):
            out += chunk
    os.close(main_end)
    assert process.wait(60) == 0
    lines = out.decode().splitlines()
    assert lines[0] == r"\x1b]0;title\x07\x9b2J" and max(map(len, lines[1:])) <= 20
    assert "quickstart" in lines


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "~nosuch/x", "book.txt/x"])
def test_a_path_that_cannot_be_is_wrong_input(
    folder: Path, path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for words in (["run", path], ["check", path], ["run", "small.toml", "--runs-dir", path], ["data", "check", path],
                  ["tokenize", path, "x"], ["merge", path, "--out", path], ["plan", path],
                  ["evaluate", path, path]):  # fmt: skip
        if path.startswith("~") and "--runs-dir" in words:
            continue  # a folder of that name
        assert main(words) in (2, 1 if words[0] in ("plan", "evaluate", "merge") else 2), words  # an id of the hub
        error = capsys.readouterr().err
        assert error.startswith("error: "), error
