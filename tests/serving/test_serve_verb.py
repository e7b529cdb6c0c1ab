"""`quatrain serve`: it starts, answers, stops on Ctrl-C, and refuses what would be unsafe."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving_setup import until

from quatrain.cli import main


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["serve", *words]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_unsafe_and_wrong_options_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUATRAIN_API_KEY", raising=False)
    assert "a key is needed" in refused(capsys, str(folder), "--host", "0.0.0.0")
    assert "no model to serve" in refused(capsys)
    assert "NAME=FOLDER" in refused(capsys, str(folder), "--adapter", "x")
    assert "no such model" in refused(capsys, str(tmp_path / "nothing"))
    assert "port: 70000" in refused(capsys, str(folder), "--port", "70000")
    assert '--device "moon": not available here' in refused(capsys, str(folder), "--device", "moon")
    both = refused(capsys, str(folder), "--draft", str(folder), "--prompt-lookup", "0")
    assert "must be at most one of them" in both and "--prompt-lookup 0: must be at least 1" in both
    assert "not an adapter folder" in refused(capsys, str(folder), "--adapter", f"x={folder}")
    empty = tmp_path / "key"
    empty.write_text("abc\n")
    assert "at least 8" in refused(capsys, str(folder), "--key-file", str(empty))
    assert "does not exist" in refused(capsys, str(folder), "--key-file", str(tmp_path / "none"))
    assert "cannot be listened on" in refused(
        capsys, str(folder), "--host", "192.0.2.1", "--key-file", str(key(tmp_path))
    )


def key(folder: Path) -> Path:
    """A file with a key."""
    path = folder / "good-key"
    path.write_text("a-key-of-some-length\n")
    return path


def test_it_serves_with_the_key_of_a_file_until_ctrl_c(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "quatrain",
        "serve",
        f"mine={folder}",
        "--port",
        "0",
        "--key-file",
        str(key(tmp_path)),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://[\w.:]+", line)
        assert address is not None and "mine" in line and "a-key" not in line
        until(lambda: httpx.get(f"{address[0]}/health").status_code == 200, 60)
        assert httpx.get(f"{address[0]}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer a-key-of-some-length"}
        assert [each["id"] for each in httpx.get(f"{address[0]}/v1/models", headers=headers).json()["data"]] == ["mine"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors and "a-key" not in errors
